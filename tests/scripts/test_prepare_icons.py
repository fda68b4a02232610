"""Icons from a miniature of npm's @iconify/json: which become images, of which class, in which split."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_from_disk
from originals import tar
from preparations import manifest, prepare, rejection

from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG, entry_of

WORDS = ("bell", "home", "leaf")
NUM_DESIGNERS = 24


def rectangles(seed: int, shift: int = 0) -> str:
    """A body of 24 × 24, different for each seed."""
    corners = np.random.RandomState(seed).randint(2, 16, (4, 2))
    paths = (f"M{x + shift} {y + shift}h5v3h-5z" for x, y in corners.tolist())
    return f'<path fill="currentColor" d="{"".join(paths)}"/>'


def icon_set(prefix: str, author: str, bodies: dict[str, str], spdx: str = "MIT", **content: Any) -> dict[str, Any]:
    info = {"name": f"Set {prefix}", "author": {"name": author, "url": f"https://example.org/{prefix}"}}
    info |= {"license": {"title": spdx, "spdx": spdx, "url": "https://example.org/licence"}}
    info |= {"palette": content.pop("palette", False)}
    icons = {name: body if isinstance(body, dict) else {"body": body} for name, body in bodies.items()}
    return {"prefix": prefix, "info": info, "icons": icons, "width": 24, "height": 24, **content}


def own(number: int) -> dict[str, str]:
    """The drawings of a designer."""
    return {word: rectangles(number + 1000 * place) for place, word in enumerate(WORDS)}


def icon_sets() -> list[dict[str, Any]]:
    """Designers with three drawings each, then the sets and icons that are treated otherwise."""
    sets = [icon_set(f"s{number:02d}", f"Designer {number}", own(number)) for number in range(NUM_DESIGNERS)]
    sets[1]["icons"]["rare"] = {"body": rectangles(8_888)}  # no class, but makes Designer 1's set larger than its copy
    sets[5]["icons"]["home"] = sets[6]["icons"]["bell"] = {"body": rectangles(9_999)}  # one picture, two classes
    sets[7]["icons"] = {"home-outline": {"body": rectangles(70)}, "home-outline-sharp": {"body": rectangles(71)}}
    sets[7]["suffixes"] = {"outline": "Outline", "outline-sharp": "Outline, sharp"}
    sets[8]["icons"] = {f"round-{name}": icon for name, icon in sets[8]["icons"].items()}
    sets[8]["prefixes"] = {"round": "Round"}
    sets[9]["icons"]["leaf"]["hidden"] = True
    sets[10]["icons"]["leaf"]["body"] = '<circle r="9"><animate attributeName="r" to="0"/></circle>'
    sets[11]["icons"]["leaf"]["body"] = "<g/>"
    sets[12]["aliases"] = {"leave": {"parent": "leaf"}}
    return [
        *sets,
        icon_set("gpl", "Designer 90", own(90), "GPL-3.0"),
        icon_set("emoji", "Designer 91", own(91), palette=True),
        icon_set("again", "@designer 0 ", {"home": rectangles(12_345)}, "CC-BY-4.0"),
        # Designer 1's, elsewhere in the frame, and a drawing of their own.
        icon_set("copy", "Copyist", {word: body.replace("<path", '<path transform="translate(3 3)"')
                                     for word, body in own(1).items() if word != "leaf"} | {"leaf": rectangles(777)}),
    ]  # fmt: skip


def package(path: Path, sets: list[dict[str, Any]] | None = None) -> Path:
    members = {f"package/json/{each['prefix']}.json": json.dumps(each).encode() for each in sets or icon_sets()}
    path.write_bytes(tar({"package/package.json": b'{"version": "0.0.1"}', **members}, "w:gz"))
    return path


@pytest.fixture(autouse=True)
def few_classes(monkeypatch: pytest.MonkeyPatch, scripts_on_path: None) -> None:
    import prepare_icons

    monkeypatch.setattr(prepare_icons, "NUM_CLASSES", 3)
    monkeypatch.setattr(prepare_icons, "MIN_COMMON", 3)


@pytest.fixture
def prepared(few_classes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset, prepared once."""
    out = tmp_path_factory.getbasetemp() / "icons" / "out"
    if not out.exists():
        out.parent.mkdir()
        assert prepare("icons", package(out.parent / "icons.tgz"), out) == 0
    return out


