"""What a message says to write instead of a wrong value is valid, and is what was meant."""

from __future__ import annotations

import shlex

import pytest
from recipe_files import write

from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import load_recipe

# (wrong override, the right one as the message gives it)
SUGGESTED = [
    # numbers
    ("optimizer.lr=0,05", "optimizer.lr=0.05"),
    ("optimizer.lr='1e-4'", "optimizer.lr=0.0001"),
    ("optimizer.lr=[0.1]", "optimizer.lr=0.1"),
    ("data.batch_size=1,024", "data.batch_size=1024"),
    ("scheduler.num_epochs=1e2", "scheduler.num_epochs=100"),
    ("transform.hflip=50%", "transform.hflip=0.5"),
    ("transform.hflip=2.5", "transform.hflip=0.025"),
    ("data.test_split=20", "data.test_split=0.2"),
    ("data.test_split=2024", "\"data.test_split='2024'\""),
    ("optimizer.weight_decay=1/2", "optimizer.weight_decay=0.5"),
    # words
    ("run.model_ema=yes", "run.model_ema=true"),
    ("run.model_ema=on", "run.model_ema=true"),
    ("run.model_ema=1", "run.model_ema=true"),
    ("run.model_ema='False'", "run.model_ema=false"),
    ("run.compile=yes", "run.compile=true"),
    ("run.clip_grad=None", "run.clip_grad=null"),
    ("run.mixed_precision=fp32", "run.mixed_precision=no"),
    ("run.mixed_precision=false", "run.mixed_precision=no"),
    ("run.mixed_precision=BF16", "run.mixed_precision=bf16"),
    ("scheduler.sched=multi_step", "scheduler.sched=multistep"),
    # lists
    ("transform.input_size=128", "'transform.input_size=[3,128,128]'"),
    ("transform.input_size=[128, 96]", "'transform.input_size=[3,128,96]'"),
    ("transform.input_size=[3, 32]", "'transform.input_size=[3,32,32]'"),
    ("transform.input_size=128x96", "'transform.input_size=[3,128,96]'"),
    ("transform.input_size=(3, 128, 128)", "'transform.input_size=[3,128,128]'"),
    ("transform.mean=.5", "'transform.mean=[0.5,0.5,0.5]'"),
    ("transform.mean=[.1, .2, .3, .4]", "'transform.mean=[0.485,0.456,0.406]'"),
    ("transform.mean=[.1, .2]", "'transform.mean=[0.485,0.456,0.406]'"),
    ("transform.input_size=[1, 64]", "'transform.input_size=[1,64,64]'"),
    ("model.img_size=224x224", "'model.img_size=[224,224]'"),
    ("transform.scale=0.3,1", "'transform.scale=[0.3,1]'"),
    ("transform.ratio=[3/4, 5/4]", "'transform.ratio=[0.75,1.25]'"),
    ("scheduler.decay_milestones=100,150", "'scheduler.decay_milestones=[100,150]'"),
    ("run.report_to=wandb", "'run.report_to=[wandb]'"),
    ("run.report_to=tensorbord", "'run.report_to=[tensorboard]'"),
    ("transform.input_size=[3, 128, 128", "'transform.input_size=[3, 128, 128]'"),
]


@pytest.mark.parametrize(("override", "instead"), SUGGESTED)
def test_what_to_write_instead_can_be_pasted(override, instead, folder):
    write(folder)
    with pytest.raises(UserError) as caught:
        load_recipe("r.yaml", [override])
    assert str(caught.value).endswith(f" {instead}")
    load_recipe("r.yaml", shlex.split(instead))
