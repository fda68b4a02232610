"""Miniatures of the original archives: their layout and member names, a dozen images each."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Row = tuple[str, int, bytes]  # file name, label, content


@dataclass
class Original:
    """The content of an image set's archives, and the dataset to prepare from it.

    Attributes:
        files: official archive name → member → content.
        rows: split → images in the expected order.
    """

    name: str
    class_names: list[str]
    files: dict[str, dict[str, bytes]]
    rows: dict[str, list[Row]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def picture(number: int, kind: str = "JPEG", mode: str = "RGB", size: int = 12) -> bytes:
    """A different image for each number."""
    noise = np.random.RandomState(number).randint(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def odd_picture(number: int) -> bytes:
    """Mostly a colour JPEG; for some numbers another format or mode that the datasets contain."""
    return picture(number, *{3: ("JPEG", "L"), 5: ("JPEG", "CMYK"), 7: ("PNG", "RGB"), 8: ("GIF", "P")}.get(number, ()))


def mat(**variables: object) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def tar(members: Mapping[str, bytes] | Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpacked(root: Path, members: Mapping[str, bytes]) -> Path:
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


PACKERS: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "tar": tar,
    "tgz": lambda members: tar(members, "w:gz"),
    "tar.bz2": lambda members: tar(members, "w:bz2"),
    "zip": zipped,
}


def packed(root: Path, original: Original, kind: str | None) -> list[Path]:
    """Write an original and return a script's arguments.

    Args:
        kind: a key of `PACKERS`, "folder", or None for the official formats.
    """
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for archive, members in original.files.items():
        stem, suffix = archive.split(".", 1)
        if suffix == "txt":
            paths.append(unpacked(root, members) / archive)
        elif kind == "folder":
            paths.append(unpacked(root / stem, members))
        else:
            paths.append(root / (f"{stem}.{kind}" if kind else archive))
            paths[-1].write_bytes(PACKERS[kind or suffix.replace("tar.gz", "tgz")](members))
    return paths


def downloaded(root: Path, name: str) -> list[Path]:
    """The original in its official formats."""
    return packed(root, ORIGINALS[name](), None)


def shuffled(members: dict[str, bytes]) -> dict[str, bytes]:
    """Members in random order, as archives have them."""
    names = list(members)
    np.random.RandomState(0).shuffle(names)
    return {name: members[name] for name in names}


def cub200() -> Original:
    class_names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    images, labels, parts = [], [], []
    files = {"attributes.txt": b"1 has_bill_shape::curved\n"}
    for number in range(1, 13):
        label, split = (number - 1) // 4, "test" if number % 3 == 0 else "train"
        name = f"{class_names[label][4:]}_{97 * number % 13:04d}_{number}.jpg"
        content = odd_picture(number)
        files[f"CUB_200_2011/images/{class_names[label]}/{name}"] = content
        files[f"segmentations/{class_names[label]}/{name.replace('.jpg', '.png')}"] = b"mask"
        images.append(f"{number} {class_names[label]}/{name}\n")
        labels.append(f"{number} {label + 1}\n")
        parts.append(f"{number} {int(split == 'train')}\n")
        rows[split].append((name, label, content))
    # The lists are in different orders; image numbers link them.
    files |= {
        "CUB_200_2011/images.txt": "".join(images).encode(),
        "CUB_200_2011/image_class_labels.txt": "".join(labels[::-1]).encode(),
        "CUB_200_2011/train_test_split.txt": "".join(parts[::-1]).encode(),
        "CUB_200_2011/classes.txt": "".join(f"{k + 1} {name}\n" for k, name in enumerate(class_names)).encode(),
    }
    words = {name: name[4:].replace("_", " ") for name in class_names}
    return Original("cub200", class_names, {"CUB_200_2011.tgz": shuffled(files)}, rows, words)


def stanford_dogs() -> Original:
    # Not alphabetical: classes must follow the labels.
    class_names = ["n02085782-Japanese_spaniel", "n02085620-Chihuahua", "n02111889-Samoyed"]
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    listed: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    files = {}
    for number in range(12):
        label, split = number % 3, "train" if number < 7 else "test"
        name, content = f"{class_names[label][:9]}_{10000 - number}.jpg", odd_picture(number)
        files[f"Images/{class_names[label]}/{name}"] = content
        listed[split].append((f"{class_names[label]}/{name}", label + 1))
        rows[split].append((name, label, content))
    lists = {}
    for split, entries in {**listed, "file": listed["train"] + listed["test"]}.items():
        column = np.empty((len(entries), 1), dtype=object)
        column[:, 0] = [np.array([file]) for file, _ in entries]
        labels = np.array([[label] for _, label in entries], dtype=np.uint8)
        stem = "file_list" if split == "file" else f"{split}_list"
        lists[f"{stem}.mat"] = mat(file_list=column, annotation_list=column, labels=labels)
    words = {name: name[10:].replace("_", " ") for name in class_names}
    return Original("stanford_dogs", class_names, {"images.tar": shuffled(files), "lists.tar": lists}, rows, words)


def mit67() -> Original:
    class_names = ["airport_inside", "church_inside", "warehouse"]
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    files = {"Images/airport_inside/not_listed.jpg": picture(99)}
    for number in range(12):
        label, split = (2 - number // 4), "test" if number % 4 == 3 else "train"
        name, content = ["p_{}.jpg", "{} church.jpg", "Wäre_{}.jpg"][label].format(number), odd_picture(number)
        files[f"Images/{class_names[label]}/{name}"] = content
        rows[split].append((name, label, content))
    lists = {split: [f"{class_names[label]}/{name}" for name, label, _ in part] for split, part in rows.items()}
    texts = {"TrainImages.txt": "\r\n".join(lists["train"]), "TestImages.txt": "\n".join(lists["test"]) + "\n\n"}
    archives = {"indoorCVPR_09.tar": shuffled(files)}
    archives |= {name: {name: text.encode()} for name, text in texts.items()}
    return Original("mit67", class_names, archives, rows, {name: name.replace("_", " ") for name in class_names})


def tiny_imagenet() -> Original:
    class_names = ["n01443537", "n01629819", "n02124075"]
    root = "tiny-imagenet-200"
    rows: dict[str, list[Row]] = {"train": [], "valid": []}
    files = {f"{root}/test/images/test_0.JPEG": picture(99)}
    annotations = []
    for number in range(9):
        label = number // 3
        name = f"{class_names[label]}_{number}.JPEG"
        files[f"{root}/train/{class_names[label]}/images/{name}"] = content = odd_picture(number)
        files[f"{root}/train/{class_names[label]}/{class_names[label]}_boxes.txt"] = b"box"
        rows["train"].append((name, label, content))
    for number in (2, 10, 0, 1):
        name, label = f"val_{number}.JPEG", number % 3
        files[f"{root}/val/images/{name}"] = content = picture(100 + number)
        annotations.append(f"{name}\t{class_names[label]}\t0\t32\t44\t62\n")
        rows["valid"].append((name, label, content))
    words = {name: f"{name} fish, the second word" for name in class_names}
    files |= {
        f"{root}/wnids.txt": "\n".join(class_names[::-1]).encode(),
        f"{root}/words.txt": "".join(f"{k}\t{v}\n" for k, v in {**words, "n00001740": "entity"}.items()).encode(),
        f"{root}/val/val_annotations.txt": "".join(annotations).encode(),
    }
    return Original("tiny_imagenet", class_names, {"tiny-imagenet-200.zip": shuffled(files)}, rows, words)


def imagenet(num_images: int = 4, size: int = 12) -> Original:
    """Its training archive consists of one archive per class."""
    class_names = ["n01440764", "n01443537", "n02085620", "n02106166", "n03000684"]
    numbers = {"n01440764": 3, "n01443537": 5, "n02085620": 1, "n02106166": 2, "n03000684": 4}  # ILSVRC2012_ID
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    train = {}
    for label, wnid in enumerate(class_names):
        images = {f"{wnid}_{n}.JPEG": odd_picture(10 * label + n) if size == 12 else picture(10 * label + n, size=size)
                  for n in (2, 10, *range(20, 18 + num_images))}  # fmt: skip
        train[f"{wnid}.tar"] = tar(images)
        rows["train"] += [(name, label, images[name]) for name in sorted(images)]
    val = {}
    truth = [4, 1, 1, 5, 2, 3]
    for number, identity in enumerate(truth, 1):
        wnid = next(wnid for wnid, number_of_class in numbers.items() if number_of_class == identity)
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        val[name] = picture(1000 + number)
        rows["validation"].append((name, class_names.index(wnid), val[name]))
    fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
    words = {wnid: "crane" if wnid > "n02" else f"{wnid} words, more" for wnid in class_names}  # not unique
    synsets = np.empty((7, 1), dtype=[(name, object) for name in fields.split()])
    for wnid, identity in numbers.items():
        synsets[identity - 1, 0] = (np.uint16(identity), wnid, words[wnid], "a gloss", np.uint16(0), np.zeros((1, 0)),
                                    np.uint8(0), np.uint16(1300))  # fmt: skip
    synsets[5, 0] = (np.uint16(6), "n00001740", "entity", "all", np.uint16(2), np.array([[1, 7]]), np.uint8(9), 0)
    synsets[6, 0] = (np.uint16(7), "n02084071", "dog", "a dog", np.uint16(1), np.array([[2]]), np.uint8(1), 0)
    devkit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": mat(synsets=synsets),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in truth).encode(),
    }
    archives = {
        "ILSVRC2012_img_train.tar": shuffled(train),
        "ILSVRC2012_img_val.tar": shuffled(val),
        "ILSVRC2012_devkit_t12.tar.gz": devkit,
    }
    return Original("imagenet", class_names, archives, rows, words)


ORIGINALS: dict[str, Callable[[], Original]] = {
    make.__name__: make for make in (cub200, stanford_dogs, mit67, tiny_imagenet, imagenet)
}
