"""Every shipped recipe trains two updates with its own settings, on a network and images made small."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from recipe_files import SHIPPED
from tiny_runs import draw_split

from cskd_hf.data.splits import Images
from cskd_hf.engine.build import build_batches, build_loader, build_training_objective
from cskd_hf.engine.learner import build_learner
from cskd_hf.engine.objective import dry_run
from cskd_hf.engine.updates import training_updates
from cskd_hf.recipe.recipe import Recipe, load_recipe
from cskd_hf.recipe.resolve import resolve
from cskd_hf.runs.progress import Progress

COMMAND = re.compile(r"^# (Command|Baseline|Mutual) +\S.*? recipes/(\S+)\.yaml ?(.*)$", re.MULTILINE)


def commands() -> list[object]:
    """The header's commands; where the baseline is plain cross-entropy, the recipe itself will do."""
    found = []
    for path in SHIPPED:
        for label, stem, overrides in COMMAND.findall(path.read_text(encoding="utf-8")):
            assert stem == path.stem
            if not overrides.endswith("'method={name: cross_entropy}'"):
                found.append(pytest.param(path, shlex.split(overrides), id=f"{stem}-{label}"))
    return found


def made_small(recipe: Recipe) -> Recipe:
    """A network of timm's tests of the same family, 32 pixels, updates of at most two batches of two samples."""
    channels, height, _ = recipe.transform.input_size
    test_size = recipe.transform.test_input_size
    family = next((name for name in ("convnext", "vit") if name in recipe.model.model_name), "resnet")
    recipe = recipe.replace(
        data={"batch_size": 2, "workers": 0},
        transform={
            "input_size": (channels, 32, 32),
            "test_input_size": test_size and (channels, *(round(32 * side / height) for side in test_size[1:])),
            "size_schedule": tuple(
                (epoch, round(32 * size / height)) for epoch, size in recipe.transform.size_schedule
            ),
        },
        model={"model_name": f"test_{family}", "pretrained": False},
        run={"gradient_accumulation_steps": min(recipe.run.gradient_accumulation_steps, 2)},
    )
    return resolve(recipe)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("path", "overrides"), commands())
def test_a_recipe_builds_and_trains_two_updates(path: Path, overrides: list[str]) -> None:
    recipe = made_small(load_recipe(path, overrides))
    split = draw_split(8, size=40)
    images = Images(train=split, holdout=None, test=split, notes=())
    AcceleratorState._reset_state()  # precision can be set only once per process
    try:
        accelerator = Accelerator(cpu=True, mixed_precision=recipe.run.mixed_precision)
        batches = build_batches(recipe, split, accelerator)
        objective = build_training_objective(recipe, images, accelerator)
        dry_run(objective, recipe.transform, batches.smallest, images.num_classes, accelerator.device)
        learner = build_learner(recipe, objective, batches, accelerator)
        before = torch.cat([parameter.detach().flatten().clone() for parameter in learner.network.parameters()])
        loader, progress = build_loader(recipe, split, batches, accelerator), Progress()
        updates = training_updates(learner, loader, batches, accelerator, progress, recipe.run, num_epochs=1)
        losses = [update.terms["loss"].item() for update in itertools.islice(updates, 2)]
    finally:
        AcceleratorState._reset_state()
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    after = torch.cat([parameter.detach().flatten() for parameter in learner.network.parameters()])
    assert after.isfinite().all()
    assert not torch.equal(after, before)
