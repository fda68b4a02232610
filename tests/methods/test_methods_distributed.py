"""Every method on two real processes (gloo, torchrun) against one process with batches of twice the size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import two_processes
from command_runs import ROOT, draw_folder, quick, summary_of, torchrun, write_recipe
from safetensors.torch import load_file
from torch import Tensor

from cskd_hf.methods import METHODS
from cskd_hf.runs.checkpoint import list_checkpoints

# Each process mixes its own share of a batch: what is mixed with what depends on their number, as everywhere in timm.
MIXED = {"mixup", "mixup_cskd"}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """What two processes left, all methods in one launch."""
    folder = tmp_path_factory.mktemp("two")
    images = draw_folder(folder / "images", {"train": (5, 5, 5), "test": (2, 2, 2)})
    stopped = write_recipe(folder / "run.yaml", images, method={"name": "pskd"}, run={"checkpoint_steps": 1})
    assert quick(stopped).status == 0
    (folder / "run" / "summary.json").unlink()
    shutil.rmtree(last(folder / "run"))  # of the eighth update; the one before is of the second epoch's third
    shutil.copytree(folder / "run", folder / "run by one")
    one = two_processes.make_run("pskd")
    one.train(two_processes.STOP)
    one.save(folder / "by one")
    (checkpoint,) = list_checkpoints(folder / "by one")
    done = torchrun(ROOT / "tests" / "support" / "two_processes.py", folder, checkpoint, folder / "run")
    assert done.status == 0, done.stderr
    return folder


def last(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def left(out: Path, what: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(out / f"{what}-{rank}.safetensors")


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Of weights around 0.1. What is remembered is in half floats: a unit in their last place, of probabilities."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-3 if name == "memory.predictions" else 1e-5
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_two_ranks_really_ran(out):
    assert [left(out, "world", rank)["size"].item() for rank in (0, 1)] == [2, 2]
    assert [left(out, "world", rank)["rank"].item() for rank in (0, 1)] == [0, 1]


@pytest.mark.parametrize("kind", two_processes.NUM_IMAGES)
@pytest.mark.parametrize("name", METHODS)
def test_both_processes_end_with_the_same_weights(out, name, kind):
    first, second = (left(out, f"{kind}-{name}", rank) for rank in (0, 1))
    remembered = {key for key in first if key.startswith("memory.")}  # gathered by the first process alone
    assert first.keys() - second.keys() == remembered
    assert [key for key, value in second.items() if not torch.equal(first[key], value)] == []


@pytest.mark.parametrize("kind", two_processes.NUM_IMAGES)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in MIXED])
def test_one_and_two_processes_train_the_same(out, name, kind):
    expected = two_processes.trained(name, two_processes.NUM_IMAGES[kind])
    moved = two_processes.make_run(name).state()
    weight = "stem.0.weight" if "stem.0.weight" in moved else "model.stem.0.weight"
    assert (expected[weight] - moved[weight]).abs().max() > 1e-2  # training went somewhere
    assert_close(left(out, f"{kind}-{name}"), expected)


@pytest.mark.parametrize("name", sorted(MIXED))
def test_what_mixup_mixes_depends_on_the_number_of_processes(out, name):
    one = two_processes.trained(name, two_processes.NUM_IMAGES["even"])
    two = left(out, f"even-{name}")
    assert (one["stem.0.weight"] - two["stem.0.weight"]).abs().max() > 1e-4


def test_a_mean_over_all_processes_has_the_value_and_the_gradient_of_one_process(out):
    expected = two_processes.means()
    assert expected["mean"].tolist() == pytest.approx([1.5 * 14, -2.0 * 21])
    assert_close(left(out, "means", 0), expected)
    assert_close(left(out, "means", 1), expected)


# the memory


def test_each_process_keeps_its_own_half_of_the_memory_under_ddp(out):
    first, second = (left(out, "shards", rank) for rank in (0, 1))
    assert first["predictions"].shape == second["predictions"].shape == (11, 3)
    assert not torch.isclose(first["predictions"].float(), second["predictions"].float(), atol=1e-3).all(dim=1).any()
    whole = left(out, "even-pskd")["memory.predictions"]
    assert torch.equal(torch.stack((first["predictions"], second["predictions"]), dim=1).flatten(0, 1), whole)
    # Nine updates: an epoch of six, and three of the second.
    visits = torch.cat((first["visits"], second["visits"]))
    assert sorted(visits.tolist()) == [1] * 10 + [2] * 12


@pytest.mark.parametrize("num", [1, 2, 7])
def test_either_process_asks_tells_gathers_and_scatters_any_image(out, num):
    expected = two_processes.memory_of(num)
    rows = -(-num // 2) + 1  # half of them, and one that is nobody's
    for rank in (0, 1):
        found = left(out, f"memory{num}", rank)
        assert found["rows"] == rows
        for key in ("predictions", "visits"):
            assert torch.equal(found[key], expected[key])
        wanted = torch.arange(num).flip(0)[: 1 + rank]
        assert torch.equal(
            found["scattered.predictions"], two_processes.probabilities(num, seed=1).half()[wanted].float()
        )
        assert torch.equal(found["scattered.visits"], wanted.float())
    for key in ("whole.predictions", "whole.visits"):
        assert torch.equal(left(out, f"memory{num}", 0)[key], expected[key])
        assert key not in left(out, f"memory{num}", 1)


def test_a_checkpoint_of_one_process_goes_on_on_two(out):
    assert_close(left(out, "resumed"), two_processes.trained("pskd", two_processes.NUM_IMAGES["even"]))


def test_a_checkpoint_of_two_processes_goes_on_on_one(out):
    (checkpoint,) = list_checkpoints(out / "checkpoints")
    held = load_file(checkpoint / "memories.safetensors")
    assert held["memory.visits"].tolist().count(1) == two_processes.STOP * two_processes.GLOBAL_BATCH
    assert_close(two_processes.resumed(checkpoint), two_processes.trained("pskd", two_processes.NUM_IMAGES["even"]))


def test_the_real_command_keeps_every_row_of_the_memory_when_another_number_of_processes_goes_on(out):
    before, after = (load_file(last(out / name) / "memories.safetensors") for name in ("run by one", "run"))
    assert summary_of(out / "run")["throughput"]["num_processes"] == 2
    assert sorted(before["memory.visits"].tolist()) == [1] * 3 + [2] * 12
    assert after["memory.visits"].tolist() == [2] * 15
    seen = before["memory.visits"] == 2  # not met again
    assert torch.equal(after["memory.predictions"][seen], before["memory.predictions"][seen])
    assert not torch.isclose(after["memory.predictions"][~seen], before["memory.predictions"][~seen]).all(dim=1).any()


THREE = """
import sys
sys.path.insert(0, TESTS)
from pathlib import Path
import two_processes
from accelerate import Accelerator
from safetensors.torch import save_file
from tiny_runs import Run
from method_cases import method_of

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(sys.argv[2])
for name in sys.argv[3:]:
    run = Run(
        method=method_of(name, two_processes.CLASSES), network=two_processes.network, num_images=20,
        batch_size=6 // accelerator.num_processes, lr=0.05, num_epochs=2,
    )
    run.train(8)  # 6, 6, 6 and 2 images an epoch: the third process has none of the last
    state = {key: value.contiguous() for key, value in run.state().items()}
    save_file(state, Path(sys.argv[1]) / f"{accelerator.num_processes}-{name}-{accelerator.process_index}.safetensors")
"""


@pytest.mark.slow
def test_a_process_without_a_share_of_a_batch_counts_for_nothing(tmp_path):
    names = ("adacos", "ddgsd", "pskd")
    tests = str(ROOT / "tests" / "support")
    (tmp_path / "three.py").write_text(THREE.replace("TESTS", repr(tests)), encoding="utf-8")
    for processes in (1, 3):
        done = torchrun(tmp_path / "three.py", tmp_path, processes, *names, processes=processes)
        assert done.status == 0, done.stderr
    for name in names:
        one = load_file(tmp_path / f"1-{name}-0.safetensors")
        for rank in range(3):
            three = load_file(tmp_path / f"3-{name}-{rank}.safetensors")
            three.pop("memory.predictions", None)  # a shard
            assert_close(three, {key: one[key] for key in three})
