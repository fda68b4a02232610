"""The README's section "In your own loop": its text is run, on one process and on two, and compared with a plain loop.

Under torchrun, as a script, this file runs the section's blocks and writes down what they did.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import ROOT, torchrun
from torch import Tensor, nn
from torch.utils.data import Dataset

from cskd_hf.data.pairing import ClassPairSampler, Draw

HAS_TIMM_TASK = importlib.util.find_spec("timm.task") is not None
FRAMEWORKS = ["Accelerate", "transformers.Trainer", "Lightning", "timm.task"]

# Of three classes, in no order. Batches of 4: on one process the last is of 2, on two the last takes 2 more keys.
LABELS = [0, 1, 2, 1, 1, 0, 0, 1, 2, 1, 0, 1, 2, 1, 1, 0, 0, 1, 2, 1, 0, 1]
BATCH_SIZE, NUM_EPOCHS, LR = 4, 2, 0.1
MOMENTUM = {"Accelerate": 0.9, "transformers.Trainer": 0.0, "Lightning": 0.9, "timm.task": 0.9}


def blocks() -> dict[str, str]:
    """The section's Python blocks: what is common to all under "", the others under the bold words before them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## In your own loop\n")[1].split("\n## ")[0]
    found: dict[str, str] = {}
    heading = ""
    for bold, code in re.findall(r"^\*\*(.+?)\*\*|^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL):
        if bold:
            heading = bold
        else:
            assert heading not in found
            found[heading] = code
    return found


# What the blocks are given


class Rows(Dataset[tuple[Tensor, int]]):
    """An image's first channel says which row it is; the others are augmented out of each generator there is."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.from_numpy(np.random.RandomState(index).rand(2, 6, 6).astype(np.float32))
        noise = noise * random.uniform(0.5, 1.5) + float(np.random.rand()) + torch.rand(2, 1, 1)
        return torch.cat([torch.full((1, 6, 6), index / len(LABELS)), noise]), LABELS[index]


class Net(nn.Module):
    """With BatchNorm; writes down its forwards: (gradient, train mode, rows)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 5, 3, bias=False), nn.Linear(5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.forwards: list[tuple[bool, bool, list[int]]] = []

    def forward(self, images: Tensor) -> Tensor:
        rows = (images[:, 0, 0, 0] * len(LABELS)).round().int().tolist()
        self.forwards.append((torch.is_grad_enabled(), self.training, rows))
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def names_of(framework: str, num_processes: int, process_index: int, folder: Path) -> dict[str, Any]:
    """What the section says that its reader has."""
    model = Net()
    given: dict[str, Any] = {"model": model, "train_dataset": Rows(), "labels": LABELS, "num_epochs": NUM_EPOCHS}
    given |= {"batch_size": BATCH_SIZE, "optimizer": torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)}
    given |= {"num_processes": num_processes, "process_index": process_index}
    if framework == "transformers.Trainer":
        from transformers import TrainingArguments

        given["args"] = TrainingArguments(
            str(folder / f"trainer{process_index}"),
            use_cpu=True,
            per_device_train_batch_size=BATCH_SIZE,
            num_train_epochs=NUM_EPOCHS,
            optim="sgd",
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
    if framework == "Lightning":
        import lightning

        given["trainer"] = lightning.Trainer(
            accelerator="cpu",
            devices=num_processes,
            strategy="ddp" if num_processes > 1 else "auto",
            max_epochs=NUM_EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    return given


def train_as_timm(names: dict[str, Any]) -> None:
    """The loop of timm's training script, as far as it matters here."""
    task, optimizer = names["task"], names["optimizer"]
    if names["num_processes"] > 1:
        task.prepare_distributed()
    task.train()
    for epoch in range(NUM_EPOCHS):
        names["sampler"].set_epoch(epoch)
        for input, target in names["loader"]:
            optimizer.zero_grad()
            task(input, target)["loss"].backward()
            optimizer.step()


def run_blocks(folder: Path, num_processes: int, process_index: int) -> None:
    code, done = blocks(), {}
    for framework in FRAMEWORKS:
        if framework == "timm.task" and not HAS_TIMM_TASK:
            continue
        names = names_of(framework, num_processes, process_index, folder)
        exec(compile(code[""], "README.md", "exec"), names)
        model, losses = names["model"], []
        names["objective"].register_forward_hook(
            lambda module, inputs, result, losses=losses: losses.append(result["loss"].item())
        )
        exec(compile(code[framework], f"README.md, {framework}", "exec"), names)
        if framework == "Accelerate":
            assert names["accelerator"].num_processes == num_processes
        elif framework == "transformers.Trainer":
            assert names["args"].world_size == num_processes
        elif framework == "Lightning":
            assert names["trainer"].world_size == num_processes
        else:
            train_as_timm(names)
        done[framework] = {"forwards": model.forwards, "losses": losses, "weights": model.state_dict()}
    torch.save(done, folder / f"{num_processes}-{process_index}.pt")


def main(folder: Path) -> None:
    """One process of two; the first forks one that is alone, which spares it importing everything again."""
    import lightning  # noqa: F401
    import transformers.trainer  # noqa: F401
    from accelerate import Accelerator  # noqa: F401

    process_index = int(os.environ["RANK"])
    alone = os.fork() if process_index == 0 else None
    if alone == 0:
        for name in [name for name in os.environ if re.search("RANK|WORLD_SIZE|MASTER_|TORCHELASTIC", name)]:
            del os.environ[name]
        run_blocks(folder, num_processes=1, process_index=0)
        os._exit(0)
    run_blocks(folder, num_processes=2, process_index=process_index)
    assert torch.distributed.get_world_size() == 2
    torch.distributed.destroy_process_group()
    if alone is not None:
        assert os.waitstatus_to_exitcode(os.waitpid(alone, 0)[1]) == 0


# What they did

Ran = list[dict[str, Any]]  # a framework's forwards, losses and weights on each process


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = torchrun(__file__, folder)
    assert done.status == 0, done.stderr
    return folder


@pytest.fixture(params=[(framework, processes) for framework in FRAMEWORKS for processes in (1, 2)], ids=str)
def run(request, folder) -> tuple[str, Ran]:
    framework, processes = request.param
    if framework == "timm.task" and not HAS_TIMM_TASK:
        pytest.skip("this timm has no timm.task")
    return framework, [torch.load(folder / f"{processes}-{index}.pt")[framework] for index in range(processes)]


def test_a_block_is_found_for_each_framework():
    assert list(blocks()) == ["", *FRAMEWORKS]


def keys_of(epoch: int) -> dict[int, Draw]:
    """By anchor: the sampler's keys of an epoch."""
    sampler = ClassPairSampler(LABELS, seed=0)
    sampler.set_epoch(epoch)
    return {draw.indices[0]: draw for draw in sampler}


def steps_of(ran: Ran) -> list[list[list[list[tuple[int, int]]]]]:
    """[epoch][step][process]: the pairs of rows, anchor first, that were forwarded."""
    by_process = []
    for process in ran:
        forwards = [rows for _, _, rows in process["forwards"]]
        by_process.append([list(zip(*pair, strict=True)) for pair in zip(forwards[0::2], forwards[1::2], strict=True)])
    steps = [list(step) for step in zip(*by_process, strict=True)]
    size = math.ceil(len(LABELS) / (BATCH_SIZE * len(ran)))
    assert len(steps) == size * NUM_EPOCHS
    return [steps[epoch * size : (epoch + 1) * size] for epoch in range(NUM_EPOCHS)]


def test_both_forwards_of_a_step_are_in_train_mode_and_only_the_first_has_a_gradient(run):
    _, ran = run
    for process in ran:
        modes = [forward[:2] for forward in process["forwards"]]
        assert modes == [(True, True), (False, True)] * (len(modes) // 2)


def test_every_pair_that_is_forwarded_is_one_of_the_samplers_and_so_of_one_class(run):
    _, ran = run
    for epoch, steps in enumerate(steps_of(ran)):
        keys = keys_of(epoch)
        for pair in (pair for step in steps for process in step for pair in process):
            assert pair == keys[pair[0]].indices
            assert LABELS[pair[0]] == LABELS[pair[1]]


def test_every_image_is_anchor_once_an_epoch_but_for_what_evens_the_processes_out(run):
    framework, ran = run
    for steps in steps_of(ran):
        anchors = Counter(anchor for step in steps for process in step for anchor, _ in process)
        assert set(anchors) == set(range(len(LABELS)))
        pads = len(ran) == 2 and framework in ("Accelerate", "transformers.Trainer")
        assert anchors.total() == len(LABELS) + 2 * pads


def test_the_second_epoch_has_another_order_and_other_partners(run):
    _, ran = run
    first, second = ([process for step in steps for process in step] for steps in steps_of(ran))
    assert first != second
    assert {pair for pairs in first for pair in pairs} != {pair for pairs in second for pair in pairs}


def load(row: int, seed: int) -> Tensor:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return Rows()[row][0]


def plain_loop(ran: Ran, momentum: float) -> tuple[list[list[float]], list[dict[str, Tensor]]]:
    """CS-KD on one process, of the pairs that were forwarded: the losses [step][process], each process's last state.

    Gradients are averaged over the processes; each takes its step from the first one's running statistics.
    """
    model = Net().train()
    velocity = [torch.zeros_like(weight) for weight in model.parameters()]
    losses: list[list[float]] = []
    statistics = [{name: buffer.clone() for name, buffer in model.named_buffers()}]
    for epoch, steps in enumerate(steps_of(ran)):
        keys = keys_of(epoch)
        for step in steps:
            before = statistics[0]
            statistics = []
            gradient = [torch.zeros_like(weight) for weight in model.parameters()]
            losses.append([])
            for pairs in step:
                model.load_state_dict(before, strict=False)
                x = torch.stack([load(anchor, keys[anchor].seed) for anchor, _ in pairs])
                partner = torch.stack([load(other, keys[anchor].seed + 1) for anchor, other in pairs])
                target = torch.tensor([LABELS[anchor] for anchor, _ in pairs])
                output = model(x)
                with torch.no_grad():
                    q = (model(partner) / 4).softmax(1)
                log_p = output - output.logsumexp(1, keepdim=True)
                log_p_soft = output / 4 - (output / 4).logsumexp(1, keepdim=True)
                cross_entropy = -log_p[torch.arange(len(pairs)), target].mean()
                loss = cross_entropy + 16 * (q * (q.log() - log_p_soft)).sum(1).mean()
                losses[-1].append(loss.item())
                statistics.append({name: buffer.clone() for name, buffer in model.named_buffers()})
                for total, part in zip(gradient, torch.autograd.grad(loss, tuple(model.parameters())), strict=True):
                    total += part / len(step)
            with torch.no_grad():
                for weight, speed, slope in zip(model.parameters(), velocity, gradient, strict=True):
                    speed.mul_(momentum).add_(slope)
                    weight -= LR * speed
    return losses, [{**model.state_dict(), **own} for own in statistics]


def test_losses_weights_and_running_statistics_are_those_of_a_plain_loop_of_two_forwards(run):
    framework, ran = run
    losses, states = plain_loop(ran, MOMENTUM[framework])
    for index, process in enumerate(ran):
        assert process["losses"] == pytest.approx([step[index] for step in losses], rel=1e-4)
        torch.testing.assert_close(process["weights"], states[index], rtol=1e-4, atol=1e-6)
    for name, weight in Net().named_parameters():
        assert torch.equal(ran[0]["weights"][name], ran[-1]["weights"][name])
        assert (ran[0]["weights"][name] - weight).abs().max() > 1e-3


@pytest.mark.skipif(not HAS_TIMM_TASK, reason="this timm has no timm.task")
def test_the_timm_task_evaluates_averages_and_saves_the_model_itself(tmp_path):
    code, names = blocks(), names_of("timm.task", 1, 0, tmp_path)
    exec(code[""] + code["timm.task"], names)
    task, model = names["task"], names["model"]
    task.setup_ema(decay=0.5)
    with torch.no_grad():
        model.head.bias += 1
    task.update_ema()
    average = task.get_eval_model(ema=True)
    assert task.get_eval_model() is model
    torch.testing.assert_close(average.head.bias, model.head.bias - 0.5)
    checkpoint = task.get_checkpoint_state() | task.get_checkpoint_state(ema=True)
    assert set(checkpoint["state_dict"]) == set(checkpoint["state_dict_ema"]) == set(Net().state_dict())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
