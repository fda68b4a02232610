"""Classify image files with calibrated probabilities.

cskd-predict runs/digits_test_resnet-cskd-seed0 scan.png
cskd-predict runs/NAME scan.png --coverage 0.9
cskd-predict runs/NAME FOLDER 'more/**/*.png' --output answers.csv --features features.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cskd_hf.engine.cpu_tuning import limit_openmp_spinning
from cskd_hf.errors import UserError, run_command
from cskd_hf.evaluation.holdout import find_holdout
from cskd_hf.evaluation.inputs import check_header, check_outputs, find_images, parse_coverages
from cskd_hf.recipe.arguments import CommandParser
from cskd_hf.runs.weights import ALLOWED, Weights, find_weights

FORMATS = ("table", "csv", "jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="cskd-predict", description="Classify image files with calibrated probabilities.")
    add = parser.add_argument
    add("model", help=ALLOWED)
    add("images", nargs="+", metavar="IMAGE", help="a file, a folder, a 'glob/**/*.jpg', or - for paths on stdin")
    add("--topk", type=int, metavar="K", help="classes per image (default: 5)")
    add("--coverage", metavar="SHARE", help="print prediction sets that hold the class with this probability instead")
    add("--format", choices=FORMATS, help="format of the answers (default: by --output's extension, else table)")
    add("--output", type=Path, metavar="FILE", help="write the answers to FILE, not to standard output")
    add("--features", type=Path, metavar="FILE", help="also write the pooled features, as safetensors")
    add("--batch-size", type=int, default=64, metavar="N", help="images per forward pass (default: 64)")
    add("--workers", type=int, metavar="N", help="processes that load images (default: one per core)")
    args = parser.parse_intermixed_args(argv)
    for option, value, least in (
        ("topk", args.topk, 1),
        ("batch-size", args.batch_size, 1),
        ("workers", args.workers, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"--{option}: read {value}; write {least} or more")
    extension = args.output.suffix[1:].lower() if args.output else ""
    if args.format is None and extension not in ("", "txt", *FORMATS):
        raise UserError(f"--output: {args.output}: not .csv, .jsonl or .txt; write one of these, or --format")
    weights = find_weights(args.model)
    coverage = None if args.coverage is None else _coverage(args, weights)
    check_outputs({"--output": args.output, "--features": args.features})
    paths = find_images(args.images)
    if args.features:
        check_header(paths, "--features")

    limit_openmp_spinning()  # before the first import of torch
    from cskd_hf.evaluation.trained import predict

    return predict(
        weights,
        paths,
        topk=5 if args.topk is None else args.topk,
        batch_size=args.batch_size,
        workers="auto" if args.workers is None else args.workers,
        output_format=args.format or (extension if extension in FORMATS else "table"),
        output=args.output,
        features=args.features,
        coverage=coverage,
    )


def _coverage(args: argparse.Namespace, weights: Weights) -> float:
    coverage, *others = parse_coverages(args.coverage, "--coverage")
    if others:
        raise UserError(f"--coverage: read {args.coverage!r}; write one share, such as {coverage:g}")
    if args.topk is not None:
        raise UserError("--topk: does not apply to the sets of --coverage; write one of the two")
    find_holdout(weights, "--coverage")
    return coverage


cli = partial(run_command, main)  # the console script cskd-predict

if __name__ == "__main__":
    cli()
