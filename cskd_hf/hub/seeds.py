"""One experiment with several seeds: that it is one, and mean ± sample standard deviation of its metrics."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.runs.summary import read_recipe, read_summary, recipe_differences


def read_seeds(published: Path, others: Sequence[Path]) -> dict[str, Any] | None:
    """What `metrics.json` says under `seeds`; None where there are no others.

    Args:
        published: the run whose weights are published: the one named first, never the best on the test split.
        others: runs of the same recipe with other seeds; `published` may be among them.

    Returns:
        n, the seeds, and for the metrics of the last epoch, raw and with the fitted temperature, mean and std.

    Raises:
        UserError: one is not finished, or of another recipe, or two have the same seed.
    """
    if not others:
        return None
    folders = {folder.resolve(): folder for folder in (published, *others)}
    expected = read_recipe(published)
    summaries = []
    for folder in folders.values():
        if not (folder / "summary.json").is_file() or not (folder / "recipe.yaml").is_file():
            raise UserError(f"--seeds: {folder}: not a finished run; name run folders of finished trainings")
        recipe = read_recipe(folder)
        read_summary(folder, recipe)
        # A teacher is of the same seed as its pupil, so its folder may have another name.
        different = [
            str(difference)
            for difference in recipe_differences(recipe, expected.replace(run={"seed": recipe.run.seed}))
            if difference.key != "method.teacher"
        ]
        if different:
            raise UserError(
                f"--seeds: {folder} is of another recipe than {published}, not only of another seed: "
                f"{'; '.join(different)}"
            )
        summaries.append(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    seeds = [summary["seed"] for summary in summaries]
    twice = {seed for seed in seeds if seeds.count(seed) > 1}
    if twice:
        raise UserError(f"--seeds: {len(seeds)} runs, of which several have the seed {min(twice)}; name each seed once")
    if len(seeds) < 2:
        return None
    return {
        "n": len(seeds),
        "seeds": seeds,
        "published_seed": summaries[0]["seed"],
        "spread": "sample standard deviation, n - 1",
        "last": _means([summary["metrics"]["last"] for summary in summaries]),
        "metrics_scaled": _means([summary["metrics"]["metrics_scaled"] for summary in summaries]),
    }


def _means(metrics: Sequence[dict[str, float | None] | None]) -> dict[str, dict[str, float]] | None:
    """Metric → mean and std, of those that every run has."""
    each = [values for values in metrics if values is not None]
    if len(each) < len(metrics):
        return None
    found = {}
    for name in each[0]:
        values = [value for run in each if (value := run.get(name)) is not None]
        if len(values) == len(each):
            found[name] = {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
    return found
