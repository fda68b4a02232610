"""Evaluate trained weights on a split: the metrics of summary.json, on any images of the same classes.

python -m cskd_hf.evaluate runs/digits_test_resnet-cskd-seed0
python -m cskd_hf.evaluate runs/digits_test_resnet-cskd-seed0 --resolution 24,32,40
python -m cskd_hf.evaluate hf-hub:OWNER/NAME data.dataset=FOLDER data.test_split=val
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskd_hf.engine.cpu_tuning import join_ranks_on_cpus, keep_freed_memory, limit_openmp_spinning
from cskd_hf.errors import UserError, run_command
from cskd_hf.evaluation.inputs import check_output
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.overrides import apply_overrides
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection, fill
from cskd_hf.runs.weights import ALLOWED, Weights, find_weights, read_class_names


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.evaluate", description="Evaluate trained weights on the images of a test split."
    )
    parser.add_argument("model", help=ALLOWED)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="data.key=value",
        help="images to evaluate on; default: those of the run's recipe",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics as JSON")
    parser.add_argument(
        "--resolution", metavar="PIXELS,PIXELS,...", help="compare the errors on test images of these heights instead"
    )
    args = parser.parse_intermixed_args(argv)
    weights = find_weights(args.model)
    data = _data_section(weights, args.overrides)
    check_output(args.json, "--json")
    heights = None if args.resolution is None else _heights(args.resolution)

    limit_openmp_spinning()  # before the first import of torch
    from cskd_hf.data.splits import load_split

    split = load_split(data, read_class_names(weights))  # a wrong split shows before torch is imported
    data = fill(data, {"test_split": split.name})
    import torch

    from cskd_hf.evaluation.trained import evaluate
    from cskd_hf.runs.folder import check_share

    if weights.run is not None:
        check_share(weights.run, split, data)
    join_ranks_on_cpus()
    if not torch.cuda.is_available():
        keep_freed_memory()
    if heights is not None:
        from cskd_hf.evaluation.resolution import sweep

        return sweep(weights, split, data, heights, args.json)
    return evaluate(weights, split, data, args.json)


def _heights(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise UserError(f"--resolution: read {text!r}; write pixels separated by commas, such as 160,192,224")
    return [int(height) for height in dict.fromkeys(text.split(","))]


def _data_section(weights: Weights, overrides: Sequence[str]) -> DataSection:
    """The images to evaluate on: those of a run's recipe, with overrides."""
    settings, places = dict[str, Any](), dict[str, str]()
    if weights.run is not None and (weights.run / "recipe.yaml").is_file():
        settings, places = yaml_io.read(weights.run / "recipe.yaml")
    for override in overrides:
        if not override.startswith("data."):
            raise UserError(f"{override}: only data.* applies to evaluation; the weights determine the rest")
    apply_overrides(settings, overrides, places)
    if "data" not in settings:
        raise UserError(f"{weights.source}: has no recipe that names the images; write data.dataset=NAME_OR_FOLDER")
    return resolve_data(parse_data(settings["data"], source=weights.source, places=places))


def cli() -> None:
    """The console script cskd-evaluate."""
    run_command(main)


if __name__ == "__main__":
    cli()
