"""Publish a finished run: a release folder, checked in a fresh process, then one commit on the Hub.

python -m cskd_hf.publish runs/NAME ORG/NAME --dry-run       # all but the upload, without a network
python -m cskd_hf.publish runs/NAME ORG/NAME                 # a private repository; --public makes a public one
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cskd_hf.errors import run_command
from cskd_hf.hub.publish import publish_run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.publish", description="A finished run → RUN/release, checked → the Hub."
    )
    parser.add_argument("run", type=Path, help="a run folder of a finished training")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository, made if it is not there")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="a repository made now is private: the default")
    seen.add_argument("--public", action="store_true", help="a repository made now is public")
    parser.add_argument("--dry-run", action="store_true", help="all but the upload; needs no network and no token")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch, made if it is not there")
    parser.add_argument("--replace", action="store_true", help="replace other weights that the repository holds")
    parser.add_argument("--fold-temperature", action="store_true", help="divide the classifier's weights by it")
    parser.add_argument("--license", metavar="ID", help="apache-2.0, unless the data's terms forbid commercial use")
    parser.add_argument(
        "--seeds", nargs="+", type=Path, default=[], metavar="RUN", help="the same recipe's other seeds, for mean ± std"
    )
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx (the extra cskd_hf[onnx])")
    args = parser.parse_intermixed_args(argv)
    return publish_run(
        args.run,
        args.repo_id,
        private=not args.public,
        dry_run=args.dry_run,
        revision=args.revision,
        replace=args.replace,
        fold_temperature=args.fold_temperature,
        licence=args.license,
        seeds=args.seeds,
        onnx=args.onnx,
    )


def cli() -> None:
    """The console script cskd-publish."""
    run_command(main)


if __name__ == "__main__":
    cli()
