"""Opening images the one way in which training and inference see them: as RGB."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from virft.errors import UserError
from virft.image_header import orientation, refuse_deep


def images_of(row: Mapping[str, Any]) -> list[Any]:
    """The images of a row as they are: its column ``images``, else ``image``; [] where it has none."""
    if "images" not in row and row.get("image") is not None:
        return [row["image"]]
    return list(row.get("images") or ())


def open_rgb(source: str | Path | Mapping[str, Any] | Image.Image) -> Image.Image:
    """An image decoded and converted to RGB (alpha is dropped, palettes and grey levels are expanded), turned
    the right way up where EXIF says how the camera was held.

    Args:
        source: a path, a dictionary of ``bytes`` and ``path`` as a data set stores it, or an open image.

    Raises:
        UserError: the file is missing, damaged, no image or of more than 8 bits a channel; the message names
            it. Or the source is something else.
    """
    if isinstance(source, Image.Image):
        return source if source.mode == "RGB" else source.convert("RGB")
    path = source
    if isinstance(source, Mapping):
        path = source.get("path") or "embedded image"
        source = path if source.get("bytes") is None else io.BytesIO(source["bytes"])
    elif not isinstance(source, str | Path):
        raise UserError(
            f"an image must be a picture, a path or {{'path', 'bytes'}}, got a {type(source).__name__}"
        )
    try:
        with Image.open(source) as opened:
            refuse_deep(opened)
            upright = opened if orientation(opened) == 1 else ImageOps.exif_transpose(opened)
            return upright.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} is unreadable ({type(error).__name__}: {error})") from error
