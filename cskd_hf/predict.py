"""Classify image files with calibrated probabilities.

python -m cskd_hf.predict runs/digits_resnet10-cskd-seed0 scan.png [more images]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cskd_hf.errors import run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.predict", description="Classify image files with calibrated probabilities."
    )
    parser.add_argument("model", help="a run folder, local-dir:FOLDER or hf-hub:OWNER/NAME")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes to print per image (default: 5)")
    args = parser.parse_intermixed_args(argv)
    if args.top_k < 1:
        parser.error(f"--top-k: read {args.top_k}; write 1 or more")

    from cskd_hf.evaluation.trained import predict

    return predict(args.model, args.images, args.top_k)


def cli() -> None:
    """The console script cskd-predict."""
    run_command(main)


if __name__ == "__main__":
    cli()
