"""A page to try trained weights: calibrated probabilities of a picture, next to those of a baseline.

    python scripts/space/app.py runs/digits_test_resnet-cskd-seed0 runs/digits_test_resnet-cross_entropy-seed0

On a Space, the variables MODEL and BASELINE name the weights: hf-hub:OWNER/NAME.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from cskd_hf.errors import UserError, run_command
from cskd_hf.runs.summary import Summary, read_summary

TOP_K = 5
COLORS = ("#0072B2", "#D55E00")  # Okabe & Ito, safe for colour-blind readers, as in the reports
MAX_UPLOAD = "20mb"
UPLOAD_LIFETIME = 3600  # seconds

INTRODUCTION = """# How sure is it?

**Calibrated** means that of all pictures of which a model is 80 % sure, it names 80 % correctly. The expected
calibration error (ECE) is the average distance from that. It was measured on pictures like those the model was trained
on; a picture of anything else still gets one of the same names."""

CSS = """
.answer, .answer .html-container {padding: 0 !important;}
.introduction {max-width: 48rem;}
.picture img {width: 100%; height: 100%; object-fit: contain;}
.contenders {display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr));}
.contenders h2 {font-size: 1.2rem; margin: 0; border-top: 4px solid var(--bar); padding-top: .5rem;}
.contenders .run, .contenders .facts, .contenders .hint {font-size: .875rem; opacity: .8; margin: .2rem 0;
  overflow-wrap: anywhere;}
