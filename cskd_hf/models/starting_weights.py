"""Weights that training starts from: what timm loaded of them, and what it did not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import load_state_dict
from torch import nn

from cskd_hf.errors import UserError, one_line
from cskd_hf.recipe.pretrained import Pretrained

MIN_SHARE = 0.5  # of a network's tensors that weights must have to count as its own [ours]
MAX_NAMES = 4  # of layers that one line lists

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StartingWeights:
    """Where a network's first weights come from.

    Attributes:
        name: repository on the Hub, `local-dir:FOLDER` or file.
        license: "unknown" unless timm or config.json says.
        new: the network's tensors that the weights lack; they start at random.
        unused: tensors of the weights that the network lacks.
        adapted: what timm converted, such as "input channels 3 → 1".
    """

    name: str
    license: str
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    @property
    def loaded(self) -> str:
        """What was loaded and what was not, in one line."""
        parts = [f"all but {_layers(self.new)}, which starts at random" if self.new else "all of the network"]
        parts += self.adapted
        parts += [f"unused: {_layers(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def read_shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor in a file of weights, as timm reads it.

    Raises:
        UserError: there is no such file, or timm cannot read it.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        raise UserError(
            f"model.checkpoint: {file} is a folder; if it has a config.json, write model.model_name=local-dir:{file} "
            "model.pretrained=true"
        )
    if not path.is_file():
        raise UserError(f"model.checkpoint: no such file: {file}")
    try:
        return {name: tuple(tensor.shape) for name, tensor in load_state_dict(str(path)).items()}
    except Exception as error:  # pickle, zip and safetensors have their own for a damaged file
        reason = one_line(error) or type(error).__name__
        raise UserError(f"model.checkpoint: {file} holds no weights that timm can read: {reason}") from None


def overlay_for(file: str, shapes: Shapes, cfg: Any) -> dict[str, Any]:
    """What to replace in timm's PretrainedCfg, so that timm loads the file and adapts classes and input channels."""
    overlay: dict[str, Any] = {"file": str(Path(file).expanduser()), "source": None, "label_offset": None}
    # 0 without a classifier under the network's own name: timm then leaves the new one at random.
    classifier = shapes.get(f"{_names(cfg.classifier)[0]}.weight", (0,))
    first_conv = shapes.get(f"{_names(cfg.first_conv)[0]}.weight")
    overlay["num_classes"] = classifier[0]
    if first_conv is not None and len(first_conv) == 4:
        overlay["input_size"] = (first_conv[1], *cfg.input_size[1:])
    return overlay


@contextmanager
def recorded_loading() -> Iterator[list[Any]]:
    """Collect what `load_state_dict` returns inside: timm has the missing and unexpected names, and only logs them."""
    results: list[Any] = []
    original = nn.Module.load_state_dict

    def load(self: nn.Module, *args: Any, **keywords: Any) -> Any:
        results.append(original(self, *args, **keywords))
        return results[-1]

    nn.Module.load_state_dict = load  # type: ignore[method-assign]
    try:
        yield results
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def describe_loading(
    model: Any,
    pretrained: Pretrained,
    checkpoint: str | None,
    shapes: Shapes,
    keywords: Mapping[str, Any],
    results: Sequence[Any],
) -> StartingWeights:
    """What timm loaded into a model.

    Args:
        pretrained: of the recipe's `model_name`.
        checkpoint: the file of weights, if the recipe names one.
        shapes: of its tensors; empty without one.
        keywords: of the network's constructor.
        results: what `recorded_loading` collected.

    Raises:
        UserError: the weights have too few of the network's tensors to be its own.
    """
    new = tuple(name for result in results for name in result.missing_keys)
    unused = tuple(name for result in results for name in result.unexpected_keys)
    # Weights of old versions of torch lack BatchNorm's counter, which torch does not count as missing.
    built = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    if len(new) > (1 - MIN_SHARE) * len(built):
        key, source = ("model_name", pretrained.name) if checkpoint is None else ("checkpoint", checkpoint)
        raise UserError(
            f"model.{key}: {source} has {len(built) - len(new)} of the {len(built)} tensors of "
            f"{pretrained.architecture}: the weights are of another network; name it in model.model_name"
        )
    if checkpoint is not None:
        adapted = [
            f"{name} {_size(shapes[name])} → {_size(shape)}"
            for name, shape in built.items()
            if name not in new and shapes.get(name, shape) != shape
        ]
        return StartingWeights(checkpoint, "unknown", new, unused, tuple(adapted))
    channels, *size = pretrained.cfg.input_size
    adapted = [f"input channels {channels} → {keywords['in_chans']}"] if channels != keywords["in_chans"] else []
    img_size = keywords.get("img_size")
    target = [img_size] * 2 if isinstance(img_size, int) else list(img_size or size)
    if pretrained.cfg.fixed_input_size and target != size:
        adapted.append(f"image size {_size(size)} → {_size(target)}")
    return StartingWeights(pretrained.name, pretrained.license, new, unused, tuple(adapted))


def _names(names: Any) -> Sequence[str]:
    """Of layers, as PretrainedCfg has them: one, several or None."""
    return names if isinstance(names, (tuple, list)) else [str(names)]


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _layers(names: Sequence[str]) -> str:
    """The layers of some tensors, shortened."""
    layers = list(dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in names))
    more = [f"{len(layers) - MAX_NAMES} more"] if len(layers) > MAX_NAMES else []
    return ", ".join(layers[:MAX_NAMES] + more)
