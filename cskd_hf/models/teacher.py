"""A student with its frozen teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cskd_hf.errors import UserError
from cskd_hf.models.load import TrainedModel, load_trained


class ModelWithTeacher(nn.Module):
    """A model and a frozen teacher, which stays in eval mode; `forward` is the model's.

    Checkpoints include the teacher, so a resumed run continues with the one it started with.

    Args:
        model: the student.
        teacher: has as many classes, and its own normalisation.
        mean, std: of the student's normalised images.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, teacher: TrainedModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher.model.requires_grad_(False).eval()
        self.folded_temperature = teacher.folded_temperature
        # x is normalised already: the teacher's input is (x · std + mean − teacher mean) / teacher std.
        m, s, m_t, s_t = (
            torch.tensor(channels).view(1, -1, 1, 1)
            for channels in (mean, std, teacher.transform.mean, teacher.transform.std)
        )
        self.register_buffer("factor", s / s_t, persistent=False)
        self.register_buffer("shift", (m - m_t) / s_t, persistent=False)

    def train(self, mode: bool = True) -> ModelWithTeacher:
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def teacher_output(self, images: Tensor) -> Tensor:
        """The teacher's logits (N, K) of the student's images (N, C, H, W), before calibration."""
        return self.teacher(images * self.factor + self.shift) * self.folded_temperature

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def with_teacher(
    model: nn.Module, source: str, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> ModelWithTeacher:
    """Load a teacher and attach it to a student.

    Args:
        source: a run folder, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        class_names: the student's, in label order.

    Raises:
        UserError: the weights cannot be loaded, or have other classes or the same in another order.
    """
    try:
        with torch.device("cpu"):  # `check` builds on the meta device, which holds no weights
            teacher = load_trained(source)
    except UserError as error:
        raise UserError(f"method.teacher: {error}") from None
    channels = teacher.transform.input_size[0]
    if channels != len(mean):
        raise UserError(
            f"method.teacher: {source} takes images of {channels} channels, and transform.input_size has {len(mean)}; "
            "train the teacher on such images"
        )
    if teacher.model.num_classes != len(class_names):
        raise UserError(
            f"method.teacher: {source} has {teacher.model.num_classes} classes, and the data has {len(class_names)}; "
            "train the teacher on the same classes"
        )
    for label, (theirs, ours) in enumerate(zip(teacher.class_names or class_names, class_names, strict=True)):
        if theirs != ours:
            raise UserError(
                f"method.teacher: label {label} is {theirs!r} in {source} and {ours!r} in the data; train the teacher "
                "on the same classes in the same order"
            )
    return ModelWithTeacher(model, teacher, mean, std)