.contenders ol {list-style: none; margin: 1rem 0; padding: 0;}
.contenders li {display: grid; grid-template-columns: 1fr auto; column-gap: 1rem; margin: 0 0 .75rem;}
.contenders .name {overflow-wrap: anywhere;}
.contenders .value {font-variant-numeric: tabular-nums;}
.contenders .track {grid-column: 1 / -1; height: .75rem; background: var(--border-color-primary); border-radius: 2px;}
.contenders .bar {display: block; height: 100%; background: var(--bar); border-radius: 2px;}
.contenders .hint {margin: 1rem 0;}
.unreadable {border-left: 4px solid #D55E00; padding: .5rem 1rem; margin-bottom: 1.5rem;}
"""


class Contender(NamedTuple):
    """Weights to show, with their title, name and measured calibration."""

    trained: Any
    title: str
    name: str
    facts: str


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A page to try trained weights.")
    weights, variables = "a run folder, local-dir:FOLDER or hf-hub:OWNER/NAME", os.environ
    parser.add_argument("model", nargs="?", default=variables.get("MODEL"), help=f"{weights} (variable MODEL)")
    other = "other weights for the same classes (variable BASELINE)"
    parser.add_argument("baseline", nargs="?", default=variables.get("BASELINE"), help=other)
    args = parser.parse_args(argv)
    if not args.model:
        raise UserError(f"name the weights to show, as an argument or in the variable MODEL: {weights}")
    try:
        import gradio
    except ImportError as error:
        install = "pip install -r scripts/space/requirements.txt"
        raise UserError(f"the page needs gradio; from a checkout: {install} ({error})") from None

    contenders = [read_contender(source) for source in (args.model, args.baseline) if source]
    names = {contender.trained.class_names for contender in contenders}
    if len(names) > 1:
        raise UserError(f"{args.baseline}: other classes than {args.model}; name a baseline trained on the same data")
    page(contenders).launch(
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        max_file_size=MAX_UPLOAD,
        footer_links=["gradio"],
        ssr_mode=False,
    )
    return 0


def read_contender(source: str) -> Contender:
    """Load weights and the metrics of their run.

    Raises:
        UserError: `source` has no weights that timm loads.
    """
    from cskd_hf.models.load import load_trained
    from cskd_hf.paper.blocks import method_title

    trained = load_trained(source)
    summary = _read_summary(source, trained.run)
    kind, _, repository = source.rpartition(":")
    if summary is None:
        facts = "These weights come without metrics."
        if trained.temperature is None:
            facts = f"{_sentence(trained.calibration)} {facts}"
        # Visitors must not see the path of a folder.
        name = repository if kind == "hf-hub" else Path(repository).name
        return Contender(trained, title=name, name="", facts=facts)
    title = method_title(summary.method["name"])
    return Contender(trained, title, repository if kind == "hf-hub" else summary.name, _facts(summary))


def _read_summary(source: str, run: Path | None) -> Summary | None:
    """The summary of a run, or metrics.json of a published folder or repository; None without either."""
    if run is not None:
        return read_summary(run)
    if source.startswith("local-dir:"):
        path = Path(source.removeprefix("local-dir:")) / "metrics.json"
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        repository, _, revision = source.removeprefix("hf-hub:").partition("@")
        try:
            path = Path(hf_hub_download(repository, "metrics.json", revision=revision or None))
        except EntryNotFoundError:
            return None
    try:
        return Summary.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # another program's weights
        return None


def _facts(summary: Summary) -> str:
    images = summary.dataset.images
    raw = f"{summary.metric('ece'):.2f} %"
    tested = f"{images['test']:,} test images of {Path(summary.dataset.name).name}"
    verdict = _sentence(summary.metrics.verdict)
    if summary.metrics.temperature is None:
        return f"{verdict} ECE on {tested}: {raw}."
    return f"{verdict} ECE on {tested}: {summary.metric('ece_scaled'):.2f} % as shown, {raw} as trained."


def _sentence(verdict: str) -> str:
    return f"{verdict[0].upper()}{verdict[1:]}."


def answer(contenders: Sequence[Contender], picture: str | None) -> str:
    """HTML of the right-hand side: bars for a picture, or a message why there are none."""
    from cskd_hf.data.decode import UnreadableImageError
    from cskd_hf.evaluation.trained import predict_image

    message = ""
    bars: list[list[tuple[str, float]]] = [[] for _ in contenders]
    if picture is not None:
        try:
            bars = [predict_image(contender.trained, picture, TOP_K) for contender in contenders]
        except UnreadableImageError:
            message = '<p class="unreadable" role="alert">This file is not a readable picture; try another one.</p>'
    sections = map(_section, contenders, bars, COLORS)
    return f'{message}<div class="contenders">{"".join(sections)}</div>'


def _section(contender: Contender, bars: Sequence[tuple[str, float]], color: str) -> str:
    from cskd_hf.evaluation.table import percent

    rows = "".join(
        f'<li><span class="name">{escape(name)}</span> <span class="value">{escape(percent(value))}</span>'
        f'<span class="track" aria-hidden="true"><span class="bar" style="width:{100 * value:.2f}%"></span></span></li>'
        for name, value in bars
    )
    shown = f"<ol>{rows}</ol>" if rows else '<p class="hint">The most likely names of a picture appear here.</p>'
    return (
        f'<section style="--bar: {color}"><h2>{escape(contender.title)}</h2>'
        f'<p class="run">{escape(contender.name)}</p>{shown}<p class="facts">{escape(contender.facts)}</p></section>'
    )


def page(contenders: Sequence[Contender]) -> Any:
    """The page, a `gradio.Blocks` that sends no request to other servers."""
    import gradio

    with gradio.Blocks(
        title="How sure is it?", analytics_enabled=False, delete_cache=(UPLOAD_LIFETIME, UPLOAD_LIFETIME)
    ) as blocks:
        gradio.Markdown(INTRODUCTION, elem_classes="introduction")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                picture = gradio.Image(
                    label="Your picture", sources=["upload", "clipboard"], height=300, elem_classes="picture"
                )
                # The uploaded file as it is: gradio would decode and re-encode it, and fail if it is not an image.
                # Not a subclass: gradio would write a .pyi next to its file.
                picture.preprocess = lambda payload: None if payload is None else payload.path
            with gradio.Column(scale=2, min_width=320):
                shown = gradio.HTML(answer(contenders, None), elem_classes="answer")
        picture.change(lambda path: answer(contenders, path), picture, shown, show_progress="minimal")
    return blocks


if __name__ == "__main__":
    run_command(main)
