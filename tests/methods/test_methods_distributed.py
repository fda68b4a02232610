"""Every method on two ranks (gloo, torchrun) against one process with batches of twice the size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import two_ranks
from command_runs import ROOT, draw_folder, quick, summary_of, torchrun, write_recipe
from safetensors.torch import load_file
from torch import Tensor

from cskd_hf.methods import METHODS
from cskd_hf.runs.checkpoint_folders import list_checkpoints

# Each rank mixes its own shard of a batch, so what is mixed depends on their number, as everywhere in timm.
MIXED = {"mixup", "mixup_cskd", "ips"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of two ranks, all methods in one launch."""
    folder = tmp_path_factory.mktemp("two")
    images = draw_folder(folder / "images", {"train": (5, 5, 5), "test": (2, 2, 2)})
    recipe = write_recipe(folder / "run.yaml", images, method={"name": "pskd"}, run={"checkpoint_steps": 1})
    assert quick(recipe).status == 0
    (folder / "run" / "summary.json").unlink()
    shutil.rmtree(last_checkpoint(folder / "run"))  # update 8; update 7 is the third of the second epoch
    shutil.copytree(folder / "run", folder / "run of one process")
    one = two_ranks.make_run("pskd")
    one.train(two_ranks.STOP)
    one.save(folder / "checkpoint of one process")
    (checkpoint,) = list_checkpoints(folder / "checkpoint of one process")
    done = torchrun(ROOT / "tests" / "support" / "two_ranks.py", folder, checkpoint, folder / "run")
    assert done.status == 0, done.stderr
    return folder


