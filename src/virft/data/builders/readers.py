"""Readers of annotations: COCO and LVIS JSON, YOLO and Pascal VOC folders, tables of boxes.

Each reader is a generator of :class:`CategoryEntry`, :class:`ImageEntry` and :class:`BoxEntry` in the order
of its files; none holds a whole set. They yield what stands there: rules about boxes are in :mod:`.rules`,
missing images and unknown categories are found by :mod:`.index`.

YOLO and VOC are read here because the readers of the package registries (globox 2.9, the lightest that is
kept up; supervision, which brings video codecs) hold the whole set in memory, take one image suffix per
set, drop VOC's ``difficult`` flag, and lose the line that a bad box stands on.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virft.boxes import convert
from virft.data import json_stream
from virft.data.classification import IMAGE_SUFFIXES, image_files
from virft.data.coco import image_path
from virft.data.records import four_numbers, read_text, records
from virft.errors import UserError
from virft.image_header import shown_size

LARGEST_SIDE = 1 << 31
"""Pixels; no format of images counts as many."""


@dataclass(frozen=True, slots=True)
class CategoryEntry:
    """A category: its id as text, its name, and other names that a user may choose it by."""

    id: str
    name: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image.

    Attributes:
        id: its id as text.
        path: relative to the image folder, or absolute.
        width, height: in pixels; None where the source does not say.
        absent: ids of the categories verified not to be in it; None: every category without a box is absent.
        incomplete: ids of the categories of which not every object has a box (LVIS ``not_exhaustive``).
    """

    id: str
    path: str
    width: int | None = None
    height: int | None = None
    absent: tuple[str, ...] | None = None
    incomplete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BoxEntry:
    """A box: where it stands (for messages), ids of image and category, x, y, width, height in pixels."""

    place: str
    image: str
    category: str
    xywh: tuple[float, float, float, float]
    crowd: bool = False


Entry = CategoryEntry | ImageEntry | BoxEntry


def coco(path: Path, image_folder: Path, **_: Any) -> Iterator[Entry]:
    """COCO or LVIS annotation JSON.

    Raises:
        UserError: not JSON, a section or a key is missing, or a box is not four numbers.
    """
    seen = set()
    for section, item in json_stream.elements(path):
        reader = _COCO_SECTIONS.get(section)
        if reader is None:
            continue
        seen.add(section)
        if not isinstance(item, dict):
            raise UserError(f"{path}: {section} must be a list of objects, got {str(item)[:40]!r}")
        try:
            yield reader(item)
        except (KeyError, TypeError, ValueError) as error:
            which = item.get("id", "without id")
            why = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{path}: {section} entry {which}: {why}") from error
    if missing := [section for section in ("images", "categories") if section not in seen]:
        raise UserError(f"{path}: no {' and no '.join(missing)}: is it a COCO or LVIS instance file?")


def _coco_image(item: Mapping[str, Any]) -> ImageEntry:
    # Images come before categories in LVIS's files, so its images are known by their own key.
    lvis = "neg_category_ids" in item
    path = image_path(item, "", lvis).as_posix()
    number = _id(item, "id")
    width, height = (_side(item.get(side)) for side in ("width", "height"))
    if not lvis:
        return ImageEntry(number, path, width, height)
    return ImageEntry(
        number,
        path,
        width,
        height,
        absent=tuple(map(str, item["neg_category_ids"])),
        incomplete=tuple(map(str, item.get("not_exhaustive_category_ids", ()))),
    )


def _id(item: Mapping[str, Any], key: str) -> str:
    """An id as text; tables write whole numbers as 1.0. Raises ValueError for what is none, KeyError."""
    value = item[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"its {key} must be a whole number or text, got {str(value)[:40]}")
    return str(value)


def _coco_category(item: Mapping[str, Any]) -> CategoryEntry:
    synonyms = item.get("synonyms") or ()
    if not isinstance(synonyms, list | tuple) or not all(isinstance(name, str) for name in synonyms):
        raise ValueError(f"its synonyms must be a list of names, got {str(synonyms)[:40]}")
    return CategoryEntry(_id(item, "id"), _named(item["name"]), tuple(synonyms))


def _side(value: Any) -> int | None:
    """A side in pixels, None where the source does not say. Raises ValueError for what is no number."""
    try:
        side = round(float(value))
        if abs(side) < LARGEST_SIDE:
            return side or None
    except TypeError:
        if value is None:
            return None
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"width and height must be numbers of pixels, got {value!r}")


def _coco_box(item: Mapping[str, Any]) -> BoxEntry:
    return BoxEntry(
        f"annotation {item.get('id', 'without id')}",
        _id(item, "image_id"),
        _id(item, "category_id"),
        four_numbers(item["bbox"]),
        _crowd(item.get("iscrowd")),
    )


