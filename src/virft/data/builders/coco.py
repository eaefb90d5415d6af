"""Reader of COCO and LVIS annotations, which are told apart by their images' keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virft.data import json_stream
from virft.data.builders.entries import BoxEntry, CategoryEntry, Entry, ImageEntry, category_name, side_of
from virft.data.coco import image_path
from virft.data.records import four_numbers
from virft.errors import UserError


def coco(path: Path, image_folder: Path | None = None, **_: Any) -> Iterator[Entry]:
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
    width, height = (side_of(item.get(side)) for side in ("width", "height"))
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
    return CategoryEntry(_id(item, "id"), category_name(item["name"]), tuple(synonyms))


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


_COCO_SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], Entry]] = MappingProxyType(
    {
        "images": _coco_image,
        "annotations": _coco_box,
        "categories": _coco_category,
    }
)
