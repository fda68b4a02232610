"""Weights that training starts from: a file, a folder, the Hub; what of them is loaded, adapted, missing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
import timm
import torch
from command_runs import environment
from hub_repos import Repo
from hub_server import Hub
from method_cases import needs_new_timm
from safetensors.torch import load_file, save_file

from cskd_hf.errors import UserError
from cskd_hf.models.export import export_model, model_config
from cskd_hf.models.factory import create_backbone, starting_weights
from cskd_hf.recipe.pretrained import find_pretrained
from cskd_hf.recipe.resolve import resolve_transform
from cskd_hf.recipe.sections import DataSection, ModelSection, TransformSection

NAMES = ("a", "b", "c", "d", "e")
TRANSFORM = TransformSection(
    input_size=(3, 64, 64), crop_pct=0.9, interpolation="bicubic", mean=(0.1,) * 3, std=(0.4,) * 3
)
NETWORKS = {"test_resnet": "fc", "test_vit": "head", "test_convnext": "head.fc", "resnet10": "fc"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder → exported weights for five classes; test_vit for 64 pixels."""
    root = tmp_path_factory.mktemp("exported")
    for name in NETWORKS:
        settings = ModelSection(model_name=name, img_size=64 if name == "test_vit" else None)
        export_model(create_backbone(settings, 5), root / name, settings, TRANSFORM, NAMES, "", {})
    return root


def start_of(num_classes=3, **settings):
    model = create_backbone(ModelSection(**settings), num_classes)
    return model, starting_weights(model)


def equal_names(model, file):
    """The names of a model's tensors that equal those in a file."""
    saved = load_file(file)
    return {name for name, value in model.state_dict().items() if name in saved and torch.equal(saved[name], value)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("source", ["folder", "file"])
def test_weights_of_a_folder_or_file_are_loaded_up_to_another_number_of_classes(exported, name, source):
    file = exported / name / "model.safetensors"
    if source == "folder":
        settings = {"model_name": f"local-dir:{file.parent}", "pretrained": True}
    else:
        settings = {"model_name": name, "checkpoint": str(file), "img_size": 64 if name == "test_vit" else None}
    same, start = start_of(5, **settings)
    assert equal_names(same, file) == set(same.state_dict())
    assert start.loaded == "all of the network"
    other, start = start_of(3, **settings)
    head = NETWORKS[name]
    assert set(other.state_dict()) - equal_names(other, file) == {f"{head}.weight", f"{head}.bias"} == set(start.new)
    assert start.loaded == f"all but {head}, which starts at random"
    assert start.name == (settings["model_name"] if source == "folder" else str(file))


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], ("v", "w", "x", "y", "z")], ids=["same", "reversed", "other"])
def test_the_classifier_is_loaded_for_the_same_classes_in_the_same_order(exported, names):
    folder = exported / "test_resnet"
    settings = ModelSection(model_name=f"local-dir:{folder}", pretrained=True)
    model = create_backbone(settings, 5, class_names=names)
    start = starting_weights(model)
    assert start.new == (() if names == NAMES else ("fc.weight", "fc.bias"))
    reason = "which starts at random; its classes have other names or another order"
    assert start.loaded == ("all of the network" if names == NAMES else f"all but fc, {reason}")
    assert set(model.state_dict()) - equal_names(model, folder / "model.safetensors") == set(start.new)


def test_without_pretrained_a_folder_names_the_network_only(exported):
    model, start = start_of(model_name=f"local-dir:{exported / 'test_vit'}")
    assert start is None
    assert model.patch_embed.img_size == (64, 64)
    assert not equal_names(model, exported / "test_vit" / "model.safetensors") & {"head.weight", "pos_embed"}


def test_weights_are_resampled_to_another_image_size(exported):
    folder = exported / "test_vit"
    _, start = start_of(model_name=f"local-dir:{folder}", pretrained=True, img_size=96)
    assert start.loaded == "all but head, which starts at random; image size 64×64 → 96×96"
    model, start = start_of(model_name="test_vit", checkpoint=str(folder / "model.safetensors"), img_size=96)
    assert start.loaded.endswith("; pos_embed 1×17×64 → 1×37×64")
    assert equal_names(model, folder / "model.safetensors") == set(model.state_dict()) - {"pos_embed", *start.new}


@needs_new_timm
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_grey_weights_are_spread_over_three_channels(tmp_path, suffix):
    grey, file = timm.create_model("test_resnet", in_chans=1, num_classes=5), tmp_path / f"grey{suffix}"
    save_file(grey.state_dict(), file) if suffix == ".safetensors" else torch.save(
        {"state_dict": grey.state_dict()}, file
    )
    model, start = start_of(model_name="test_resnet", checkpoint=str(file))
    assert start.adapted == ("conv1.0.weight 16×1×3×3 → 16×3×3×3",)
    torch.testing.assert_close(model.conv1[0].weight.sum(dim=1), grey.conv1[0].weight[:, 0])


