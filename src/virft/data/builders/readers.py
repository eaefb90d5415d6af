"""The readers of annotations by kind of source.

Each reader is a generator of :class:`CategoryEntry`, :class:`ImageEntry` and :class:`BoxEntry` (see
:mod:`.entries`) in the order of its files; none holds a whole set. They yield what stands there: rules about
boxes are in :mod:`.rules`, missing images and unknown categories are found by :mod:`.index`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from virft.data.builders.coco import coco
from virft.data.builders.entries import Entry
from virft.data.builders.table import table
from virft.data.builders.voc import voc
from virft.data.builders.yolo import yolo

READERS: Mapping[str, Callable[..., Iterator[Entry]]] = MappingProxyType(
    {"coco": coco, "lvis": coco, "yolo": yolo, "voc": voc, "table": table}
)
"""Kind of source -> its reader; COCO and LVIS are told apart by their images' keys."""
