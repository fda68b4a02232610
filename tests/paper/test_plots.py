"""The figure files, and their text: names of every kind, none clipped or overlapping."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from figure_runs import digits_run, write_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from cskd_hf.errors import UserError
from cskd_hf.evaluation.details import most_confident_mistakes
from cskd_hf.paper.example_plots import confident_mistakes, feature_maps, mistakes_on_a_page
from cskd_hf.paper.finished_runs import read_runs
from cskd_hf.paper.page_style import PAGE_HEIGHT, TWO_COLUMNS_WIDTH, shortened, text_width
from cskd_hf.paper.plots import draw_figures
from cskd_hf.paper.prediction_plots import log_probabilities, reliability_diagrams, superclass_matrices

ROOT = Path(__file__).resolve().parents[2]
ODD_NAMES = [
    "$\\alpha^^",
    "_private_",
    "Łódź 鳥",
    "a very long name " * 9,
    "line\nbreak",
    "__",
    "100 % $",
    "",
    "{x}",
    "😀",
]


def test_every_figure_is_replaced_by_a_pdf_and_a_png_that_every_process_draws_alike(tmp_path: Path, capsys) -> None:
    runs = [digits_run(tmp_path / str(seed), seed, features=torch.randn(120, 8)) for seed in range(2)]
    output = tmp_path / "a" / "out"
    output.mkdir(parents=True)
    (output / "features.png").write_bytes(b"an older figure")
    files = draw_figures(runs, output)
    assert [path.name for path in files] == [
        f"{name}.{extension}"
        for name in ("reliability", "log_probability", "features", "confident_mistakes")
        for extension in ("pdf", "png")
    ]
    assert sorted(files) == sorted(output.iterdir())
    assert capsys.readouterr().err == ""
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF")
            assert b"/Subject" in content
            assert b"/FontFile2" in content  # TrueType
            assert b"/Type3" not in content
        else:
            with Image.open(path) as image:
                assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
                assert image.width <= 300 * TWO_COLUMNS_WIDTH + 1
                assert image.height <= 300 * (PAGE_HEIGHT + 1)
                assert "CS-KD" in image.info["Description"]
    code = (
        "import sys; from pathlib import Path; from cskd_hf.paper.plots import draw_figures; "
        "*runs, output = map(Path, sys.argv[1:]); draw_figures(runs, output)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "TZ": "UTC+9", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *runs, tmp_path / "there"], env=environment, check=True)
    for path in files:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


def test_an_output_that_is_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    run = write_run(tmp_path / "run")
    for output in (tmp_path / "out", tmp_path / "out" / "below" / "it"):
        with pytest.raises(UserError, match=r"--output: .*out"):
            draw_figures([run], output)
    assert (tmp_path / "out").read_text() == "mine"


def test_odd_names_are_drawn_literally_without_a_warning(tmp_path: Path) -> None:
    names = [f"{'$x_1^^ _' if label % 2 else '_a'}: {name}" for label, name in enumerate(ODD_NAMES)]
    runs = read_runs([digits_run(tmp_path / "$r^^", class_names=names)])
    images = most_confident_mistakes(runs[0].logits, runs[0].target, 2).numpy()
    pictures = [Image.new("RGB", size) for size in ((30, 3), (3, 30))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawings = [reliability_diagrams(runs), log_probabilities(runs), feature_maps(runs)]
        drawings += [superclass_matrices(runs), confident_mistakes(runs, images, pictures)]
        for drawing in drawings:
            assert drawing is not None
            drawing.files()
    features = drawings[2]
    assert features is not None
    shown = [text.get_text() for text in features.figure.legends[0].get_texts()]
    assert shown[0] == "_a: $\\alpha^^"
    assert shown[1].startswith("$x_1^^ _")
    assert shown[2] == "_a: Łódź \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("num_runs", [1, 6])
def test_no_text_is_clipped_or_overlaps(tmp_path: Path, num_runs: int) -> None:
    names = [f"{'superclass' if label % 2 else 'another_superclass'}: {'long_class_name' * 3} {label}" for label in range(10)]  # fmt: skip  # noqa: E501
    method = {"name": "cross_entropy", "smoothing": 0.1}
    settings: dict[str, Any] = {"class_names": names, "method": method, "features": torch.zeros(120, 8)}
    folders = [digits_run(tmp_path / f"a-long-name-{number}", **settings) for number in range(num_runs)]
    runs = read_runs(folders)
    images = most_confident_mistakes(runs[0].logits, runs[0].target, mistakes_on_a_page(num_runs)).numpy()
    pictures = [Image.new("RGB", (30, 20))] * len(images)
    for drawing in (
        reliability_diagrams(runs),
        log_probabilities(runs),
        feature_maps(runs),
        superclass_matrices(runs),
        confident_mistakes(runs, images, pictures),
    ):
        assert drawing is not None
        canvas = FigureCanvasAgg(drawing.figure)
        canvas.draw()
        box, (width, height) = drawing.figure.get_tightbbox(canvas.get_renderer()), drawing.figure.get_size_inches()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        texts_above = [text for axes in drawing.figure.axes for text in axes.get_children() if isinstance(text, Text)]
        extents = [text.get_window_extent() for text in texts_above if text.get_text() and text.get_visible()]
        for number, extent in enumerate(extents):
            assert not any(extent.overlaps(other) for other in extents[:number])


@pytest.mark.parametrize("name", [*ODD_NAMES, "cub200: 001.Black_footed_Albatross"])
@pytest.mark.parametrize("width", [20.0, 60.0, 400.0])
def test_a_shortened_name_is_one_line_of_the_given_width(name: str, width: float) -> None:
    shown = shortened(name, width, 7.0)
    assert text_width(shown, 7.0) <= width
    assert "\n" not in shown
    if "…" not in shown:
        assert len(shown) == len(" ".join(name.split()))
