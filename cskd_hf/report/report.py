"""The report of a run: its folder, read into one HTML page that needs nothing beside it.

No script, no font, no request: the page still opens from a mail, an archive or a cluster's file browser in ten years.
"""

from __future__ import annotations

import base64
import json
import os
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.models.export import loading_code


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` from the other files of a run folder.

    Reads recipe.yaml, environment.json, metrics.jsonl, summary.json and figures/*.png. The page is complete or absent,
    never half, and may be written again at any time.

    Args:
        run_dir: The run folder. The page names it as given, so a relative path keeps the page free of a home folder.

    Returns:
        The path of the page.
    """
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    with (run_dir / "metrics.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    sections = [
        _section("Result", _results(summary) + _best_holdout(lines)),
        _section("Notes", "".join(_paragraph(note) for note in summary["notes"])),
        _section("Use the weights", _usage(run_dir, summary)),
        _section("Figures", "".join(_figure(path) for path in sorted((run_dir / "figures").glob("*.png")))),
        _section("Run", _facts(summary)),
        _details("Epochs", _epochs(lines)),
        _details("Recipe", _code((run_dir / "recipe.yaml").read_text(encoding="utf-8"))),
        _details("Environment", _code((run_dir / "environment.json").read_text(encoding="utf-8"))),
    ]
    page = _PAGE.substitute(
        title=escape(summary["name"]),
        subtitle=escape(
            f"{summary['model']['model_name']} on {summary['dataset']['name']}, {summary['method']['name']}"
        ),
        body="\n".join(section for section in sections if section),
    )
    path, partial = run_dir / "report.html", run_dir / "report.html.tmp"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def _results(summary: dict[str, Any]) -> str:
    """The table of metrics, each with its definition, and where the temperature comes from."""
    metrics, images = summary["metrics"], summary["dataset"]["images"]
    last, temperature, scaled = metrics["last"], metrics["temperature"], metrics["metrics_scaled"]
    header = ["metric", "last epoch"]
    if temperature is None:
        note = "No held-out split: data.holdout=0, so no temperature."
    else:
        header.append(f"after temperature {temperature:.3f}")
        note = (
            f"The temperature, {temperature:.3f}, was fitted on the held-out split ({images['holdout']:,} images), "
            "which was not trained on and is not part of the result."
        )
    rows = []
    for name, value in last.items():
        cells = [value] if scaled is None else [value, scaled[name]]
        label = f"{escape(name)}<small>{escape(DEFINITIONS[name])}</small>"
        rows.append([label, *(_metric(name, cell) for cell in cells)])
    epochs = f"{images['test']:,} test images after the last of {summary['epochs']} epochs, seed {summary['seed']}."
    return _paragraph(epochs) + _table([escape(name) for name in header], rows) + _paragraph(note)


def _best_holdout(lines: list[dict[str, Any]]) -> str:
    """What a selection by the held-out split would have picked; nothing without one."""
    curve = [line for line in lines if "holdout/top1_error" in line]
    if not curve:
        return ""
    best = min(curve, key=lambda line: line["holdout/top1_error"])
    return _paragraph(
        f"Best held-out epoch: {best['epoch']} (the first is 0), {best['holdout/top1_error']:.2f} % top-1 error on the "
        "held-out split. For information; the result above is the last epoch."
    )


def _usage(run_dir: Path, summary: dict[str, Any]) -> str:
    return _code(loading_code(f"local-dir:{run_dir.as_posix()}/model", summary["model"]["needs_cskd_hf"]).rstrip())


def _figure(path: Path) -> str:
    """An image as a data URI, with the alternative text that figures.py put into the file."""
    name = path.stem.replace("_", " ")
    with Image.open(path) as image:
        width, height = (pixels * 96 // 150 for pixels in image.size)  # 150 dpi at its size in print: CSS has 96
        text = image.info.get("Description", name)  # a figure that somebody else put there may have none
    data = base64.b64encode(path.read_bytes()).decode()
    image_tag = f'<img src="data:image/png;base64,{data}" alt="{escape(text)}" width="{width}" height="{height}">'
    return f'<figure tabindex="0">{image_tag}<figcaption>{escape(name)}</figcaption></figure>\n'


def _facts(summary: dict[str, Any]) -> str:
    """What was trained on what, and how fast."""
    dataset, model, throughput = summary["dataset"], summary["model"], summary["throughput"]
    method = dict(summary["method"])
    name, fields = method.pop("name"), ", ".join(f"{key}={value}" for key, value in method.items())
    counts = ", ".join(f"{split} {count:,}" for split, count in dataset["images"].items())
    facts = {
        "dataset": f"{dataset['name']}, {dataset['num_classes']:,} classes; images: {counts}",
        "model": f"{model['model_name']}, {model['num_parameters']:,} parameters",
        "method": f"{name} ({fields})" if fields else name,
        "recipe": f"{summary['recipe_hash']}, seed {summary['seed']}, {summary['epochs']} epochs",
        "throughput": f"{throughput['images_per_second']:,.0f} images/s, num_processes {throughput['num_processes']}",
        "waiting for data": f"{100 * throughput['data_wait_share']:.1f} % of the training time",
        "training time": _duration(throughput["train_seconds"]),
    }
    if throughput["peak_memory_bytes"] is not None:  # None without an accelerator
        facts["peak memory"] = f"{throughput['peak_memory_bytes'] / 2**30:.2f} GiB of the accelerator"
    return "<dl>" + "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()) + "</dl>"


def _epochs(lines: list[dict[str, Any]]) -> str:
    """metrics.jsonl as a table; a cell is empty where an epoch lacks the key."""
    keys = list(dict.fromkeys(key for line in lines for key in line))
    rows = [[_number(line[key]) if key in line else "" for key in keys] for line in lines]
    return _table([escape(key) for key in keys], rows)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.2f}" if DEFINITIONS[name].endswith("percent") else f"{value:.4f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML: whoever calls has escaped them. The first cell of a row is its header."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    # The box takes the focus, so that the keyboard can scroll a wide table.
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>" if body else ""


def _details(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n{body}</details>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>\n'


_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1b1b1b; --quiet: #595959; --page: #fff; --box: #f4f4f4; --line: #d9d9d9 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --quiet: #a6a6a6; --page: #16181b; --box: #22252a; --line: #3a3e45 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2 }
h2 { margin: 2rem 0 .5rem; font-size: 1.2rem }
header p, small, dt, figcaption { color: var(--quiet) }
header p { margin: .3rem 0 0 }
p { max-width: 45rem }
.wide, pre { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .35rem 0 .35rem 1.2rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th:first-child { padding-left: 0; text-align: left }
thead th { vertical-align: bottom }
tbody th { font-weight: normal }
section tbody th { font-weight: 600 }
small { display: block; font-size: .85rem; font-weight: normal }
pre { margin: .5rem 0; padding: .8rem 1rem; background: var(--box); border-radius: .4rem; font-size: .85rem;
  overflow-wrap: normal }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0 }
dd { margin: 0 }
/* The figures have a white ground of their own, in the dark too. */
figure { margin: 0 0 1.5rem; overflow-x: auto }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .4rem }
figcaption { margin-top: .3rem; font-size: .85rem }
@media (max-width: 40rem) { img { max-width: none } }  /* on a phone, scrolled rather than too small to read */
details { margin-top: 1rem; border-top: 1px solid var(--line); padding-top: .6rem }
summary { font-size: 1.2rem; font-weight: 600; cursor: pointer }
details table { font-size: .8rem }
@media print {
  :root { --text: #000; --quiet: #444; --page: #fff; --box: #f4f4f4; --line: #ccc }
  body { max-width: none; padding: 0; font-size: 10pt }
  figure, tr, pre { break-inside: avoid }
  h2 { break-after: avoid }
  pre { white-space: pre-wrap }
  .wide { overflow: visible }
}
</style>
</head>
<body>
<header><h1>$title</h1><p>$subtitle</p></header>
<main>
$body
</main>
</body>
</html>
""")
