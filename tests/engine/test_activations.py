"""Activation memory: CS-KD saves no more than cross-entropy, and gradient checkpointing saves less."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from method_cases import NUM_CLASSES, backbone, batch_for, method_of, objective_of, small_network, supervised
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from cskd_hf.batch import Batch
from cskd_hf.engine.objective import Objective
from cskd_hf.errors import UserError
from cskd_hf.models.factory import create_backbone
from cskd_hf.models.layers import restore_running_statistics
from cskd_hf.recipe.sections import ModelSection

NUM, SIZE = 6, 32


def saved_activations(objective: Objective, batch: Batch) -> dict[int, Tensor]:
    """Storage that the forward saves for the backward, weights excluded: address → a tensor in it."""
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        objective(batch)["loss"].backward()
    weights = {tensor.untyped_storage().data_ptr() for tensor in objective.state_dict().values()}
    return {address: tensor for address, tensor in saved.items() if address not in weights}


def num_bytes(saved: dict[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def shapes(saved: dict[int, Tensor]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tensor.shape) for tensor in saved.values())


@pytest.mark.parametrize("batch_norm", ["separate", "anchors_only"])
@pytest.mark.parametrize("model_name", ["test_resnet", "resnet18"])
def test_cskd_saves_the_activations_of_cross_entropy_plus_partner_logits_and_pixels(model_name, batch_norm):
    method = method_of("cskd", batch_norm=batch_norm)
    batch = batch_for(method, num=NUM, size=SIZE)
    pairs = saved_activations(objective_of(method, backbone(model_name)), batch)
    alone = saved_activations(objective_of(method_of("cross_entropy"), backbone(model_name)), supervised(method, batch))
    more = shapes(pairs)
    more.subtract(shapes(alone))
    assert {shape for shape, count in more.items() if count} <= {(NUM, NUM_CLASSES), ()}
    logits = sum(count for shape, count in more.items() if shape == (NUM, NUM_CLASSES))
    assert 0 < logits <= 3  # log p, q and the logits over T
    # Both images of a pair share one normalised tensor; the first convolution saves a view of its half.
    partners = NUM * 3 * SIZE * SIZE * 4
    scalars = 4 * more[()]
    assert num_bytes(pairs) - num_bytes(alone) == partners + logits * NUM * NUM_CLASSES * 4 + scalars


def test_a_joint_forward_saves_the_activations_of_both_images():
    """The test above would fail if the partner's activations were saved."""
    saved = {}
    for batch_norm in ("separate", "joint"):
        method = method_of("cskd", batch_norm=batch_norm)
        objective = objective_of(method, backbone("resnet18"))
        saved[batch_norm] = num_bytes(saved_activations(objective, batch_for(method, num=NUM, size=SIZE)))
    assert saved["joint"] > 1.8 * saved["separate"]


# Gradient checkpointing


def network_of(name: str) -> nn.Module:
    if name == "ours":
        return small_network()
    return backbone(name, **({"img_size": SIZE} if "vit" in name else {}))


def checkpointing(model: nn.Module) -> Any:
    model = copy.deepcopy(model)
    model.set_grad_checkpointing(True)  # type: ignore[operator]
    return model


@pytest.mark.parametrize(
    ("name", "method_name"),
    [(name, "cskd") for name in ("ours", "test_resnet", "densenet121", "test_vit", "test_convnext")]
    + [("ours", name) for name in ("cross_entropy", "mutual_cskd", "byot")],
)
def test_gradient_checkpointing_gives_the_same_step(name, method_name, same_tensors):
    method = method_of(method_name)
    network = network_of(name)
    plain, recomputed = objective_of(method, copy.deepcopy(network)), objective_of(method, checkpointing(network))
    recomputed.load_state_dict(plain.state_dict())  # including the method's random heads
    for seed in (0, 1):
        losses = []
        for objective in (plain, recomputed):
            torch.manual_seed(seed)
            batch = batch_for(method, num=NUM, size=SIZE, seed=seed)
            result = objective(batch)
            with restore_running_statistics(objective.module):
                result["loss"].backward()
            losses.append(result["loss"].detach())
        assert torch.equal(*losses)
        gradients = [
            {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
            for objective in (plain, recomputed)
        ]
        assert gradients[0].keys() == gradients[1].keys()
        for key, gradient in gradients[0].items():
            torch.testing.assert_close(
                gradients[1][key], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
            )
        same_tensors(plain.state_dict(), recomputed.state_dict())  # includes running statistics and their counter
    saved = [num_bytes(saved_activations(objective, batch)) for objective in (plain, recomputed)]
    assert saved[1] < saved[0]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_checkpoints_the_same_way(same_tensors):
    """Through AOTAutograd, as with every real backend, but without inductor's code generation."""
    method, network = method_of("cskd"), network_of("test_resnet")
    plain, recomputed = objective_of(method, copy.deepcopy(network)), objective_of(method, checkpointing(network))
    torch.compiler.reset()
    recomputed.compile(backend="aot_eager")
    for seed in (0, 1):
        for objective in (plain, recomputed):
            result = objective(batch_for(method, num=NUM, size=SIZE, seed=seed))
            with restore_running_statistics(objective.module):
                result["loss"].backward()
    torch.compiler.reset()
    same_tensors(plain.state_dict(), recomputed.state_dict())
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(recomputed.get_parameter(key).grad, parameter.grad, rtol=1e-5, atol=1e-6)


def test_running_statistics_would_move_twice_unless_restored():
    """The reason for `restore_running_statistics`."""
    method = method_of("cskd")
    objective = objective_of(method, checkpointing(small_network()))
    objective(batch_for(method))["loss"].backward()
    counters = {key: int(value) for key, value in objective.state_dict().items() if key.endswith("batches_tracked")}
    assert counters["module.stem.1.num_batches_tracked"] == 2  # not recomputed: one update each for x and x′
    assert {value for key, value in counters.items() if ".stages." in key} == {3}


def test_a_network_without_gradient_checkpointing_is_rejected_in_one_line():
    torch.manual_seed(0)
    backbone: Any = create_backbone(ModelSection(model_name="resnet18"), 3, grad_checkpointing=True)
    assert backbone.grad_checkpointing is True
    unsupported = pytest.raises(UserError, match=r"^run\.grad_checkpointing: timm's vgg11 does not support it")
    with torch.device("meta"), unsupported:
        create_backbone(ModelSection(model_name="vgg11"), 3, grad_checkpointing=True)
