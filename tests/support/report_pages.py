"""Run folders with a report, written without training, and a parser of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import torch
import yaml
from pairing_cases import split_of
from summaries import ENVIRONMENT, SUMMARY, make_recipe

from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.transforms import Transform
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.recipe.recipe import dump_recipe
from cskd_hf.recipe.sections import TransformSection
from cskd_hf.report.details import Evaluated
from cskd_hf.runs.environment import record_environment
from cskd_hf.runs.summary import Summary, write_summary

VOID = {"meta", "img", "br", "hr", "link", "input"}

LINES: list[dict[str, float]] = [
    {"epoch": 0, "step": 390, "lr": 0.1, "train/loss": 4.0, "train/top1_error": 90.0},
    {"epoch": 1, "step": 780, "lr": 0.1, "train/loss": 3.0, "train/top1_error": 80.0, "holdout/top1_error": 41.25},
    {"epoch": 2, "step": 1170, "lr": 0.01, "train/loss": 2.0, "train/top1_error": 70.0, "holdout/top1_error": 43.5},
]


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; asserts that tags nest."""

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
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def write_run(folder: Path, summary: Summary = SUMMARY, lines: Sequence[dict[str, float]] = LINES) -> Path:
    """A finished run."""
    folder.mkdir(parents=True)
    write_summary(folder, summary)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": {"dataset": "cifar100", "batch_size": 123}}))
    record_environment(folder, ENVIRONMENT, 0)
    return folder


def write_unfinished(folder: Path, lines: Sequence[dict[str, float]]) -> Path:
    """A run of two epochs that is still in training."""
    folder.mkdir(parents=True)
    recipe = make_recipe(folder)
    dump_recipe(recipe.replace(data={"holdout": "holdout"}), folder / "recipe.yaml")
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record_environment(folder, ENVIRONMENT, 0)
    return folder


def evaluated(labels: Sequence[int], answers: Sequence[int], side: int = 16, split: str = "test") -> Evaluated:
    """Images of noise, each predicted as the class in `answers`; later images with more confidence."""
    target, num_classes = torch.tensor(labels), max(*labels, *answers) + 1
    logits = torch.zeros(len(labels), num_classes)
    logits[torch.arange(len(labels)), torch.tensor(answers)] = torch.linspace(2, 8, len(labels))
    predictions = Predictions(logits, target, torch.arange(len(labels)), None, {})
    transform = Transform(TransformSection(input_size=(3, side, side)), is_training=False)
    return Evaluated(split, predictions, PairedImages(split_of(labels, paths=True), transform))
