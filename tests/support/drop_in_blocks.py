"""The code blocks of cskd_hf/data/DROP_IN.md; as a script under torchrun, it runs them and records what they did."""

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

# Three classes, in no order. Batches of 4: in one process the last has 2, on two ranks it is padded by 2 keys.
LABELS = [0, 1, 2, 1, 1, 0, 0, 1, 2, 1, 0, 1, 2, 1, 1, 0, 0, 1, 2, 1, 0, 1]
BATCH_SIZE, NUM_EPOCHS, LR = 4, 2, 0.1
MOMENTUM = {"Accelerate": 0.9, "transformers.Trainer": 0.0, "Lightning": 0.9, "timm.task": 0.9}


def code_blocks() -> dict[str, str]:
    """The page's Python blocks by the bold heading before them; the common one is under ""."""
    blocks: dict[str, str] = {}
    heading = ""
    page = PAGE.read_text(encoding="utf-8")
    for bold, code in re.findall(r"^\*\*(.+?)\*\*|^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        if bold:
            heading = bold
        else:
            assert heading not in blocks
            blocks[heading] = code
    return blocks


class Rows(Dataset[tuple[Tensor, int]]):
    """The first channel encodes the row; the others are augmented from all three global generators."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.from_numpy(np.random.RandomState(index).rand(2, 6, 6).astype(np.float32))
        noise = noise * random.uniform(0.5, 1.5) + float(np.random.rand()) + torch.rand(2, 1, 1)
        return torch.cat([torch.full((1, 6, 6), index / len(LABELS)), noise]), LABELS[index]


class Net(nn.Module):
    """With BatchNorm; records its forwards: (gradient enabled, train mode, rows)."""

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


def initial_names(framework: str, world: int, rank: int, folder: Path) -> dict[str, Any]:
    """The variables that the page assumes."""
    model = Net()
    names: dict[str, Any] = {"model": model, "train_dataset": Rows(), "labels": LABELS, "num_epochs": NUM_EPOCHS}
    names |= {"batch_size": BATCH_SIZE, "optimizer": torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)}
    names |= {"num_processes": world, "process_index": rank}
    if framework == "transformers.Trainer":
        from transformers import TrainingArguments

        names["args"] = TrainingArguments(
            str(folder / f"trainer{rank}"),
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
            devices=world,
            strategy="ddp" if world > 1 else "auto",
            max_epochs=NUM_EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    return names


def train_as_timm(names: dict[str, Any]) -> None:
    """The relevant part of timm's training script."""
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


def run_blocks(folder: Path, world: int, rank: int) -> None:
    code, records = code_blocks(), {}
    for framework in FRAMEWORKS:
        if framework == "timm.task" and not HAS_TIMM_TASK:
            continue
        names = initial_names(framework, world, rank, folder)
        exec(compile(code[""], PAGE.name, "exec"), names)
        model, losses = names["model"], []
        names["objective"].register_forward_hook(
            lambda module, inputs, result, losses=losses: losses.append(result["loss"].item())
        )
        exec(compile(code[framework], f"{PAGE.name}, {framework}", "exec"), names)
        if framework == "Accelerate":
            assert names["accelerator"].num_processes == world
        elif framework == "transformers.Trainer":
            assert names["args"].world_size == world
        elif framework == "Lightning":
            assert names["trainer"].world_size == world
        else:
            train_as_timm(names)
        records[framework] = {"forwards": model.forwards, "losses": losses, "weights": model.state_dict()}
    torch.save(records, folder / f"{world}-{rank}.pt")


def main(folder: Path) -> None:
    """One of two ranks; rank 0 also forks a single process, which saves importing everything again."""
    import lightning  # noqa: F401
    import transformers.trainer  # noqa: F401
    from accelerate import Accelerator  # noqa: F401

    rank = int(os.environ["RANK"])
    single = os.fork() if rank == 0 else None
    if single == 0:
        for name in [name for name in os.environ if re.search("RANK|WORLD_SIZE|MASTER_|TORCHELASTIC", name)]:
            del os.environ[name]
        run_blocks(folder, world=1, rank=0)
        os._exit(0)
    run_blocks(folder, world=2, rank=rank)
    assert torch.distributed.get_world_size() == 2
    torch.distributed.destroy_process_group()
    if single is not None:
        assert os.waitstatus_to_exitcode(os.waitpid(single, 0)[1]) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
