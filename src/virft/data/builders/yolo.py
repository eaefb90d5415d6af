"""Reader of YOLO folders, and where the images and labels of one stand.

Written here because the readers of the package registries (globox 2.9, the lightest that is kept up;
supervision, which brings video codecs) hold the whole set in memory, take one image suffix per set, and lose
the line that a bad box stands on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from virft.data.builders.entries import (
    BoxEntry,
    CategoryEntry,
    Entry,
    ImageEntry,
    absolute,
    category_name,
    image_size,
)
from virft.data.classification import IMAGE_SUFFIXES, image_files
from virft.data.records import read_text, read_yaml
from virft.errors import UserError


def yolo(path: Path, image_folder: Path | None = None, split: str = "train", **_: Any) -> Iterator[Entry]:
    """A YOLO set: ``data.yaml`` with names and split folders; a label file beside each image's folder.

    The label file of ``.../images/.../a.jpg`` is ``.../labels/.../a.txt`` (the rule of Ultralytics); a line
    is ``class x_centre y_centre width height`` in shares of the image, or a class and a polygon. An image
    without a label file has no objects.

    Args:
        path: the set's folder or its ``data.yaml``.
        image_folder: the images, where they do not stand where ``data.yaml`` says.
        split: key of ``data.yaml``.

    Raises:
        UserError: no names, no image folder, a label file without its image, a line that is not numbers.
    """
    settings_path = yolo_settings(path)
    names = _settings_of(settings_path).get("names")
    if not isinstance(names, list | dict) or not names:
        raise UserError(f"{settings_path}: 'names' must list the class names")
    for number, name in names.items() if isinstance(names, dict) else enumerate(names):
        try:
            yield CategoryEntry(str(number), category_name(name))
        except ValueError as error:
            raise UserError(f"{settings_path}: class {number}: {error}; put it in quotes") from None
    images, labels = yolo_folders(path, image_folder, split)
    # A list of classes that LabelImg puts among the labels belongs to no image.
    stems = {file.relative_to(labels).with_suffix("") for file in label_files(labels)}
    unread = {stem for stem in stems if stem.name != "classes"}
    found = image_files(images)
    if not found:
        raise UserError(f"{images}: no images ({', '.join(IMAGE_SUFFIXES)})")
    for image in found:
        name = image.relative_to(images)
        width, height = image_size(image)
        yield ImageEntry(name.as_posix(), str(image), width, height)
        if (stem := name.with_suffix("")) in stems:
            unread.discard(stem)
            yield from _yolo_boxes(labels / f"{stem}.txt", name.as_posix(), width, height)
    if unread:
        raise UserError(f"{labels / min(unread)}.txt: no image of that name in {images} ({len(unread)} such)")


def yolo_settings(path: Path) -> Path:
    """The ``data.yaml`` of a YOLO set, which is given by it or by its folder. Raises UserError for none."""
    settings = path / "data.yaml" if path.is_dir() else path
    if not settings.is_file():
        raise UserError(f"{settings}: no such file; a YOLO set needs a data.yaml with its class names")
    return settings


def _settings_of(path: Path) -> Mapping[str, Any]:
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}


def yolo_folders(path: Path, image_folder: Path | None, split: str | None) -> tuple[Path, Path]:
    """The folders of images and of labels of a split of a YOLO set, see :func:`yolo`.

    Raises:
        UserError: one of them is not there.
    """
    settings = yolo_settings(path)
    images = absolute(image_folder or _yolo_images(settings, _settings_of(settings), split or "train"))
    labels = _sibling(images, "images", "labels")
    for folder, what in ((images, "the images"), (labels, f"the labels of {images}")):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; {what} stand there")
    return images, labels


def label_files(labels: Path) -> Iterator[Path]:
    """The label files in a folder of a YOLO set and below it."""
    return (file for file in labels.rglob("*.txt") if file.is_file())


def _yolo_images(settings_path: Path, settings: Mapping[str, Any], split: str) -> Path:
    if not isinstance(settings.get(split), str):
        raise UserError(
            f"{settings_path}: '{split}' must name a folder of images; pass --split or --image_folder"
        )
    root = settings_path.parent / str(settings.get("path") or ".")
    for base in (root, settings_path.parent):
        if (base / settings[split]).is_dir():
            return base / settings[split]
    raise UserError(f"{settings_path}: {split}: {settings[split]} is not a folder; pass --image_folder")


def _yolo_boxes(label: Path, image: str, width: int, height: int) -> Iterator[BoxEntry]:
    for number, line in enumerate(read_text(label).split("\n"), start=1):
        if not line.strip():
            continue
        category, *texts = line.split()
        try:
            values = [float(text) for text in texts]
        except ValueError as error:
            raise UserError(f"{label} line {number}: {error}") from None
        if len(values) == 4:
            x, y, w, h = values
            xywh = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        elif len(values) >= 6 and len(values) % 2 == 0:
            xs, ys = [v * width for v in values[::2]], [v * height for v in values[1::2]]
            xywh = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        else:
            raise UserError(
                f"{label} line {number}: a class and 4 numbers, or a polygon, got {len(values)} numbers"
            )
        yield BoxEntry(f"{label} line {number}", image, category, xywh)


def _sibling(folder: Path, old: str, new: str) -> Path:
    """``folder`` with the last part called ``old`` called ``new``."""
    parts = list(folder.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == old:
            return Path(*parts[:index], new, *parts[index + 1 :])
    raise UserError(f"{folder}: a YOLO image folder has a part called '{old}', whose labels stand in '{new}'")
