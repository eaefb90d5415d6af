"""What readers of annotations give, whatever the source: categories, images and boxes, each value checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def side_of(value: Any) -> int | None:
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


def category_name(name: Any) -> str:
    """A category's name. Raises ValueError where it is none, such as YAML's ``no``, which is a boolean."""
    text = "" if name is None or isinstance(name, bool | list | dict) else str(name)
    if not text.strip():
        raise ValueError(f"its name must be text, got {name!r}")
    return text


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


def absolute(folder: Path) -> Path:
    """The absolute path: relative ones are taken from another folder later. Links stay: where one leads, no
    folder need be called images."""
    return Path(os.path.abspath(folder))
