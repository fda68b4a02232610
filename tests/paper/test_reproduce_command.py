"""`reproduce`: the tables it prints and writes, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from command_runs import command, environment
from written_runs import some_runs, write_finished

from cskd_hf.errors import UserError
from cskd_hf.reproduce import main


def reproduce(*args):
    return command(*args, module="cskd_hf.reproduce")


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
        ([], "table: none given; allowed: table1 to table6, all"),
        (["tabel1"], "table: read 'tabel1'; allowed: table1, table2, .*; did you mean table1\\?"),
        (["table1", "--datasets", "cub20"], "--datasets: read 'cub20'; allowed: cifar100, .*; did you mean cub200\\?"),
        (["table1", "--datasets", "imagenet"], "--datasets: read 'imagenet'; allowed: cifar100, tiny_imagenet"),
        (["table1", "--models", "resnet10"], "--models: read 'resnet10'; allowed: resnet18, densenet121"),
        (["table1", "--methods", "cskdd"], "--methods: read 'cskdd'; allowed: cross_entropy, .*; did you mean cskd\\?"),
        (["all", "--datasets", "imagenet", "--models", "resnet18"], "no cell matches all of imagenet, resnet18"),
        (["table1", "--seeds", "-1.5"], "--seeds: read '-1.5'; allowed: whole numbers"),
        (["table1", "--seeds", "x"], "--seeds: read 'x'; allowed: whole numbers"),
        (["table1", "--seeds", "4294967296"], "--seeds: read '4294967296'"),
        (["table1", "run.seed=3"], "run.seed=3: cannot be set for all runs of a table; use --seeds"),
        (["table1", "method.temperature=1"], "method.temperature=1: cannot be set for all runs"),
        (["table1", "data.dataset=x"], "use --data NAME=FOLDER"),
        (["table1", "--data", "cub200"], "--data: read 'cub200'; write NAME=FOLDER"),
        (["table1", "--data", "cub=x"], "--data: read 'cub'; allowed: .*; did you mean cub200\\?"),
        (["table1", "optimizer.lrr=1"], "command line: optimizer.lrr: unknown key, .*; did you mean lr\\?"),
        (["table1", "--seeds", "0", "optimizer.lrr=1"], "optimizer.lrr: unknown key"),
        (["table1", "--data", "cub200=x", "optimizer.lrr=1"], "optimizer.lrr: unknown key"),
        (["table5", "--methods", "kd"], "imagenet_densenet121.yaml: no such recipe"),
        (["table1", "--run", "--jobs", "0"], "--jobs: read '0'; allowed: whole numbers from 1"),
        (["evidence", "--figure", "x.svg"], "--figure: read 'x.svg'; write a file name that ends in .png or .pdf"),
        (["strong", "--figure", "x.png"], "--figure: draws the table evidence"),
        (["table1", "--launcher", "a 'b"], '--launcher: read "a \'b": No closing quotation'),
        (["table1", "--run", "--launcher", "no-such-program x"], "no program 'no-such-program' on this machine"),
    ],
)
def test_bad_input_is_reported_on_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_errors_and_help_do_not_import_torch():
    script = "import sys; from cskd_hf.errors import run_command; from cskd_hf.reproduce import main\n"
    script += "try: run_command(main)\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    for arguments, status in ((["--help"], 0), (["table1", "--methods", "x"], 2), (["table1", "optimizer.lrr=1"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environment(), capture_output=True, text=True, timeout=100
        )
        assert done.stdout.splitlines()[-1] == f"{status} False", done.stderr
