"""The demo page in a real browser, with uploaded pictures."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import CHROMIUM, Browser
from command_runs import command, draw_folder, draw_image, environment, quick, summary_of, write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="needs gradio: pip install -r scripts/space/requirements.txt"
    ),
]

SPACE = Path(__file__).resolve().parents[2] / "scripts" / "space"
METHODS = ("cskd", "cross_entropy")

BARS = "[...document.querySelectorAll('section')].map(s => [...s.querySelectorAll('li')].map(row => row.innerText))"
HAS_BARS = "document.querySelector('li .bar') !== null"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def runs(folder):
    """A run of each method on six classes, one with HTML in its name."""
    data = draw_folder(folder / "images", {"train": [8] * 6, "test": [4] * 6, "holdout": [36] * 6})
    for split in ("train", "test", "holdout"):
        (data / split / "class 2").rename(data / split / "a <b>bold & long name of a class, which has to be wrapped")
    for method in METHODS:
        recipe = write_recipe(
            folder / f"{method}.yaml", data, data={"test_split": "test", "holdout": "holdout"}, method={"name": method}
        )
        assert quick(recipe).status == 0
    return [folder / method for method in METHODS]


@pytest.fixture(scope="module")
def address(folder, runs):
    """URL of the page of both runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, SPACE / "app.py", *runs],
        env=environment()
        | {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "uploads"), "PYTHONUNBUFFERED": "1"},
        cwd=tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    for line in server.stdout:
        if "Running on local URL" in line:
            break
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.fixture
def page(browser, address):
    browser.open(address)
    browser.wait_for(
        "document.querySelectorAll('section').length === 2 && document.querySelector('input[type=file]') !== null"
    )
    return browser


def predicted(run, images):
    """Name and percentage of each bar, as `python -m cskd_hf.predict` prints them."""
    result = command(run, *images, module="cskd_hf.predict")
    assert result.status == 0, result.stderr
    bars: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        if not line.startswith("  "):
            rows = bars.setdefault(line, [])
        else:
            percent, name = line.strip().split(" %  ")
            rows.append(f"{name}\n{percent} %")
    return bars


def remove_picture(page):
    page.evaluate("""document.querySelector("button[aria-label='Remove Image']").click()""")
    page.wait_for(
        "document.querySelector('[role=alert], .bar') === null && document.querySelector('input[type=file]') !== null"
    )


def test_the_bars_of_an_uploaded_picture_match_predict(page, runs, folder):
    images = [folder / f"picture {mode}.png" for mode in ("RGB", "L")]
    for number, image in enumerate(images):
        draw_image(4 + number, seed=number).convert(image.stem.split()[1]).save(image)
    expected = [predicted(run, images) for run in runs]
    for image in images:
        page.upload("input[type=file]", image)
        page.wait_for(HAS_BARS)
        shown = page.evaluate(BARS)
        assert shown == [bars[str(image)] for bars in expected]
        assert [len(bars) for bars in shown] == [5, 5]
        assert any("<b>" in row for row in shown[0])
        shares = page.evaluate(
            "[...document.querySelectorAll('.bar')].map(bar => bar.offsetWidth / bar.parentElement.offsetWidth)"
        )
        percents = [float(re.search(r"([\d.]+) %", row)[1]) for bars in shown for row in bars]
        assert [100 * share for share in shares] == pytest.approx(percents, abs=0.5)  # a pixel
        remove_picture(page)


def test_temperature_and_calibration_error_are_those_of_the_run(page, runs):
    for number, run in enumerate(runs):
        metrics = summary_of(run)["metrics"]
        facts = page.evaluate(f"document.querySelectorAll('.facts')[{number}].innerText")
        assert metrics["calibration"]["verdict"].partition("calibrated: ")[2] in facts
        assert f"{metrics['last']['ece']:.2f} %" in facts
    titles = page.evaluate("[...document.querySelectorAll('h2, .run')].map(e => e.innerText)")
    assert titles == ["CS-KD", "cskd", "Cross-entropy", "cross_entropy"]


@pytest.mark.parametrize("content", [b"no picture", None], ids=["not an image", "half an image"])
def test_a_bad_picture_gives_a_message_and_the_next_one_bars(page, folder, content):
    good, bad = folder / "good.png", folder / "bad.png"
    draw_image(1, seed=2).save(good)
    whole = good.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if content is None else content)
    page.upload("input[type=file]", bad)
    sentence = page.wait_for("document.querySelector('[role=alert]')?.innerText")
    assert sentence == "This file is not a readable picture; try another one."
    assert not page.evaluate(HAS_BARS)
    remove_picture(page)
    page.upload("input[type=file]", good)
    page.wait_for(HAS_BARS)


@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 1)], ids=["wide", "phone"])
def test_the_models_are_side_by_side_if_there_is_room_and_nothing_is_cut_off(page, address, folder, width, columns):
    page.open(address, width=width)
    page.wait_for(f"innerWidth === {width} && document.querySelectorAll('section').length === 2")
    image = folder / "picture.png"
    draw_image(2, seed=3).save(image)
    page.wait_for("document.querySelector('input[type=file]') !== null")
    page.upload("input[type=file]", image)
    page.wait_for(HAS_BARS)
    tops = page.evaluate("[...document.querySelectorAll('section')].map(s => s.getBoundingClientRect().top)")
    assert len(set(tops)) == 3 - columns
    assert page.evaluate("document.documentElement.scrollWidth") == width
    right = page.evaluate(
        "Math.max(...[...document.querySelectorAll('section *')].map(e => e.getBoundingClientRect().right))"
    )
    assert right <= width


def test_the_page_sends_no_request_to_other_servers(page, address):
    hosts = {urlsplit(request).netloc for request in page.requests if request.startswith("http")}
    assert hosts == {urlsplit(address).netloc}


def test_a_baseline_with_other_classes_gives_one_line(runs, tmp_path):
    other = tmp_path / "run" / "model"
    other.mkdir(parents=True)
    config = json.loads((runs[1] / "model" / "config.json").read_text(encoding="utf-8"))
    config["label_names"][0] = "something else"
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (other / "model.safetensors").write_bytes((runs[1] / "model" / "model.safetensors").read_bytes())
    done = subprocess.run(
        [sys.executable, SPACE / "app.py", runs[0], f"local-dir:{other}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "other classes than" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_app_writes_nothing_to_its_folder(page):
    assert page.evaluate("document.title") == "How sure is it?"
    assert {path.name for path in SPACE.iterdir()} <= {"app.py", "requirements.txt", "README.md", "__pycache__"}
