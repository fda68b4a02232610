"""Name what an image shows, with a probability that was calibrated.

python -m cskd_hf.predict runs/digits_resnet10-cskd-seed0 scan.png [more images]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cskd_hf.errors import UserError, run_command

if TYPE_CHECKING:
    from cskd_hf.models.load import TrainedModel


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cskd_hf.predict", description="Image → calibrated top-k.")
    parser.add_argument("model", help="a run folder, local-dir:FOLDER or hf-hub:OWNER/NAME")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--top-k", type=int, default=5, help="classes to name (5)")
    args = parser.parse_intermixed_args(argv)
    if args.top_k < 1:
        parser.error("--top-k is at least 1")

    from cskd_hf.data.decode import UnreadableImageError
    from cskd_hf.models.load import load_trained

    trained = load_trained(args.model)
    if trained.temperature is None:
        print("not calibrated: no temperature was fitted to these weights")
    for path in args.images:
        try:
            likeliest = predict_image(trained, path, args.top_k)
        except UnreadableImageError as error:
            raise UserError(f"{path}: {error}") from None
        print(path)
        for name, probability in likeliest:
            print(f"  {100 * probability:6.2f} %  {name}")
    return 0


def predict_image(trained: TrainedModel, path: str, top_k: int = 5) -> list[tuple[str, float]]:
    """The likeliest classes of an image file, and their calibrated probabilities.

    Returns:
        (name, probability), the likeliest first; a number for a name where the weights name no classes.

    Raises:
        UnreadableImageError: the file is not a whole image.
    """
    import torch

    from cskd_hf.data.normalize import normalize
    from cskd_hf.data.transforms import Transform

    image = Transform(trained.transform, is_training=False)({"bytes": None, "path": path}, seed=0)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (trained.transform.mean, trained.transform.std))
    with torch.inference_mode():
        logits = trained.model(normalize(image[None], mean, std, channels_last=False))[0]
    probability = torch.softmax(logits / (trained.temperature or 1.0), dim=-1)
    top = probability.topk(min(top_k, len(probability)))
    names = trained.class_names or tuple(map(str, range(len(probability))))
    return [(names[label], value) for value, label in zip(top.values.tolist(), top.indices.tolist(), strict=True)]


def cli() -> None:
    """The console script cskd-predict."""
    run_command(main)


if __name__ == "__main__":
    cli()
