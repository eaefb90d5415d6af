"""Reader of Pascal VOC folders. The readers of the package registries drop VOC's ``difficult`` flag."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from virft.data.builders.entries import BoxEntry, CategoryEntry, Entry, ImageEntry, absolute, side_of
from virft.data.classification import IMAGE_SUFFIXES
from virft.data.records import read_text
from virft.errors import UserError


def voc(path: Path, image_folder: Path | None = None, split: str | None = None, **_: Any) -> Iterator[Entry]:
    """A Pascal VOC folder: ``Annotations/*.xml``, ``JPEGImages/``, and ``ImageSets/Main/SPLIT.txt`` for a
    split.

    Corners count from 1 and include their pixels (VOC development kit), so the box is
    ``xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1``. Objects marked ``difficult`` count as crowds:
    the benchmark leaves them out of its evaluation.

    Raises:
        UserError: a folder is missing, an XML file is not readable or lacks a key.
    """
    annotations, images = path / "Annotations", absolute(image_folder or path / "JPEGImages")
    for folder in (annotations, images):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a VOC set has Annotations and JPEGImages")
    names: set[str] = set()
    for file in _voc_files(path, annotations, split):
        try:
            root = ElementTree.parse(file).getroot()
            if root.tag != "annotation":
                raise ValueError(f"its root is <{root.tag}>, not <annotation>")
            width, height = (side_of(root.findtext(f"size/{side}") or None) for side in ("width", "height"))
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
