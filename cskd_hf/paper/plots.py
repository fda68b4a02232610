"""The paper's figures for finished runs on the same test images, each as PDF and PNG.

reliability          reliability diagrams, one panel per run
log_probability      log-probabilities of the predicted and of the true label over misclassified images
features             t-SNE of penultimate features, one panel per run
confident_mistakes   the first run's, with their images and every run's most likely labels
superclasses         superclass confusion matrices, where classes are named `superclass: class`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cskd_hf.errors import UserError, one_line
from cskd_hf.evaluation.details import most_confident_mistakes
from cskd_hf.paper.example_plots import confident_mistakes, feature_maps, load_pictures, mistakes_on_a_page
from cskd_hf.paper.finished_runs import FinishedRun, read_runs
from cskd_hf.paper.page_style import Drawing
from cskd_hf.paper.prediction_plots import log_probabilities, reliability_diagrams, superclass_matrices


def draw_figures(folders: Sequence[Path], output: Path) -> list[Path]:
    """Draw every figure that the runs allow, then write them all to `output`; returns the files, in the order above.

    The first run's mistakes are shown. A figure that cannot be drawn, such as the mistakes without the dataset, is
    named on stderr with the reason.

    Raises:
        UserError: see `read_runs`; or `output` cannot be written.
    """
    runs = read_runs(folders)
    try:
        output.mkdir(parents=True, exist_ok=True)
        files: dict[Path, bytes] = {}
        for name, drawing in (
            ("reliability", reliability_diagrams(runs)),
            ("log_probability", log_probabilities(runs) or "no run misclassifies a test image"),
            ("features", feature_maps(runs) or "too few test images for t-SNE"),
            ("confident_mistakes", _mistakes(runs)),
            ("superclasses", superclass_matrices(runs)),
        ):
            if isinstance(drawing, str):
                print(f"note: {name}: not drawn: {drawing}", file=sys.stderr)
            elif drawing is not None:
                files |= {output / f"{name}.{extension}": content for extension, content in drawing.files().items()}
        for path, content in files.items():
            path.write_bytes(content)
    except OSError as error:
        raise UserError(f"--output: {error.filename or output}: {error.strerror or error}") from None
    return list(files)


def _mistakes(runs: Sequence[FinishedRun]) -> Drawing | str:
    """The drawing, or why there is none."""
    images = most_confident_mistakes(runs[0].logits, runs[0].target, mistakes_on_a_page(len(runs))).numpy()
    if not len(images):
        return f"{runs[0].folder} misclassifies no test image"
    try:
        return confident_mistakes(runs, images, load_pictures(runs[0], images))
    except UserError as error:
        return one_line(error)
