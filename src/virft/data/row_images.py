"""The images of training rows as columns: undecoded, and their sizes from their headers."""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virft.boxes import Size, resized
from virft.errors import UserError, named
from virft.image_header import refuse_deep, shown_size

if TYPE_CHECKING:
    import pyarrow as pa


def image_lists(table: pa.Table, column: str | None, folder: Path | None, name: str) -> pa.Array:
    """The image column as lists of (bytes, path), without copying pixels where they stand in the table.

    Args:
        table: rows.
        column: the column of images; None where there is none.
        folder: where relative paths start.
        name: what messages call the set.

    Raises:
        UserError: a value that is neither a path nor a list of paths, naming the row.
    """
    import pyarrow as pa

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if column is None:
        return pa.array([[]] * table.num_rows, pa.list_(image))
    values = table.column(column)
    if pa.types.is_struct(values.type):
        return pa.chunked_array([_wrap(chunk, image) for chunk in values.chunks], pa.list_(image))
    if pa.types.is_list(values.type) and pa.types.is_struct(values.type.value_type):
        return values.cast(pa.list_(image)).fill_null([])
    chunks, number = [], 0
    for chunk in values.chunks:
        paths = []
        for value in chunk.to_pylist():
            row = [] if value in (None, "") else [value] if isinstance(value, str) else value
            if not isinstance(row, list) or any(not isinstance(v, str) for v in row):
                raise UserError(
                    f"{name}: row {number}: {column!r} must be a path or a list of paths, got {row!r}"
                )
            paths.append([{"bytes": None, "path": str((folder or Path()) / path)} for path in row])
            number += 1
        chunks.append(pa.array(paths, pa.list_(image)))
    return pa.chunked_array(chunks, pa.list_(image))


def _wrap(chunk: pa.StructArray, image: pa.DataType) -> pa.ListArray:
    """A list of one image for each struct, of none for each null; the buffers are shared."""
    import numpy as np
    import pyarrow as pa

    present = np.asarray(chunk.is_valid())
    offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int32)
    values = chunk if present.all() else chunk.filter(pa.array(present))
    return pa.ListArray.from_arrays(pa.array(offsets), values.cast(image))


def image_sizes(images: pa.ChunkedArray | pa.Array, name: str) -> pa.Array:
    """[width, height] of every image of every row the right way up, from its header.

    Args:
        images: from :func:`image_lists`.
        name: what messages call the set.

    Raises:
        UserError: an image is absent, unreadable, or of more than 8 bits a channel; names the first ones.
    """
    import pyarrow as pa

    # Flat numbers: a million rows of nested lists would take a gigabyte.
    sides, ends = array("i"), array("i", [0])
    bad: list[tuple[int, str]] = []
    for number, row in enumerate(images):
        for image in row.as_py() or ():
            try:
                sides.extend(_size(image))
            except ValueError as error:
                bad.append((number, str(error)))
        ends.append(len(sides) // 2)
    if bad:
        raise UserError(f"{name}: {named([number for number, _ in bad])}: {bad[0][1]}")
    pairs = pa.ListArray.from_arrays(
        pa.array(range(0, len(sides) + 1, 2), pa.int32()), pa.array(sides, pa.int32())
    )
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pairs)


def _size(image: Mapping[str, Any]) -> Size:
    """(width, height) by an image's header. Raises ValueError saying which image it is and what is wrong."""
    from PIL import Image

    where = image["path"] or "(embedded)"
    try:
        source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else where
        with Image.open(source) as opened:
            refuse_deep(opened)
            size = shown_size(opened)
        resized(size, 1, math.prod(size))  # refuses shapes that the processor would
    except FileNotFoundError:
        raise ValueError(
            f"image {where} does not exist; paths start at the file's folder or --image_folder"
        ) from None
    except (OSError, Image.DecompressionBombError, ValueError) as error:
        raise ValueError(f"image {where} is unreadable ({type(error).__name__}: {error})") from None
    return size
