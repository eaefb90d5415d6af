"""Every distinct image decoded and preprocessed once.

TRL runs the processor on all rows of a generation batch, twice, and a group's rows show the same image: 2 G
preprocessings of each. The sampler also asks for every row G times at each micro-batch. Both are answered
from memory.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

DEFAULT_BYTES = 512 * 2**20


class ImageMemo:
    """Remembers what an image processor made of an image, by the image's content.

    Installed on a Qwen2-VL image processor it changes nothing that the processor returns, apart from
    ``return_tensors``, which is always ``"pt"``. What was used longest ago is forgotten first.

    Args:
        limit: bytes of preprocessed patches to keep.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = limit
        self.size = 0
        self.calls = 0
        self.misses = 0
        self.numbers: list[int] | None = None
        self._kept: OrderedDict[tuple, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._distinct = False

    @classmethod
    def install(cls, image_processor: Any, limit: int = DEFAULT_BYTES) -> ImageMemo:
        """Give ``image_processor`` a memo; a second call returns the first memo.

        The processor's class becomes a subclass of the same name, so a saved processor names the class it
        always named.
        """
        present = getattr(type(image_processor), "_virft_memo", None)
        if present is not None:
            return present
        memo, own = cls(limit), type(image_processor)

        def preprocess(self: Any, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
            return memo.preprocess(
                lambda image: own.preprocess(self, [image], *args, **kwargs), self, images, kwargs
            )

        body = {"preprocess": preprocess, "_virft_memo": memo, "__module__": own.__module__}
        image_processor.__class__ = type(own.__name__, (own,), body)
        return memo

    @contextmanager
    def distinct(self, on: bool = True) -> Iterator[None]:
        """Within it (unless ``on`` is false) ``pixel_values`` hold every distinct image once, in the order
        of first appearance.

        ``image_grid_thw`` stays one line per image, and ``numbers[i]`` says which of the distinct images
        the i-th is.
        """
        before, self._distinct = self._distinct, on
        try:
            yield
        finally:
            self._distinct = before

    def preprocess(self, own: Any, processor: Any, images: Any, options: dict[str, Any]) -> BatchFeature:
        """Patches and grids of ``images`` (nested lists), from memory where possible.

        ``own`` preprocesses one image; ``options`` are the call's keywords and ``processor`` its settings.
        """
        flat = list(_flatten(images))
        options["return_tensors"] = "pt"
        settings = _settings(processor, options)
        seen: dict[int, tuple] = {}  # one hash per object, however often it comes
        keys = []
        for image in flat:
            if id(image) not in seen:
                seen[id(image)] = (content_key(image), settings)
            keys.append(seen[id(image)])
        self.calls += len(flat)
        found = {}
        for key, image in zip(keys, flat, strict=True):
            if key not in found:
                found[key] = self._recall(key) or self._keep(key, own(image))
        self._forget()
        self.numbers = [list(found).index(key) for key in keys]
        shown = list(found) if self._distinct else keys
        patches = [found[key][0] for key in shown]
        return BatchFeature(
            {
                "pixel_values": patches[0] if len(patches) == 1 else torch.cat(patches),
                "image_grid_thw": torch.cat([found[key][1] for key in keys]),
            },
            tensor_type="pt",
        )

    def _recall(self, key: tuple) -> tuple[torch.Tensor, torch.Tensor] | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: tuple, made: BatchFeature) -> tuple[torch.Tensor, torch.Tensor]:
        self.misses += 1
        self._kept[key] = entry = (made["pixel_values"], made["image_grid_thw"])
        self.size += entry[0].nbytes
        return entry

    def _forget(self) -> None:
        while self.size > self.limit and self._kept:
            _, (patches, _) = self._kept.popitem(last=False)
            self.size -= patches.nbytes


def content_key(image: Any) -> tuple:
    """What tells one image from another: form and bytes of a PIL image, an array or a tensor.

    Raises:
        TypeError: anything else; files and addresses are opened before an image processor sees them.
    """
    if isinstance(image, Image.Image):
        palette = image.getpalette() if image.mode in ("P", "PA") else None
        extra = (image.mode, repr(palette), repr(image.info.get("transparency")))
        return ("pil", image.size, *extra, _digest(image.tobytes()))
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return ("array", image.shape, str(image.dtype), _digest(np.ascontiguousarray(image).tobytes()))
    raise TypeError(f"an image is a PIL image, an array or a tensor, not {type(image).__name__}")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _flatten(images: Any) -> Iterator[Any]:
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flatten(image)
    else:
        yield images


def _settings(processor: Any, options: dict[str, Any]) -> str:
    """All that decides how an image is preprocessed besides the image: the call's options over the
    processor's own.
    """
    own = {name: getattr(processor, name, None) for name in processor.valid_kwargs.__annotations__}
    given = {name: value for name, value in options.items() if value is not None}
    return repr(sorted((name, repr(value)) for name, value in (own | given).items()))


class RowMemo:
    """A data set that remembers the rows of the last request, so that they are read and decoded once.

    TRL's sampler names every row G times in a request and repeats the request for each micro-batch.

    Args:
        rows: a map-style data set.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.fetched = 0
        self._last: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows, each a dictionary of its own; equal indices share the values."""
        missing = [i for i in dict.fromkeys(indices) if i not in self._last]
        if hasattr(self.rows, "__getitems__"):
            new = self.rows.__getitems__(missing) if missing else []
        else:
            new = [self.rows[i] for i in missing]
        self.fetched += len(missing)
        known = self._last | dict(zip(missing, new, strict=True))
        self._last = {i: known[i] for i in dict.fromkeys(indices)}
        return [dict(known[i]) for i in indices]
