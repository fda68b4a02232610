"""Publish a finished run: a release folder, checked in a fresh process, then one commit on the Hub.

python -m cskd_hf.publish runs/NAME ORG/NAME --dry-run       # all but the upload, without a network
python -m cskd_hf.publish runs/NAME ORG/NAME                 # a private repository; --public makes a public one
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from cskd_hf.errors import UserError, run_command


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


def publish_run(
    run: Path,
    repo_id: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    revision: str | None = None,
    replace: bool = False,
    fold_temperature: bool = False,
    licence: str | None = None,
    seeds: Sequence[Path] = (),
    onnx: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Build `run/release`, check it, upload it; returns the exit status. Call it in one process.

    Args:
        licence: the Hub's identifier; None lets the data's terms decide.
        seeds: runs of the same recipe with other seeds, whose mean ± std the card gives beside this run's numbers.

    Raises:
        UserError: the run, the wish or the repository is refused, or the release does not load as what was trained.
            An earlier release stays as it was, unless only the upload failed.
    """
    from cskd_hf.results.release import build_release, check_request, read_source
    from cskd_hf.results.seeds import read_seeds
    from cskd_hf.results.upload import check_target, upload_release

    # what can be refused at once
    check_target(repo_id, token_needed=False)
    source = read_source(run)
    licence = check_request(source, fold=fold_temperature, licence=licence)
    means = read_seeds(run, seeds)
    check_target(repo_id, token_needed=not dry_run)

    # folder
    from cskd_hf.data.load import resolve
    from cskd_hf.models.trained import load_trained
    from cskd_hf.results import fold
    from cskd_hf.results.card_metadata import check_metadata
    from cskd_hf.results.verify import verify_release

    release, partial = run / "release", run / ".partial-release"
    model = load_trained(str(run)).model
    folded: list[str] = []
    if fold_temperature:
        temperature = source.summary["metrics"]["temperature"]
        folded = fold.fold_temperature(model, temperature, source.recipe.transform.input_size)
        say(f"temperature {temperature:.6g} folded into {', '.join(folded)}; the weights as trained go into raw/")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        build_release(source, partial, model, repo_id, folded=folded, licence=licence, seeds=means, onnx=onnx)
        say(f"folder: built, licence {licence}; left out of it: paths of this machine, which keep their last part only")

        # checks
        verify_release(partial, run, model, resolve(source.recipe), say)
        say(f"card: {check_metadata(partial)} results read back by huggingface_hub")
        if onnx:
            from cskd_hf.results.onnx_export import export_onnx

            say(f"{export_onnx(partial).name}: its logits equal the weights'")
        shutil.rmtree(release, ignore_errors=True)
        os.rename(partial, release)
    except BrokenPipeError:  # of who reads what is said
        raise
    except OSError as error:
        raise UserError(f"{release}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _say_tree(release, say)

    # upload
    if dry_run:
        say(f"dry run: nothing was uploaded; the card is {release / 'README.md'}")
        return 0
    url = upload_release(
        release,
        repo_id,
        private=private,
        revision=revision,
        replace=replace,
        message=f"{source.summary['name']}, recipe {source.summary['recipe_hash']}",
        finish_command=_command(run, repo_id, private, revision, replace, fold_temperature, licence, seeds, onnx),
        say=say,
    )
    say(f"published: {url}")
    return 0


def _say_tree(folder: Path, say: Callable[[str], None]) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    say(f"{folder}: {len(files)} files, {sum(sizes):,} bytes")
    for path, size in zip(files, sizes, strict=True):
        say(f"  {size:>13,}  {path.relative_to(folder).as_posix()}")


def _command(
    run: Path,
    repo_id: str,
    private: bool,
    revision: str | None,
    replace: bool,
    fold_temperature: bool,
    licence: str,
    seeds: Sequence[Path],
    onnx: bool,
) -> str:
    """The command line that does the same again."""
    words = ["python", "-m", "cskd_hf.publish", str(run), repo_id, *([] if private else ["--public"])]
    words += [] if revision is None else ["--revision", revision]
    words += ["--replace"] if replace else []
    words += ["--fold-temperature"] if fold_temperature else []
    words += ["--license", licence]
    words += ["--seeds", *map(str, seeds)] if seeds else []
    return shlex.join([*words, *(["--onnx"] if onnx else [])])


if __name__ == "__main__":
    run_command(main)
