"""What a training method is: hyper-parameters and mathematics, no tensors.

Recipes are parsed before torch is imported (an error in a recipe must come at once), and a method *is* a recipe
section. So the files of this folder import torch inside the functions that use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor, nn

Views = Literal["single", "same_class", "same_class_plain", "same_image"]
NUM_VIEWS = {"single": 1, "same_class": 2, "same_class_plain": 3, "same_image": 2}


class Batch(NamedTuple):
    """Images with their labels; pairs are laid out `[anchors | partners]` along dimension 0, so N = 2B."""

    images: Tensor  # (N, C, H, W): uint8 from the loader, float and normalised in a method's hands
    target: Tensor  # (N,) int64
    # (N,) int64: which image of the set, -1 for one that is repeated and weighs nothing; hides tuple.index
    index: Tensor  # type: ignore[assignment]
    skipped: tuple[tuple[int, str], ...] = ()  # unreadable images met on the way: (row, what was wrong)
    undecoded: Any = None  # `data.undecoded.Undecoded`: of these images, which `images` then lacks


class Experiment(NamedTuple):
    """What of the experiment a method may need to build its module."""

    num_images: int  # of the training split
    num_epochs: int
    class_names: tuple[str, ...]  # K, in the order of the labels
    mean: tuple[float, float, float]  # with std, what the images a method meets are normalised by
    std: tuple[float, float, float]


class Method(BaseModel):
    """A method of training: its fields are its coefficients, its functions its mathematics.

    Trainable or stateful things live in the module that `build` returns, where DDP, the optimizer, checkpoints and
    compile see them; the method itself is frozen.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    views: ClassVar[Views]
    """What one sample holds: one image, two images of a class (and the first again, un-augmented), one image twice."""

    name: Any

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The module to train: the model itself, or the model with heads, a teacher, a memory.

        Raises:
            UserError: the method and this model, or this experiment, do not go together.
        """
        return model

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """One step's forward passes.

        Args:
            module: what `build` returned, in train mode.
            batch: normalised images.

        Returns:
            'loss' (scalar, float32, mean over the supervised images), 'output' (logits of the supervised images),
            'target' (their labels), and every term to log as a scalar under a name of its own.
        """
        raise NotImplementedError

    def export(self, module: nn.Module) -> nn.Module:
        """The timm model inside `module`, itself and not a copy: what is evaluated, averaged, saved and published."""
        return module
