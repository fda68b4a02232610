"""What a training method is: hyper-parameters and mathematics, no tensors.

Recipes are parsed before torch is imported (an error in a recipe must come at once), and a method *is* a recipe
section. So the files of this folder import torch inside the functions that use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from cskd_hf.batch import Batch, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


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
