"""The runs behind the paper's tables: which they are, what became of them, how long the rest takes, training it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import yaml
from command_runs import ROOT, command, environment
from written_runs import as_trained, some_runs, write_finished, write_unfinished

from cskd_hf.data.load import resolve
from cskd_hf.errors import UserError
from cskd_hf.estimate import estimate
from cskd_hf.experiments import RunKey, Setup, runs_of
from cskd_hf.methods import METHODS
from cskd_hf.paper import PAPER_RESULTS, select
from cskd_hf.recipe import dump_recipe, load_recipe, recipe_hash
from cskd_hf.reproduce import main
from cskd_hf.results.collect import find_run

CUB = {"datasets": ["cub200"], "models": ["resnet18"]}


def one_run(root, method="cskd", seed=0):
    (run,) = some_runs(root, "table1", methods=[method], seeds=[seed], **CUB).values()
    return run


def reproduce(*args):
    return command(*args, module="cskd_hf.reproduce")


# Which runs


def test_every_figure_of_the_paper_is_a_cell():
    content = yaml.safe_load(PAPER_RESULTS.read_text(encoding="utf-8"))
    for table, parts in content.items():
        figures = Counter()

        def count(value, figures=figures):
            if isinstance(value, dict):
                for each in value.values():
                    count(each)
            else:
                figures[tuple(value) if isinstance(value, list) else (value, None)] += 1

        for name, part in parts.items():
            if name not in ("caption", "metric"):
                count(part)
        blocks = select([table])
        assert Counter(figure for block in blocks for figure in block.paper.values()) == figures
        assert sum(len(block.methods) * len(block.columns) for block in blocks) == sum(figures.values())


TEACHER = "R/cub200_densenet121-cskd-seed1"


@pytest.mark.parametrize(
    ("method", "section"),
    [
        ("cross_entropy", {"name": "cross_entropy", "smoothing": 0.0}),
        ("label_smoothing", {"name": "cross_entropy", "smoothing": 0.1}),
        ("cskd", {"name": "cskd", "temperature": 1.0, "distill_loss_weight": 2.0}),
        ("cskd_e", {"name": "cskd_e", "temperature": 1.0, "distill_loss_weight": 2.0}),
        ("mixup+cskd", {"name": "mixup_cskd", "temperature": 1.0, "distill_loss_weight": 2.0}),
        ("mutual_cskd", {"name": "mutual_cskd", "temperature": 1.0, "distill_loss_weight": 2.0}),
        ("kd", {"name": "distillation", "teacher": TEACHER, "temperature": 4.0, "distill_loss_weight": 0.9}),
        (
            "kd+cskd",
            {
                "name": "distillation_cskd",
                "teacher": TEACHER,
                "temperature": 4.0,
                "distill_loss_weight": 0.9,
                "class_wise_temperature": 1.0,
                "class_wise_loss_weight": 2.0,
            },
        ),
    ],
)
def test_a_row_trains_its_method_with_the_coefficients_of_the_recipe(tmp_path, monkeypatch, method, section):
    # A recipe of one's own, with coefficients that are no method's defaults.
    text = (ROOT / "recipes" / "cub200_resnet10.yaml").read_text(encoding="utf-8")
    assert "temperature: 4.0" in text
    assert "distill_loss_weight: 3.0" in text
    text = text.replace("temperature: 4.0", "temperature: 1.0").replace("_weight: 3.0", "_weight: 2.0")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "cub200_resnet10.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runs = some_runs(Path("R"), "table4", datasets=["cub200"], methods=[method], seeds=[1])
    run = runs[RunKey("cub200", "resnet10", method, 1)]
    trained = run.expected.to_dict()["method"]
    assert {key: trained[key] for key in section} == section
    assert run.folder == Path(f"R/cub200_resnet10-{method.replace('+', '_')}-seed1")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_a_row(method):
    runs = some_runs(Path("R"), "table2", methods=[method], seeds=[0], **CUB)
    assert list(runs.values())[-1].expected.method.name == method


@pytest.mark.parametrize("method", ["cskd", "cross_entropy"])
def test_the_folder_is_the_one_that_training_itself_chooses(method):
    recipe = load_recipe("recipes/cub200_resnet18.yaml", [] if method == "cskd" else [f"method={{name: {method}}}"])
    run = one_run(Path("runs"), method)
    assert recipe.run.output_dir == run.folder.as_posix()
    assert recipe_hash(resolve(recipe)) == recipe_hash(run.expected)


def test_what_training_is_told_is_what_is_expected():
    setup = Setup(Path("null"), {"cub200": "1e-4", "mit67": "a: b"}, ("optimizer.lr=0.05", "data.workers=2"))
    runs = runs_of(select(["table4"], ["cub200", "mit67", "cifar100"]), [0, 7], setup)
    for key, run in runs.items():
        told = resolve(load_recipe(f"recipes/{run.recipe}.yaml", run.overrides))
        assert told == run.expected
        assert (told.run.seed, told.optimizer.lr) == (key.seed, 0.05)
        assert told.run.output_dir == run.folder.as_posix()
        assert told.data.dataset == {"cub200": "1e-4", "mit67": "a: b", "cifar100": "cifar100"}[key.dataset]


def test_teachers_come_first_and_once_and_of_the_students_seed():
    runs = some_runs(Path("R"), "all", datasets=["cub200", "mit67"], seeds=[0, 1])
    teachers = [RunKey(dataset, "densenet121", "cskd", seed) for dataset in ("cub200", "mit67") for seed in (0, 1)]
    assert set(list(runs)[:4]) == set(teachers)
    students = {key: run.teacher for key, run in runs.items() if run.teacher is not None}
    assert len(students) == 8
    assert all(teacher == key._replace(model="densenet121", method="cskd") for key, teacher in students.items())
    assert {teacher: None for key, teacher in students.items()}.keys() == set(teachers)


def test_the_small_sets_teachers_are_the_networks_own_runs_with_cskd(tmp_path, capsys):
    arguments = ["evidence", "--commands", "--methods", "kd", "--seeds", "4", "--runs", str(tmp_path)]
    assert main([*arguments, "--data", "fashion_mnist_1k=./fashion"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    names = ["digits_resnet10-{}-seed4", "fashion_mnist_1k_test_resnet-{}-seed4"]
    folders = [f"{tmp_path}/{name.format(method)}" for method in ("cskd", "kd") for name in names]
    assert [line[-1] for line in lines] == [f"run.output_dir={folder}" for folder in folders]
    for student, teacher in zip(lines[2:], folders[:2], strict=True):
        assert f"method={{name: distillation, teacher: {teacher}}}" in student
    assert ["data.dataset=./fashion" in line for line in lines] == [False, True, False, True]


def test_seeds_are_as_many_as_the_papers_where_none_are_named():
    runs = runs_of(select(["table1", "table5"], methods=["cskd"]), None, Setup(Path("R"), {}))
    assert {key.seed for key in runs if key.dataset != "imagenet"} == {0, 1, 2}
    assert {key.seed for key in runs if key.dataset == "imagenet"} == {0}


def test_a_method_the_paper_lacks_is_a_row_without_its_figures():
    (block,) = select(["table2"], ["cub200"], methods=["pskd", "cskd"])
    assert block.methods == ("cskd", "pskd")
    assert ("pskd", "cub200", "resnet18") not in block.paper
    # One that another table asked for has is shown where the paper has it.
    rows = {block.table: block.methods for block in select(["table2", "table3"], methods=["mixup", "cskd"])}
    assert rows == {"table2": ("cskd",), "table3": ("cskd", "mixup")}


# What became of them


def test_a_folder_is_told_by_what_it_holds(tmp_path):
    run = one_run(tmp_path)
    assert find_run(run).describe(run) == "not started"
    run.folder.mkdir()
    assert find_run(run).describe(run) == "not started"
    (run.folder / "lock.json").touch()  # a moment ago
    assert find_run(run).describe(run) == "not started"
    shutil.rmtree(run.folder)
    write_unfinished(run, 37)
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 37, "tra')  # a kill cut it
    assert find_run(run).describe(run) == "unfinished (37 of 200 epochs)"
    shutil.rmtree(run.folder)
    write_finished(run, 33.0)
    assert find_run(run).describe(run) == "finished"


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_another_recipe_is_named_with_the_keys_that_differ(tmp_path, finished):
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {}, ("optimizer.lr=0.05",)))
    (other,) = held.values()
    write_finished(other, 33.0) if finished else write_unfinished(other, 3)
    found = find_run(one_run(tmp_path))
    assert (found.status, found.problem) == ("another recipe", "optimizer.lr: 0.05 in the folder, 0.1 expected")
    assert found.summary is None


def test_a_run_on_a_prepared_folder_is_found_by_naming_it(tmp_path, capsys):
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {"cub200": "./birds"}))
    write_finished(next(iter(held.values())), 33.0)
    arguments = ["table1", "--datasets", "cub200", "--models", "resnet18", "--methods", "cskd", "--seeds", "0"]
    assert main([*arguments, "--runs", str(tmp_path)]) == 2
    problem = 'data.dataset: "./birds" in the folder, "cub200" expected'
    assert f"another recipe ({problem}); --data says where a set's images lie" in capsys.readouterr().err
    assert main([*arguments, "--runs", str(tmp_path), "--data", "cub200=./birds"]) == 0
    assert "| 33.00 (1) " in capsys.readouterr().out


def test_settings_that_change_no_number_make_no_other_recipe(tmp_path):
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {}, ("data.workers=1",)))
    write_finished(next(iter(held.values())), 33.0)
    assert find_run(one_run(tmp_path)).status == "finished"


def test_a_precision_that_is_expected_must_be_the_folders(tmp_path):
    write_finished(one_run(tmp_path), 33.0)  # in bf16
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {}, ("run.mixed_precision=no",)))
    found = find_run(next(iter(held.values())))
    assert found.problem == 'run.mixed_precision: "bf16" in the folder, "no" expected'


def test_a_teacher_is_the_same_run_where_the_folder_of_runs_has_moved(tmp_path):
    chosen = {"datasets": ["cub200"], "methods": ["kd"], "seeds": [0]}
    before = some_runs(tmp_path / "scratch", "table4", **chosen)
    for run in before.values():
        write_finished(run, 33.0)
    (tmp_path / "scratch").rename(tmp_path / "runs")
    after = some_runs(tmp_path / "runs", "table4", **chosen)
    assert [find_run(run).status for run in after.values()] == ["finished", "finished"]
    student = list(after.values())[-1]
    text = (student.folder / "recipe.yaml").read_text(encoding="utf-8")
    (student.folder / "recipe.yaml").write_text(text.replace("cskd-seed0", "cskd-seed1"), encoding="utf-8")
    (student.folder / "summary.json").unlink()
    assert "method.teacher" in find_run(student).problem


def _cut(run):
    text = (run.folder / "summary.json").read_text(encoding="utf-8")
    (run.folder / "summary.json").write_text(text[:100], encoding="utf-8")


def _drop_metric(run):
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    del summary["metrics"]["last"]["ece"]
    (run.folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def _not_a_number(run):
    text = (run.folder / "summary.json").read_text(encoding="utf-8")
    (run.folder / "summary.json").write_text(text.replace('"top1_error": 33.0', '"top1_error": NaN'), encoding="utf-8")


def _edit_recipe(run):
    dump_recipe(as_trained(run).replace(optimizer={"lr": 0.2}), run.folder / "recipe.yaml")


def _newer_recipe(run):
    with (run.folder / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write("horizon: {depth: 3}\n")


def _no_recipe(run):
    (run.folder / "recipe.yaml").unlink()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_cut, "summary.json: Invalid JSON"),
        (_drop_metric, "summary.json: metrics.last.ece: Field required"),
        (_not_a_number, "summary.json: "),
        (_edit_recipe, "recipe_hash is"),
        (_newer_recipe, "horizon: no such section"),
        (_no_recipe, "no recipe.yaml"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path, capsys, spoil, named):
    runs = some_runs(tmp_path, "table1", methods=["cskd"], seeds=[0, 1], **CUB)
    for run in runs.values():
        write_finished(run, 33.0)
    bad, _ = runs.values()
    spoil(bad)
    arguments = ["table1", "--runs", str(tmp_path), "--methods", "cskd", "--seeds", "0", "1"]
    assert main([*arguments, "--datasets", "cub200", "--models", "resnet18"]) == 2
    stdout, stderr = capsys.readouterr()
    assert "| 33.00 (1) " in stdout
    (line,) = stderr.splitlines()
    assert line.startswith(f"error: {bad.folder}: left out: unreadable (")
    assert named in line


def test_a_table_is_printed_and_written_in_three_formats(tmp_path):
    runs = some_runs(tmp_path / "runs", "table4", datasets=["cub200"], methods=["cskd"], seeds=[0, 1])
    for key, run in runs.items():
        write_finished(run, 39.0 + key.seed)
    options = ["--datasets", "cub200", "--methods", "cskd", "--seeds", "0", "1", "--runs", tmp_path / "runs"]
    done = reproduce("table4", *options, "--output", tmp_path / "out")
    assert done.status == 0, done.stderr
    assert "39.50 ± 0.71 (2)" in done.stdout
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["table4.json", "table4.md", "table4.tex"]
    assert done.stderr.splitlines() == [
        f"wrote {tmp_path / 'out' / f'table4{end}'}" for end in (".md", ".tex", ".json")
    ]
    assert (tmp_path / "out" / "table4.md").read_text(encoding="utf-8").strip() == done.stdout.strip()
    assert r"39.50 $\pm$ 0.71" in (tmp_path / "out" / "table4.tex").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "table4.json").read_text(encoding="utf-8"))["cells"][0]["mean"] == 39.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "table: none named; allowed: table1 to table6, all"),
        (["tabel1"], "table: read 'tabel1'; allowed: table1, table2, .*; did you mean table1\\?"),
        (["table1", "--datasets", "cub20"], "--datasets: read 'cub20'; allowed: cifar100, .*; did you mean cub200\\?"),
        (["table1", "--datasets", "imagenet"], "--datasets: read 'imagenet'; allowed: cifar100, tiny_imagenet"),
        (["table1", "--models", "resnet10"], "--models: read 'resnet10'; allowed: resnet18, densenet121"),
        (["table1", "--methods", "cskdd"], "--methods: read 'cskdd'; allowed: cross_entropy, .*; did you mean cskd\\?"),
        (["all", "--datasets", "imagenet", "--models", "resnet18"], "no cell is of imagenet, resnet18 at once"),
        (["table1", "--seeds", "-1.5"], "--seeds: read '-1.5'; allowed: whole numbers"),
        (["table1", "--seeds", "x"], "--seeds: read 'x'; allowed: whole numbers"),
        (["table1", "--seeds", "4294967296"], "--seeds: read '4294967296'"),
        (["table1", "run.seed=3"], "run.seed=3: not for every run of a table; use --seeds"),
        (["table1", "method.temperature=1"], "method.temperature=1: not for every run"),
        (["table1", "data.dataset=x"], "use --data NAME=FOLDER"),
        (["table1", "--data", "cub200"], "--data: read 'cub200'; write NAME=FOLDER"),
        (["table1", "--data", "cub=x"], "--data: read 'cub'; allowed: .*; did you mean cub200\\?"),
        (["table1", "optimizer.lrr=1"], "command line: optimizer.lrr: unknown key, .*; did you mean lr\\?"),
        (["table1", "--seeds", "0", "optimizer.lrr=1"], "optimizer.lrr: unknown key"),
        (["table1", "--data", "cub200=x", "optimizer.lrr=1"], "optimizer.lrr: unknown key"),
        (["table5", "--methods", "kd"], "imagenet_densenet121.yaml: no such recipe"),
        (["table1", "--launcher", "a 'b"], '--launcher: read "a \'b": No closing quotation'),
        (["table1", "--run", "--launcher", "no-such-program x"], "no program 'no-such-program' on this machine"),
        (["--smoke", "table1"], "--smoke: read 'table1'; it takes --runs and --output alone"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_errors_and_help_come_before_torch_is_imported():
    script = "import sys; from cskd_hf.errors import run_command; from cskd_hf.reproduce import main\n"
    script += "try: run_command(main)\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    for arguments, status in ((["--help"], 0), (["table1", "--methods", "x"], 2), (["table1", "optimizer.lrr=1"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environment(), capture_output=True, text=True, timeout=100
        )
        assert done.stdout.splitlines()[-1] == f"{status} False", done.stderr


# How long


def test_hours_come_from_finished_runs_of_the_same_images_network_and_method(tmp_path, capsys):
    runs = some_runs(tmp_path, "table1", methods=["cskd"], **CUB)
    first, second, third = runs.values()
    write_finished(first, 33.0, speed=400.0, num_processes=4)
    write_unfinished(second, 50)
    elsewhere = some_runs(tmp_path, "table1", datasets=["mit67"], models=["resnet18"], methods=["cskd"], seeds=[0])
    write_finished(next(iter(elsewhere.values())), 40.0, speed=9000.0)
    arguments = ["table1", "--plan", "--datasets", "cub200", "--models", "resnet18", "--methods", "cskd"]
    assert main([*arguments, "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 100 images a second a device; an evaluated image is a third of a trained one.
    whole = (200 * 5994 + 201 * 5794 / 3) / 100 / 3600
    rest = (150 * 5994 + 151 * 5794 / 3) / 100 / 3600
    state = f"unfinished (50 of 200 epochs); finished {first.folder.name}"
    assert " ".join(lines[1].split()) == f"{rest:.2f} {second.folder.name} {state}"
    assert lines[2].split()[:2] == [f"{whole:.2f}", third.folder.name]
    assert lines[3].split()[0] == f"{rest + whole:.2f}"
    assert "2 runs; 1 of 3 finished" in lines[3]


def test_other_images_tell_of_a_run_where_network_size_batch_and_method_are_the_same(tmp_path, capsys):
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


@pytest.mark.parametrize("method", METHODS)
def test_what_no_run_tells_of_is_probed_once(tmp_path, capsys, method):
    overrides = ("model={model_name: test_resnet}", "transform.input_size=[3, 32, 32]", "data.batch_size=4")
    blocks = select(["table4"], ["cub200", "stanford_dogs"], methods=[method])
    runs = runs_of(blocks, [0, 1], Setup(tmp_path, {}, overrides))
    missing = [key for key in runs if key.model == "resnet10"]
    rates = estimate(runs, missing, tmp_path)
    assert list(rates) == missing
    ((speed, source),) = set(rates.values())
    assert speed > 0
    assert source.startswith("probe on ")
    assert capsys.readouterr().err == f"probe 1 of 1: test_resnet, 32×32, batch 4, {method}\n"
    assert list(tmp_path.iterdir()) == []


# Training them


def test_a_launch_line_trains_exactly_the_missing_run(tmp_path, capsys):
    root, birds = tmp_path / "my runs", {"cub200": "./my birds"}
    runs = runs_of(select(["table4"], ["cub200"]), [0], Setup(root, birds))
    write_finished(runs.pop(RunKey("cub200", "resnet10", "cskd", 0)), 40.0)
    other = some_runs(root, "table4", datasets=["cub200"], methods=["cross_entropy"], seeds=[0])
    write_finished(next(iter(other.values())), 40.0)
    refused = runs.pop(RunKey("cub200", "resnet10", "cross_entropy", 0))
    launcher = "accelerate launch --num_processes 4"
    arguments = ["table4", "--commands", "--datasets", "cub200", "--seeds", "0", "--data", "cub200=./my birds"]
    assert main([*arguments, "--runs", str(root), "--launcher", launcher]) == 2
    stdout, stderr = capsys.readouterr()
    assert len(runs) == 3
    for line, run in zip(stdout.splitlines(), runs.values(), strict=True):
        *start, _, recipe = shlex.split(line)[:7]
        assert [*start, recipe] == [*launcher.split(), "-m", f"recipes/{run.recipe}.yaml"]
        told = resolve(load_recipe(recipe, shlex.split(line)[7:]))
        assert recipe_hash(told) == recipe_hash(run.expected)
    note, error = stderr.splitlines()
    assert note == "note: lines 1 train teachers; let them finish before the rest"
    assert error.startswith(f"error: {refused.folder}: left out: another recipe (data.dataset: ")


def _launcher(folder, script):
    """A program that stands where `accelerate launch` would: it gets `-m cskd_hf.train RECIPE overrides…`."""
    path = folder / "launch"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        "folder = Path(sys.argv[-1].removeprefix('run.output_dir='))\n" + script
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_run_that_fails_stops_none_but_its_students(tmp_path, capsys):
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
    assert "| 48.00 (1) " in stdout  # finished before, and left alone
    assert "| 40.00 (1) " in stdout  # after the one that failed
    teacher = tmp_path / "runs" / "cub200_densenet121-cskd-seed0"
    assert [line for line in stderr.splitlines() if line.startswith(f"error: {tmp_path}")] == [
        f"error: {teacher}: exit status 2: no such card",
        f"error: {tmp_path / 'runs' / 'cub200_resnet10-kd-seed0'}: its teacher {teacher} is missing",
        f"error: {tmp_path / 'runs' / 'cub200_resnet10-kd_cskd-seed0'}: its teacher {teacher} is missing",
    ]
    assert stderr.count("epoch 1") == 2


def test_a_folder_of_another_recipe_is_not_trained_over(tmp_path, capsys):
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {}, ("optimizer.lr=0.05",)))
    (other,) = held.values()
    write_unfinished(other, 3)
    launcher = _launcher(tmp_path, "(folder / 'touched').touch()\n")
    arguments = ["table1", "--run", "--datasets", "cub200", "--models", "resnet18", "--methods", "cskd"]
    assert main([*arguments, "--seeds", "0", "--runs", str(tmp_path), "--launcher", launcher]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (other.folder / "touched").exists()


def test_a_launcher_that_trains_nothing_is_a_failure(tmp_path, capsys):
    arguments = ["table1", "--run", "--datasets", "cub200", "--models", "resnet18", "--methods", "cskd"]
    assert main([*arguments, "--seeds", "0", "--runs", str(tmp_path), "--launcher", _launcher(tmp_path, "")]) == 1
    assert "exit status 0, but not started" in capsys.readouterr().err


def test_an_interrupt_ends_the_run_and_this_command_at_once(tmp_path):
    launcher = _launcher(tmp_path, "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(300)\n")
    options = ["--datasets", "cub200", "--models", "resnet18", "--methods", "cskd", "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "cskd_hf.reproduce", "table1", "--run", *options, "--launcher", launcher],
        env=environment(),
        cwd=tempfile.gettempdir(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as this may be one, starts with interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    child = next(int(line.split()[1]) for line in process.stderr if line.startswith("pid "))
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=100)  # the run alone would go on for longer
        assert process.returncode == 130
        assert said.splitlines()[-1] == "interrupted"
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
