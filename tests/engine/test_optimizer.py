"""timm's optimizers: parameter groups, resume, fused kernels, and what is rejected."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from method_cases import EXPERIMENT, METHODS, backbone, method_of, needs_new_timm, small_network
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from tiny_runs import Run
from torch import nn

from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.errors import UserError
from cskd_hf.methods import Method
from cskd_hf.recipe.sections import OptimizerSection, SchedulerSection
from cskd_hf.runs.checkpoint import load_checkpoint, save_checkpoint
from cskd_hf.runs.progress import Progress

LR = 0.3
# They have a no_weight_decay list, LayerNorm and layer scale.
MODELS = ("test_vit", "test_convnext")


def settings_of(**settings: Any) -> OptimizerSection:
    return OptimizerSection(**{"lr": 1.0, "weight_decay": 0.05, **settings})


def optimizer_of(name: str, settings: OptimizerSection, model: nn.Module) -> tuple[Any, nn.Module, Method]:
    method = method_of(name)
    module = method.build(model, EXPERIMENT)
    return create_optimizer(settings, method.export(module), module, LR), module, method


def described(optimizer: Any, module: nn.Module) -> dict[str, tuple[float, float, float]]:
    """Name in `module` → (weight decay, learning rate, lr_scale); asserts that no parameter is in two groups."""
    names = {id(p): name for name, p in module.named_parameters()}
    groups: dict[str, tuple[float, float, float]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in groups, f"{name} is in two groups"
            groups[name] = group["weight_decay"], group["lr"], group.get("lr_scale", 1.0)
    return groups


@pytest.mark.parametrize(("filter_bias_and_bn", "layer_decay"), [(True, None), (False, 0.7)])
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_parameter_groups_are_timms_and_hold_each_trainable_parameter_once(
    name, model_name, filter_bias_and_bn, layer_decay
):
    model = backbone(model_name)
    plain = copy.deepcopy(model)
    settings = settings_of(filter_bias_and_bn=filter_bias_and_bn, layer_decay=layer_decay)
    optimizer, module, method = optimizer_of(name, settings, model)
    groups = described(optimizer, module)
    assert groups.keys() == {key for key, p in module.named_parameters() if p.requires_grad}

    reference = create_optimizer_v2(
        plain,
        opt="momentum",
        lr=LR,
        weight_decay=0.05,
        momentum=0.9,
        filter_bias_and_bn=filter_bias_and_bn,
        layer_decay=layer_decay,
    )
    expected = described(reference, plain)
    network = method.export(module)
    name_in_network = {id(p): key for key, p in network.named_parameters()}
    names = {key: name_in_network.get(id(p)) for key, p in module.named_parameters()}
    for key, own in names.items():
        if own is not None and key in groups:
            assert groups[key] == expected[own], key
        elif key in groups:  # the method's own head: full learning rate, timm's weight-decay rule
            one_dimensional = dict(module.named_parameters())[key].ndim <= 1
            assert groups[key] == (0.0 if one_dimensional and filter_bias_and_bn else 0.05, LR, 1.0), key


def test_a_schedule_scales_the_rates_of_layer_decay():
    optimizer, module, _ = optimizer_of("byot", settings_of(layer_decay=0.5), backbone("test_convnext"))
    groups = described(optimizer, module)
    assert len({share for _, _, share in groups.values()}) > 2
    multistep = {"sched": "multistep", "decay_milestones": (3,), "decay_rate": 0.1}
    for settings, factor in (({"sched": "none"}, 1), (multistep, 0.1)):
        scheduler, _ = create_scheduler_v2(optimizer, **SchedulerSection(num_epochs=5, **settings).keywords)
        scheduler.step(3)
        after = described(optimizer, module)
        for key, (_, _, share) in groups.items():
            assert after[key][1] == pytest.approx(factor * LR * share), key


def test_frozen_parameters_are_left_out():
    teacher, module, _ = optimizer_of("distillation", settings_of(), small_network())
    assert not [key for key in described(teacher, module) if key.startswith("teacher.")]
    virtual, module, _ = optimizer_of("virtual_softmax", settings_of(filter_bias_and_bn=False), small_network())
    assert "fc.bias" not in described(virtual, module)
    scale, module, _ = optimizer_of("adacos", settings_of(), small_network())
    assert "fc.scale" not in described(scale, module)


@pytest.mark.parametrize("opt", ["momentum", "adamw", "lamb", "lookahead_adamw", "muon"])
def test_heads_learn_under_every_optimizer(opt):
    optimizer, module, _ = optimizer_of("byot", settings_of(opt=opt), small_network())
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    for _ in range(2):
        output, _, hints, outputs = module(torch.randn(4, 3, 16, 16))
        sum(part.square().sum() for part in (output, *hints, *outputs)).backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [key for key, p in module.named_parameters() if torch.equal(p, before[key])]
    assert still == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"opt": "momentum", "betas": (0.9, 0.99)}, r"optimizer\.betas: momentum has none, so timm ignores it"),
        ({"opt": "adamw", "momentum": 0.8}, r"optimizer\.momentum: adamw has none, so timm ignores it; leave it out$"),
        ({"opt": "lion", "eps": 1e-6}, r"optimizer\.eps: lion has none, so timm ignores it; leave it out$"),
        ({"opt": "adan", "betas": (0.9, 0.99)}, "optimizer: timm cannot make 'adan' with these settings: "),
        ({"opt": "lamb", "fused": True}, "optimizer: timm cannot make 'lamb' with these settings: .*'fused'"),
        ({"opt": "adammm"}, r"optimizer\.opt: timm has no 'adammm'; did you mean adam, .*\?$"),
        ({"opt": "Lookahead_AdamW_torch"}, r"optimizer\.opt: timm has no 'Lookahead_AdamW_torch'; did you mean adamw"),
        ({"opt": "look_adam"}, r"optimizer\.opt: timm has no 'look_adam'; did you mean adam"),
        ({"opt": "newton"}, r"optimizer\.opt: timm has no 'newton'; timm.optim.list_optimizers\(\) names"),
        ({"opt": "adahessian"}, r"optimizer\.opt: adahessian needs second derivatives"),
    ],
)
def test_optimizers_and_settings_that_timm_does_not_take_are_rejected(settings, line):
    with pytest.raises(UserError, match=f"^{line}"):
        optimizer_of("cskd", settings_of(**settings), small_network())


@needs_new_timm
def test_settings_under_another_name_are_taken():
    """Adafactor's groups hold the first of the betas alone."""
    optimizer, *_ = optimizer_of("cskd", settings_of(opt="adafactor", betas=(0.7, 0.999)), small_network())
    assert optimizer.param_groups[0]["beta1"] == 0.7


