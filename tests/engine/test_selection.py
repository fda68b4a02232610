"""The best evaluation on the hold-out set: which weights it leaves, when it stops, and what a checkpoint restores."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from saved_checkpoints import make_network
from torch import nn

from cskd_hf.engine.selection import Selection
from cskd_hf.recipe.sections import RunSection
from cskd_hf.report.finish import describe_selection
from cskd_hf.runs.checkpoint import load_best, load_checkpoint, save_checkpoint
from cskd_hf.runs.progress import Progress

BEST = RunSection(selection="best_holdout", early_stopping_patience=2)


def observe(selection: Selection, network: nn.Module, values: list[float | None]) -> list[bool]:
    """Evaluate after epochs whose weights are all the epoch's number; whether each would stop the run."""
    stops = []
    for value in values:
        selection.progress.epoch += 1
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(selection.progress.epoch)
        selection.observe(value, network)
        stops.append(selection.stops)
    return stops


@pytest.mark.parametrize(
    ("values", "epoch", "stops"),
    [
        ([3.0, 2.0, 1.0], 3, [False, False, False]),
        ([2.0, 2.0, 2.0], 1, [False, False, True]),  # of equal ones the first
        ([1.0, None, 0.5, 3.0], 3, [False, False, False, False]),  # one without finite logits is not better
        ([None, None], 0, [False, True]),
        ([0.0, 1.0, -0.0], 1, [False, False, True]),
    ],
)
def test_the_least_value_leaves_its_weights_and_patience_counts_evaluations_since(values, epoch, stops):
    network = make_network()
    selection = Selection(BEST, Progress(), {})
    assert observe(selection, network, values) == stops
    assert selection.progress.best_epoch == epoch
    selection.restore(network)
    assert network[0].weight.unique().tolist() == [epoch or len(values)]


@pytest.mark.parametrize("at", range(5))
def test_a_checkpoint_after_any_evaluation_restores_the_selection(tmp_path, at):
    values = [None, 3.0, 5.0, 1.0, 2.0]
    whole = Selection(BEST, Progress(), {})
    observe(whole, make_network(), values)

    network = make_network()
    before = Selection(BEST, Progress(), {})
    observe(before, network, values[:at])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    path = save_checkpoint(tmp_path, network, optimizer, None, before.progress, "", keep=1, best=before.weights)
    after = Selection(BEST, load_checkpoint(path, network, optimizer, None), load_best(path))
    observe(after, network, values[at:])
    assert after.progress == whole.progress
    assert after.weights.keys() == whole.weights.keys() != set()
    assert all(torch.equal(after.weights[name], whole.weights[name]) for name in whole.weights)


@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        ({}, 1),
        ({"early_stopping_patience": 5}, 1),
        ({"selection_metric": "nll"}, 0),  # the value is of another metric
        ({"selection": "last"}, 1),  # still counts for early stopping
    ],
)
def test_a_forced_resume_selects_anew_where_the_earlier_best_means_nothing(settings: dict[str, Any], epoch: int):
    before = Selection(BEST, Progress(), {})
    observe(before, make_network(), [1.0, 2.0])
    after = Selection(BEST.model_copy(update=settings), dataclasses.replace(before.progress), before.weights)
    assert after.progress.best_epoch == epoch
    assert bool(after.weights) == (epoch == 1 and after.settings.selection == "best_holdout")


def test_the_last_epoch_copies_no_weights_and_cannot_become_the_best_of_a_forced_resume():
    settings = BEST.model_copy(update={"selection": "last"})
    last = Selection(settings, Progress(), {})
    assert observe(last, make_network(), [1.0, 2.0, 3.0]) == [False, False, True]
    assert last.weights == {}
    assert Selection(BEST, last.progress, {}).progress.best_epoch == 0


@pytest.mark.parametrize(
    ("settings", "progress", "epoch", "note"),
    [
        (
            {"selection": "best_holdout"},
            Progress(epoch=60, best_epoch=37, best_value=0.5),
            37,
            "weights of epoch 37 of 60, chosen by hold-out refinement loss; hold-out metrics of the chosen epoch are "
            "optimistic",
        ),
        (
            {"selection": "best_holdout", "selection_metric": "nll", "early_stopping_patience": 5},
            Progress(epoch=42, best_epoch=37, best_value=0.5),
            37,
            "weights of epoch 37 of 60, chosen by hold-out NLL; hold-out metrics of the chosen epoch are optimistic; "
            "training stopped early after epoch 42, by hold-out NLL",
        ),
        (
            {"selection_metric": "top1_error", "early_stopping_patience": 5},
            Progress(epoch=42, best_epoch=37, best_value=20.0),
            42,
            "weights of epoch 42 of 60, the last one trained; training stopped early after epoch 42, by hold-out top-1 "
            "error",
        ),
        (
            {"selection": "best_holdout"},
            Progress(epoch=60),
            60,
            "weights of epoch 60 of 60, the last one trained: in no epoch were all hold-out logits finite",
        ),
    ],
)
def test_the_note_says_which_epoch_and_why(settings, progress, epoch, note):
    run = RunSection(**settings)
    selected = describe_selection(run, progress)
    assert selected is not None
    assert (selected.epoch, selected.note(run.selection, 60)) == (epoch, note)


def test_a_run_without_selection_has_no_note():
    assert describe_selection(RunSection(), Progress(epoch=60)) is None