def names_of(out: Path) -> dict[str, list[str]]:
    """split → file names."""
    opened = load_from_disk(str(out)).with_format("arrow")
    return {split: [image["path"] for image in rows[:]["image"].to_pylist()] for split, rows in opened.items()}


def test_icons_become_images_by_class_and_author(prepared):
    facts, names = manifest(prepared), names_of(prepared)
    assert (facts["classes"], facts["package"], facts["size"]) == (list(WORDS), "@iconify/json 0.0.1", 32)
    assert entry_of(str(prepared)) is CATALOG["icons"]

    every = list(itertools.chain(*names.values()))
    expected = {f"s{number:02d}:{word}.pgm" for number in range(NUM_DESIGNERS) for word in WORDS}
    expected -= {"s05:home.pgm", "s06:bell.pgm"}  # in two classes
    expected -= {f"s07:{word}.pgm" for word in WORDS} | {f"s08:{word}.pgm" for word in WORDS}
    expected |= {"s07:home-outline.pgm"} | {f"s08:round-{word}.pgm" for word in WORDS}
    expected -= {"s09:leaf.pgm", "s10:leaf.pgm", "s11:leaf.pgm"}  # hidden, animated, blank
    expected |= {"again:home.pgm", "copy:leaf.pgm"}
    assert sorted(every) == sorted(expected)
    assert facts["removed"] == {"in_one_class": 2, "in_two_classes": 2}

    sets = {each["set"]: each for each in facts["sets"]}
    split = {prefix: each["split"] for prefix, each in sets.items()}
    assert all(split[name.split(":")[0]] == part for part, rows in names.items() for name in rows)
    assert split["again"] == split["s00"]
    assert (split["copy"], sets["copy"]["author_group"]) == (split["s01"], sets["s01"]["author_group"])
    assert sets["again"] == {
        "set": "again", "name": "Set again", "author": "@designer 0 ", "author_group": "designer 0",
        "url": "https://example.org/again", "licence": "CC-BY-4.0", "licence_url": "https://example.org/licence",
        "split": split["s00"], "num_images": 1,
    }  # fmt: skip
    shares = {part: len(rows) / len(every) for part, rows in names.items()}
    assert shares == pytest.approx({"train": 0.65, "holdout": 0.1, "test": 0.25}, abs=0.06)


def test_the_same_package_gives_the_same_bytes(prepared, tmp_path):
    assert prepare("icons", prepared.parent / "icons.tgz", tmp_path / "again") == 0
    files = sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
    assert len(files) == 3 * 3 + 2
    assert all((prepared / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_images_are_black_on_white_and_centred_and_other_counts_are_a_note(tmp_path, capsys):
    # Twice as wide as high; its left half is a stroke in the current colour.
    wide = {"body": '<path stroke="currentColor" stroke-width="20" d="M10 0v20"/>', "width": 40, "height": 20}
    sets = [icon_set(f"s{number}", f"Designer {number}", own(number)) for number in range(9)]
    sets[0]["icons"]["bell"] = wide
    assert (
        prepare("icons", package(tmp_path / "icons.tgz", sets), tmp_path / "out", "--size", 16, any_counts=False) == 0
    )
    assert "note: found 3 classes instead of 200, " in capsys.readouterr().out
    split = next(each["split"] for each in manifest(tmp_path / "out")["sets"] if each["set"] == "s0")
    row = names_of(tmp_path / "out")[split].index("s0:bell.pgm")
    image = load_from_disk(str(tmp_path / "out"))[split][row]["image"]
    expected = np.full((16, 16), 255)
    expected[4:12, :8] = 0
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), expected)
    assert "is a complete icons with --size 16" in rejection("icons", tmp_path / "icons.tgz", tmp_path / "out")


