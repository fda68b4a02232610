"""The interface of a training method: hyper-parameters and mathematics, no tensors.

A method is a recipe section, and a mistake in a recipe must show before torch is imported. The files of this folder
therefore import torch inside the functions that use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cskd_hf.batch import Batch, Views

if TYPE_CHECKING:
    from torch import Tensor, nn

# Types of the coefficients.
Temperature = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Experiment(NamedTuple):
    """The facts about an experiment that `Method.build` may depend on.

    Example:
        >>> from cskd_hf import Experiment
        >>> imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        >>> experiment = Experiment(num_images=200, num_epochs=20, class_names=("cat", "dog"), **imagenet)
        >>> len(experiment.class_names)
        2
    """

    num_images: int  # of the training split
    num_epochs: int
    class_names: tuple[str, ...]  # K, in label order
    mean: tuple[float, ...]  # with std: the normalisation of the images a method receives
    std: tuple[float, ...]
    class_counts: tuple[float, ...] = ()  # K, samples of each class in an epoch, as they are drawn; (): equal


def _drop_example(schema: dict[str, Any]) -> None:
    """Editors show the recipe schema's descriptions; Python examples do not belong there."""
    schema["description"] = schema["description"].partition("\n\nExample:")[0]


class Method(BaseModel):
    """A training method: its fields are the coefficients, its functions the mathematics.

    Anything trainable or stateful lives in the module that `build` returns, where DDP, the optimizer, checkpoints and
    compile see it; the method itself is frozen.

    Example:
        >>> from cskd_hf import METHODS
        >>> method = METHODS["cskd"](temperature=2.0)
        >>> method.views, method.distill_loss_weight
        ('same_class', 1.0)
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra=_drop_example,
    )

    views: ClassVar[Views]
    """The images of one sample: a single image, a same-class pair (with or without the un-augmented anchor), two
    augmentations of one image, or an image with one of the last update's."""

    name: Any

    @property
    def cost(self) -> float:
        """Arithmetic of training on one sample of an epoch, in units of one image's forward and backward.

        A forward alone counts 1/3, since a backward takes two forwards' arithmetic. Cross-entropy costs 1. Loading, and
        what a method does besides forwarding the network, do not count.
        """
        return 1.0

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The module to train: the model itself, or the model with heads, a teacher or a memory.

        Raises:
            UserError: the method does not support this model or this experiment.
        """
        return model

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """One step's forward passes.

        Args:
            module: the module returned by `build`, in train mode.
            batch: normalised images.

        Returns:
            'loss' (scalar, at least float32, mean over the supervised images), 'output' (their logits),
            'target' (their labels), and each term to log as a scalar.
        """
        raise NotImplementedError

    def export(self, module: nn.Module) -> nn.Module:
        """The timm model inside `module`, not a copy: the network that is evaluated, averaged, saved and published."""
        return module