def last_checkpoint(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def tensors_of(out: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(out / f"{name}-{rank}.safetensors")


def assert_close(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Weights are around 0.1; the memory has half precision, so its probabilities may differ by one unit."""
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-3 if name == "memory.predictions" else 1e-5
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_there_were_two_ranks(out: Path) -> None:
    assert [tensors_of(out, "world", rank)["size"].item() for rank in (0, 1)] == [2, 2]
    assert [tensors_of(out, "world", rank)["rank"].item() for rank in (0, 1)] == [0, 1]


@pytest.mark.parametrize("kind", two_ranks.NUM_IMAGES)
@pytest.mark.parametrize("name", METHODS)
def test_both_ranks_end_with_the_same_weights(out: Path, name: str, kind: str) -> None:
    first, second = (tensors_of(out, f"{kind}-{name}", rank) for rank in (0, 1))
    assert first.keys() - second.keys() == {key for key in first if key.startswith("memory.")}  # gathered on rank 0
    assert [key for key, value in second.items() if not torch.equal(first[key], value)] == []


@pytest.mark.parametrize("kind", two_ranks.NUM_IMAGES)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in MIXED])
def test_two_ranks_train_as_one_process_does(out: Path, name: str, kind: str) -> None:
    expected = two_ranks.train_method(name, two_ranks.NUM_IMAGES[kind])
    initial = two_ranks.make_run(name).state()
    weight = "stem.0.weight" if "stem.0.weight" in initial else "model.stem.0.weight"
    assert (expected[weight] - initial[weight]).abs().max() > 1e-2
    assert_close(tensors_of(out, f"{kind}-{name}"), expected)


@pytest.mark.parametrize("name", two_ranks.HEADED)
def test_both_ranks_freeze_the_same_parts_and_epochs_as_one_process(out: Path, name: str) -> None:
    initial, first = two_ranks.make_run(name).state(), tensors_of(out, f"frozen-{name}")
    second = tensors_of(out, f"frozen-{name}", rank=1)
    assert [key for key, value in second.items() if not torch.equal(first[key], value)] == []
    stems = [key for key in initial if "stem." in key]
    assert all(torch.equal(first[key], initial[key]) for key in stems)
    assert_close(first, two_ranks.train_method(name, **two_ranks.FROZEN))


@pytest.mark.parametrize("name", sorted(MIXED))
def test_mixup_depends_on_the_number_of_ranks(out: Path, name: str) -> None:
    one, two = two_ranks.train_method(name), tensors_of(out, f"even-{name}")
    assert (one["stem.0.weight"] - two["stem.0.weight"]).abs().max() > 1e-4


def test_a_global_mean_has_the_value_and_gradient_of_one_process(out: Path) -> None:
    expected = two_ranks.mean_and_gradient()
    assert expected["mean"].tolist() == pytest.approx([1.5 * 14, -2.0 * 21])
    for rank in (0, 1):
        assert_close(tensors_of(out, "mean", rank), expected)


# The memory


def test_each_rank_keeps_its_own_shard_of_the_memory_under_ddp(out: Path) -> None:
    first, second = (tensors_of(out, "shard", rank) for rank in (0, 1))
    assert first["predictions"].shape == second["predictions"].shape == (11, 3)
    assert not torch.isclose(first["predictions"].float(), second["predictions"].float(), atol=1e-3).all(dim=1).any()
    gathered = tensors_of(out, "even-pskd")["memory.predictions"]
    assert torch.equal(torch.stack((first["predictions"], second["predictions"]), dim=1).flatten(0, 1), gathered)
    # Nine updates: an epoch of six, and three of the second.
    assert sorted(torch.cat((first["visits"], second["visits"])).tolist()) == [1] * 10 + [2] * 12


@pytest.mark.parametrize("num", [1, 2, 7])
def test_either_rank_reads_writes_gathers_and_scatters_any_image(out: Path, num: int) -> None:
    expected = two_ranks.exercise_memory(num)
    for rank in (0, 1):
        result = tensors_of(out, f"memory{num}", rank)
        assert result["rows"] == -(-num // 2) + 1
        for key in ("predictions", "visits"):
            assert torch.equal(result[key], expected[key])
            gathered = f"gathered.{key}"
            assert torch.equal(result[gathered], expected[gathered]) if rank == 0 else gathered not in result
        requested = torch.arange(num).flip(0)[: 1 + rank]
        scattered = two_ranks.probabilities(num, seed=1).half()[requested].float()
        assert torch.equal(result["scattered.predictions"], scattered)
        assert torch.equal(result["scattered.visits"], requested.float())


def test_two_ranks_resume_a_checkpoint_of_one_process(out: Path) -> None:
    assert_close(tensors_of(out, "resumed"), two_ranks.train_method("pskd"))


def test_one_process_resumes_a_checkpoint_of_two_ranks(out: Path) -> None:
    (checkpoint,) = list_checkpoints(out / "checkpoints")
    visits = load_file(checkpoint / "memories.safetensors")["memory.visits"]
    assert visits.tolist().count(1) == two_ranks.STOP * two_ranks.GLOBAL_BATCH
    assert_close(two_ranks.resume_training(checkpoint), two_ranks.train_method("pskd"))


def test_the_command_keeps_the_memory_when_the_number_of_ranks_changes(out: Path) -> None:
    before, after = (
        load_file(last_checkpoint(out / name) / "memories.safetensors") for name in ("run of one process", "run")
    )
    assert summary_of(out / "run")["throughput"]["num_processes"] == 2
    assert sorted(before["memory.visits"].tolist()) == [1] * 3 + [2] * 12
    assert after["memory.visits"].tolist() == [2] * 15
    unchanged = before["memory.visits"] == 2
    first, second = before["memory.predictions"], after["memory.predictions"]
    assert torch.equal(first[unchanged], second[unchanged])
    assert not torch.isclose(first[~unchanged], second[~unchanged]).all(dim=1).any()


THREE = """
import sys
sys.path.insert(0, SUPPORT)
from pathlib import Path
import two_ranks
from accelerate import Accelerator
from safetensors.torch import save_file
from tiny_runs import Run
from method_cases import method_of

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(sys.argv[2])
for name in sys.argv[3:]:
    run = Run(
        method=method_of(name, two_ranks.CLASSES), network=two_ranks.network, num_images=20,
        batch_size=6 // accelerator.num_processes, lr=0.05, num_epochs=2,
    )
    run.train(8)  # 6, 6, 6 and 2 images per epoch: rank 2 has none of the last batch
    state = {key: value.contiguous() for key, value in run.state().items()}
    save_file(state, Path(sys.argv[1]) / f"{accelerator.num_processes}-{name}-{accelerator.process_index}.safetensors")
"""


@pytest.mark.slow
def test_a_rank_without_a_share_of_a_batch_does_not_count(tmp_path: Path) -> None:
    names = ("adacos", "ddgsd", "pskd")
    support = str(ROOT / "tests" / "support")
    (tmp_path / "three.py").write_text(THREE.replace("SUPPORT", repr(support)), encoding="utf-8")
    for processes in (1, 3):
        done = torchrun(tmp_path / "three.py", tmp_path, processes, *names, processes=processes)
        assert done.status == 0, done.stderr
    for name in names:
        one = load_file(tmp_path / f"1-{name}-0.safetensors")
        for rank in range(3):
            three = load_file(tmp_path / f"3-{name}-{rank}.safetensors")
            three.pop("memory.predictions", None)  # a shard
            assert_close(three, {key: one[key] for key in three})
