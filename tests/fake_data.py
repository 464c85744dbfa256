"""Small files in the official formats of the data sets."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def make_mnist(root: Path, name: str = "MNIST", train: int = 60, test: int = 30) -> Path:
    """IDX files; image number i is full of the value i, its label is i mod 10."""
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.broadcast_to(np.arange(count).reshape(-1, 1, 1) % 256, (count, 28, 28))
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return root / name / "raw"


def make_cifar(root: Path, num_classes: int = 10, per_file: int = 20) -> dict[str, list[list[str]]]:
    """Pickles as the official archives hold them. Returns torchvision's lists of files with their md5 sums."""
    ten = num_classes == 10
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True, exist_ok=True)
    names = {"train_list": [f"data_batch_{k}" for k in range(1, 6)] if ten else ["train"], "test_list": ["test"]}
    if ten:
        names["test_list"] = ["test_batch"]
    count = per_file if ten else 2 * num_classes
    label_key, meta, class_key = (
        ("labels", "batches.meta", "label_names") if ten else ("fine_labels", "meta", "fine_label_names")
    )
    lists: dict[str, list[list[str]]] = {}
    for split, files in names.items():
        lists[split] = []
        for file in files:
            labels = [k % num_classes for k in range(count)]
            data = np.repeat(np.array(labels, dtype=np.uint8)[:, None], 3072, axis=1)
            (folder / file).write_bytes(pickle.dumps({"data": data, label_key: labels}))
            lists[split].append([file, md5(folder / file)])
    (folder / meta).write_bytes(pickle.dumps({class_key: [f"class {k}" for k in range(num_classes)]}))
    lists["meta"] = [[meta, md5(folder / meta)]]
    return lists


def patch_cifar(monkeypatch, kind: type, lists: dict[str, list[list[str]]]) -> None:
    """Let torchvision expect these files."""
    monkeypatch.setattr(kind, "train_list", lists["train_list"])
    monkeypatch.setattr(kind, "test_list", lists["test_list"])
    [[name, checksum]] = lists["meta"]
    monkeypatch.setattr(kind, "meta", kind.meta | {"filename": name, "md5": checksum})


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_image(path: Path, value: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The extension of Tiny ImageNet's files is upper case.
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path, "JPEG", quality=95)


def make_tiny_imagenet(root: Path, num_classes: int = 5, per_class: int = 6, test: int = 10) -> Path:
    """The official layout; class k's images are of brightness 20 k, one of them grey."""
    folder = root / "tiny-imagenet-200"
    wnids = [f"n{k:08d}" for k in range(num_classes)]
    for k, wnid in enumerate(wnids):
        for i in range(per_class):
            mode = "L" if i == 0 else "RGB"
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 20 * k, mode=mode)
    lines = []
    for i in range(test):
        write_image(folder / "val" / "images" / f"val_{i}.JPEG", 20 * (i % num_classes))
        lines.append(f"val_{i}.JPEG\t{wnids[i % num_classes]}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("".join(f"{w}\tthing {k}, stuff\n" for k, w in enumerate(wnids)))
    return folder


def make_image_folder(
    root: Path, num_classes: int = 3, per_class: int = 8, splits: tuple[str, ...] = ("train", "test")
):
    for split in splits:
        for k in range(num_classes):
            for i in range(per_class):
                write_image(root / split / f"class_{k}" / f"{i}.jpg", 60 * k, size=(20, 16))
    return root