def _crowd(value: Any) -> bool:
    if value in (None, 0, 1, "", "0", "1"):
        return value in (1, "1")
    raise ValueError(f"its iscrowd must be 0 or 1, got {str(value)[:40]}")


def _named(name: Any) -> str:
    """A category's name. Raises ValueError where it is none, such as YAML's ``no``, which is a boolean."""
    text = "" if name is None or isinstance(name, bool | list | dict) else str(name)
    if not text.strip():
        raise ValueError(f"its name must be text, got {name!r}")
    return text


_COCO_SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], Entry]] = MappingProxyType(
    {
        "images": _coco_image,
        "annotations": _coco_box,
        "categories": _coco_category,
    }
)


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
    names = _yolo_yaml(settings_path).get("names")
    if not isinstance(names, list | dict) or not names:
        raise UserError(f"{settings_path}: 'names' must list the class names")
    for number, name in names.items() if isinstance(names, dict) else enumerate(names):
        try:
            yield CategoryEntry(str(number), _named(name))
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
        raise UserError(
            f"{labels / sorted(unread)[0]}.txt: no image of that name in {images} ({len(unread)} such)"
        )


def yolo_settings(path: Path) -> Path:
    """The ``data.yaml`` of a YOLO set, which is given by it or by its folder. Raises UserError for none."""
    settings = path / "data.yaml" if path.is_dir() else path
    if not settings.is_file():
        raise UserError(f"{settings}: no such file; a YOLO set needs a data.yaml with its class names")
    return settings


def _yolo_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    return settings if isinstance(settings, dict) else {}


def yolo_folders(path: Path, image_folder: Path | None, split: str | None) -> tuple[Path, Path]:
    """The folders of images and of labels of a split of a YOLO set, see :func:`yolo`.

    Raises:
        UserError: one of them is not there.
    """
    settings = yolo_settings(path)
    images = _whole(image_folder or _yolo_images(settings, _yolo_yaml(settings), split or "train"))
    labels = _sibling(images, "images", "labels")
    for folder, what in ((images, "the images"), (labels, f"the labels of {images}")):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; {what} stand there")
    return images, labels


def _whole(folder: Path) -> Path:
    """The absolute path: relative ones are taken from another folder later. Links stay: where one leads, no
    folder need be called images."""
    return Path(os.path.abspath(folder))


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


def voc(path: Path, image_folder: Path | None = None, split: str | None = None, **_: Any) -> Iterator[Entry]:
    """A Pascal VOC folder: ``Annotations/*.xml``, ``JPEGImages/``, and ``ImageSets/Main/SPLIT.txt`` for a
    split.

    Corners count from 1 and include their pixels (VOC development kit), so the box is
    ``xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1``. Objects marked ``difficult`` count as crowds:
    the benchmark leaves them out of its evaluation.

    Raises:
        UserError: a folder is missing, an XML file is not readable or lacks a key.
    """
    annotations, images = path / "Annotations", _whole(image_folder or path / "JPEGImages")
    for folder in (annotations, images):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a VOC set has Annotations and JPEGImages")
    names: set[str] = set()
    for file in _voc_files(path, annotations, split):
        try:
            root = ElementTree.parse(file).getroot()
            if root.tag != "annotation":
                raise ValueError(f"its root is <{root.tag}>, not <annotation>")
            width, height = (_side(root.findtext(f"size/{side}") or None) for side in ("width", "height"))
            boxes = [_voc_box(file, number, item) for number, item in enumerate(root.iter("object"), start=1)]
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(f"{file}: not a VOC annotation: {error}") from error
        image = _voc_image(images, root.findtext("filename") or "", file.stem)
        yield ImageEntry(file.stem, str(image), width, height)
        for box in boxes:
            if box.category not in names:
                names.add(box.category)
                yield CategoryEntry(box.category, box.category)
            yield box


def _voc_image(folder: Path, name: str, stem: str) -> Path:
    """The image of an annotation: the one it names, else the one that is called as its file is.

    Tools write names without a suffix, or those of the machine that the labels were drawn on.
    """
    by_stem = (folder / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES)
    candidates = ([folder / name] if name else []) + list(by_stem)
    return next((path for path in candidates if path.is_file()), candidates[0])


def _voc_files(path: Path, annotations: Path, split: str | None) -> list[Path]:
    if split is None:
        return sorted(annotations.glob("*.xml"))
    listing = path / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise UserError(f"{listing}: no such file; --split must name a list in ImageSets/Main")
    files = [
        annotations / f"{line.split()[0]}.xml" for line in read_text(listing).split("\n") if line.strip()
    ]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]}: no such file, but {listing} lists it ({len(missing)} such)")
    return files