def test_kron_without_opt_einsum_is_rejected(monkeypatch):
    monkeypatch.setattr("cskd_hf.engine.optimizer.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^optimizer\.opt: kron needs the package opt_einsum; pip install opt_einsum$"):
        optimizer_of("cskd", settings_of(opt="kron"), small_network())


# Resuming

ON_CUDA = ("bnb", "fused")  # of bitsandbytes and APEX
OPTIMIZERS = [name for name in list_optimizers() if not name.startswith((*ON_CUDA, "adahessian"))]
# Of each class: Kron compiles, which takes seconds.
FAST = {get_optimizer_info(name).opt_class: name for name in OPTIMIZERS if "kron" not in name}.values()
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS if name not in FAST]


@pytest.mark.parametrize("opt", [*FAST, "lookahead_adamw", "lookahead_muon", *OTHERS])
def test_every_optimizer_of_timm_resumes_bit_equal(tmp_path, opt):
    def build(seed: int) -> tuple[nn.Module, Any]:
        torch.manual_seed(seed)
        optimizer, module, _ = optimizer_of("cskd", settings_of(opt=opt), small_network())
        return module, optimizer

    def train(module: nn.Module, optimizer: Any, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)  # as training restores it
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 / (1 + step)
            module(torch.randn(4, 3, 16, 16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = build(0)
    before = copy.deepcopy(whole[0].state_dict())
    train(*whole, range(8))
    first = build(0)
    train(*first, range(5))
    path = save_checkpoint(tmp_path, *first, None, Progress(step=5), "", keep=1)
    resumed = build(1)
    load_checkpoint(path, *resumed, None)
    train(*resumed, range(5, 8))
    expected, found = whole[0].state_dict(), resumed[0].state_dict()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert any(not torch.equal(before[name], expected[name]) for name in expected)


@pytest.mark.parametrize("num_images", [8, 22])  # fewer steps per epoch than the six between two syncs, and as many
def test_lookahead_evaluates_its_slow_weights_after_each_epoch(num_images):
    run = Run(num_images=num_images, opt="lookahead_momentum", freeze_epochs=1, network=lambda: small_network(3))
    base = run.optimizer.optimizer._base_optimizer
    for update in run.updates():
        slow = {id(p): state.get("lookahead_slow_buff") for p, state in base.state.items()}
        at_slow = [torch.equal(p, slow[id(p)]) for p in run.module.parameters() if slow.get(id(p)) is not None]
        assert all(at_slow) == (update.ends_epoch or update.step % 6 == 0 or not at_slow)
        if update.ends_epoch:
            heads_alone = update.epoch < 1
            assert len(at_slow) == (2 if heads_alone else len(list(run.module.parameters())))


# Fused kernels


@pytest.mark.parametrize(
    ("opt", "fused"), [("momentum", True), ("sgd", True), ("adamw", True), ("lamb", None), ("muon", None)]
)
def test_torchs_optimizers_are_fused_by_default(opt, fused):
    optimizer, _, _ = optimizer_of("byot", settings_of(opt=opt), small_network())
    assert {group.get("fused") for group in optimizer.param_groups} == {fused}  # includes the heads' groups
    optimizer, _, _ = optimizer_of("byot", settings_of(opt=opt, fused=False), small_network())
    assert not any(group.get("fused") for group in optimizer.param_groups)


@pytest.fixture
def uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # with torch.utils.deterministic.fill_uninitialized_memory, on by default
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("scale", [None, 4.0])
@pytest.mark.parametrize("opt", ["momentum", "sgd", "adamw"])
def test_fused_makes_the_same_updates(uninitialised_memory_is_nan, opt, scale):
    """With a loss scale, whose first step overflows and is skipped, too; and where a weight begins to train later."""
    network = small_network()
    trained = {}
    for fused in (True, False):
        model = copy.deepcopy(network)
        optimizer, _, _ = optimizer_of("cskd", settings_of(opt=opt, fused=fused), model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        scaler.scale(torch.zeros(()))  # creates the scale
        generator = torch.Generator().manual_seed(1)
        for step in range(20):
            for name, parameter in model.named_parameters():
                gradient = torch.randn(parameter.shape, generator=generator) * (scaler.get_scale() if scale else 1)
                parameter.grad = None if step < 9 and name.startswith("fc") else gradient
            if scale and step == 0:
                parameter = model.stem[0].weight
                parameter.grad = torch.full_like(parameter, torch.inf)
            scaler.step(optimizer)
            scaler.update()
        trained[fused] = model.state_dict()
    assert not torch.equal(trained[True]["fc.weight"], network.state_dict()["fc.weight"])
    for key, value in trained[False].items():
        torch.testing.assert_close(trained[True][key], value, rtol=1e-5, atol=1e-5)
