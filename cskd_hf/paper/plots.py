"""The figures of the paper, of any finished runs on the same test images: each as PDF and PNG.

reliability          reliability diagrams, a panel a run
log_probability      log-probabilities of the predicted and of the true label over misclassified images
features             t-SNE of penultimate features, a panel a run
confident_mistakes   the first run's, with their pictures, and the most likely labels to every run
superclasses         superclass predicted given the true one, where classes are named `superclass: class`
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cskd_hf.errors import UserError
from cskd_hf.paper.example_plots import (
    confident_mistakes,
    feature_maps,
    mistakes_on_a_page,
    most_confident_mistakes,
    pictures_of,
)
from cskd_hf.paper.finished_runs import FinishedRun, read_runs
from cskd_hf.paper.page_style import Drawing
from cskd_hf.paper.prediction_plots import log_probabilities, reliability_diagrams, superclass_matrices


def draw_figures(runs: Sequence[Path], output: Path) -> list[Path]:
    """Draw every figure that these runs have and write it to `output`, which is made; nothing before all are drawn.

    A figure that cannot be drawn, such as the mistakes' where the data is gone, is named on stderr with the reason.

    Args:
        runs: run folders; the first one's mistakes are shown.

    Returns:
        The files, in the order above.

    Raises:
        UserError: see `read_runs`; or `output` cannot be written.
    """
    existing = next(place for place in (output.absolute(), *output.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UserError(f"{existing}: a file; name a folder for the figures")
    read = read_runs(runs)
    drawings = {
        "reliability": reliability_diagrams(read),
        "log_probability": log_probabilities(read),
        "features": feature_maps(read),
        "confident_mistakes": _mistakes(read),
        "superclasses": superclass_matrices(read),
    }
    reasons = {
        "log_probability": "no run misclassifies a test image",
        "features": "too few test images for t-SNE",
    }
    files: dict[Path, bytes] = {}
    for name, drawing in drawings.items():
        if drawing is not None:
            files |= {output / f"{name}.{extension}": content for extension, content in drawing.files().items()}
        elif name in reasons:
            _note(name, reasons[name])
    try:
        output.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from None
    return list(files)


def _mistakes(runs: Sequence[FinishedRun]) -> Drawing | None:
    images = most_confident_mistakes(runs[0], mistakes_on_a_page(len(runs)))
    if not len(images):
        _note("confident_mistakes", f"{runs[0].folder} misclassifies no test image")
        return None
    try:
        pictures = pictures_of(runs[0], images)
    except UserError as error:
        _note("confident_mistakes", " ".join(str(error).split()))
        return None
    return confident_mistakes(runs, images, pictures)


def _note(name: str, reason: str) -> None:
    print(f"note: {name} is left out: {reason}", file=sys.stderr)
