"""A student with its teacher: trained weights that answer and never learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cskd_hf.errors import UserError
from cskd_hf.models.load import load_trained


class Taught(nn.Module):
    """A model and a frozen teacher beside it, which stays in eval mode whatever mode the student is in.

    Checkpoints hold both, so that a resumed run has the teacher it began with, whatever became of the teacher's place.

    Args:
        model: the student, whose output `forward` gives.
        teacher: a timm model of as many classes.
        mean, std: what the student's images are normalised by.
        teacher_mean, teacher_std: what the teacher's were.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        teacher_mean: Sequence[float],
        teacher_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.factor: Tensor
        self.shift: Tensor
        self.model, self.teacher = model, teacher.requires_grad_(False).eval()
        # (x · std + mean − teacher_mean) / teacher_std, of images that are normalised already.
        ours, own_std, theirs, their_std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std, teacher_mean, teacher_std)
        )
        self.register_buffer("factor", own_std / their_std, persistent=False)
        self.register_buffer("shift", (ours - theirs) / their_std, persistent=False)

    def train(self, mode: bool = True) -> Taught:
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's logits (N, K) of the student's images (N, C, H, W)."""
        return self.teacher(images * self.factor + self.shift)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def with_teacher(
    model: nn.Module, source: str, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> Taught:
    """Load a teacher and put it beside a student.

    Args:
        source: a run folder, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        class_names: the student's, in the order of its labels.

    Raises:
        UserError: no such weights, or they know other classes, or the same in another order.
    """
    try:
        with torch.device("cpu"):  # `check` builds on the meta device, which holds no weights
            trained = load_trained(source)
    except UserError as error:
        raise UserError(f"method.teacher: {error}") from None
    teacher: Any = trained.model
    if teacher.num_classes != len(class_names):
        raise UserError(
            f"method.teacher: {source} knows {teacher.num_classes} classes, and the data has {len(class_names)}; "
            "train the teacher on the same classes"
        )
    if trained.class_names is not None and trained.class_names != tuple(class_names):
        at, theirs, ours = next(
            (at, theirs, ours)
            for at, (theirs, ours) in enumerate(zip(trained.class_names, class_names, strict=True))
            if theirs != ours
        )
        raise UserError(
            f"method.teacher: label {at} is {theirs!r} for {source} and {ours!r} in the data; the teacher must have "
            "been trained on the same classes in the same order"
        )
    assert trained.transform.mean is not None
    assert trained.transform.std is not None
    return Taught(model, teacher, mean, std, trained.transform.mean, trained.transform.std)
