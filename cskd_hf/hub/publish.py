"""A finished run → a release folder, verified in a fresh process → one commit on the Hub."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from cskd_hf.errors import UserError
from cskd_hf.hub.licences import choose_licence
from cskd_hf.hub.provenance import terms_of
from cskd_hf.hub.seeds import read_seeds
from cskd_hf.hub.source import Release, read_source
from cskd_hf.hub.upload import check_target, upload_release


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
    licence_name: str | None = None,
    licence_link: str | None = None,
    seeds: Sequence[Path] = (),
    onnx: bool = False,
    finish_command: str | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Build `run`/release, verify it, upload it; returns the exit status. Call it on one rank only.

    Args:
        private, revision, replace: as `upload_release`.
        dry_run: all but the upload; needs neither network, token nor licence.
        fold_temperature: divide the classifier's weights by the temperature.
        licence, licence_name, licence_link: as `choose_licence`; by default the terms of the data decide, if known.
        seeds: runs of the same recipe with other seeds; the card reports mean ± std over all.
        onnx: with a model.onnx.
        finish_command: the command that repeats this call, for errors of the upload; by default one without options.
        say: receives a line per step.

    Raises:
        UserError: an argument, the run or the repository is rejected, or the release does not load as the trained
            network. An earlier release stays unless only the upload failed.
    """
    # Everything that can be rejected without loading weights.
    check_target(repo_id, token_needed=False)
    source = read_source(run)
    if fold_temperature and source.summary.metrics.temperature is None:
        raise UserError(
            f"--fold-temperature: {run} is {source.summary.metrics.verdict}; train with a larger data.holdout, or "
            "publish without it"
        )
    terms = terms_of(source.recipe, source.summary.model)
    chosen = choose_licence(licence, terms, licence_name, licence_link, required=not dry_run)
    seed_metrics = read_seeds(run, seeds)
    check_target(repo_id, token_needed=not dry_run)

    folder = _build(Release(source, repo_id, chosen, seeds=seed_metrics, onnx=onnx), fold_temperature, say)
    if dry_run:
        say(f"dry run: nothing was uploaded; the card is {folder / 'README.md'}")
        if chosen.identifier == "unknown":
            say("no licence follows from the terms of the sources: to publish, write --license IDENTIFIER")
        return 0
    command = ["python", "-m", "cskd_hf.publish", str(run), repo_id, *([] if private else ["--public"])]
    url = upload_release(
        folder,
        repo_id,
        private=private,
        revision=revision,
        replace=replace,
        message=f"{source.summary.name}, recipe {source.summary.recipe_hash}",
        finish_command=finish_command or shlex.join(command),
        say=say,
    )
    say(f"published: {url}")
    return 0


def _build(release: Release, fold: bool, say: Callable[[str], None]) -> Path:
    """Build and verify a release next to the previous one, then replace that."""
    from cskd_hf.hub.fold import fold_temperature
    from cskd_hf.hub.release import build_release
    from cskd_hf.hub.verify import verify_release
    from cskd_hf.models.load import load_trained
    from cskd_hf.recipe.resolve import resolve

    run, recipe = release.source.folder, resolve(release.source.recipe)
    temperature = release.source.summary.metrics.temperature
    model = load_trained(str(run)).model
    if fold and temperature is not None:
        model, folded = fold_temperature(model, temperature, recipe.transform.input_size)
        release = dataclasses.replace(release, folded=folded)
        say(f"temperature {temperature:.6g} folded into {', '.join(folded)}; raw/ has the weights as trained")
    say(release.source.summary.metrics.verdict)
    folder, partial = run / "release", run / ".partial-release"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        build_release(release, partial, model)
        say(f"built, licence {release.licence}; paths are reduced to their last component")
        verify_release(partial, run, model, recipe, say)
        if release.onnx:
            from cskd_hf.hub.onnx import export_onnx

            say(f"{export_onnx(partial).name}: outputs equal PyTorch's")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
    except BrokenPipeError:  # from `say`
        raise
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    say(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files):,} bytes")
    for path in files:
        say(f"  {path.stat().st_size:>13,}  {path.relative_to(folder).as_posix()}")
    return folder
