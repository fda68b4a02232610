"""Mistakes in overrides on the command line: one line each."""

from __future__ import annotations

import pytest
from error_lines import assert_lines, error_lines
from recipe_files import write

from cskd_hf.methods import METHODS

NAMES = ", ".join(METHODS)
SECTIONS = "data, transform, model, method, optimizer, scheduler, run"
OPTIMIZER_KEYS = (
    "opt, lr_base, lr, weight_decay, momentum, filter_bias_and_bn, layer_decay, layer_decay_min_scale, betas, eps, "
    "fused"
)

# (override, line printed); … stands for any text
OVERRIDES = [
    (
        "optimizer.momentun=0.8",
        f"command line: optimizer.momentun: unknown key, read 0.8; allowed: {OPTIMIZER_KEYS}; did you mean momentum?",
    ),
    ("optimiser.lr=1", f"command line: optimiser: no such section; allowed: {SECTIONS}; did you mean optimizer?"),
    # types
    (
        "data.revision=123456",
        "command line: data.revision: read 123456; allowed: text, or null; write \"data.revision='12…",
    ),
    ("data.revision=12e4567", "command line: data.revision: read inf; allowed: text, or null; put text in quotes"),
    ("data.workers=true", "command line: data.workers: read true; allowed: whole number ≥ 0, or auto"),
    ("optimizer.lr =fast", "command line: optimizer.lr: read 'fast'; allowed: number > 0, or null"),
    (
        "transform.scale=null",
        "command line: transform.scale: read null; allowed: list of 2 numbers > 0 and ≤ 1; for example '…[0.…",
    ),
    (
        "data.drop_last=",
        "command line: data.drop_last: read null; allowed: true or false; the default is data.drop_last=false",
    ),
    # ranges
    ("transform.scale=[8,100]", "command line: transform.scale: read [8, 100]; allowed: … numbers > 0 and ≤ 1; …"),
    ("optimizer.lr=0", "command line: optimizer.lr: read 0; allowed: number > 0, or null"),
    ("optimizer.lr=.inf", "command line: optimizer.lr: read inf; allowed: a finite number"),
    ("optimizer.lr=1e999", "command line: optimizer.lr: read inf; allowed: a finite number"),
    (
        "optimizer.betas=[0.9, .nan]",
        "command line: optimizer.betas: read [0.9, nan]; allowed: a finite number; for example…",
    ),
    ("method.distill_loss_weight=-.inf", "command line: method.distill_loss_weight: read -inf; allowed: a finite…"),
    (
        "data.holdout=0.7",
        "command line: data.holdout: read 0.7; allowed: number from 0 to 0.5, a split's name, or null",
    ),
    (
        "transform.input_size=[2, 32, 32]",
        "command line: transform.input_size: read [2, 32, 32]; allowed: [channels, height, width] …; channels: 3 (R…; "
        "write 'transform.input_size=[3,32,32]'",
    ),
    (
        "model.in_chans=1",
        "command line: model.in_chans: read 1, but transform.input_size is [3, 224, 224]; write "
        "'transform.input_size=[1,224,224]' or model.in_chans=3",
    ),
    (
        "model.img_size=[32, 48]",
        "command line: model.img_size: read [32, 48], but transform.input_size is [3, 224, 224]; write "
        "'transform.input_size=[3,32,48]' or 'model.img_size=[224,224]'",
    ),
    (
        "transform.crop_padding=224",
        "command line: transform.crop_padding: read 224; allowed: whole number below 224, the smallest side of …",
    ),
    (
        "transform.mean=[123.7, 116.3, 103.5]",
        "command line: transform.mean: read [123.7, 116.3, 103.5]; allowed: list of numbers from 0 to 1, or null; …",
    ),
    *(
        (
            f"transform.size_schedule={value}",
            f"command line: transform.size_schedule: read {value}; allowed: [[last epoch, pixels], …], with rising …",
        )
        for value in ("[[30, 128], [30, 160]]", "[[60, 128], [30, 160]]", "[[30, 256]]")
    ),
    ("run.patience=3", "command line: run.patience: unknown key, read 3; …"),
    ("transform.background=clear", "command line: transform.background: read 'clear'; allowed: a colour such as …"),
    # the learning rate
    (
        "optimizer.lr=",
        "command line: optimizer.lr: read null; allowed: optimizer.lr=0.1, or lr_base, which scales with …",
    ),
    (
        "optimizer.lr_base=1",
        "r.yaml:9: optimizer.lr: read 0.1; allowed: null with lr_base; write optimizer.lr=null, or …",
    ),
    (
        "optimizer.layer_decay_min_scale=0.1",
        "command line: optimizer.layer_decay_min_scale: read 0.1; allowed: null without layer_decay, whose factors …",
    ),
    # methods
    (
        "method.name=cross_entropy",
        "command line: method.name: read 'cross_entropy', which has no temperature, set in the recipe; write "
        "'method={name: cross_entropy}'",
    ),
    (
        "method={name: cross_entropy, temperature: 4}",
        "command line: method.temperature: read 4, but cross_entropy has no such field; delete it (…cskd… have it); "
        "allowed: name, smoothing, mixup_alpha, cutmix_alpha, bce_loss, bce_target_thresh, …",
    ),
    (
        "method={name: cskd, bce_sum: true}",
        "command line: method.bce_sum: read true; allowed: no value without bce_loss; write method.bce_loss=true, or …",
    ),
    (
        "method={name: cskd, bce_loss: true, logit_adjustment: 1}",
        "command line: method.logit_adjustment: read 1; allowed: 0 with bce_loss: it belongs to cross-entropy; …",
    ),
    ("method={name: cskd, temperature: 0}", "command line: method.temperature: read 0; allowed: number > 0"),
    ("method.name=csdk", f"command line: method.name: read 'csdk'; allowed: {NAMES}; did you mean cskd?"),
    # whole sections
    ("method=cskd", "command line: method: read 'cskd'; allowed: a section with keys; write 'method={name: cskd}'"),
    (
        "model=resnet50",
        "command line: model: read 'resnet50'; allowed: a section with keys; write model.model_name=resnet50",
    ),
    ("run=null", "command line: run: read null; allowed: a section with keys; write output_dir: … below run:"),
    ("method={name:cskd}", "command line: method: no name; write name: cskd, with a colon and a space"),
    ("run={seed=3}", "command line: run.seed=3: unknown key, read null; write seed: 3, with a colon and a space"),
    # the wrong section, another program's name
    ("data.lr=0.1", "command line: data.lr: unknown key, read 0.1; lr belongs to optimizer; write optimizer.lr=0.1"),
    ("lr=0.1", "command line: lr: no such section; lr belongs to optimizer; write optimizer.lr=0.1"),
    ("data.val_split=val", "command line: data.val_split: …; test_split belongs to data; write data.test_split=val"),
    ("optimizer.temperature=2", "command line: optimizer.temperature: unknown key, …; write method.temperature=2"),
    (
        "data.epochs=3",
        "command line: data.epochs: unknown key, read 3; num_epochs belongs to scheduler; write schedul…=3",
    ),
    (
        "run.learning_rate=1",
        "command line: run.learning_rate: unknown key, read 1; lr belongs to …; write optimizer.lr=1",
    ),
    *(
        (
            f"{key}=0.4",
            f"command line: {key}: read 0.4, but mixing, label smoothing and the loss belong to the method; "
            "write method.mixup_alpha, method.cutmix_alpha, method.smoothing or method.bce_loss, of "
            "cross_entropy, mixup, cskd, …",
        )
        for key in ("transform.mixup", "data.cutmix_alpha", "run.label_smoothing", "optimizer.bce_loss")
    ),
]


@pytest.mark.parametrize(("override", "line"), OVERRIDES)
def test_a_wrong_override_is_one_line(override, line, folder, capsys):
    write(folder)
    assert_lines(error_lines(capsys, "r.yaml", override), [line])
