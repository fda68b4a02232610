"""The command without its upload, which test_publish_hub.py tests."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from command_runs import isolated_fork, quick, tree
from publishable_runs import copied, images, trained, verified_in_a_fork  # noqa: F401
from safetensors.torch import load_file, save_file

from cskd_hf import evaluate, predict, publish
from cskd_hf.errors import UserError
from cskd_hf.models.load import load_trained
from cskd_hf.recipe.recipe import identity, load_recipe, recipe_hash

NAME = "acme/cskd-tiny"


def dry_run(run, **keywords):
    lines: list[str] = []
    assert publish.publish_run(run, NAME, dry_run=True, licence="apache-2.0", say=lines.append, **keywords) == 0
    return lines


@pytest.fixture(scope="module")
def folded(tmp_path_factory, verified_in_a_fork):  # noqa: F811
    """A run published with folded temperature and a second seed, and the lines printed."""
    run = copied(trained(), tmp_path_factory.mktemp("folded"))
    return run, dry_run(run, fold_temperature=True, seeds=[trained(seed=1)])


def test_every_step_is_printed(folded):
    run, lines = folded
    text = "\n".join(lines)
    for step in (
        "temperature .* folded into fc",
        "built, licence apache-2.0",
        "timm, without cskd_hf: tensors equal; logits of 20 images equal",
        "timm: top-1 of 20 test images equal to predictions.safetensors",
        "transformers, without cskd_hf: tensors equal; logits of 20 images equal",
    ):
        assert re.search(step, text), step
    assert lines[-1] == f"dry run: nothing was uploaded; the card is {run / 'release' / 'README.md'}"
    assert {line.split()[1] for line in lines if re.match(r" +[\d,]+  ", line)} == set(tree(run / "release"))
    assert "release" in os.listdir(run)
    assert ".partial-release" not in os.listdir(run)


def test_folded_weights_give_calibrated_logits_and_raw_has_those_as_trained(folded):
    run, _ = folded
    raw, released = load_trained(str(run)), load_trained(f"local-dir:{run / 'release'}")
    assert (released.temperature, released.class_names) == (1.0, raw.class_names)
    facts = json.loads((run / "release" / "config.json").read_text())["cskd"]
    assert (facts["folded_temperature"], facts["folded_into"]) == (raw.temperature, ["fc"])
    pictures = torch.randn(5, 3, 48, 48)
    with torch.inference_mode():
        expected, logits = raw.model(pictures) / raw.temperature, released.model(pictures)
    assert (logits - expected).abs().max() <= 2e-6 * expected.abs().max()
    again = load_trained(f"local-dir:{run / 'release' / 'raw'}")
    assert again.temperature == raw.temperature
    assert (run / "release/raw/model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()
    before, after = load_file(run / "model/model.safetensors"), load_file(run / "release/model.safetensors")
    assert [name for name in before if not after[name].equal(before[name])] == ["fc.bias", "fc.weight"]


def test_evaluate_and_predict_divide_by_the_temperature_once(folded, tmp_path, capsys):
    run, _ = folded
    data = [f"data.dataset={images()}", "data.workers=0", "data.batch_size=4"]
    evaluate.main([str(run), "data.workers=0", "--json", str(tmp_path / "run.json")])
    evaluate.main([f"local-dir:{run / 'release'}", *data, "--json", str(tmp_path / "release.json")])
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "release.json"))
    assert after["temperature"] == before["temperature"] != 1
    for metrics in ("metrics", "metrics_scaled"):  # "as trained" is before the temperature was folded
        for name in ("nll", "ece", "brier", "top1_error"):
            assert after[metrics][name] == pytest.approx(before[metrics][name], rel=1e-3, abs=1e-5)
    picture = next((images() / "test" / "class 2").glob("*.png"))
    capsys.readouterr()
    for model in (str(run), f"local-dir:{run / 'release'}"):
        predict.main([model, str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == load_trained(str(run)).calibration
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_card_and_metrics_have_the_mean_over_seeds(folded):
    run, _ = folded
    seeds = json.loads((run / "release" / "metrics.json").read_text())["seeds"]
    assert (seeds["n"], seeds["seeds"], seeds["published_seed"]) == (2, [0, 1], 0)
    assert "| as trained, n = 2 | calibrated, n = 2 |" in (run / "release" / "README.md").read_text()


def test_the_cards_code_runs_without_this_package(folded, tmp_path):
    run, _ = folded
    card = (run / "release" / "README.md").read_text()
    blocks = [
        block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "snapshot_download" not in block
    ]
    assert len(blocks) == 3
    code = "\n".join(["import sys", "sys.modules['cskd_hf'] = None", *blocks, "print(tuple(features.shape))"])
    picture = next((images() / "test" / "class 2").glob("*.png"))
    # Loading from the Hub is tested in test_publish_hub.py.
    code = code.replace(f"hf-hub:{NAME}", f"local-dir:{run / 'release'}").replace(f'"{NAME}"', f'"{run / "release"}"')
    (tmp_path / "card.py").write_text(code.replace("image.jpg", str(picture)))
    done = isolated_fork(tmp_path / "card.py", folder=tmp_path)
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r" *\d+\.\d %  class \d", lines[0])
    assert lines[-1] == "(1, 96)"
    top = re.search(r"'label': '(class \d)'", done.stdout)
    assert top[1] == lines[0].split("%  ")[1]


@pytest.mark.usefixtures("verified_in_a_fork")
def test_an_architecture_that_timm_lacks_is_stated_and_an_earlier_release_is_replaced(tmp_path):
    run = copied(trained(model_name="preactresnet10_32px"), tmp_path)
    for name in ("release", ".partial-release"):  # a killed command leaves the latter
        (run / name).mkdir()
        (run / name / "leftover").write_text("")
    assert any(line.startswith("timm, with cskd_hf: ") for line in dry_run(run))
    card = (run / "release" / "README.md").read_text()
    assert re.search(r"```python\nimport cskd_hf\.models ", card)
    assert "raw/" not in card
    assert "leftover" not in os.listdir(run / "release")
    assert ".partial-release" not in os.listdir(run)


@pytest.mark.usefixtures("verified_in_a_fork")
def test_a_release_that_fails_verification_leaves_the_earlier_one(tmp_path):
    run = copied(trained(), tmp_path)
    (run / "release").mkdir()
    (run / "release" / "README.md").write_text("the first")
    predictions = load_file(run / "predictions.safetensors")
    rolled = predictions["logits"].roll(1, dims=1).contiguous()
    save_file(predictions | {"logits": rolled}, run / "predictions.safetensors")
    with pytest.raises(UserError, match="of 20 test images differs from predictions"):
        dry_run(run)
    assert sorted(os.listdir(run / "release")) == ["README.md"]
    assert (run / "release" / "README.md").read_text() == "the first"
    assert ".partial-release" not in os.listdir(run)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("RUN", "acme/has space"), "'acme/has space' is not a legal repository name"),
        (("RUN", "just-a-name"), "write OWNER/just-a-name, where OWNER is your user name or an organization"),
        (("nowhere", NAME), "nowhere: not a run folder"),
        (("UNFINISHED", NAME), "not finished (no summary.json"),
        (
            ("PLAIN", NAME, "--fold-temperature"),
            "is not calibrated: no temperature was fitted, the run had no hold-out set",
        ),
        (("RUN", NAME, "--license", "What Ever"), "--license: read 'What Ever'"),
        (("RUN", NAME, "--license", "mit", "--seeds", "nowhere"), "--seeds: nowhere is not a finished run"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, args, message):
    places = {"RUN": trained(), "PLAIN": trained(holdout=0.0), "UNFINISHED": tmp_path / "unfinished"}
    copied(trained(), tmp_path).rename(tmp_path / "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    before = {name: sorted(os.listdir(place)) for name, place in places.items()}
    done = quick(*(places.get(word, word) for word in args), "--dry-run", module="cskd_hf.publish")
    assert done.status == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    assert message in done.stderr
    assert {name: sorted(os.listdir(place)) for name, place in places.items()} == before


def test_the_command_that_finishes_an_upload_is_the_command_itself(monkeypatch):
    keywords = {}
    monkeypatch.setattr(publish, "publish_run", lambda run, repo_id, **rest: keywords.update(rest) or 0)
    publish.main(["a b", NAME, "--public", "--seeds", "x", "y", "--onnx"])
    expected = "python -m cskd_hf.publish 'a b' acme/cskd-tiny --public --seeds x y --onnx"
    assert keywords["finish_command"] == expected


def test_naming_a_repository_does_not_change_the_experiment():
    plain = load_recipe("recipes/digits_resnet10.yaml")
    named = load_recipe("recipes/digits_resnet10.yaml", ["run.hub_model_id=acme/x", "run.hub_private_repo=false"])
    assert (named.run.hub_model_id, named.run.hub_private_repo) == ("acme/x", False)
    assert (plain.run.hub_model_id, plain.run.hub_private_repo) == (None, True)
    assert recipe_hash(named) == recipe_hash(plain)
    assert identity(named) == identity(plain)


@pytest.mark.parametrize("name", ["acme", "a/b/c", "acme/has space", "acme/x--y", "acme/.x"])
def test_an_illegal_repository_in_the_recipe_is_an_error(name):
    with pytest.raises(
        UserError, match=r"command line: run\.hub_model_id: read '.*'; allowed: (owner/name|OWNER/acme)"
    ):
        load_recipe("recipes/digits_resnet10.yaml", [f"run.hub_model_id={name}"])
