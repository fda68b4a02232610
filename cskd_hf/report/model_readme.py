"""The README.md beside the weights in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.hub.card import _cell
from cskd_hf.models.export import loading_code
from cskd_hf.recipe.recipe import Recipe


def model_readme(summary: dict[str, Any], recipe: Recipe, folder: Path) -> str:
    """Markdown with the Hub's metadata block in front."""
    tags = ["image-classification", "timm"]
    if summary["method"]["name"] == "cskd":
        tags += ["cskd", "arxiv:2003.13964"]
    metadata = {"library_name": "timm", "pipeline_tag": "image-classification", "tags": tags}
    dataset, metrics = summary["dataset"], summary["metrics"]
    scaled = metrics["metrics_scaled"] or {}
    rows = [
        f"| {name} | {_cell(value)} | {_cell(scaled.get(name))} | {DEFINITIONS[name]} |"
        for name, value in metrics["last"].items()
    ]
    temperature = metrics["temperature"]
    calibrated = (
        "No image was held out, so no temperature was fitted."
        if temperature is None
        else f"Divide the logits by {temperature:.4f} before the softmax: the temperature fitted on the held-out split."
    )
    method = ", ".join(f"{key} {value}" for key, value in summary["method"].items()).removeprefix("name ")
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {summary["name"]}

`{summary["model"]["model_name"]}` trained on {dataset["name"]} ({dataset["num_classes"]} classes)
with {method}: {summary["epochs"]} epochs, seed {summary["seed"]}.

```python
{loading_code(f"local-dir:{(folder / 'model').as_posix()}", summary["model"]["needs_cskd_hf"])}```

{calibrated}

| metric (test, last epoch) | as trained | after temperature scaling | definition |
|---|---|---|---|
{chr(10).join(rows)}
"""
