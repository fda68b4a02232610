"""Mean ± sample standard deviation of one experiment's metrics over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import MeanStd
from cskd_hf.runs.environment import read_environments
from cskd_hf.runs.recipe_differences import recipe_differences
from cskd_hf.runs.summary import MetricValues, read_recipe, read_summary


def read_seeds(published: Path, others: Sequence[Path]) -> dict[str, Any] | None:
    """The entry `seeds` of a release's metrics.json: mean and std of the metrics; None without other runs.

    Args:
        published: the run whose weights are published: chosen by name, not by its test result.
        others: runs of the same recipe with other seeds; may include `published`.

    Raises:
        UserError: a run is not finished, has another recipe or other test images, or two have the same seed.
    """
    if not others:
        return None
    folders = {folder.resolve(): folder for folder in (published, *others)}.values()
    expected = read_recipe(published)
    summaries = []
    for folder in folders:
        if not (folder / "summary.json").is_file() or not (folder / "recipe.yaml").is_file():
            raise UserError(f"--seeds: {folder} is not a finished run; name run folders of finished trainings")
        recipe = read_recipe(folder)
        differences = recipe_differences(recipe, expected.replace(run={"seed": recipe.run.seed}))
        # Student and teacher have the same seed, so the teacher's folder may have another name.
        different = [str(difference) for difference in differences if difference.key != "method.teacher"]
        if different:
            raise UserError(f"--seeds: {folder} differs from {published} in more than the seed: {'; '.join(different)}")
        tested, others_tested = (read_environments(run)[-1]["images"]["test"] for run in (folder, published))
        if tested != others_tested:
            raise UserError(f"--seeds: {folder} and {published} were tested on different images; name runs on the same")
        summaries.append(read_summary(folder, recipe))
    seeds = [summary.seed for summary in summaries]
    duplicates = {seed for seed in seeds if seeds.count(seed) > 1}
    if duplicates:
        raise UserError(f"--seeds: several runs have the seed {min(duplicates)}; name each seed once")
    if len(seeds) < 2:
        return None
    return {
        "n": len(seeds),
        "seeds": seeds,
        "published_seed": seeds[0],
        "spread": "sample standard deviation, n - 1",
        "last": _means([summary.metrics.last for summary in summaries]),
        "metrics_scaled": _means([summary.metrics.metrics_scaled for summary in summaries]),
    }


def _means(metrics: Sequence[MetricValues | None]) -> dict[str, dict[str, float | None]] | None:
    """Metric → mean and std, for the metrics that every run has."""
    runs = [dict(values) for values in metrics if values is not None]
    if len(runs) < len(metrics):
        return None
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    means = {name: MeanStd.of(values) for name, values in columns.items() if None not in values}
    return {name: {"mean": value.mean, "std": value.std} for name, value in means.items()}
