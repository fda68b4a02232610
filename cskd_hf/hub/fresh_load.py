"""Load a release as its users will, in a process that has never seen this package; say what came out.

Run by its path, never imported: `python -I fresh_load.py RELEASE EXPECTED PACKAGE LIBRARIES`. PACKAGE is the folder of
this package where the architecture needs it, else empty, and importing it is then impossible. LIBRARIES is timm, or
timm,transformers. EXPECTED holds the files of `hub/verify.py`. Prints one line of JSON for each library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ != "__main__":
    raise ImportError("run me by my path")

release, expected, package, libraries = sys.argv[1:5]
if package:
    sys.path.insert(0, package)
    import cskd_hf.models  # noqa: F401  # registers the architecture
else:
    sys.modules["cskd_hf"] = None  # type: ignore[assignment]  # from here on, importing it fails

import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

weights = load_file(Path(expected) / "model.safetensors")
tensors = load_file(Path(expected) / "images.safetensors")
torch.set_num_threads(int(tensors["num_threads"]))


@torch.inference_mode()
def tell(model: Any, state: dict[str, Tensor], mean: Any, std: Any, labels: Any, **more: Any) -> None:
    """What came out of a library: `model` on the images, normalised by what the library read of the release."""
    images = tensors["images"].float() / 255
    images = (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    logits = torch.cat([getattr(found := model(part), "logits", found) for part in images.split(32)])
    shared = weights.keys() & state.keys()
    told = {
        "names_differ": sorted(weights.keys() ^ state.keys())[:5],
        "weights_differ": [name for name in sorted(shared) if not torch.equal(weights[name], state[name])][:5],
        "labels": None if labels is None else list(labels),
        "logits_equal": torch.equal(logits, tensors["logits"]),
        "logits_difference": (logits - tensors["logits"]).abs().max().item(),
        "top1": logits.argmax(dim=1).tolist(),
        "this_package": sys.modules.get("cskd_hf") is not None,
    }
    print(json.dumps(told | more), flush=True)


loaded = timm.create_model(f"local-dir:{release}", pretrained=True).eval()
settings = timm.data.resolve_model_data_config(loaded)
tell(
    loaded,
    loaded.state_dict(),
    settings["mean"],
    settings["std"],
    loaded.pretrained_cfg.get("label_names"),
    settings=[settings[name] for name in ("input_size", "interpolation", "crop_pct", "mean", "std")],
)

if "transformers" in libraries.split(","):
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    wrapped = AutoModelForImageClassification.from_pretrained(release).eval()
    processor = AutoImageProcessor.from_pretrained(release)
    classify = pipeline("image-classification", model=wrapped, image_processor=processor)
    picture = Image.fromarray(tensors["images"][0].permute(1, 2, 0).numpy())
    tell(
        wrapped,
        wrapped.timm_model.state_dict(),
        processor.data_config["mean"],
        processor.data_config["std"],
        [wrapped.config.id2label[number] for number in range(wrapped.config.num_labels)],
        pipeline=classify(picture, top_k=1)[0]["label"],
    )