def _voc_box(file: Path, number: int, item: ElementTree.Element) -> BoxEntry:
    name, corners = item.findtext("name"), item.find("bndbox")
    if not name or not name.strip() or corners is None:
        raise ValueError(f"object {number} has no name or no bndbox")
    x1, y1, x2, y2 = (float(corners.findtext(key) or math.nan) for key in ("xmin", "ymin", "xmax", "ymax"))
    hard = (item.findtext("difficult") or "0").strip() == "1"
    return BoxEntry(
        f"{file} object {number}", file.stem, name, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), hard
    )


CORNER_COLUMNS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
)
SIZED_COLUMNS = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
BOX_COLUMNS = ("bbox", "box", "bbox_2d")
TABLE_SPACES = ("pixels", "norm1000", "xywh")
"""Spaces of corners and lists; x, y and sizes are always xywh."""
CATEGORY_COLUMNS = ("category", "label", "class", "name")
IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "path")


def table(path: Path, image_folder: Path, box_space: str = "pixels", **_: Any) -> Iterator[Entry]:
    """A table of boxes, one a row: CSV with a header, JSON (a list of objects) or JSONL.

    Columns: the image (one of :data:`IMAGE_COLUMNS`), the category (:data:`CATEGORY_COLUMNS`), and the box:
    four corner columns, x, y and sizes, or one list of four. A row whose category is empty is an image
    without objects. ``image_width`` and ``image_height`` save reading the sizes from the images.

    Args:
        path: the file.
        image_folder: folder that image paths are relative to.
        box_space: space of corners and lists, a member of :data:`TABLE_SPACES`.

    Raises:
        UserError: a column is missing or a value is not a number, naming the row.
    """
    images: dict[str, tuple[int, int]] = {}
    names: set[str] = set()
    for number, row in enumerate(records(path)):
        try:
            image = _column(row, IMAGE_COLUMNS, "the image")
            if not isinstance(image, str) or not image.strip():
                raise ValueError(f"its image must be a path, got {image!r}")
            if image not in images:
                images[image] = _table_size(image_folder / image, row)
                yield ImageEntry(image, image, *images[image])
            name = _column(row, CATEGORY_COLUMNS, "the category")
            if name in (None, ""):
                continue
            name = _named(name)
        except ValueError as error:
            raise _at_row(error, path, number) from None
        if name not in names:
            names.add(name)
            yield CategoryEntry(name, name)
        try:
            values, space = _table_box(row, box_space)
            xywh = convert(values, space, "xywh", image_size=images[image])
        except ValueError as error:
            raise _at_row(error, path, number) from None
        yield BoxEntry(f"row {number}", image, name, xywh)


def _at_row(error: ValueError, path: Path, number: int) -> UserError:
    return UserError(f"{path} row {number}: {error}")


def _table_size(image: Path, row: Mapping[str, Any]) -> tuple[int, int]:
    width, height = _side(row.get("image_width") or None), _side(row.get("image_height") or None)
    return (width, height) if width and height else image_size(image)


def _table_box(row: Mapping[str, Any], space: str) -> tuple[Sequence[float], str]:
    for columns in CORNER_COLUMNS:
        if all(column in row for column in columns):
            return four_numbers([row[column] for column in columns]), space
    for columns in SIZED_COLUMNS:
        if all(column in row for column in columns):
            return four_numbers([row[column] for column in columns]), "xywh"
    for column in BOX_COLUMNS:
        if column in row:
            value = row[column]
            return four_numbers(value.strip(" []()").split(",") if isinstance(value, str) else value), space
    raise ValueError(f"no box: columns x1, y1, x2, y2, or x, y, width, height, or {', '.join(BOX_COLUMNS)}")


def _column(row: Mapping[str, Any], columns: tuple[str, ...], what: str) -> Any:
    for column in columns:
        if column in row:
            return row[column]
    raise ValueError(f"no column for {what}: one of {', '.join(columns)}, but it has {', '.join(row)}")


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of the picture the right way up, from the file's header; nothing is decoded.

    Raises:
        UserError: the file is absent or is no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return shown_size(image)
    except FileNotFoundError:
        raise UserError(f"{path}: no such image; is --image_folder right?") from None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from error


def _sibling(folder: Path, old: str, new: str) -> Path:
    """``folder`` with the last part called ``old`` called ``new``."""
    parts = list(folder.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == old:
            return Path(*parts[:index], new, *parts[index + 1 :])
    raise UserError(f"{folder}: a YOLO image folder has a part called '{old}', whose labels stand in '{new}'")


READERS: Mapping[str, Callable[..., Iterator[Entry]]] = MappingProxyType(
    {"coco": coco, "lvis": coco, "yolo": yolo, "voc": voc, "table": table}
)
"""Kind of source -> its reader; COCO and LVIS are told apart by their images' keys."""
