"""LISA's ReasonSeg: reading its LabelMe-like JSON files, the samples to ask, the truth as boxes and masks.

A split is a folder of ``NAME.jpg`` with ``NAME.json`` beside each (https://github.com/dvlab-research/LISA). A
file holds ``shapes`` (polygons in pixels, labelled target, ignore or flag), ``text`` (instructions) and
``is_sentence``.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from virft import prompts
from virft.data.json_stream import beyond_reading
from virft.errors import UserError
from virft.types import Box, Sample

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
TruthRule = Literal["all", "first_shape"]
TRUTH_RULES: tuple[TruthRule, ...] = ("all", "first_shape")
"""``all``: every target polygon, ignore regions honoured (LISA's own rule). ``first_shape``: only the first
shape of the file, whatever its label (the Visual-RFT reference)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One polygon. ``label`` is "target", "ignore" or "flag"; ``points`` are x, y in pixels of the image."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One JSON file: the image's path, its instructions, its shapes in the order of the file."""

    path: Path
    image: Path
    instructions: tuple[str, ...]
    is_sentence: bool
    shapes: tuple[Shape, ...]

    @property
    def name(self) -> str:
        """What ties predictions and masks to this annotation: the file's name without ``.json``."""
        return self.path.stem


def read_split(folder: str | Path) -> list[Annotation]:
    """Every annotation of a split folder, by name.

    Raises:
        UserError: no folder, no annotation in it, a file that is not of the format, or one without its image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; give the folder of one split (NAME.jpg and NAME.json files)"
        )
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder}: holds no .json file; give the folder of one split, such as ReasonSeg/val")
    annotations = [read_annotation(path) for path in files]
    known = {annotation.image for annotation in annotations}
    spare = [p.name for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p not in known]
    if spare:
        logger.warning(
            "%s: %d images have no annotation and are left out, e.g. %s", folder, len(spare), min(spare)
        )
    return annotations


def read_annotation(path: str | Path) -> Annotation:
    """One annotation file, in UTF-8 or, where it is not, cp1252 (as LISA's own loader falls back).

    Raises:
        UserError: the file is missing, not JSON, not of the format, or its image is missing.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    record = _decode(path, content)
    texts, shapes = record.get("text"), record.get("shapes")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise UserError(f'{path}: "text" must be a list of at least one instruction, got {texts!r}')
    if not isinstance(shapes, list):
        raise UserError(f'{path}: "shapes" must be a list of polygons, got {shapes!r}')
    return Annotation(
        path=path,
        image=_image_of(path),
        instructions=tuple(text.strip() for text in texts),
        is_sentence=bool(record.get("is_sentence", True)),
        shapes=tuple(_shape(path, index, shape) for index, shape in enumerate(shapes)),
    )


def _decode(path: Path, content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: {beyond_reading(error)}") from None
    if not isinstance(record, dict):
        raise UserError(
            f'{path}: must hold an object with "shapes" and "text", got a {type(record).__name__}'
        )
    return record


def _image_of(path: Path) -> Path:
    for suffix in (*IMAGE_SUFFIXES, *(s.upper() for s in IMAGE_SUFFIXES)):
        # Not with_suffix of a resolved name: a stem may itself hold dots and spaces.
        image = path.with_name(path.stem + suffix)
        if image.is_file():
            return image
    raise UserError(f"{path}: no image {path.stem}.jpg (or .jpeg, .png) beside it")


def _shape(path: Path, index: int, shape: Any) -> Shape:
    where = f"{path}: shape {index}"
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise UserError(f'{where} must be an object with a "label", got {shape!r}')
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    if kind not in ("polygon", "rectangle"):
        raise UserError(f"{where} is a {kind}; only polygons and rectangles have an area here")
    if not isinstance(points, list) or len(points) < 2 or not all(_is_point(point) for point in points):
        raise UserError(
            f"{where} must have two or more points [x, y], finite numbers; got {str(points)[:80]}"
        )
    corners = tuple((float(x), float(y)) for x, y in points)
    if kind == "rectangle":
        (x1, y1), (x2, y2) = corners[0], corners[-1]
        corners = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    return Shape(_label(shape["label"]), corners)


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in point)
        and all(abs(v) <= sys.float_info.max for v in point)  # false for NaN, and for integers beyond floats
    )


def _label(text: str) -> str:
    """target, ignore or flag, by LISA's own reading of the label."""
    if text.lower() == "flag":
        return "flag"
    return "ignore" if "ignore" in text.lower() else "target"


def truth_box(annotation: Annotation, rule: TruthRule = "all") -> Box | None:
    """The box, in pixels, around every target polygon (``all``) or the first shape; None without one."""
    if rule == "first_shape":
        shapes = annotation.shapes[:1]
    else:
        shapes = tuple(shape for shape in annotation.shapes if shape.label == "target")
    if not shapes:
        return None
    xs, ys = zip(*(point for shape in shapes for point in shape.points), strict=True)
    return Box(min(xs), min(ys), max(xs), max(ys))


def truth_mask(
    annotation: Annotation, size: tuple[int, int], rule: TruthRule = "all"
) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels are the target, and which count at all (those of ignore regions do not).

    ``all`` follows ``get_mask_from_json`` of LISA's utils/data_processing.py: flags are skipped, polygons
    drawn from the largest to the smallest, a later one over an earlier one. ``first_shape`` draws the first
    shape only, as a target, with Pillow's polygon: the Visual-RFT reference.

    Args:
        annotation: an annotation.
        size: (width, height) of the image in pixels.
        rule: one of :data:`TRUTH_RULES`.

    Returns:
        (target, counted), bool arrays (height, width).
    """
    import numpy as np
    from PIL import Image, ImageDraw

    from virft.data.raster import fill_polygon

    width, height = size
    target = np.zeros((height, width), dtype=bool)
    counted = np.ones((height, width), dtype=bool)
    if rule == "first_shape":
        drawing = Image.new("L", size)
        for shape in annotation.shapes[:1]:
            ImageDraw.Draw(drawing).polygon(shape.points, outline=1, fill=1)
        return np.asarray(drawing) == 1, counted
    layers = [
        (fill_polygon(shape.points, width, height), shape.label == "ignore")
        for shape in annotation.shapes
        if shape.label != "flag"
    ]
    layers.sort(key=lambda layer: int(layer[0].sum()))
    # Reversed rather than sorted downwards, as LISA does: of two equal areas the earlier shape lies on top.
    for layer, ignored in reversed(layers):
        target[layer] = not ignored
        counted[layer] = not ignored
    return target, counted


def grounding_samples(
    annotations: Sequence[Annotation],
    instructions: Literal["first", "all"] = "first",
    system: str | None = None,
) -> list[Sample]:
    """The questions of a split.

    Args:
        annotations: as :func:`read_split` returns them.
        instructions: ``first`` asks one question an image, as LISA's own validation does; ``all`` every one.
        system: an optional system message (the reference's evaluation had one, its training none).

    Returns:
        Samples whose ``meta`` holds ``annotation`` (its name), ``instruction`` and ``boxes``: rule -> the
        true box in pixels, or None.
    """
    return [
        Sample(
            id=f"{annotation.name}#{number}",
            images=(str(annotation.image),),
            prompt=prompts.grounding(instruction),
            system=system,
            meta={
                "annotation": annotation.name,
                "instruction": instruction,
                "boxes": {rule: truth_box(annotation, rule) for rule in TRUTH_RULES},
            },
        )
        for annotation in annotations
        for number, instruction in enumerate(
            annotation.instructions if instructions == "all" else annotation.instructions[:1]
        )
    ]