def test_the_export_of_a_fine_tuned_network_names_its_architecture_and_origin(exported, tmp_path):
    settings = ModelSection(model_name=f"local-dir:{exported / 'test_vit'}", pretrained=True, drop_path_rate=0.1)
    model = create_backbone(settings, 5)
    export_model(model, tmp_path / "model", settings, TRANSFORM, NAMES, "", {})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["architecture"], config["model_args"]) == ("test_vit", {"img_size": [64, 64]})
    assert config["finetuned_from"] == settings.model_name
    assert model_config(model, ModelSection(model_name="test_vit"), TRANSFORM, NAMES)["architecture"] == "test_vit"


def test_a_folder_says_how_to_prepare_its_images(exported):
    model = ModelSection(model_name=f"local-dir:{exported / 'test_resnet'}", pretrained=True)
    transform = resolve_transform(TransformSection(), DataSection(dataset="images"), model)
    assert transform == TRANSFORM.model_copy(update={"input_size": (3, 224, 224), "crop_mode": "center"})


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"checkpoint": "ROOT/none.pth"}, r"^model\.checkpoint: no such file: .*none\.pth$"),
        (
            {"checkpoint": "ROOT/test_vit"},
            r"is a folder; .* write model\.model_name=local-dir:.*test_vit model\.pretrained",
        ),
        ({"checkpoint": "ROOT/cut.safetensors"}, r"cut\.safetensors holds no weights that timm can read: Error while"),
        ({"checkpoint": "ROOT/cut.pth"}, r"cut\.pth holds no weights that timm can read: "),
        ({"checkpoint": "ROOT/resnet10/model.safetensors"}, r"does not fit test_resnet: .* size mismatch .* …$"),
        (
            {"checkpoint": "ROOT/test_vit/model.safetensors"},
            r"has 0 of the \d+ tensors of test_resnet: the weights are of an",
        ),
        (
            {"model_name": "org/net"},
            r"timm has no 'org/net'; write hf-hub:org/net for a repository of the Hub, or local",
        ),
        ({"model_name": "resnet50.none"}, r"^model\.model_name: read 'resnet50.none': Invalid pretrained tag"),
        (
            {"model_name": "local-dir:ROOT/none"},
            r"^model\.model_name: the config.json of local-dir:.*none cannot be read",
        ),
        ({"model_name": "local-dir:ROOT/other"}, r"other holds no timm model: its config.json has no 'architecture'"),
        ({"model_name": "local-dir:ROOT/newer"}, r"timm has no 'resnet99', the architecture of local-dir:.*newer$"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(exported, settings, line):
    for file in ("cut.safetensors", "cut.pth"):
        (exported / file).write_bytes(b"1234")
    for name, config in (
        ("other", {"model_type": "bert"}),
        ("newer", {"architecture": "resnet99", "pretrained_cfg": {}}),
    ):
        (exported / name).mkdir(exist_ok=True)
        (exported / name / "config.json").write_text(json.dumps(config))
    settings = {key: value.replace("ROOT", str(exported)) for key, value in settings.items()}
    with pytest.raises(UserError, match=line) as caught:
        start_of(**{"model_name": "test_resnet", **settings})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_shape_that_the_settings_change_is_not_blamed_on_the_network_connection(exported):
    message = r"^model: the weights of local-dir:.*test_resnet do not fit .*: size mismatch for fc\.weight"
    with pytest.raises(UserError, match=message):
        start_of(5, model_name=f"local-dir:{exported / 'test_resnet'}", pretrained=True, global_pool="catavgmax")


def test_names_have_one_spelling():
    assert ModelSection(model_name="timm/resnet50.a1_in1k") == ModelSection(model_name="resnet50.a1_in1k")
    assert ModelSection(model_name="hf_hub:org/net").model_name == "hf-hub:org/net"
    assert find_pretrained(ModelSection(model_name="timm/resnet50.a1_in1k")).name == "timm/resnet50.a1_in1k"


FROM_THE_HUB = """
import json
from cskd_hf.hub.provenance import pretrained_source
from cskd_hf.models.factory import create_backbone, starting_weights
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve

recipe = resolve(load_recipe("digits_resnet10", ["model={model_name: 'hf-hub:org/net@main', pretrained: true}"]))
start, source = starting_weights(create_backbone(recipe.model, 10)), pretrained_source(recipe)
print(json.dumps([start.name, start.license, start.loaded, source.hub_id, source.licence, recipe.transform.mean]))
"""


def test_weights_of_the_hub_bring_their_licence_and_pixels(exported, tmp_path):
    files = {name: (exported / "test_resnet" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    config = json.loads(files["config.json"])
    config["pretrained_cfg"]["license"] = "cc-by-nc-4.0"
    with Hub() as hub:
        weights = files["model.safetensors"]
        hub.large[hashlib.sha256(weights).hexdigest()] = weights
        hub.repos["org/net"] = Repo(private=False)
        hub.repos["org/net"].commit("main", files | {"config.json": json.dumps(config).encode()}, "weights")
        online = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", FROM_THE_HUB],
            env=environment() | online,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    name, licence, loaded, hub_id, terms, mean = json.loads(done.stdout.splitlines()[-1])
    assert (name, licence, loaded) == ("org/net@main", "cc-by-nc-4.0", "all but fc, which starts at random")
    assert (hub_id, terms, mean) == ("org/net", "cc-by-nc-4.0", [0.1] * 3)
