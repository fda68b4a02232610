"""A page to try trained weights on: a picture in, calibrated probabilities out, a baseline's beside them.

python scripts/space/app.py runs/digits_resnet10-cskd-seed0 runs/digits_resnet10-cross_entropy-seed0

On a Space the two are named by the variables MODEL and BASELINE: hf-hub:OWNER/NAME.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from cskd_hf.errors import UserError, run_command

TOP_K = 5
COLORS = ("#0072B2", "#D55E00")  # blue and vermillion of Okabe & Ito, as in the reports: told apart by everybody
MAX_UPLOAD = "20mb"
SECONDS_KEPT = 3600  # an uploaded picture, on the server

INTRODUCTION = """# How sure is it?

**Calibrated** means: of all the pictures of which a model is 80 % sure, 80 % are what it says. The expected calibration
error (ECE) is how far it is from that, on average. It was measured on pictures like those that the model learnt from; a
picture of anything else is given one of the same names."""

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
    """Weights that the page shows the bars of."""

    trained: Any
    title: str
    name: str
    facts: str


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A page to try trained weights on.")
    weights = "a run folder, local-dir:FOLDER or hf-hub:OWNER/NAME"
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL"), help=f"{weights}; else MODEL says it")
    parser.add_argument(
        "baseline", nargs="?", default=os.environ.get("BASELINE"), help="other weights of the same classes; or BASELINE"
    )
    args = parser.parse_args(argv)
    if not args.model:
        raise UserError(f"name the weights to show, as an argument or in the variable MODEL: {weights}")
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the page needs gradio: pip install -r scripts/space/requirements.txt ({error})") from None

    contenders = [read_contender(source) for source in (args.model, args.baseline) if source]
    names = {contender.trained.class_names for contender in contenders}
    if len(names) > 1:
        raise UserError(f"{args.baseline}: other classes than {args.model}; name a baseline of the same data")
    page(contenders).launch(
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        max_file_size=MAX_UPLOAD,
        footer_links=["gradio"],
        ssr_mode=False,
    )
    return 0


def read_contender(source: str) -> Contender:
    """Load weights, and what their run measured.

    Raises:
        UserError: there are no weights that timm loads.
    """
    from cskd_hf.models.load import load_trained
    from cskd_hf.paper.blocks import method_title

    trained = load_trained(source)
    measured = _measured(source, trained.run)
    kind, _, repository = source.rpartition(":")
    if measured is None:
        facts = "What was measured of these weights is not told."
        if trained.temperature is None:
            facts = f"Not calibrated: no temperature was fitted. {facts}"
        # Never the path of a folder, which is not the visitors' to know.
        name = repository if kind == "hf-hub" else Path(repository).name
        return Contender(trained, title=name, name="", facts=facts)
    title = method_title(measured["method"]["name"])
    return Contender(trained, title, repository if kind == "hf-hub" else measured["name"], _facts(measured))


def _measured(source: str, run: Path | None) -> dict[str, Any] | None:
    """summary.json of a run, or metrics.json of a published folder or repository; None of weights without it."""
    if run is not None:
        path = run / "summary.json"
    elif source.startswith("local-dir:"):
        path = Path(source.removeprefix("local-dir:")) / "metrics.json"
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        repository, _, revision = source.removeprefix("hf-hub:").partition("@")
        try:
            path = Path(hf_hub_download(repository, "metrics.json", revision=revision or None))
        except EntryNotFoundError:
            return None
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _facts(measured: dict[str, Any]) -> str:
    metrics, images = measured["metrics"], measured["dataset"]["images"]
    raw = f"{metrics['last']['ece']:.2f} %"
    tested = f"{images['test']:,} test images of {Path(measured['dataset']['name']).name}"
    if metrics["temperature"] is None:
        return f"Not calibrated: no temperature was fitted. ECE on {tested}: {raw}."
    return (
        f"ECE on {tested}: {metrics['metrics_scaled']['ece']:.2f} % as shown, {raw} before its logits were divided by "
        f"the temperature {metrics['temperature']:.3f}, which was fitted on {images['holdout']:,} other images."
    )


def answer(contenders: Sequence[Contender], picture: str | None) -> str:
    """The page's right-hand side, HTML: bars of a picture, or a sentence why there are none."""
    from cskd_hf.data.decode import UnreadableImageError
    from cskd_hf.predict import predict_image

    message = ""
    bars: list[list[tuple[str, float]]] = [[] for _ in contenders]
    if picture is not None:
        try:
            bars = [predict_image(contender.trained, picture, TOP_K) for contender in contenders]
        except UnreadableImageError:
            # Not the decoder's own words, which are for who can look at the file.
            message = '<p class="unreadable" role="alert">This file is not a picture that can be read: try another.</p>'
    sections = map(_section, contenders, bars, COLORS)
    return f'{message}<div class="contenders">{"".join(sections)}</div>'


def _section(contender: Contender, bars: Sequence[tuple[str, float]], color: str) -> str:
    rows = "".join(
        f'<li><span class="name">{escape(name)}</span> <span class="value">{100 * value:.2f} %</span>'
        f'<span class="track" aria-hidden="true"><span class="bar" style="width:{100 * value:.2f}%"></span></span></li>'
        for name, value in bars
    )
    shown = f"<ol>{rows}</ol>" if rows else '<p class="hint">The likeliest names of a picture will be listed here.</p>'
    return (
        f'<section style="--bar: {color}"><h2>{escape(contender.title)}</h2>'
        f'<p class="run">{escape(contender.name)}</p>{shown}<p class="facts">{escape(contender.facts)}</p></section>'
    )


def page(contenders: Sequence[Contender]) -> Any:
    """The page, a `gradio.Blocks`; nothing on it asks another server for anything."""
    import gradio

    with gradio.Blocks(
        title="How sure is it?", analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT)
    ) as blocks:
        gradio.Markdown(INTRODUCTION, elem_classes="introduction")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                picture = gradio.Image(
                    label="Your picture", sources=["upload", "clipboard"], height=300, elem_classes="picture"
                )
                # The uploaded bytes as they are: gradio's own decodes and re-encodes, and fails on what is no image.
                # No subclass, beside whose file gradio writes a .pyi.
                picture.preprocess = lambda payload: None if payload is None else payload.path
            with gradio.Column(scale=2, min_width=320):
                shown = gradio.HTML(answer(contenders, None), elem_classes="answer")
        picture.change(lambda path: answer(contenders, path), picture, shown, show_progress="minimal")
    return blocks


if __name__ == "__main__":
    run_command(main)
