"""Is a release what was trained: loaded in a fresh process, and compared with the run's own network and predictions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any

import cskd_hf
from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import Recipe

NUM_IMAGES = 256
_SCRIPT = Path(__file__).with_name("fresh_load.py")
# Another device than the training's rounds otherwise: logits that lie closer than this share of an image's range of
# logits may change places.
_TIE = 0.01


def verify_release(release: Path, run: Path, model: Any, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Load `release` with timm, and with transformers if it is here, in a fresh process, and compare.

    Args:
        release: the folder as it will be published.
        model: the network whose weights it must hold, in eval mode on the CPU: the run's own, folded or not.
        recipe: the run's, resolved.
        say: called with a line for each comparison, and for one that cannot be made.

    Raises:
        UserError: what was loaded is not what was trained; the line says in what.
    """
    import torch
    from safetensors.torch import save_file

    from cskd_hf.data.normalize import normalize

    found = _test_images(run, recipe)
    if isinstance(found, str):
        say(f"left out: top-1 on the run's own test images: {found}; logits are compared on noise instead")
        noise = torch.randint(0, 256, (8, *recipe.transform.input_size), generator=torch.Generator().manual_seed(0))
        images, saved = noise.to(torch.uint8), None
    else:
        images, saved = found
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (recipe.transform.mean, recipe.transform.std))
    with torch.inference_mode():
        pixels = normalize(images, mean, std, channels_last=False)
        logits = torch.cat([model(part) for part in pixels.split(32)])
    config = json.loads((release / "config.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        threads = torch.tensor(torch.get_num_threads())
        save_file({"images": images, "logits": logits, "num_threads": threads}, Path(folder, "images.safetensors"))
        state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
        save_file(state, Path(folder, "model.safetensors"))
        libraries = ["timm"]
        if util.find_spec("transformers") is None:
            say("left out: transformers, which is not installed")
        elif util.find_spec("transformers.models.timm_wrapper") is None:
            say("left out: transformers, older here than its wrapper of timm (4.48)")
        else:
            libraries.append("transformers")
        loaded = _load_afresh(release, Path(folder), libraries, config["cskd"]["needs_cskd_hf"])
    for library, told in loaded.items():
        _compare(told, library, config, logits, recipe)
        same = "equal bit for bit" if told["logits_equal"] else f"within {told['logits_difference']:.1g}"
        who = f"{library}, {'this package imported' if told['this_package'] else 'this package out of reach'}"
        say(f"{who}: {len(state)} tensors equal; logits of {len(images)} images {same}")
        if saved is not None:
            _compare_top1(torch.tensor(told["top1"]), saved, library)
            say(f"{library}: top-1 of {len(images)} test images equal to predictions.safetensors")


def _compare(told: Mapping[str, Any], library: str, config: Mapping[str, Any], logits: Any, recipe: Recipe) -> None:
    wrong = []
    if told["names_differ"]:
        wrong.append(f"other tensors: {', '.join(told['names_differ'])}")
    if told["weights_differ"]:
        wrong.append(f"other values in {', '.join(told['weights_differ'])}")
    if not told["logits_difference"] <= 1e-5 * max(1.0, logits.abs().max().item()):
        wrong.append(f"logits differ by up to {told['logits_difference']:.2g}")
    if told["labels"] != config["label_names"]:
        wrong.append("other class names")
    transform = recipe.transform
    interpolation = "bilinear" if transform.interpolation == "random" else transform.interpolation
    prepared = [transform.input_size, interpolation, transform.crop_pct, transform.mean, transform.std]
    if library == "timm" and told["settings"] != json.loads(json.dumps(prepared)):
        wrong.append(f"images are prepared by {told['settings']}, not {prepared}")
    if library == "transformers" and told["pipeline"] not in config["label_names"]:
        wrong.append(f"the pipeline says {told['pipeline']!r}, which is no class")
    if wrong:
        raise UserError(f"{library} loads something else than was trained: {'; '.join(wrong)}; nothing was published")


def _compare_top1(top1: Any, saved: Any, library: str) -> None:
    """Against the logits that training saved, perhaps of another device."""
    best, worst = saved.max(dim=1).values, saved.min(dim=1).values
    gap = best - saved.gather(1, top1[:, None])[:, 0]
    strange = (gap > _TIE * (best - worst)).sum().item()
    if strange:
        raise UserError(
            f"{library}: the top class of {strange} of {len(top1)} test images is not that of predictions.safetensors; "
            "weights and predictions are not of one run; nothing was published"
        )


def _test_images(run: Path, recipe: Recipe) -> tuple[Any, Any] | str:
    """Of the run's test split, uint8 images (N, 3, H, W) and the logits (N, K) saved of them; or why there are none."""
    import torch
    from safetensors.torch import load_file

    from cskd_hf.data.decode import UnreadableImageError
    from cskd_hf.data.splits import load_split
    from cskd_hf.data.transforms import Transform

    config = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    held = load_file(run / "predictions.safetensors")
    try:
        with _offline():  # nothing is downloaded for a check
            split = load_split(recipe.data, config["label_names"])
    except UserError as error:
        return f"the data cannot be read here: {' '.join(str(error).split())}"
    count = len(held["row"])
    chosen = torch.linspace(0, count - 1, min(NUM_IMAGES, count)).round().long()
    rows = held["row"][chosen]
    if int(held["row"].max()) >= len(split) or split.labels[rows.numpy()].tolist() != held["target"][chosen].tolist():
        return f"split {split.name!r} has other images now than when the run was tested"
    transform = Transform(recipe.transform, is_training=False)
    try:
        images = [transform(image, seed=0) for image in split.fetch(rows.tolist())]
    except UnreadableImageError as error:
        return f"an image cannot be read here: {error}"
    return torch.stack(images), held["logits"][chosen]


@contextmanager
def _offline() -> Iterator[None]:
    """The Hub's client keeps to its cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_afresh(
    release: Path, expected: Path, libraries: Sequence[str], needs_cskd_hf: bool
) -> dict[str, dict[str, Any]]:
    package = str(Path(cskd_hf.__file__).resolve().parent.parent) if needs_cskd_hf else ""
    # No token, no network, no settings of this process: what a stranger has.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON", "ACCELERATE_"))}
    kept |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-I", str(_SCRIPT), str(release.resolve()), str(expected), package, ",".join(libraries)],
        env=kept,
        cwd=expected,
        capture_output=True,
        text=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise UserError(
            f"{libraries[len(told)]} cannot load the release in a fresh process: {last[0]}; nothing was published"
        )
    return dict(zip(libraries, told, strict=True))
