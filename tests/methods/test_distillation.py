"""Distillation against its formulas in NumPy, from the logits of student and teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_cases import (
    EXPERIMENT,
    batch_for,
    cross_entropy,
    kl,
    method_of,
    objective_of,
    small_network,
    with_statistics,
)

from cskd_hf.methods import CSKD, Batch, CrossEntropy


def build(name: str, **settings: Any) -> tuple[Any, Any, Batch]:
    """The method, its module in eval mode, so that a second forward gives the same output, and a normalised batch."""
    method = method_of(name, **settings)
    batch = batch_for(method)
    batch = batch._replace(images=batch.images / 64)
    return method, method.build(with_statistics(small_network(), batch.images), EXPERIMENT).eval(), batch


def logits(module: Any, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return module(images).double().numpy(), module.teacher_output(images).double().numpy()


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_papers(temperature, alpha):
    method, module, batch = build("distillation", temperature=temperature, distill_loss_weight=alpha)
    student, teacher = logits(module, batch.images)
    task, distilled = cross_entropy(student, batch.target.numpy()), kl(teacher, student, temperature)
    assert distilled > 0.1
    result = method.forward_loss(module, batch)
    assert result["task_loss"].item() == pytest.approx(task, rel=1e-5)
    assert result["kd_loss"].item() == pytest.approx(distilled, rel=1e-4)
    assert result["loss"].item() == pytest.approx((1 - alpha) * task + alpha * distilled, rel=1e-4)
    np.testing.assert_allclose(result["output"].detach().numpy(), student, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_cskd_adds_the_class_wise_loss_of_the_student(temperature, weight):
    method, module, batch = build(
        "distillation_cskd", temperature=2.0, class_wise_temperature=temperature, class_wise_loss_weight=weight
    )
    anchors, partners = batch.images.chunk(2)
    (student, teacher), (partner, _) = logits(module, anchors), logits(module, partners)
    task, distilled = cross_entropy(student, batch.target[:4].numpy()), kl(teacher, student, 2.0)
    class_wise = kl(partner, student, temperature)
    assert class_wise > 0.05
    result = method.forward_loss(module, batch)
    assert result["kd_loss"].item() == pytest.approx(distilled, rel=1e-4)
    assert result["class_wise_loss"].item() == pytest.approx(class_wise, rel=1e-4)
    expected = 0.1 * task + 0.9 * distilled + weight * class_wise
    assert result["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(result["target"], batch.target[:4])


def test_distillation_cskd_with_alpha_zero_is_cskd():
    method = method_of("distillation_cskd", distill_loss_weight=0.0)
    batch = batch_for(method)
    one, two = objective_of(method), objective_of(CSKD())
    a, b = one(batch), two(batch)
    a["loss"].backward()
    b["loss"].backward()
    torch.testing.assert_close(a["loss"], b["loss"], rtol=1e-6, atol=0)
    exported: Any = method.export(one.module)
    for parameter, other in zip(exported.parameters(), two.module.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_distillation_brings_the_student_closer_to_its_teacher_than_labels_alone():
    """Closer in KL, on images that neither student was trained on."""
    distances = []
    for method in (method_of("distillation", distill_loss_weight=1.0), CrossEntropy()):
        objective = objective_of(method)
        optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
        for seed in range(20):
            objective(batch_for(method, 8, seed=seed))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        student = method.export(objective.module).eval()
        judge = objective_of(method_of("distillation"), student).eval()
        distances.append(judge(batch_for(method, 16, seed=99))["kd_loss"].item())
    assert distances[0] < distances[1]
