from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.report.figures import learning_curves, reliability_diagram
from cskd_hf.report.report import write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}

SUMMARY: dict[str, Any] = {
    "recipe_hash": "0123abcd",
    "seed": 7,
    "epochs": 3,
    "selection": "last",
    "name": "a-run",
    "dataset": {"name": "cifar100", "num_classes": 100, "images": {"train": 45000, "holdout": 5000, "test": 10000}},
    "model": {"model_name": "resnet18_cskd", "num_parameters": 11_220_132, "needs_cskd_hf": True},
    "method": {"name": "cskd", "temperature": 4.0, "loss_weight": 1.0},
    "metrics": {
        "last": {name: 10.0 + index for index, name in enumerate(DEFINITIONS)},
        "temperature": 1.4142,
        "metrics_scaled": {name: 30.0 + index for index, name in enumerate(DEFINITIONS)},
    },
    "throughput": {
        "images_per_second": 2431.7,
        "data_wait_share": 0.021,
        "peak_memory_bytes": 3 * 2**30,
        "train_seconds": 8231.2,
        "num_processes": 8,
    },
    "skipped_images": {"train": 1},
    "notes": ["1 unreadable image of the train split was skipped"],
}
LINES: list[dict[str, float]] = [
    {"epoch": 0, "step": 390, "lr": 0.1, "train/loss": 4.0, "train/top1_error": 90.0},
    {"epoch": 1, "step": 780, "lr": 0.1, "train/loss": 3.0, "train/top1_error": 80.0, "holdout/top1_error": 41.25},
    {"epoch": 2, "step": 1170, "lr": 0.01, "train/loss": 2.0, "train/top1_error": 70.0, "holdout/top1_error": 43.5},
]


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; asserts that every tag closes what was opened last."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)
        if "tr" in self.open:
            self.rows[-1][-1] += data


def write_run(run_dir: Path, summary: dict[str, Any], lines: list[dict[str, float]] = LINES) -> Path:
    run_dir.mkdir(parents=True)
    (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump({"data": {"dataset": "cifar100", "batch_size": 123}}))
    (run_dir / "environment.json").write_text(json.dumps({"python": "3.10.99", "packages": {"torch": "2.6.0"}}))
    return run_dir


@pytest.fixture
def summary() -> dict[str, Any]:
    return copy.deepcopy(SUMMARY)


def test_the_report_says_what_was_run_and_what_came_out(tmp_path: Path, summary: dict[str, Any]) -> None:
    page = Page(write_report(write_run(tmp_path / "run", summary)))
    for said in ("a-run", "cifar100", "resnet18_cskd", "cskd (temperature=4.0, loss_weight=1.0)", "11,220,132"):
        assert said in page.text
    for said in (
        "seed 7",
        "0123abcd",
        "2,432 images/s",
        "2.1 %",
        "3.00 GiB",
        "2 h 17 min",
        "batch_size: 123",
        "3.10.99",
    ):
        assert said in page.text
    assert summary["notes"][0] in page.text


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_metric_stands_with_its_definition_and_both_values(
    tmp_path: Path, summary: dict[str, Any], name: str
) -> None:
    page = Page(write_report(write_run(tmp_path / "run", summary)))
    (row,) = (row for row in page.rows if row[0] == name + DEFINITIONS[name])
    assert [float(cell) for cell in row[1:]] == [
        summary["metrics"]["last"][name],
        summary["metrics"]["metrics_scaled"][name],
    ]


