"""Evaluate trained weights on a split: the metrics of summary.json, on any images of the same classes.

python -m cskd_hf.evaluate runs/digits_resnet10-cskd-seed0
python -m cskd_hf.evaluate hf-hub:OWNER/NAME data.dataset=FOLDER data.test_split=val
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskd_hf.engine.cpu_tuning import join_ranks_on_cpus, keep_freed_memory, limit_openmp_spinning
from cskd_hf.errors import UserError, run_command
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.overrides import apply_overrides
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.evaluate", description="Evaluate trained weights on the images of a test split."
    )
    parser.add_argument("model", help="a run folder, local-dir:FOLDER or hf-hub:OWNER/NAME")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="data.key=value",
        help="images to evaluate on; default: those of the run's recipe",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics as JSON")
    args = parser.parse_intermixed_args(argv)
    data = _data_section(args.model, args.overrides)

    limit_openmp_spinning()  # before the first import of torch
    import torch

    from cskd_hf.evaluation.trained import evaluate

    join_ranks_on_cpus()
    if not torch.cuda.is_available():
        keep_freed_memory()
    return evaluate(args.model, data, args.json)


def _data_section(model: str, overrides: Sequence[str]) -> DataSection:
    """The images to evaluate on: those of a run's recipe, with overrides."""
    recipe = Path(model) / "recipe.yaml"
    settings, places = dict[str, Any](), dict[str, str]()
    if recipe.is_file():
        settings, places = yaml_io.read(recipe)
    for override in overrides:
        if not override.startswith("data."):
            raise UserError(f"{override}: only data.* applies to evaluation; the weights determine the rest")
    apply_overrides(settings, overrides, places)
    if "data" not in settings:
        raise UserError(f"{model}: has no recipe that names the images; write data.dataset=NAME_OR_FOLDER")
    return resolve_data(parse_data(settings["data"], source=model, places=places))


def cli() -> None:
    """The console script cskd-evaluate."""
    run_command(main)


if __name__ == "__main__":
    cli()
