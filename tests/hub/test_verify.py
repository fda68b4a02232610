from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from command_runs import draw_folder, quick, write_recipe
from deep_images import tiff
from huggingface_hub import constants
from PIL import Image
from publishable_runs import trained, verified_in_a_fork  # noqa: F401
from safetensors.torch import load_file, save_file

from cskd_hf.errors import UserError
from cskd_hf.hub.licences import Licence
from cskd_hf.hub.release import build_release
from cskd_hf.hub.source import Release, read_source
from cskd_hf.hub.verify import _test_images, verify_release
from cskd_hf.models.load import load_trained
from cskd_hf.recipe.resolve import resolve

pytestmark = pytest.mark.usefixtures("verified_in_a_fork")

CLASSES = tuple(f"class {number}" for number in range(4))


def build(run, folder):
    """A release and the arguments to verify it."""
    source, model = read_source(run), load_trained(str(run)).model
    folder.mkdir()
    build_release(Release(source, "acme/x", Licence("apache-2.0")), folder, model)
    return folder, run, model, resolve(source.recipe), print


def edit_config(release, **changes):
    path = release / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))


def test_every_difference_from_the_trained_network_is_named(tmp_path):
    release, *arguments = build(trained(), tmp_path / "release")
    weights = load_file(release / "model.safetensors")
    weights["fc.bias"][1] += 1e-3
    save_file(weights, release / "model.safetensors", metadata={"format": "pt"})
    edit_config(release, label_names=["a", *CLASSES[1:]], pretrained_cfg={"interpolation": "bicubic"})
    with pytest.raises(UserError) as caught:
        verify_release(release, *arguments)
    assert str(caught.value).startswith("timm does not load the trained network: values differ in ['fc.bias']; logits ")
    for difference in ("logits differ by up to 0.001", "class names differ", "'interpolation': 'bicubic'"):
        assert difference in str(caught.value)


def test_an_architecture_that_timm_lacks_does_not_load_if_the_release_hides_it(tmp_path):
    release, *arguments = build(trained(model_name="preactresnet10_32px"), tmp_path / "release")
    assert json.loads((release / "config.json").read_text())["cskd"]["needs_cskd_hf"] is True
    edit_config(release, cskd={"needs_cskd_hf": False})
    with pytest.raises(UserError, match=r"timm cannot load the release in a fresh process: .*preactresnet10_32px"):
        verify_release(release, *arguments)


def test_the_test_images_come_with_the_logits_that_the_run_saved():
    contents, images, logits = _test_images(trained(), resolve(read_source(trained()).recipe), CLASSES)
    assert (len(contents), images.shape, images.dtype) == (20, (20, 3, 48, 48), torch.uint8)
    assert torch.equal(logits, load_file(trained() / "predictions.safetensors")["logits"])


def test_missing_or_changed_test_images_are_an_error_with_the_reason(tmp_path):
    def error(dataset):
        recipe = resolve(read_source(trained()).recipe).replace(data={"dataset": str(dataset)})
        with pytest.raises(UserError) as caught:
            _test_images(trained(), recipe, CLASSES)
        return str(caught.value)

    assert "gone" in error(tmp_path / "gone" / "images")
    other = draw_folder(tmp_path / "other", {"test": [5, 6, 5, 5]})
    assert error(other) == "split 'test' has changed since the run was tested"
    shutil.rmtree(other / "test" / "class 3")
    assert "has changed" in error(other)
    # Nothing is downloaded for a check.
    before = constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" in error("nobody/nothing")
    assert before == constants.HF_HUB_OFFLINE


def as_phones_store(pixels, path):
    """Turned, with the EXIF orientation that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(path, quality=95, exif=exif)


def test_the_cards_code_shows_turned_deep_and_transparent_images_as_testing_did(tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    for split, count in (("train", 6), ("test", 4)):
        for name, level in (("dark", 400), ("bright", 2000)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                values = (level + np.linspace(0, 2000, 20 * 30).reshape(20, 30) + random.rand(20, 30)).astype(np.uint16)
                if number % 2:
                    as_phones_store((values >> 4).astype(np.uint8), folder / f"{number}.jpg")
                else:
                    (folder / f"{number}.tif").write_bytes(tiff(values))
            Image.fromarray(random.randint(0, 256, (20, 30, 4), dtype=np.uint8)).save(folder / "alpha.png")
    sections = {"data": {"value_range": [0, 4095]}, "transform": {"background": [10, 200, 30]}}
    recipe = write_recipe(tmp_path / "run.yaml", tmp_path / "images", **sections)
    done = quick(recipe, "scheduler.num_epochs=1")
    assert done.status == 0, done.stderr
    assert "with an EXIF orientation: 6 of 14 train, 4 of 10 test images" in done.stdout
    counted = "with alpha: 2 of 14 train, 2 of 10 test images checked, shown on [10, 200, 30] (transform.background); "
    assert counted + "deeper than 8 bits: 6 of 14 train, 4 of 10 test" in done.stdout
    monkeypatch.setattr("cskd_hf.hub.verify.util.find_spec", lambda name: None)  # without transformers
    release, *arguments, _ = build(tmp_path / "run", tmp_path / "release")
    said = []
    verify_release(release, *arguments, said.append)
    assert "the card's code, without cskd_hf: logits of 10 of 10 image files equal" in said
    card = (release / "README.md").read_text()
    assert "with an EXIF orientation" in card
    assert json.loads((release / "config.json").read_text())["cskd"]["value_range"] == [0, 4095]
    trained = load_trained(f"local-dir:{release}")
    assert (trained.value_range, trained.transform.background) == ((0, 4095), (10, 200, 30))
    for good, bad, wrong in (
        ("ImageOps.exif_transpose(", "(", 4),
        ("if image.mode[0]", "if 0 and image.mode[0]", 4),
        ("if image.has_transparency_data", "if 0", 2),
    ):
        (release / "README.md").write_text(card.replace(good, bad))
        with pytest.raises(
            UserError, match=f"the card's code predicts something else: the logits of {wrong} of 10 images"
        ):
            verify_release(release, *arguments, said.append)
