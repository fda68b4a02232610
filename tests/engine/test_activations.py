"""What a step saves for its backward: CS-KD no more than cross-entropy, and less with gradient checkpointing."""

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


def kept_for_the_backward(objective: Objective, batch: Batch) -> dict[int, Tensor]:
    """Every piece of memory that the forward keeps beside the weights, once: its address → a tensor that lies there."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(batch)["loss"].backward()
    own = {tensor.untyped_storage().data_ptr() for tensor in objective.state_dict().values()}
    return {place: tensor for place, tensor in kept.items() if place not in own}


def num_bytes(kept: dict[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def shapes(kept: dict[int, Tensor]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tensor.shape) for tensor in kept.values())


@pytest.mark.parametrize("batch_norm", ["separate", "anchors_only"])
@pytest.mark.parametrize("model_name", ["test_resnet", "resnet18"])
def test_cskd_saves_the_activations_of_cross_entropy_plus_partner_logits_and_pixels(model_name, batch_norm):
    method = method_of("cskd", batch_norm=batch_norm)
    batch = batch_for(method, num=NUM, size=SIZE)
    pairs = kept_for_the_backward(objective_of(method, backbone(model_name)), batch)
    alone = kept_for_the_backward(
        objective_of(method_of("cross_entropy"), backbone(model_name)), supervised(method, batch)
    )
    more = shapes(pairs)
    more.subtract(shapes(alone))
    assert {shape for shape, count in more.items() if count} <= {(NUM, NUM_CLASSES), ()}
    logits = sum(count for shape, count in more.items() if shape == (NUM, NUM_CLASSES))
    assert 0 < logits <= 3  # log p, q and the logits over T
    # One normalised tensor holds both images of a pair, and the first convolution keeps its own half of it.
    partners = NUM * 3 * SIZE * SIZE * 4
    scalars = 4 * more[()]
    assert num_bytes(pairs) - num_bytes(alone) == partners + logits * NUM * NUM_CLASSES * 4 + scalars


def test_a_joint_forward_saves_the_activations_of_both_images():
    """What the test above would see, were the partner's forward kept."""
    kept = {}
    for batch_norm in ("separate", "joint"):
        method = method_of("cskd", batch_norm=batch_norm)
        objective = objective_of(method, backbone("resnet18"))
        kept[batch_norm] = num_bytes(kept_for_the_backward(objective, batch_for(method, num=NUM, size=SIZE)))
    assert kept["joint"] > 1.8 * kept["separate"]


# recomputing


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
    recomputed.load_state_dict(plain.state_dict())  # the heads that the method drew
    kept = []
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
        same_tensors(plain.state_dict(), recomputed.state_dict())  # running statistics and their counter included
    kept = [num_bytes(kept_for_the_backward(objective, batch)) for objective in (plain, recomputed)]
    assert kept[1] < kept[0]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_checkpoints_the_same_way(same_tensors):
    """By AOTAutograd, which every real backend goes through, without the code that inductor makes."""
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
    """What `restore_running_statistics` is there for."""
    method = method_of("cskd")
    objective = objective_of(method, checkpointing(small_network()))
    objective(batch_for(method))["loss"].backward()
    counters = {key: int(value) for key, value in objective.state_dict().items() if key.endswith("batches_tracked")}
    assert counters["module.stem.1.num_batches_tracked"] == 2  # outside of what is recomputed: x and x′
    assert {value for key, value in counters.items() if ".stages." in key} == {3}


def test_a_network_without_gradient_checkpointing_is_rejected_in_one_line():
    torch.manual_seed(0)
    made: Any = create_backbone(ModelSection(model_name="resnet18"), 3, grad_checkpointing=True)
    assert made.grad_checkpointing is True
    with pytest.raises(UserError, match=r"^run\.grad_checkpointing: timm's vgg11 does not support it"):
        create_backbone(ModelSection(model_name="vgg11"), 3, grad_checkpointing=True)
