"""Training the missing runs behind the paper's tables: time estimates, launching, failures, interrupts."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile

import pytest
from command_runs import environment
from written_runs import CUB, ONE_RUN, one_run, some_runs, write_finished, write_unfinished

from cskd_hf.methods import METHODS
from cskd_hf.paper.blocks import PAPER_NAMES, RunKey
from cskd_hf.paper.experiments import Setup, runs_of
from cskd_hf.paper.launch import run_missing
from cskd_hf.paper.plan import estimate
from cskd_hf.paper.selection import select
from cskd_hf.recipe.recipe import load_recipe, recipe_hash
from cskd_hf.recipe.resolve import resolve
from cskd_hf.reproduce import main


def test_hours_come_from_finished_runs_of_the_same_dataset_network_and_method(tmp_path, capsys):
    runs = some_runs(tmp_path, "table1", methods=["cskd"], **CUB)
    first, second, third = runs.values()
    write_finished(first, 33.0, speed=400.0, num_processes=4)
    write_unfinished(second, 50)
    elsewhere = some_runs(tmp_path, "table1", datasets=["mit67"], models=["resnet18"], methods=["cskd"], seeds=[0])
    write_finished(next(iter(elsewhere.values())), 40.0, speed=9000.0)
    assert main([*ONE_RUN, "1", "2", "--plan", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 100 images per second and device; an evaluated image costs a third of a trained one.
    whole = (200 * 5994 + 201 * 5794 / 3) / 100 / 3600
    rest = (150 * 5994 + 151 * 5794 / 3) / 100 / 3600
    state = f"unfinished (50 of 200 epochs); finished {first.folder.name}"
    assert " ".join(lines[1].split()) == f"{rest:.2f} {second.folder.name} {state}"
    assert lines[2].split()[:2] == [f"{whole:.2f}", third.folder.name]
    assert lines[3].split()[0] == f"{rest + whole:.2f}"
    assert "2 runs; 1 of 3 finished" in lines[3]


def test_hours_fall_back_to_other_datasets_with_the_same_workload(tmp_path, capsys):
    runs = some_runs(tmp_path, "table1", methods=["cskd", "adacos"], seeds=[0])
    speeds = {
        ("mit67", "resnet18", "cskd"): 300.0,
        ("stanford_dogs", "resnet18", "cskd"): 100.0,
        ("stanford_dogs", "densenet121", "cskd"): 6000.0,
        ("cub200", "resnet18", "adacos"): 7000.0,
        ("cifar100", "resnet18", "cskd"): 9000.0,
    }
    for key, run in runs.items():
        if key[:3] in speeds:
            write_finished(run, 33.0, speed=speeds[key[:3]])
    rates = estimate(runs, [RunKey("cub200", "resnet18", "cskd", 0)], tmp_path)
    ((_, rate),) = rates.items()
    assert rate.images_per_second == 200.0
    assert rate.source == "finished mit67_resnet18-cskd-seed0 and 1 more"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("method", ["cskd", "pskd", "distillation"])  # with a memory, with a teacher
def test_an_unknown_workload_is_probed_once(tmp_path, capsys, method):
    overrides = ("model={model_name: test_resnet}", "transform.input_size=[3, 32, 32]", "data.batch_size=4")
    blocks = select(["table4"], ["cub200", "stanford_dogs"], methods=[method])
    runs = runs_of(blocks, [0, 1], Setup(tmp_path, {}, overrides))
    missing = [key for key in runs if key.model == "resnet10"]
    rates = estimate(runs, missing, tmp_path)
    assert list(rates) == missing
    ((speed, source),) = set(rates.values())
    assert speed > 0
    assert source.startswith("probe on ")
    cost = runs[missing[0]].expected.method.cost
    assert capsys.readouterr().err == f"probe 1 of 1: test_resnet, 32×32, batch 4, {method}, cost {cost:.3g}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_printed_command_trains_exactly_the_missing_run(tmp_path, capsys):
    root, birds = tmp_path / "my runs", {"cub200": "./my birds"}
    runs = runs_of(select(["table4"], ["cub200"]), [0], Setup(root, birds))
    write_finished(runs.pop(RunKey("cub200", "resnet10", "cskd", 0)), 40.0)
    other = some_runs(root, "table4", datasets=["cub200"], methods=["cross_entropy"], seeds=[0])
    write_finished(next(iter(other.values())), 40.0)
    rejected = runs.pop(RunKey("cub200", "resnet10", "cross_entropy", 0))
    launcher = "accelerate launch --num_processes 4"
    arguments = ["table4", "--commands", "--datasets", "cub200", "--seeds", "0", "--data", "cub200=./my birds"]
    assert main([*arguments, "--runs", str(root), "--launcher", launcher]) == 2
    stdout, stderr = capsys.readouterr()
    assert len(runs) == 3
    for line, run in zip(stdout.splitlines(), runs.values(), strict=True):
        *start, _, recipe = shlex.split(line)[:7]
        assert [*start, recipe] == [*launcher.split(), "-m", run.recipe]
        assert recipe_hash(resolve(load_recipe(recipe, shlex.split(line)[7:]))) == recipe_hash(run.expected)
    note, error = stderr.splitlines()
    assert note == "note: lines 1 train teachers; they must finish before the others"
    assert error.startswith(f"error: {rejected.folder}: skipped: another recipe (data.dataset: ")


def _launcher(folder, script):
    """A stand-in for `accelerate launch`, called with `-m cskd_hf.train RECIPE overrides…`."""
    path = folder / "launch"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        "folder = Path(sys.argv[-1].removeprefix('run.output_dir='))\n" + script
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_failed_run_stops_only_its_students(tmp_path, capsys):
    chosen = {"datasets": ["cub200"], "seeds": [0]}
    for run in some_runs(tmp_path / "ready", "table4", **chosen).values():
        write_finished(run, 40.0)
    runs = some_runs(tmp_path / "runs", "table4", **chosen)
    write_finished(runs[RunKey("cub200", "resnet10", "cross_entropy", 0)], 48.0)
    launcher = _launcher(
        tmp_path,
        "print('epoch 1', flush=True)\n"
        "if 'densenet121' in folder.name:\n"
        "    print('error: no such card', file=sys.stderr)\n"
        "    sys.exit(2)\n"
        "import shutil\n"
        f"shutil.copytree(Path({str(tmp_path / 'ready')!r}) / folder.name, folder)\n",
    )
    arguments = ["table4", "--run", "--datasets", "cub200", "--seeds", "0", "--runs", str(tmp_path / "runs")]
    assert main([*arguments, "--launcher", launcher]) == 1
    stdout, stderr = capsys.readouterr()
    assert "| 48.00 (1) " in stdout  # finished before, not retrained
    assert "| 40.00 (1) " in stdout  # trained after the failure
    teacher = tmp_path / "runs" / "cub200_densenet121-cskd-seed0"
    assert [line for line in stderr.splitlines() if line.startswith(f"error: {tmp_path}")] == [
        f"error: {teacher}: exit status 2: no such card",
        f"error: {tmp_path / 'runs' / 'cub200_resnet10-kd-seed0'}: its teacher {teacher} is missing",
        f"error: {tmp_path / 'runs' / 'cub200_resnet10-kd_cskd-seed0'}: its teacher {teacher} is missing",
    ]
    assert stderr.count("epoch 1") == 2


def test_jobs_train_side_by_side_on_their_share_of_the_cores_and_students_wait(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    chosen = {"datasets": ["digits"], "methods": ["cskd", "kd", "cross_entropy"], "seeds": [0]}
    ready = some_runs(tmp_path / "ready", "evidence", **chosen)
    for run in ready.values():
        write_finished(run, 3.0)
    runs = some_runs(tmp_path / "runs", "evidence", **chosen)
    first = [run.folder.name for run in runs.values()][:2]
    launcher = _launcher(
        tmp_path,
        "import os, shutil, time\n"
        "print('threads:', os.environ['OMP_NUM_THREADS'], flush=True)\n"
        "(folder.parents[1] / f'{folder.name}.started').touch()\n"
        f"if folder.name in {first}:\n"
        "    end = time.monotonic() + 60\n"
        f"    while not all((folder.parents[1] / f'{{name}}.started').exists() for name in {first}):\n"
        "        assert time.monotonic() < end, 'the other run does not start'\n"
        "        time.sleep(0.01)\n"
        "if '-kd-' in folder.name:\n"
        f"    assert (folder.parent / {first[0]!r} / 'summary.json').exists(), 'the teacher is still training'\n"
        "shutil.copytree(folder.parents[1] / 'ready' / folder.name, folder)\n",
    )
    assert run_missing(runs, [launcher], jobs=2) == {}
    lines = capfd.readouterr().err.splitlines()
    threads = max(1, (os.cpu_count() or 1) // 2)
    started = {f"{run.folder.name}: threads: {threads}" for run in runs.values()}
    assert started == {line for line in lines if "threads" in line}
    assert len(runs) == len(started) == 6


def test_a_folder_of_another_recipe_is_not_overwritten(tmp_path, capsys):
    other = one_run(tmp_path, overrides=["optimizer.lr=0.05"])
    write_unfinished(other, 3)
    launcher = _launcher(tmp_path, "(folder / 'touched').touch()\n")
    assert main([*ONE_RUN, "--run", "--runs", str(tmp_path), "--launcher", launcher]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (other.folder / "touched").exists()


def test_a_launcher_that_trains_nothing_has_failed(tmp_path, capsys):
    assert main([*ONE_RUN, "--run", "--runs", str(tmp_path), "--launcher", _launcher(tmp_path, "")]) == 1
    assert "exit status 0, but not started" in capsys.readouterr().err


def test_an_interrupt_stops_the_run_and_the_command(tmp_path):
    launcher = _launcher(tmp_path, "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(300)\n")
    arguments = [*ONE_RUN, "--run", "--runs", str(tmp_path / "runs"), "--launcher", launcher]
    process = subprocess.Popen(
        [sys.executable, "-m", "cskd_hf.reproduce", *arguments],
        env=environment(),
        cwd=tempfile.gettempdir(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # This may be a shell's background job, which starts with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    child = next(int(line.split()[1]) for line in process.stderr if line.startswith("pid "))
    process.send_signal(signal.SIGINT)
    try:
        _, stderr = process.communicate(timeout=100)  # the run sleeps longer
        assert process.returncode == 130
        assert stderr.splitlines()[-1] == "interrupted"
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


# Of cost 2: the run at equal epochs is that at equal compute.
@pytest.mark.parametrize(
    "methods", [["mutual_cskd"], pytest.param(list(METHODS), marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_the_command_trains_and_tabulates(tmp_path, methods, capfd):
    settings = ["model={model_name: test_resnet}", "transform.input_size=[3,32,32]", "data.batch_size=16"]
    settings += ["data.workers=0", "scheduler.num_epochs=1"]
    rows = [PAPER_NAMES.get(method, method) for method in methods]
    selection = ["evidence", "--datasets", "digits", "--methods", *rows, "--seeds", "0", *settings]
    output = tmp_path / "tables"
    assert main([*selection, "--run", "--runs", str(tmp_path / "runs"), "--output", str(output)]) == 0
    summaries = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/*/summary.json")}
    cells = json.loads((output / "evidence.json").read_text())["cells"]
    values = [
        (f"digits_resnet10-{cell['method'].replace('+', '_')}-seed{seed}", cell["metric"], value)
        for cell in cells
        for seed, value in cell["values"].items()
        if cell["epochs"] == 1 and cell["metric"] != "ece_scaled"
    ]
    assert {folder for folder, *_ in values} == {folder for folder in summaries if "epochs-" not in folder}
    for folder, metric, value in values:
        assert value == summaries[folder]["metrics"]["last"][metric]
    printed = capfd.readouterr().out
    assert all(f"| `{row}`" in printed for row in rows)
