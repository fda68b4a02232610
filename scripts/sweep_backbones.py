"""Try the networks of timm: one CS-KD step, evaluation, export, reload.

    python scripts/sweep_backbones.py backbones.jsonl                  # every network; rerun to resume
    python scripts/sweep_backbones.py some.jsonl 'resnet*' 'vit_*'     # those that match
    python scripts/sweep_backbones.py backbones.jsonl --table          # Markdown, from the file alone

Each runs in a process of its own, with random weights, on square images of the smallest size it takes. A network of up
to 60 million parameters trains on the CPU, is exported, and must give the same logits to 1e-5 in plain timm. A
larger one trains on torch's meta device, which checks operators and shapes without arithmetic, and is not exported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, model_entrypoint

from cskd_hf.batch import Batch
from cskd_hf.engine.build import build_objective, to_channels_last
from cskd_hf.engine.objective import Objective
from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.methods.base import Experiment
from cskd_hf.models.export import export_model
from cskd_hf.recipe.recipe import Recipe, load_recipe
from cskd_hf.recipe.resolve import resolve

SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 384, 512)
LARGEST = 60_000_000  # parameters on the CPU
CLASSES = ("cat", "dog", "bird")
SECONDS = 300  # per network


def recipes_of(name: str) -> Iterator[Recipe]:
    """The recipe of a network at each size that it might take, smallest first."""
    cfg = get_pretrained_cfg(name)
    default = cfg.input_size[-1] if cfg else 224
    for size in sorted({*SIZES, default}):
        if size > default:
            return
        fixed = f", img_size: [{size}, {size}]" if cfg and cfg.fixed_input_size and size != default else ""
        overrides = [f"model={{model_name: {name}{fixed}}}", f"transform.input_size=[3,{size},{size}]"]
        yield resolve(load_recipe("recipes/cub200_resnet18.yaml", [*overrides, "optimizer.fused=false"]))


def step(recipe: Recipe) -> tuple[Objective, torch.Tensor, float]:
    """One update on two pairs of a class each; the objective, its images and the loss."""
    objective = build_objective(recipe, Experiment(4, 1, CLASSES, *recipe.transform.mean_and_std)).train()
    optimizer = create_optimizer(recipe.optimizer, recipe.method.export(objective.module), objective.module, lr=1e-3)
    images = torch.randint(256, (8, *recipe.transform.input_size), dtype=torch.uint8)
    target = torch.arange(4).repeat(2) % 3
    loss = objective(Batch(images, target, torch.arange(8)))["loss"]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)  # deep networks of random weights have gradients of 1e6
    optimizer.step()
    return objective, images, loss


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """New tensors are on the meta device, but for those that constructors read: the rates of stochastic depth."""
    linspace = torch.linspace
    torch.linspace = lambda *args, **keywords: linspace(*args, **{**keywords, "device": "cpu"})
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.linspace = linspace


def smallest(name: str) -> tuple[Recipe, int]:
    """The recipe at the smallest size at which a step passes on the meta device, and the number of parameters.

    Raises:
        Exception: what the largest size ends with.
    """
    *others, last = recipes_of(name)
    for recipe in (*others, last):
        try:
            with on_meta():
                objective, _, _ = step(recipe)
        except Exception:  # networks reject sizes with any of Python's exceptions
            if recipe is last:
                raise
        else:
            return recipe, sum(parameter.numel() for parameter in objective.module.parameters())
    raise AssertionError("unreachable")


def attempt(name: str) -> dict[str, Any]:
    """How a network did; without 'problem' if it passed."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    recipe, num_parameters = smallest(name)
    facts = {"size": recipe.transform.input_size[1], "parameters": num_parameters, "meta": num_parameters > LARGEST}
    if facts["meta"]:
        return facts
    objective, images, loss = step(recipe)
    if not torch.isfinite(torch.as_tensor(loss)):
        return facts | {"problem": f"the loss is {float(loss)}"}
    model = recipe.method.export(objective.module).eval()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        inputs = images[:2] / 255
        expected = model(inputs)
        if not expected.isfinite().all():
            return facts | {"problem": "the logits after a step are not finite"}
        export_model(model, Path(folder) / "model", recipe.model, recipe.transform, CLASSES, "", {})
        loaded = timm.create_model(f"local-dir:{folder}/model", pretrained=True).eval()
        to_channels_last(loaded)  # as trained; another layout rounds otherwise
        difference = (loaded(inputs) - expected).abs().max().item()
        if difference > 1e-5 * max(1.0, expected.abs().max().item()):  # as `publish` checks it
            return facts | {"problem": f"timm's reload gives logits that differ by {difference:.2g}"}
    return facts


def in_own_process(name: str) -> dict[str, Any]:
    """`attempt`, with crashes, memory and time limited to this network."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(name, theirs))
    start = time.perf_counter()
    process.start()
    theirs.close()
    try:
        result = ours.recv() if ours.poll(SECONDS) else {"problem": f"not done after {SECONDS} s"}
    except EOFError:
        process.join()
        result = {"problem": f"the process died with status {process.exitcode}"}
    process.kill()
    process.join()
    return {"name": name, **result, "seconds": round(time.perf_counter() - start, 1)}


def _send(name: str, connection: Connection) -> None:
    try:
        connection.send(attempt(name))
    except Exception as error:  # whatever a network raises is its result
        connection.send({"problem": " ".join(f"{type(error).__name__}: {error}".split())[:300]})


def table(results: Sequence[dict[str, Any]]) -> str:
    """Counts, and a line for each network that failed."""
    lines = ["| networks | tried | passed |", "|---|---|---|"]
    for title, meta in (
        ("trained, exported and reloaded", False),
        ("larger than 60 M parameters, on the meta device", True),
    ):
        group = [result for result in results if bool(result.get("meta")) == meta]
        lines.append(f"| {title} | {len(group)} | {sum('problem' not in result for result in group)} |")
    failed = [result for result in results if "problem" in result]
    return "\n".join([*lines, "", *(f"- `{result['name']}`: {result['problem']}" for result in failed)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="FILE", help="one JSON line per network; those in it are skipped")
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="names, with * (default: all)")
    parser.add_argument("--table", action="store_true", help="print the table of what the file holds")
    args = parser.parse_args()
    lines = args.output.read_text(encoding="utf-8").splitlines() if args.output.is_file() else []
    results = [json.loads(line) for line in lines]
    if not args.table:
        done = {result["name"] for result in results}
        names = sorted({name for pattern in args.patterns for name in timm.list_models(pattern)} - done)
        names = [name for name in names if model_entrypoint(name).__module__.startswith("timm.")]  # and none of ours
        random.Random(0).shuffle(names)  # an unfinished sweep is a sample of all
        with args.output.open("a", encoding="utf-8") as file:
            for number, name in enumerate(names, start=1):
                result = in_own_process(name)
                results.append(result)
                print(json.dumps(result), file=file, flush=True)
                print(
                    f"[{number}/{len(names)}] {name}: {result.get('problem', 'passed')}, {result['seconds']} s",
                    flush=True,
                )
    print(table(results))


if __name__ == "__main__":
    main()