def test_an_authors_name_suffix_is_a_style_where_the_set_uses_it():
    from icon_sets import style_words, word_of

    remix = {"icons": dict.fromkeys([f"{name}-{style}" for name in ("home", "chart") for style in ("line", "fill")])}
    awesome = {"icons": dict.fromkeys(["chart-line", *(f"icon{number}" for number in range(30))]), "suffixes": {}}
    octicon = {"icons": {"home": None, "home-16": None}, "suffixes": {"16": "16", "": "Plain"}}
    assert style_words(remix) == {"line", "fill"}
    assert style_words(awesome) == set()
    assert style_words(octicon) >= {"16"}
    assert word_of("chart-line", style_words(awesome), []) == "chart-line"
    assert word_of("bold", {"bold"}, []) == "bold"
    assert word_of("outline-round-home", set(), ["outline-round", "outline"]) == "home"


@pytest.mark.parametrize("least", [0.3, 0.5, 1.0])
def test_similar_pairs_are_those_of_the_formula(monkeypatch, least):
    import near_duplicates

    monkeypatch.setattr(near_duplicates, "BLOCK", 3)
    shapes = np.random.RandomState(0).rand(10, 12) < np.linspace(0.2, 1, 10)[:, None]
    shapes[8:] = True
    shapes[3] = shapes[5]
    expected = {}
    for i, j in itertools.combinations(range(10), 2):
        parts = [(shapes[i], shapes[j]), (~shapes[i], ~shapes[j])]
        value = min((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0 for a, b in parts)
        if value >= least:
            expected[i, j] = pytest.approx(value)
    pairs, similarity = near_duplicates.similar_pairs(shapes, least)
    assert dict(zip(map(tuple, pairs.tolist()), similarity.tolist(), strict=True)) == expected
    assert {(3, 5), (8, 9)} <= set(expected)


def test_a_shape_is_the_same_at_every_size_and_place():
    from near_duplicates import shape_of

    small, large = np.full((2, 64, 64), 255, np.uint8)
    small[3:13, 40:60] = large[20:40, 10:50] = 0
    assert np.array_equal(shape_of(small), shape_of(large))
    assert shape_of(small).reshape(32, 32).sum(axis=1).tolist() == [0] * 8 + [32] * 16 + [0] * 8
    assert shape_of(np.full((64, 64), 255, np.uint8)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sets: sets.clear() or sets.append({"prefix": "x"}), "json/x.json is not an icon set of Iconify: KeyE"),
        (lambda sets: sets[0]["icons"].update(bell={"body": "<path"}), "resvg cannot draw s00:bell: "),
        (lambda sets: sets.__setitem__(slice(None), sets[24:26]), "no icons of one colour under a permissive licence"),
    ],
    ids=["no info", "broken SVG", "other licences and colours"],
)
def test_a_damaged_set_is_named(tmp_path, change: Callable[[Any], Any], reason: str):
    sets = icon_sets()
    change(sets)
    assert reason in rejection("icons", package(tmp_path / "icons.tgz", sets), tmp_path / "out")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert "found no json/*.json; expected npm's package" in rejection("icons", tmp_path / "empty", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert "pip install resvg-py" in rejection("icons", tmp_path / "empty", tmp_path / "out")


def test_a_contact_sheet_shows_the_classes_by_split(prepared, tmp_path):
    import contact_sheet
    from PIL import Image

    sheet = tmp_path / "sheet.png"
    arguments = [str(prepared), str(sheet), "--columns", "3", "1", "2", "--classes"]
    assert contact_sheet.main([*arguments, "leaf", "bell"]) == 0
    with Image.open(sheet) as picture:
        assert (picture.mode, picture.size) == ("L", (96 + 6 * 36 + 2 * 16, 16 + 2 * 36))
        blocks = np.asarray(picture)[16:, 96:]
        assert all((blocks[:, left : left + 32] < 128).any() for left in (0, 36, 72, 124, 176, 212))
    with pytest.raises(UserError, match="--classes: the set has no class 'cat'"):
        contact_sheet.main([*arguments, "cat"])
    for split, name in itertools.product(("train", "test"), ("bell", "leaf")):
        (tmp_path / "set" / split / name).mkdir(parents=True)
        (tmp_path / "set" / split / name / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"row \d, file .*\.png: unreadable image"):
        contact_sheet.main([str(tmp_path / "set"), str(sheet)])


def test_help_names_the_package_and_the_terms(capsys):
    with pytest.raises(SystemExit, match="0"):
        prepare("icons", "--help")
    shown = capsys.readouterr().out
    assert "npm pack @iconify/json" in shown
    assert f"terms: {CATALOG['icons'].terms}" in shown
