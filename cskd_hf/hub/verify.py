"""Load a release in a fresh process and compare it with the run's own network and predictions."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import Tensor

import cskd_hf
from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.deep import EIGHT_BITS, depth_of
from cskd_hf.data.duplicates import read_content
from cskd_hf.data.normalize import normalize
from cskd_hf.data.splits import load_split
from cskd_hf.data.transforms import Transform, is_sliver
from cskd_hf.errors import UserError, one_line
from cskd_hf.files import write_json, write_tensors
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.sections import TransformSection
from cskd_hf.runs.summary import read_summary

NUM_IMAGES = 256
_SCRIPT = Path(__file__).with_name("fresh_load.py")
# Logits that differ by less than this share of their range may swap ranks: another device rounds differently.
_TIE = 0.01


def verify_release(release: Path, run: Path, model: Any, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Compare what timm, and transformers if installed, load from `release` in a fresh process.

    Args:
        run: the run folder, for class names and predictions.
        model: the network whose weights the release must hold, folded or not; in eval mode, on the CPU.
        recipe: the run's, resolved.
        say: receives a line per comparison, and per comparison that is not possible.

    Raises:
        UserError: the loaded network is not the trained one; the message lists the differences.
    """
    config = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    transform = recipe.transform
    try:
        contents, images, saved_logits = _test_images(run, recipe, config["label_names"])
    except UserError as error:
        say(f"skipped: top-1 on the run's test images: {one_line(error)}; logits are compared on noise")
        contents, images = _noise(recipe)
        saved_logits = None
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (transform.mean, transform.std))
    with torch.inference_mode():
        pixels = normalize(images, mean, std, channels_last=False)
        logits = torch.cat([model(part) for part in pixels.split(32)])
    libraries = ["timm"]
    if transform.input_size[0] != 3:
        say("skipped: transformers, whose pipelines read RGB")
    elif util.find_spec("transformers") and util.find_spec("transformers.models.timm_wrapper"):
        libraries.append("transformers")
    else:
        say("skipped: transformers, which is not installed or older than 4.48")
    published = json.loads((release / "config.json").read_text(encoding="utf-8"))
    needs_cskd_hf = published["cskd"]["needs_cskd_hf"]
    deep = read_summary(run).dataset.deep
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder, "images.safetensors"), {"images": images, "logits": logits})
        write_tensors(Path(folder, "model.safetensors"), model.state_dict())
        write_json(Path(folder, "expected.json"), _expected(transform, published, config["label_names"]))
        for row, content in enumerate(contents):
            if _plain_code_reads(content, deep):
                Path(folder, f"{row}.image").write_bytes(content)
        results = _load_afresh(release, Path(folder), [*libraries, "card"], needs_cskd_hf)
    imported = "with" if needs_cskd_hf else "without"
    card = results.pop("card")
    for library, result in results.items():
        if result["differences"]:
            raise UserError(
                f"{library} does not load the trained network: {'; '.join(result['differences'])}; "
                "nothing was published"
            )
        equality = f"within {result['error']:.1g}" if result["error"] else "bit for bit"
        say(f"{library}, {imported} cskd_hf: tensors equal; logits of {len(images)} images equal {equality}")
        if saved_logits is not None:
            _compare_top1(torch.tensor(result["top1"]), saved_logits, library)
            say(f"{library}: top-1 of {len(images)} test images equal to predictions.safetensors")
    if card["differences"]:
        raise UserError(f"the card's code predicts something else: {card['differences'][0]}; nothing was published")
    say(f"the card's code, {imported} cskd_hf: logits of {card['images']} of {len(images)} image files equal")
    if card["images"] < len(images):
        say("not compared: slivers, broken metadata, and deep images that Pillow alone does not read whole")


