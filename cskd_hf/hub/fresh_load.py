"""Use a release as its users will, in a process without this package, and compare it with what was trained.

Run as a script: `python -I fresh_load.py RELEASE EXPECTED PACKAGE LIBRARY…`. EXPECTED holds the files written by
`hub/verify.py`. PACKAGE is this package's parent folder if the architecture needs it, else empty, which makes importing
it impossible. Each LIBRARY is `timm`, `transformers` or `card`, whose code is run on the image files in EXPECTED.
Prints a line of JSON per library, in this order.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

if __name__ != "__main__":
    raise ImportError("fresh_load.py is a script")

release, folder, package, *libraries = sys.argv[1:]
if package:
    sys.path.insert(0, package)
    import cskd_hf.models  # noqa: F401  # registers the architecture
else:
    sys.modules["cskd_hf"] = None  # type: ignore[assignment]  # from here on, importing it fails

import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

expected = json.loads(Path(folder, "expected.json").read_text(encoding="utf-8"))
tensors, weights = load_file(Path(folder, "images.safetensors")), load_file(Path(folder, "model.safetensors"))
torch.set_num_threads(expected["num_threads"])


@torch.inference_mode()
def compare(model: Any, state: dict[str, Tensor], data_config: dict[str, Any], labels: Any, predicted: str) -> None:
    """Print the differences; the images are normalised as the library reads it from the release."""
    mean, std = (torch.tensor(data_config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    outputs = [model(part) for part in ((tensors["images"].float() / 255 - mean) / std).split(32)]
    logits = torch.cat([output if isinstance(output, Tensor) else output.logits for output in outputs])
    error = (logits - tensors["logits"]).abs().max().item()
    settings = json.loads(json.dumps({name: data_config[name] for name in expected["settings"]}))
    wrong = [name for name in weights.keys() & state.keys() if not torch.equal(weights[name], state[name])]
    differences = {
        f"tensor names differ: {sorted(weights.keys() ^ state.keys())[:5]}": weights.keys() != state.keys(),
        f"values differ in {sorted(wrong)[:5]}": bool(wrong),
        f"logits differ by up to {error:.2g}": not error <= 1e-5 * max(1.0, tensors["logits"].abs().max().item()),
        "class names differ": labels != expected["labels"],
        f"images are prepared with {settings} instead of {expected['settings']}": settings != expected["settings"],
        f"{predicted!r} is predicted, which is not a class": predicted not in expected["labels"],
    }
    result = {"differences": [text for text, differs in differences.items() if differs], "error": error}
    print(json.dumps(result | {"top1": logits.argmax(dim=1).tolist()}), flush=True)


def run_card() -> None:
    """Run the first block of code of the card on each image: its lines up to `image = …` once, the others per image."""
    code = Path(release, "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    code = code.replace(f"hf-hub:{expected['repo_id']}", f"local-dir:{release}")
    at = code.index("\nimage = ")
    names: dict[str, Any] = {}
    exec(compile(code[:at], "card", "exec"), names)
    use, errors = compile(code[at:], "card", "exec"), []
    files = sorted(Path(folder).glob("*.image"), key=lambda path: int(path.stem))
    for file in files:
        shutil.copyfile(file, "image.jpg")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(use, names)
        errors.append((names["logits"][0] - tensors["logits"][int(file.stem)]).abs().max().item())
    allowed = 1e-3 * max(1.0, tensors["logits"].abs().max().item())
    wrong = sum(not error <= allowed for error in errors)
    difference = f"the logits of {wrong} of {len(files)} images differ by up to {max(errors, default=0):.2g}"
    print(json.dumps({"differences": [difference] if wrong else [], "images": len(files)}), flush=True)


if "timm" in libraries:
    loaded = timm.create_model(f"local-dir:{release}", pretrained=True).eval()
    data_config, labels = timm.data.resolve_model_data_config(loaded), loaded.pretrained_cfg.get("label_names")
    compare(loaded, loaded.state_dict(), data_config, labels, expected["labels"][0])

if "transformers" in libraries:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    wrapped = AutoModelForImageClassification.from_pretrained(release).eval()
    processor = AutoImageProcessor.from_pretrained(release)
    classify = pipeline("image-classification", model=wrapped, image_processor=processor)
    picture = Image.fromarray(tensors["images"][0].permute(1, 2, 0).numpy())
    labels = [wrapped.config.id2label[number] for number in range(wrapped.config.num_labels)]
    predicted = classify(picture, top_k=1)[0]["label"]
    compare(wrapped, wrapped.timm_model.state_dict(), processor.data_config, labels, predicted)

if "card" in libraries:
    run_card()
