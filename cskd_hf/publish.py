"""Publish a finished run: a release folder, verified in a fresh process, then one commit on the Hub.

cskd-publish runs/NAME ORG/NAME --dry-run       # all but the upload; needs no network
cskd-publish runs/NAME ORG/NAME                 # private unless --public
cskd-publish runs/NAME ORG/NAME --license mit   # needed if the terms of the images are unknown
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cskd_hf.errors import run_command
from cskd_hf.hub.publish import publish_run
from cskd_hf.recipe.arguments import CommandParser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    parser = CommandParser(prog="cskd-publish", description="Build RUN/release, verify it, and upload it to the Hub.")
    add = parser.add_argument
    add("run", type=Path, help="folder of a finished run")
    add("repo_id", metavar="ORG/NAME", help="the repository, created if missing")
    add("--private", action="store_true", default=True, help="create a private repository (default)")
    add("--public", action="store_false", dest="private", help="create a public repository")
    add("--dry-run", action="store_true", help="do everything but the upload; needs no network or token")
    add("--revision", metavar="BRANCH", help="commit to this branch, created if missing")
    add("--replace", action="store_true", help="overwrite other weights already in the repository")
    add("--fold-temperature", action="store_true", help="divide the classifier's weights by the temperature")
    licence = "licence of the weights, from the Hub's list (default: by the terms of the data, if they are known)"
    add("--license", dest="licence", metavar="ID", help=licence)
    add("--license-name", dest="licence_name", metavar="NAME", help="with --license other: the licence's name")
    add("--license-link", dest="licence_link", metavar="URL", help="with --license other: where its text is")
    seeds = "runs with other seeds; the card reports mean ± std"
    add("--seeds", nargs="+", type=Path, default=[], metavar="RUN", help=seeds)
    add("--onnx", action="store_true", help="also write model.onnx (needs cskd_hf[onnx])")
    args = parser.parse_intermixed_args(arguments)
    return publish_run(**vars(args), finish_command=shlex.join(["python", "-m", "cskd_hf.publish", *arguments]))


cli = partial(run_command, main)  # the console script cskd-publish

if __name__ == "__main__":
    cli()
