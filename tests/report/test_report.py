from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from report_pages import LINES, Page, evaluated, write_run
from summaries import ENVIRONMENT, SUMMARY, summary_without_holdout

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.report.figures import reliability_diagram
from cskd_hf.report.report import model_readme, write_report
from cskd_hf.runs.environment import record_environment
from cskd_hf.runs.summary import Summary


def page_of(*run: Any) -> Page:
    return Page(write_report(write_run(*run)))


def with_changes(**changes: dict[str, Any]) -> Summary:
    """`SUMMARY` with some fields of some records changed."""
    record = SUMMARY.model_dump(mode="json")
    for name, fields in changes.items():
        record[name] |= fields
    return Summary.model_validate(record)


def test_the_report_states_what_ran_and_what_came_out(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run")
    for text in (
        *("a-run", "cifar100", "resnet18_cskd", "cskd, temperature=4.0, loss_weight=1.0", "11,220,132"),
        *("images: train 45,000, test 10,000, holdout 5,000", "seed 7", SUMMARY.recipe_hash, "batch_size: 123"),
        *("2,432 images/s on 8 processes", "2.1 %", "3.00 GiB", "2 h 17 min"),
        *("8 × Fast GPU, bf16; cskd_hf 0.1.0, commit 0123456", "3.10.99", *SUMMARY.notes),
        f"Probabilities: {SUMMARY.metrics.verdict}. The hold-out set (5,000 images) was not trained on",
        "Best epoch on the hold-out set: 2, 41.25 % top-1 error.",
        "For information only; the result above is the last epoch's.",
    ):
        assert text in page.text


def test_every_metric_has_its_definition_and_both_values(tmp_path: Path) -> None:
    page, metrics = page_of(tmp_path / "run"), SUMMARY.metrics
    assert metrics.metrics_scaled is not None
    for name, definition in DEFINITIONS.items():
        (row,) = (row for row in page.rows if row[0] == name + definition)
        assert [float(cell) for cell in row[1:]] == [dict(metrics.last)[name], dict(metrics.metrics_scaled)[name]]


def test_without_a_holdout_set_the_report_states_that_no_temperature_was_fitted(tmp_path: Path) -> None:
    lines = [{key: value for key, value in line.items() if "holdout" not in key} for line in LINES]
    page = page_of(tmp_path / "run", summary_without_holdout(), lines)
    assert "no temperature was fitted, the run had no hold-out set (data.holdout: 0)." in page.text
    assert "after temperature" not in page.text
    assert "Best epoch" not in page.text
    assert [len(row) for row in page.rows if row[0].startswith("top1_error")] == [2]


def test_missing_measurements_are_left_out(tmp_path: Path) -> None:
    last = SUMMARY.metrics.last.model_dump() | {"recall_at_1": None}
    page = page_of(tmp_path / "run", with_changes(metrics={"last": last}, throughput={"peak_memory_bytes": None}))
    assert not any(row[0].startswith("recall_at_1") for row in page.rows)
    assert "peak memory" not in page.text


def test_every_segment_of_a_run_that_moved_is_listed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    record_environment(folder, ENVIRONMENT | {"num_processes": 4, "git": None}, 1200)
    page = Page(write_report(folder))
    assert "from step 0: 8 × Fast GPU, bf16; cskd_hf 0.1.0, commit 0123456" in page.text
    assert "from step 1,200: 4 × Fast GPU, bf16; cskd_hf 0.1.0 " in page.text


@pytest.mark.parametrize("needs_cskd_hf", [True, False])
def test_the_code_loads_the_weights_from_the_folder_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_cskd_hf: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    page = page_of(Path("runs/here"), with_changes(model={"needs_cskd_hf": needs_cskd_hf}))
    assert 'timm.create_model("local-dir:runs/here/model", pretrained=True)' in page.text
    assert str(tmp_path) not in page.text
    (code,) = (text for text in page.texts if "create_model" in text)
    assert code.startswith("import cskd_hf.models ") == needs_cskd_hf
    compile(code, "report", "exec")


def test_every_epoch_has_a_row_and_a_missing_key_an_empty_cell(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run")
    header = next(row for row in page.rows if row[0] == "epoch")
    rows = [row for row in page.rows if len(row) == len(header) and row[0].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[header.index("holdout/top1_error")] for row in rows] == ["", "41.25", "43.5"]
    assert [row[header.index("step")] for row in rows] == ["390", "780", "1170"]


def test_the_page_loads_nothing_from_outside_and_runs_only_its_own_script(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    reliability_diagram(logits, torch.arange(50) % 5, 2.0, folder / "figures" / "reliability.png")
    page = Page(write_report(folder, evaluated([0, 1, 1], [0, 0, 1])))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(str(image["src"]).startswith("data:image/") for image in images)
    assert [str(image["alt"]).split()[0] for image in images] == ["Learning", "Reliability", "An"]
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object"})
    for tag, attributes in page.tags:
        assert tag == "img" or {"src", "href", "srcset"}.isdisjoint(attributes)
        assert not any(name.startswith("on") for name in attributes)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@pytest.mark.parametrize(
    ("record", "key"),
    [(None, "name"), ("dataset", "name"), ("model", "model_name"), ("method", "name"), ("method", "partner")],
)
def test_names_from_outside_are_shown_and_never_run(tmp_path: Path, record: str | None, key: str) -> None:
    hostile = '<script>alert("1")</script> & {{ body }}'
    summary = SUMMARY.model_copy(update={key: hostile}) if record is None else with_changes(**{record: {key: hostile}})
    summary = summary.model_copy(update={"notes": (f"skipped: {hostile}",)})
    page = page_of(tmp_path / "run", summary, [*LINES, {"epoch": 3, hostile: 1.0}])
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert page.text.count(hostile) >= 3  # in its place, in the note and in the head of the epoch table


def test_the_report_replaces_an_older_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    before = {path.name for path in folder.iterdir()}
    (folder / "report.html").write_text("old")
    path = write_report(folder)
    assert path == folder / "report.html"
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}


def test_the_readme_of_the_weights_loads_them_and_lists_the_metrics(tmp_path: Path) -> None:
    text = model_readme(SUMMARY, tmp_path / "run")
    assert text.startswith("---\nlibrary_name: timm\n")
    assert f'timm.create_model("local-dir:{tmp_path}/run/model"' in text
    assert f"| top5_error | 11 | 31 | {DEFINITIONS['top5_error']} |" in text
    assert "Divide the logits by 1.4142 before the softmax" in text
    text = model_readme(summary_without_holdout(), tmp_path / "run")
    assert f"| top5_error | 11 | {DEFINITIONS['top5_error']} |" in text
    assert "no temperature was fitted" in text