def test_rates_have_the_two_decimals_of_the_paper(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary["metrics"]["last"] |= {"top1_error": 21.994, "nll": 0.81236}
    page = Page(write_report(write_run(tmp_path / "run", summary)))
    values = {row[0]: row[1] for row in page.rows}
    assert values["top1_error" + DEFINITIONS["top1_error"]] == "21.99"
    assert values["nll" + DEFINITIONS["nll"]] == "0.8124"


def test_the_temperature_names_the_split_it_was_fitted_on(tmp_path: Path, summary: dict[str, Any]) -> None:
    page = Page(write_report(write_run(tmp_path / "run", summary)))
    assert "The temperature, 1.414, was fitted on the held-out split (5,000 images)" in page.text


def test_without_a_held_out_split_there_is_no_temperature_and_the_report_says_so(
    tmp_path: Path, summary: dict[str, Any]
) -> None:
    summary["metrics"] |= {"temperature": None, "metrics_scaled": None}
    summary["dataset"]["images"] |= {"holdout": 0}
    lines = [{key: value for key, value in line.items() if "holdout" not in key} for line in LINES]
    page = Page(write_report(write_run(tmp_path / "run", summary, lines)))
    assert "No held-out split: data.holdout=0, so no temperature." in page.text
    assert "after temperature" not in page.text
    assert "Best held-out epoch" not in page.text
    assert [len(row) for row in page.rows if row[0].startswith("top1_error")] == [2]


def test_the_best_held_out_epoch_is_labelled_and_is_not_the_result(tmp_path: Path, summary: dict[str, Any]) -> None:
    page = Page(write_report(write_run(tmp_path / "run", summary)))
    assert "Best held-out epoch: 1 (the first is 0), 41.25 % top-1 error" in page.text
    assert "For information; the result above is the last epoch." in page.text


def test_a_metric_that_was_not_measured_and_a_run_without_accelerator_are_said_plainly(
    tmp_path: Path, summary: dict[str, Any]
) -> None:
    summary["metrics"]["last"]["recall_at_1"] = None
    summary["throughput"]["peak_memory_bytes"] = None
    page = Page(write_report(write_run(tmp_path / "run", summary)))
    (row,) = (row for row in page.rows if row[0].startswith("recall_at_1"))
    assert row[1] == "not measured"
    assert "peak memory" not in page.text


@pytest.mark.parametrize("needs_cskd_hf", [True, False])
def test_the_code_loads_the_weights_from_the_folder_as_it_was_given(
    tmp_path: Path, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, needs_cskd_hf: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    summary["model"]["needs_cskd_hf"] = needs_cskd_hf
    page = Page(write_report(write_run(Path("runs/here"), summary)))
    assert 'timm.create_model("local-dir:runs/here/model", pretrained=True)' in page.text
    assert str(tmp_path) not in page.text
    (code,) = (text for text in page.texts if "create_model" in text)
    assert code.startswith("import cskd_hf.models ") == needs_cskd_hf
    compile(code, "report", "exec")


def test_every_epoch_has_a_row_and_a_missing_key_an_empty_cell(tmp_path: Path, summary: dict[str, Any]) -> None:
    page = Page(write_report(write_run(tmp_path / "run", summary)))
    header = next(row for row in page.rows if row[0] == "epoch")
    rows = [row for row in page.rows if len(row) == len(header) and row[0].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[header.index("holdout/top1_error")] for row in rows] == ["", "41.25", "43.5"]


def test_the_page_needs_nothing_beside_it(tmp_path: Path, summary: dict[str, Any]) -> None:
    run_dir = write_run(tmp_path / "run", summary)
    learning_curves(LINES, run_dir / "figures" / "learning_curves.png")
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    reliability_diagram(logits, torch.arange(50) % 5, 2.0, run_dir / "figures" / "reliability.png")
    page = Page(write_report(run_dir))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in images)
    assert [str(image["alt"]).split()[0] for image in images] == ["Learning", "Reliability"]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    for tag, attributes in page.tags:
        assert tag == "img" or {"src", "href", "srcset"}.isdisjoint(attributes)
    assert "url(" not in (run_dir / "report.html").read_text()
    assert "@import" not in (run_dir / "report.html").read_text()


@pytest.mark.parametrize(
    ("section", "key"),
    [(None, "name"), ("dataset", "name"), ("model", "model_name"), ("method", "name"), ("method", "partner")],
)
def test_names_from_outside_are_shown_and_never_run(
    tmp_path: Path, summary: dict[str, Any], section: str | None, key: str
) -> None:
    hostile = '<script>alert("1")</script> & $body'
    (summary if section is None else summary[section])[key] = hostile
    summary["notes"] = [f"skipped: {hostile}"]
    page = Page(write_report(write_run(tmp_path / "run", summary, [*LINES, {"epoch": 3, hostile: 1.0}])))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(hostile) >= 3  # in its place, in the note and in the head of the epoch table


def test_the_report_replaces_an_older_one_and_leaves_nothing_else(tmp_path: Path, summary: dict[str, Any]) -> None:
    run_dir = write_run(tmp_path / "run", summary)
    before = {path.name for path in run_dir.iterdir()}
    (run_dir / "report.html").write_text("old")
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert {path.name for path in run_dir.iterdir()} == before | {"report.html"}
