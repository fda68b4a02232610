"""The README.md beside the weights in a run folder."""

from __future__ import annotations

from pathlib import Path

import yaml

from cskd_hf.evaluation.table import as_markdown, metric_rows
from cskd_hf.models.export import loading_code
from cskd_hf.runs.summary import Summary


def model_readme(summary: Summary, folder: Path) -> str:
    """Markdown with the Hub's metadata block in front."""
    tags = ["image-classification", "timm"]
    if summary.method["name"] == "cskd":
        tags += ["cskd", "arxiv:2003.13964"]
    metadata = {"library_name": "timm", "pipeline_tag": "image-classification", "tags": tags}
    metrics = summary.metrics
    calibration = (
        "No temperature was fitted: the run had no hold-out set (`data.holdout: 0`)."
        if metrics.temperature is None
        else f"Divide the logits by {metrics.temperature:.4f} before the softmax: the temperature fitted on the "
        "hold-out set."
    )
    method = ", ".join(f"{key} {value}" for key, value in summary.method.items()).removeprefix("name ")
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {summary.name}

`{summary.model.model_name}` trained on {summary.dataset.name} ({summary.dataset.num_classes} classes)
with {method}: {summary.epochs} epochs, seed {summary.seed}.

```python
{loading_code(f"local-dir:{(folder / 'model').as_posix()}", summary.model.needs_cskd_hf)}```

{calibration}

Test split, last epoch:

{as_markdown(metric_rows(metrics.last, metrics.metrics_scaled))}
"""
