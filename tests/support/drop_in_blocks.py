"""Run the code blocks of cskd_hf/data/DROP_IN.md, under torchrun as a script, and record losses and weights."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_runs import ROOT
from torch import Tensor, nn
from torch.utils.data import Dataset

PAGE = ROOT / "cskd_hf" / "data" / "DROP_IN.md"
HAS_TIMM_TASK = importlib.util.find_spec("timm.task") is not None
FRAMEWORKS = ["Accelerate", "transformers.Trainer", "Lightning", "timm.task"]

# Three classes, unsorted. In batches of 4, the last one has 2 keys on one rank; on two ranks it is padded by 2.
LABELS = [0, 1, 2, 1, 1, 0, 0, 1, 2, 1, 0, 1, 2, 1, 1, 0, 0, 1, 2, 1, 0, 1]
BATCH_SIZE, NUM_EPOCHS, LR = 4, 2, 0.1
MOMENTUM = {"Accelerate": 0.9, "transformers.Trainer": 0.0, "Lightning": 0.9, "timm.task": 0.9}


def blocks() -> dict[str, str]:
    """Heading → code: the common block under "", the others under their bold headings."""
    page = PAGE.read_text(encoding="utf-8")
    by_heading: dict[str, str] = {}
    heading = ""
    for bold, code in re.findall(r"^\*\*(.+?)\*\*|^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        if bold:
            heading = bold
        else:
            assert heading not in by_heading
            by_heading[heading] = code
    return by_heading


# The names that the page's code assumes


class Rows(Dataset[tuple[Tensor, int]]):
    """The first channel encodes the row; the others are noise from all three global generators."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.from_numpy(np.random.RandomState(index).rand(2, 6, 6).astype(np.float32))
        noise = noise * random.uniform(0.5, 1.5) + float(np.random.rand()) + torch.rand(2, 1, 1)
        return torch.cat([torch.full((1, 6, 6), index / len(LABELS)), noise]), LABELS[index]


class Net(nn.Module):
    """A network with BatchNorm that records each forward as (gradient enabled, train mode, rows)."""

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


def variables_for(framework: str, num_processes: int, process_index: int, folder: Path) -> dict[str, Any]:
    """The variables that a section of the page assumes."""
    model = Net()
    names: dict[str, Any] = {"model": model, "train_dataset": Rows(), "labels": LABELS, "num_epochs": NUM_EPOCHS}
    names |= {"batch_size": BATCH_SIZE, "optimizer": torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)}
    names |= {"num_processes": num_processes, "process_index": process_index}
    if framework == "transformers.Trainer":
        from transformers import TrainingArguments

        names["args"] = TrainingArguments(
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

        names["trainer"] = lightning.Trainer(
            accelerator="cpu",
            devices=num_processes,
            strategy="ddp" if num_processes > 1 else "auto",
            max_epochs=NUM_EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    return names


def train_as_timm(names: dict[str, Any]) -> None:
    """The relevant part of the training loop in timm's train.py."""
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
    code, results = blocks(), {}
    for framework in FRAMEWORKS:
        if framework == "timm.task" and not HAS_TIMM_TASK:
            continue
        names = variables_for(framework, num_processes, process_index, folder)
        exec(compile(code[""], PAGE.name, "exec"), names)
        model, losses = names["model"], []
        names["objective"].register_forward_hook(
            lambda module, inputs, result, losses=losses: losses.append(result["loss"].item())
        )
        exec(compile(code[framework], f"{PAGE.name}, {framework}", "exec"), names)
        if framework == "Accelerate":
            assert names["accelerator"].num_processes == num_processes
        elif framework == "transformers.Trainer":
            assert names["args"].world_size == num_processes
        elif framework == "Lightning":
            assert names["trainer"].world_size == num_processes
        else:
            train_as_timm(names)
        results[framework] = {"forwards": model.forwards, "losses": losses, "weights": model.state_dict()}
    torch.save(results, folder / f"{num_processes}-{process_index}.pt")


def main(folder: Path) -> None:
    """One rank of two. Rank 0 also forks a single-process run, which saves importing everything again."""
    import lightning  # noqa: F401
    import transformers.trainer  # noqa: F401
    from accelerate import Accelerator  # noqa: F401

    process_index = int(os.environ["RANK"])
    child = os.fork() if process_index == 0 else None
    if child == 0:
        for name in [name for name in os.environ if re.search("RANK|WORLD_SIZE|MASTER_|TORCHELASTIC", name)]:
            del os.environ[name]
        run_blocks(folder, num_processes=1, process_index=0)
        os._exit(0)
    run_blocks(folder, num_processes=2, process_index=process_index)
    assert torch.distributed.get_world_size() == 2
    torch.distributed.destroy_process_group()
    if child is not None:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
