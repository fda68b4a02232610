# /// script
# requires-python = ">=3.10"
# dependencies = ["cskd_hf"]
#
# [tool.uv]
# find-links = ["/dist"]
#
# [tool.hf-jobs]
# flavor = "a10g-large"
# timeout = "12h"
# secrets = ["HF_TOKEN"]
# volumes = ["./dist:/dist"]
# ///
"""Train on a rented GPU, as a Hugging Face Job; submit the same command again to resume.

    pip wheel --no-deps --wheel-dir dist .
    hf jobs uv run -v hf://datasets/me/birds:/data -v hf://buckets/me/runs:/runs \\
        scripts/hf_job.py finetune data.dataset=/data

RECIPE is the name of a shipped recipe, or a file on a mounted volume. `hf` uploads this script and ./dist, which holds
the package, and reads flavor and timeout from the header; its own options override them. The default timeout of a job
is 30 minutes.

A bucket supports whole-file writes, but not the renames that a run folder needs. The run folder is therefore on the
job's local disk, and the bucket holds a copy that is at most `--every` seconds old. A killed job loses the work since
the last checkpoint in that copy: set run.checkpoint_steps if epochs take long.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from cskd_hf.errors import UserError, run_command
from cskd_hf.recipe.arguments import RecipeParser
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.runs.lock import NAME as LOCK


class Mirror:
    """A copy of a run folder, made of whole files.

    A copy that a kill cuts short is harmless: its checksums differ, and the checkpoint before it is still there.
    """

    def __init__(self, folder: Path, copy: Path) -> None:
        self.folder, self.copy = folder, copy
        self.copied: dict[Path, tuple[int, int]] = {}  # relative path -> size and time of change

    def restore(self) -> None:
        """Fill the run folder from the copy, if there is one."""
        from cskd_hf.runs.checkpoint_folders import list_checkpoints, newest_intact

        if self.copy.is_dir():
            shutil.copytree(self.copy, self.folder, dirs_exist_ok=True)
            self.copied = _files(self.folder)
            for checkpoint in list_checkpoints(self.folder / "checkpoints"):
                if newest_intact([checkpoint]) is None:  # a kill cut its copy short
                    shutil.rmtree(checkpoint)

    def update(self) -> None:
        """Copy what is new or changed; then remove what the run folder no longer has.

        Raises:
            OSError: the copy's disk is full or not writable.
        """
        files = _files(self.folder)
        for path in sorted(files, key=lambda path: path.parts[0] != "checkpoints"):
            if self.copied.get(path) == files[path]:
                continue
            (self.copy / path).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self.folder / path, self.copy / path)
                self.copied[path] = files[path]
        for path in self.copied.keys() - files.keys():
            (self.copy / path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty yet
                (self.copy / path).parent.rmdir()
            del self.copied[path]


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file but the lock and partial checkpoints."""
    files = {}
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if relative.name == LOCK or any(part.startswith(".") for part in relative.parts):
            continue
        with contextlib.suppress(FileNotFoundError):  # a checkpoint removed by the run in the meantime
            state = path.stat()
            if stat.S_ISREG(state.st_mode):
                files[relative] = (state.st_size, state.st_mtime_ns)
    return files


def main() -> int:
    parser = RecipeParser("hf_job.py", description=__doc__)
    parser.add_argument("--copies", type=Path, default=Path("/runs"), help="folder of the copies (%(default)s)")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two copies (%(default)s)")
    args = parser.parse(None)
    recipe = load_recipe(args.recipe, args.overrides)
    if not args.copies.is_dir():
        raise UserError(
            f"--copies: {args.copies} is no folder; mount a bucket there: -v hf://buckets/NAME:{args.copies}"
        )
    assert recipe.run.output_dir is not None
    name = Path(recipe.run.output_dir).name
    folder = Path(tempfile.gettempdir(), "runs", name)
    mirror = Mirror(folder, args.copies / name)
    mirror.restore()

    import torch  # after the checks, which are fast

    overrides = [*args.overrides, f"run.output_dir={folder}"]
    command = [sys.executable, "-m", "cskd_hf.train", args.recipe, *overrides]
    if torch.cuda.device_count() > 1:
        command[1:2] = ["-m", "torch.distributed.run", f"--nproc_per_node={torch.cuda.device_count()}", "-m"]
    training = subprocess.Popen(command)
    for number in (signal.SIGINT, signal.SIGTERM):  # the run stops with a checkpoint, which is then copied
        signal.signal(number, lambda number, _: training.send_signal(number))
    status = None
    while status is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = training.wait(args.every)
        try:
            mirror.update()
        except OSError as error:  # training continues; the next copy may succeed
            print(f"warning: {mirror.copy} could not be written: {error}", file=sys.stderr)
            failed = True
        else:
            failed = False
    if failed:
        return status or 1
    print(f"copied to {mirror.copy}")
    return status


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    run_command(main)
