"""What an image's header says of the picture that people see; shared by everything that opens images.

Functions take an image that Pillow has opened and not yet decoded.
"""

from __future__ import annotations

from typing import Any, Final

ORIENTATION: Final = 0x0112
"""EXIF's tag that says how cameras held sideways store what they saw."""
SIDEWAYS: Final = (5, 6, 7, 8)
"""Orientations whose rows are the picture's columns (EXIF 2.32, 4.6.4)."""
DEEP_MODES: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of grey levels that 8 bits do not hold."""


def orientation(image: Any) -> int:
    """How the stored pixels are to be turned: EXIF's 1 to 8; 1, as they stand, where nothing is said."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to look for a chunk behind the pixels
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def shown_size(image: Any) -> tuple[int, int]:
    """(width, height) of the picture the right way up, in pixels."""
    width, height = image.size
    return (height, width) if orientation(image) in SIDEWAYS else (width, height)


def refuse_deep(image: Any) -> None:
    """Refuse grey levels of more than 8 bits: Pillow cuts them at 255, so that the picture turns white.

    Raises:
        ValueError: the image has such.
    """
    if image.mode in DEEP_MODES:
        raise ValueError(
            "its grey levels have more than 8 bits, which would be cut at 255; save it with 8 bits a channel"
        )
