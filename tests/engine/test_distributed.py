from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_runs import (
    ROOT,
    TIMING,
    draw_folder,
    kill_within_an_epoch,
    launch,
    metrics_lines,
    quick,
    summary_of,
    torchrun,
    write_recipe,
)
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config

from cskd_hf.data.pairing import ClassPairSampler
from cskd_hf.data.splits import load_images
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.runs.environment import read_environments

# 13 training images: the last global batch of 4 has one image, so rank 1 has none.
IMAGES = {"train": (5, 5, 3), "test": (3, 3, 1)}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("images") / "odd", IMAGES)


# Two ranks with batches of 2; BatchNorm; a checkpoint at every step.
SETTINGS = ["data.batch_size=2", "run.checkpoint_steps=1", "scheduler.num_epochs=2", "data.holdout=0.25"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> Path:
    """An uninterrupted run on two ranks."""
    recipe = write_recipe(tmp_path_factory.mktemp("whole") / "run.yaml", images)
    done = torchrun("-m", "cskd_hf.train", recipe, *SETTINGS, use_cpus=False)
    assert done.status == 0, done.stderr
    assert done.stdout.count("epoch   1/2") == 1  # only rank 0 prints
    assert "2 x 2 processes x 1 accumulated = 4 anchors (8 images)" in done.stdout
    first_keys = re.findall(r"^  process (\d) on \S+ \(pid \d+\): first keys (.+)$", done.stdout, re.MULTILINE)
    (recipe.with_suffix("") / "first_keys.json").write_text(json.dumps(first_keys))
    return recipe.with_suffix("")


def test_two_ranks_really_ran(whole):
    (environment,) = read_environments(whole)
    assert environment["num_processes"] == 2
    assert summary_of(whole)["throughput"]["num_processes"] == 2


ENDS = {
    "done": "cskd_hf.train {whole}/recipe.yaml run.output_dir={new}",
    "stopped": "cskd_hf.train {whole}/recipe.yaml run.output_dir={new} run.max_hours=1e-9",
    "done before": "cskd_hf.train {whole}/recipe.yaml",
    "evaluated": "cskd_hf.evaluate {whole}",
}


@pytest.mark.parametrize("end", ENDS)
def test_no_gloo_thread_is_left_at_interpreter_exit(whole, tmp_path, end):
    """A gloo thread still alive at exit can abort the process: on starved cores, four of six exits were SIGABRT."""
    command = [word.format(whole=whole, new=tmp_path / "new") for word in ENDS[end].split()]
    done = torchrun(ROOT / "tests" / "support" / "last_threads.py", tmp_path, *command)
    assert done.status == (end == "stopped"), done.stderr  # torchrun returns 1 for a rank's 143
    threads = [path.read_text().splitlines() for path in tmp_path.glob("[01]")]
    # torchrun may kill the second rank when the first fails.
    assert len(threads) == 2 or (len(threads) == 1 and end == "stopped")
    assert all(threads)
    assert not [name for names in threads for name in names if "gloo" in name], threads


def test_each_rank_prints_its_first_pairs(whole, images):
    recipe = load_recipe(str(whole / "recipe.yaml"))
    draws = list(ClassPairSampler(load_images(recipe.data).train.labels, recipe.run.seed))[:4]
    first_keys = ["+".join(map(str, dict.fromkeys(draw.indices))) for draw in draws]
    expected = [["0", ", ".join(first_keys[:2])], ["1", ", ".join(first_keys[2:])]]
    assert json.loads((whole / "first_keys.json").read_text()) == expected


def test_two_ranks_save_the_model_they_evaluated(whole, images):
    model = timm.create_model(f"local-dir:{whole / 'model'}", pretrained=True).eval()
    saved = load_file(whole / "predictions.safetensors")
    assert saved["row"].tolist() == list(range(7))
    assert saved["target"].tolist() == [0, 0, 0, 1, 1, 1, 2]
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    files = sorted((images / "test").rglob("*.png"))
    with torch.no_grad():
        logits = model(torch.stack([transform(Image.open(file)) for file in files]))
    torch.testing.assert_close(saved["logits"], logits, rtol=0, atol=1e-5)
    # The last checkpoint has the same weights and running statistics.
    last = load_file(max((whole / "checkpoints").iterdir()) / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(last[name], value), name


def test_two_ranks_equal_one_with_twice_the_batch_without_batchnorm(tmp_path, images):
    # The last global batch, with nothing for rank 1, is an accumulation group by itself.
    settings = ["model={model_name: test_vit, img_size: 32}", "transform.input_size=[3, 32, 32]"]
    settings += ["run.gradient_accumulation_steps=3"]
    recipe = write_recipe(tmp_path / "run.yaml", images)
    one, two = tmp_path / "one", tmp_path / "two"
    done = quick(recipe, *settings, "data.batch_size=4", f"run.output_dir={one}")
    assert done.status == 0, done.stderr
    done = torchrun("-m", "cskd_hf.train", recipe, *settings, "data.batch_size=2", f"run.output_dir={two}")
    assert done.status == 0, done.stderr
    first, second = metrics_lines(one), metrics_lines(two)
    assert [line["step"] for line in first] == [2, 4]
    assert len(second) == 2
    for line, other in zip(first, second, strict=True):
        assert other == pytest.approx(line, abs=1e-4)
    weights, logits = ("model/model.safetensors", "predictions.safetensors")
    torch.testing.assert_close(load_file(two / logits), load_file(one / logits), rtol=0, atol=1e-4)
    torch.testing.assert_close(load_file(two / weights), load_file(one / weights), rtol=0, atol=1e-5)


PROBE = """
import hashlib, json, sys
from pathlib import Path
import torch
import cskd_hf.engine.trainer as trainer
from cskd_hf import train
from accelerate.utils import gather_object
from safetensors.torch import save

original = trainer.training_updates

def recording_updates(learner, loader, batches, accelerator, *args):
    log = Path(sys.argv[1]) / f"rank{accelerator.process_index}.jsonl"
    module = learner.module
    loaded = []
    collate = loader.collate_fn
    def record(batch):
        loaded.append([batch.index.view(2, -1).T.tolist(), hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()])
        return collate(batch)
    loader.collate_fn = record
    for update in original(learner, loader, batches, accelerator, *args):
        digest = lambda tensors: hashlib.sha256(save({k: v.contiguous() for k, v in tensors})).hexdigest()
        with log.open("a") as file:
            file.write(json.dumps({
                "epoch": update.epoch, "step": update.step, "batches": loaded,
                "weights": digest(module.named_parameters()),
            }) + "\\n")
        loaded = loaded[:0]
        yield update
    with log.open("a") as file:
        file.write(json.dumps({"buffers": digest(module.named_buffers())}) + "\\n")

trainer.training_updates = recording_updates
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def rank_logs(tmp_path_factory, images) -> list[list[dict[str, Any]]]:
    """Per rank and update: the pairs it loaded and a digest of its weights; then a digest of its buffers."""
    folder = tmp_path_factory.mktemp("rank_logs")
    (folder / "probe.py").write_text(PROBE, encoding="utf-8")
    recipe = write_recipe(folder / "run.yaml", images, data={"batch_size": 2})
    done = torchrun(folder / "probe.py", folder, recipe)
    assert done.status == 0, done.stderr
    return [[json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]


def test_both_ranks_have_equal_weights_after_every_update(rank_logs):
    first, second = ([line["weights"] for line in rank[:-1]] for rank in rank_logs)
    assert len(first) == 8
    assert len(set(first)) == 8
    assert first == second


def test_both_ranks_have_equal_running_statistics_at_evaluation(rank_logs):
    first, second = (rank[-1]["buffers"] for rank in rank_logs)
    assert first == second


def test_both_ranks_together_load_each_anchor_once_per_epoch_with_partners_of_its_class(rank_logs):
    class_of = [label for label, count in enumerate(IMAGES["train"]) for _ in range(count)]
    for epoch in (0, 1):
        anchors: Counter[int] = Counter()
        for rank, lines in enumerate(rank_logs):
            for line in lines[:-1]:
                if line["epoch"] != epoch:
                    continue
                ((rows, _),) = line["batches"]
                assert {len(pair) for pair in rows} == {2}
                assert all(class_of[anchor] == class_of[partner] for anchor, partner in rows)
                # 13 = 3 · 4 + 1: in the last step of an epoch, rank 1 repeats a pair at weight zero.
                if rank == 1 and line["step"] % 4 == 0:
                    assert rows == rank_logs[0][line["step"] - 1]["batches"][0][0]
                else:
                    anchors.update(anchor for anchor, _ in rows)
        assert anchors == Counter(range(13))


@pytest.fixture(scope="module")
def killed(tmp_path_factory, images) -> tuple[Path, dict[str, Any]]:
    """A run on two ranks, both killed within an epoch: its recipe and the progress of its newest checkpoint."""
    recipe = write_recipe(tmp_path_factory.mktemp("killed") / "run.yaml", images)
    process = launch("-m", "cskd_hf.train", recipe, *SETTINGS)
    return recipe, kill_within_an_epoch(process, recipe.with_suffix(""))


def test_two_killed_ranks_resume_to_the_weights_of_an_uninterrupted_run(killed, whole, tmp_path):
    recipe, progress = killed
    folder = shutil.copytree(recipe.with_suffix(""), tmp_path / "two")
    done = torchrun("-m", "cskd_hf.train", recipe, *SETTINGS, f"run.output_dir={folder}")
    assert done.status == 0, done.stderr
    assert done.stdout.count(f"resuming at step {progress['step']}, epoch {progress['epoch'] + 1}, sample") == 1
    for name in ("model/model.safetensors", "predictions.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics_lines(folder) == metrics_lines(whole)


def test_two_killed_ranks_resume_as_one_with_the_rest_of_the_epoch(killed, tmp_path):
    recipe, progress = killed
    folder = shutil.copytree(recipe.with_suffix(""), tmp_path / "one")
    done = quick(recipe, *SETTINGS, f"run.output_dir={folder}")
    assert done.status == 0, done.stderr
    step, epoch, position = (progress[key] for key in ("step", "epoch", "position"))
    assert f"resuming at step {step}, epoch {epoch + 1}, sample {position}" in done.stdout
    summary = summary_of(folder)
    # 10 training images, now 2 per global batch instead of 4.
    remaining = -(-(10 - position) // 2) + 5 * (1 - epoch)
    assert [line["epoch"] for line in metrics_lines(folder)] == [0, 1]
    assert metrics_lines(folder)[-1]["step"] == step + remaining
    assert summary["throughput"]["num_processes"] == 1
    state = json.loads((max((folder / "checkpoints").iterdir()) / "state.json").read_text(encoding="utf-8"))
    assert state["progress"]["samples"] == 20  # each image once per epoch, across the resume


def test_comparisons_ignore_timing_only(whole):
    line = json.loads((whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(TIMING) < set(line)
    assert set(line) - set(metrics_lines(whole)[0]) == set(TIMING)
