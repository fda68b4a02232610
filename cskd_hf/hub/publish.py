"""Build a release from a finished run, verify it in a fresh process, upload it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from cskd_hf.errors import UserError


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
    from cskd_hf.hub.release import build_release, check_request, read_source
    from cskd_hf.hub.seeds import read_seeds
    from cskd_hf.hub.upload import check_target, upload_release

    # what can be refused at once
    check_target(repo_id, token_needed=False)
    source = read_source(run)
    licence = check_request(source, fold=fold_temperature, licence=licence)
    means = read_seeds(run, seeds)
    check_target(repo_id, token_needed=not dry_run)

    # folder
    from cskd_hf.hub import fold
    from cskd_hf.hub.card_metadata import check_metadata
    from cskd_hf.hub.verify import verify_release
    from cskd_hf.models.load import load_trained
    from cskd_hf.recipe.resolve import resolve

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
            from cskd_hf.hub.onnx import export_onnx

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
