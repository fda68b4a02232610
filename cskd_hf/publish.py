"""Publish a finished run: a release folder, verified in a fresh process, then one commit on the Hub.

python -m cskd_hf.publish runs/NAME ORG/NAME --dry-run       # all but the upload; needs no network
python -m cskd_hf.publish runs/NAME ORG/NAME                 # private unless --public
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cskd_hf.errors import run_command
from cskd_hf.hub.publish import publish_run


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.publish", description="Build RUN/release, verify it, upload it to the Hub."
    )
    parser.add_argument("run", type=Path, help="run folder of a finished training")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository, created if missing")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="create a private repository: the default")
    visibility.add_argument("--public", action="store_true", help="create a public repository")
    parser.add_argument("--dry-run", action="store_true", help="all but the upload; needs no network and no token")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch, created if missing")
    parser.add_argument("--replace", action="store_true", help="overwrite other weights in the repository")
    parser.add_argument(
        "--fold-temperature", action="store_true", help="divide the classifier's weights by the temperature"
    )
    parser.add_argument("--license", metavar="ID", help="default: apache-2.0, unless the data forbid commercial use")
    parser.add_argument(
        "--seeds", nargs="+", type=Path, default=[], metavar="RUN", help="the recipe's other seeds, for mean ± std"
    )
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx (needs the extra cskd_hf[onnx])")
    args = parser.parse_intermixed_args(arguments)
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
        finish_command=shlex.join(["python", "-m", "cskd_hf.publish", *arguments]),
    )


if __name__ == "__main__":
    run_command(main)