def _expected(transform: TransformSection, published: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """What `fresh_load.py` compares with, and the name that the card loads the weights by."""
    settings = transform.for_evaluation().model_dump(
        include={"input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"}
    )
    settings["interpolation"] = settings["interpolation"].replace("random", "bilinear")
    repo_id = published["pretrained_cfg"]["origin_url"].removeprefix("https://huggingface.co/")
    return {"labels": labels, "settings": settings, "num_threads": torch.get_num_threads(), "repo_id": repo_id}


def _compare_top1(top1: Tensor, saved_logits: Tensor, library: str) -> None:
    """Compare with the logits that training saved, perhaps on another device."""
    best, worst = saved_logits.max(dim=1).values, saved_logits.min(dim=1).values
    gap = best - saved_logits.gather(1, top1[:, None])[:, 0]
    wrong = (gap > _TIE * (best - worst)).sum().item()
    if wrong:
        raise UserError(
            f"{library}: the top class of {wrong} of {len(top1)} test images differs from predictions.safetensors: "
            "weights and predictions are from different runs; nothing was published"
        )


def _plain_code_reads(content: bytes, deep: Mapping[str, tuple[float, float]]) -> bool:
    """Whether the card's code can show an image file as testing did; `deep` is the summary's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as opened:
                depth = depth_of(opened)
                ImageOps.exif_transpose(opened)
    except Exception:  # broken metadata, under any of Pillow's exceptions
        return False
    grey = opened.mode[0] in "IF" and depth.kind == next(iter(deep), None) and "transparency" not in opened.info
    return (depth == EIGHT_BITS or grey) and not is_sliver(opened.size)


def _noise(recipe: Recipe) -> tuple[list[bytes], Tensor]:
    """Image files of noise with alpha, and what testing shows of them."""
    contents = []
    for seed in range(8):
        buffer = io.BytesIO()
        size = recipe.transform.for_evaluation().input_size[1:]
        pixels = np.random.RandomState(seed).randint(0, 256, (*size, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    transform = Transform(recipe.transform, is_training=False)
    return contents, torch.stack([transform({"bytes": content, "path": None}, seed=0) for content in contents])


def _test_images(run: Path, recipe: Recipe, class_names: Sequence[str]) -> tuple[list[bytes], Tensor, Tensor]:
    """Image files of the run's test split, what testing shows of them, uint8 (N, 3, H, W), and the saved logits (N, K).

    Raises:
        UserError: the images cannot be read on this machine, or changed since the run was tested.
    """
    with safe_open(run / "predictions.safetensors", framework="pt") as predictions:
        row, target = predictions.get_tensor("row"), predictions.get_tensor("target")
        chosen = torch.linspace(0, len(row) - 1, min(NUM_IMAGES, len(row))).round().long()
        saved = predictions.get_slice("logits")  # too large to read whole
        logits = torch.cat([saved[index : index + 1] for index in chosen.tolist()])
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # a check downloads nothing
    try:
        split = load_split(recipe.data, class_names)
    finally:
        constants.HF_HUB_OFFLINE = offline
    rows, targets = row[chosen], target[chosen]
    if int(row.max()) >= len(split) or split.labels[rows.numpy()].tolist() != targets.tolist():
        raise UserError(f"split {split.name!r} has changed since the run was tested")
    transform = Transform(recipe.transform, is_training=False, value_range=recipe.data.value_range)
    try:
        files = split.fetch(rows.tolist())
        images = [transform(image, seed=0) for image in files]
        contents = [read_content(image) for image in files]
    except UnreadableImageError as error:
        raise UserError(f"an image cannot be read: {error}") from error
    return contents, torch.stack(images), logits


def _load_afresh(
    release: Path, expected: Path, libraries: Sequence[str], needs_cskd_hf: bool
) -> dict[str, Mapping[str, Any]]:
    """Library → the result that `fresh_load.py` printed."""
    package = str(Path(cskd_hf.__file__).resolve().parent.parent) if needs_cskd_hf else ""
    # A user's environment: no token, no network, none of this process's settings.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON", "ACCELERATE_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.run(
        [sys.executable, "-I", str(_SCRIPT), str(release.resolve()), str(expected), package, *libraries],
        env=environment,
        cwd=expected,
        capture_output=True,
        text=True,
    )
    results = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or [f"status {process.returncode}"]
        raise UserError(
            f"{libraries[len(results)]} cannot load the release in a fresh process: {last[0]}; nothing was published"
        )
    return dict(zip(libraries, results, strict=True))
