"""Classes, mistakes and pairs on the page, before and after a run has finished; the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from pairing_cases import split_of
from PIL import Image
from random_logits import predictions
from report_pages import LINES, Page, evaluated, write_run, write_unfinished

from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import ClassPairSampler, ImageSampler
from cskd_hf.data.transforms import Transform
from cskd_hf.evaluation.comparison import measure
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.recipe.sections import TransformSection
from cskd_hf.report.figures import reliability_diagram
from cskd_hf.report.pairs import MAX_SIDE, MIN_SIDE, write_pairs
from cskd_hf.report.report import write_report
from cskd_hf.report.side_by_side import write_comparison

LABELS, ANSWERS = [0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2]


def test_compared_runs_say_of_which_split_their_curves_and_diagrams_are(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "with"), write_run(tmp_path / "without")]
    lines = [{"epoch": 0, "train/loss": 2.0, "test/top1_error": 30.0}]
    (runs[1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logits, target = predictions()
    for run in runs:
        reliability_diagram(logits, target, None, run / "figures" / "reliability.png")
    found = Predictions(logits, target, target, None, {})
    models = [measure(str(run), found, tuple("abcdefg"), count=0) for run in runs]
    write_comparison(models, [], runs, tmp_path / "page.html", "Models on split 'val'")
    page = Page(tmp_path / "page.html")
    assert "1 with: the run's own test split" in page.text
    assert "2 without: the run's own test split" in page.text
    curves = next(tag for tag in page.tags if (tag[1].get("src") or "").startswith("data:image/svg"))[1]["src"]
    assert curves is not None
    drawn = base64.b64decode(curves.partition("base64,")[2]).decode()
    assert all(f"● {name}" in drawn for name in ("1 with, holdout", "2 without, test", "1 with, train"))


def test_each_class_has_its_images_recall_precision_and_most_frequent_confusion(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run"), evaluated(LABELS, ANSWERS)))
    rows = [row for row in page.rows if len(row) == 6 and row[0] in tuple("abc")]
    assert rows == [
        ["a", "3", "33.3", "100.0", "b", "2"],
        ["b", "2", "50.0", "33.3", "c", "1"],
        ["c", "1", "100.0", "50.0", "", ""],
    ]
    assert [row[:4] for row in page.rows if len(row) == 4 and row[0] in tuple("abc")] == [
        ["a", "1", "2", ""],
        ["b", "", "1", "1"],
        ["c", "", "", "1"],
    ]


def test_with_many_classes_the_confusions_are_listed_instead_of_a_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cskd_hf.report.details.MAX_MATRIX", 2)
    monkeypatch.setattr("cskd_hf.report.details.MAX_CLASSES", 2)
    page = Page(write_report(write_run(tmp_path / "run"), evaluated(LABELS, ANSWERS)))
    assert [row for row in page.rows if len(row) == 4 and row[0] in tuple("abc")] == [
        ["a", "b", "2", "3"],
        ["b", "c", "1", "2"],
    ]
    assert [row[0] for row in page.rows if len(row) == 6][1:3] == ["a", "b"]  # the lowest recall
    assert "The 2 classes with the lowest recall of 3." in page.text


def test_the_most_confident_mistakes_come_with_their_pictures_and_probabilities(tmp_path: Path) -> None:
    shown = evaluated(LABELS, ANSWERS)
    page = Page(write_report(write_run(tmp_path / "run"), shown))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"][1:]  # after the curves
    assert [picture["alt"] for picture in pictures] == [f"An image of the class {name}" for name in "baa"]
    for picture, row in zip(pictures, (4, 2, 1), strict=True):
        content = base64.b64decode(str(picture["src"]).partition(",")[2])
        expected = shown.images.transform(shown.images.split.fetch([row])[0], 0).permute(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), expected)
        assert f"row {row}, pic{row}.png" in page.text
    logits = shown.predictions.logits[4].double().numpy() / 1.4142  # the run's temperature
    share = 100 * np.exp(logits[2]) / np.exp(logits).sum()
    assert f"c {share:.2f} %" in page.text


@pytest.mark.parametrize("lines", [[], LINES[:1], LINES[:2]], ids=["started", "not evaluated", "evaluated"])
def test_an_unfinished_run_has_a_page_that_says_so(tmp_path: Path, lines: list[dict[str, float]]) -> None:
    lines = [
        line | {"holdout/nll": 1.5, "holdout/ece": 2.5} if "holdout/top1_error" in line else line for line in lines
    ]
    folder = write_unfinished(tmp_path / "run", lines)
    page = Page(write_report(folder, evaluated(LABELS, ANSWERS, split="hold-out") if len(lines) == 2 else None))
    assert f"This run is not finished: {len(lines)} of 2 epochs are done." in page.text
    assert "test_resnet on digits, cskd" in page.text
    expected = (
        "58.75 % of the hold-out images are classified correctly after epoch 2. Top-1 error 41.25 %; as trained, NLL"
    )
    assert (expected in page.text) == (len(lines) == 2)
    assert ("6 hold-out images." in page.text) == (len(lines) == 2)
    assert "Use the weights" not in page.text


@pytest.mark.parametrize("side", [10, 160, 300])
@pytest.mark.parametrize("views", [1, 2])
def test_the_pairs_are_the_first_images_of_training_pixel_by_pixel(tmp_path: Path, side: int, views: int) -> None:
    split = split_of([0, 1, 2] * 6)
    images = PairedImages(split, Transform(TransformSection(input_size=(3, side, side)), is_training=True))
    sampler = ClassPairSampler(split.labels, seed=3) if views == 2 else ImageSampler(len(split), seed=3)
    draws = sampler.draws(0, 12 // views)
    sampler.set_epoch(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    write_pairs(images, sampler, tmp_path / "figures" / "pairs.png")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    with Image.open(tmp_path / "figures" / "pairs.png") as image:
        sheet, text = np.asarray(image), image.info["Description"]
    assert f"{side}×{side} pixels" in text
    factor = -(-MIN_SIDE // side) if side < MIN_SIDE else 1
    if side > MAX_SIDE:
        assert sheet.shape[1] < 4 * MAX_SIDE + 50
        return
    cells = []
    for draw in draws:
        for number, index in enumerate(draw.indices):
            pixels = images.transform(split.fetch([index])[0], draw.seed + number).permute(1, 2, 0).numpy()
            cells.append(pixels.repeat(factor, 0).repeat(factor, 1))
    size, line = side * factor, round(1.4 * (side * factor / 7))
    gap = 0 if views == 2 else 16
    for number, cell in enumerate(cells):
        row, column = divmod(number, 4)
        top = row * (size + line + 8) + line
        left = column * (size + gap) + (16 * (column // 2) if views == 2 else 0)
        np.testing.assert_array_equal(sheet[top : top + size, left : left + size], cell)


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def largest(tmp_path_factory) -> Path:
    """A page with everything on it: long names, noise at 224 pixels, which compresses worst."""
    folder = write_run(tmp_path_factory.mktemp("page") / "run")
    shown = evaluated([0, 1, 2, 3] * 12, [1, 1, 2, 0] * 12, side=224)
    names = ("a class with a long name, as ImageNet has them", "<b>", "Übergrößenträger" * 3, "d")
    object.__setattr__(shown.images.split, "class_names", names)
    logits, target = shown.predictions.logits, shown.predictions.target
    reliability_diagram(logits, target, 2.0, folder / "figures" / "reliability.png")
    training = PairedImages(shown.images.split, Transform(TransformSection(input_size=(3, 224, 224)), True))
    write_pairs(training, ClassPairSampler(shown.images.split.labels), folder / "figures" / "pairs.png")
    return write_report(folder, shown)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_a_phone_and_a_screen_in_light_and_dark(browser, largest, width, scheme) -> None:
    assert largest.stat().st_size < 5e6
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(largest.as_uri(), width=width)
    browser.wait_for("document.readyState === 'complete' && [...document.images].every(image => image.naturalWidth)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing is wider than the page but what scrolls by itself, and each of those boxes says so.
    outside = "[...document.querySelectorAll('main *')].filter(element => !element.closest('.wide, pre'))"
    assert browser.evaluate(f"Math.max(...{outside}.map(e => e.getBoundingClientRect().right))") <= width
    boxes = "[...document.querySelectorAll('.wide')]"
    scrolling = browser.evaluate(f"{boxes}.map(box => box.scrollWidth > box.clientWidth)")
    assert browser.evaluate(f"{boxes}.map(box => box.querySelector('.hint').offsetHeight > 0)") == scrolling
    assert any(scrolling) == (width == 400)
    # A phone does not shrink the figures: their text stays legible.
    figures = "[...document.querySelectorAll('.figures img')]"
    curves, _, reliability = browser.evaluate(f"{figures}.map(e => e.offsetWidth / e.getAttribute('width'))")
    assert min(curves, reliability) > 0.95
    brightness = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]"
    assert (browser.evaluate(brightness) < 64) == (scheme == "dark")
    contrast = "getComputedStyle(document.body).color.match(/[0-9]+/g).map(Number)[0]"
    assert abs(browser.evaluate(brightness) - browser.evaluate(contrast)) > 128
    shot = base64.b64decode(browser.call("Page.captureScreenshot")["data"])
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("L"))
    assert (np.median(pixels) < 64) == (scheme == "dark")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_click_sorts_the_classes_by_number_and_by_name(browser, largest) -> None:
    browser.open(largest.as_uri())
    browser.wait_for("document.readyState === 'complete'")
    column = "[...document.querySelectorAll('.tall tbody')][0].rows"
    values = f"[...{column}].map(row => row.cells[2].textContent)"
    for expected in (["100.0", "100.0", "0.0", "0.0"], ["0.0", "0.0", "100.0", "100.0"]):
        browser.evaluate("document.querySelectorAll('th button')[2].click()")
        assert browser.evaluate(values) == expected
    browser.evaluate("document.querySelectorAll('th button')[0].click()")
    assert browser.evaluate("document.querySelectorAll('th[aria-sort]').length") == 1
    names = browser.evaluate(f"[...{column}].map(row => row.cells[0].textContent)")
    assert [name[0] for name in names] == ["Ü", "d", "a", "<"]
    assert all(request.startswith(("file:", "data:")) for request in browser.requests)
