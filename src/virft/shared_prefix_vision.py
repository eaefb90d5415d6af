"""The vision tower once per image: features given from outside, and features shared by rows of a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers.modeling_outputs import BaseModelOutputWithPooling


class SharedVision:
    """Stands for ``get_image_features`` of one model (``Qwen2VLModel`` or ``Qwen2_5_VLModel``).

    - With the keyword ``image_features_given`` what comes as ``pixel_values`` are features already, of shape
      (visual tokens, hidden size), in the order of the images; the vision tower does not run.
    - Within :meth:`repeating`, images that are the same run through the tower once.
    - Otherwise it is the model's own method.
    """

    def __init__(self, core: torch.nn.Module):
        self._own = core.get_image_features
        self._merge = core.visual.spatial_merge_size**2
        self._same: Sequence[int] | None = None

    @classmethod
    def install(cls, core: torch.nn.Module) -> SharedVision:
        """Put an instance in the place of ``core.get_image_features``; a second call returns the first
        instance.
        """
        present = core.__dict__.get("get_image_features")
        if not isinstance(present, cls):
            core.get_image_features = present = cls(core)
        return present

    @contextmanager
    def repeating(self, same: Sequence[int]) -> Iterator[None]:
        """``same[i]`` names the content of the i-th image of the next forwards; equal numbers are equal
        images.
        """
        self._same = same
        try:
            yield
        finally:
            self._same = None

    def __call__(
        self,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor,
        image_features_given: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        if image_features_given:
            sizes = (image_grid_thw.prod(-1) // self._merge).tolist()
            return BaseModelOutputWithPooling(pooler_output=torch.split(pixel_values, sizes))
        if not self._same:  # rows without an image, for which virft.symmetric shows a blank one
            return self._own(pixel_values, image_grid_thw, **kwargs)
        first = {name: index for index, name in reversed(list(enumerate(self._same)))}
        order = {name: place for place, name in enumerate(first)}
        patches = torch.split(pixel_values, image_grid_thw.prod(-1).tolist())
        chosen = list(first.values())
        output = self._own(torch.cat([patches[i] for i in chosen]), image_grid_thw[chosen], **kwargs)
        features = output.pooler_output
        output.pooler_output = tuple(features[order[name]] for name in self._same)
        return output


def is_frozen(core: torch.nn.Module) -> bool:
    """No parameter of the vision tower learns and nothing of PEFT's sits in it, so its features never change.

    What PEFT put there does not learn while it is switched off for the reference, hence the second question.
    """
    return not any(p.requires_grad for p in core.visual.parameters()) and not any(
        isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in core.visual.modules()
    )


@torch.no_grad()
def encode(
    core: torch.nn.Module, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor
) -> list[torch.Tensor]:
    """Features of each image, (visual tokens, hidden size)."""
    return list(core.get_image_features(pixel_values, image_grid_thw, return_dict=True).pooler_output)


@dataclass
class RowImages:
    """The images of a batch's rows: every distinct one once.

    ``contents`` are the patches of each distinct image, or its features when ``encoded``; ``grids``
    (images, 3) their patch grids; ``rows[i]`` names the images of row i. It travels as ``pixel_values``
    through TRL's batches.
    """

    contents: list[torch.Tensor]
    grids: torch.Tensor
    rows: list[list[int]]
    encoded: bool = False

    @classmethod
    def of_batch(
        cls,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor,
        num_images: Sequence[int],
        numbers: Sequence[int] | None = None,
    ) -> RowImages:
        """Take a processor's output apart.

        Args:
            pixel_values: (patches, size) of the distinct images, or of all images when ``numbers`` is None.
            image_grid_thw: (images, 3), one line per image of every row.
            num_images: images of each row.
            numbers: which distinct image each image is (see ``virft.image_memo.ImageMemo.numbers``).

        Raises:
            ValueError: the numbers of images or patches do not agree.
        """
        total = sum(num_images)
        if numbers is None:
            numbers = range(total)
        if len(numbers) != total or len(image_grid_thw) != total:
            raise ValueError(
                f"{total} images in the rows, {len(image_grid_thw)} grids, {len(numbers)} numbers"
            )
        first = {number: index for index, number in reversed(list(enumerate(numbers)))}
        grids = image_grid_thw[[first[number] for number in range(len(first))]] if total else image_grid_thw
        contents = list(torch.split(pixel_values, grids.prod(-1).tolist())) if total else []
        ends = [0, *accumulate(num_images)]
        rows = [list(numbers[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
        return cls(contents, grids, rows)

    def take(self, rows: Sequence[int]) -> RowImages:
        """The images of some rows, in their order; images that none of them shows are left out."""
        wanted = [self.rows[i] for i in rows]
        used = list(dict.fromkeys(n for row in wanted for n in row))
        place = {number: index for index, number in enumerate(used)}
        return RowImages(
            [self.contents[n] for n in used],
            self.grids[used],
            [[place[n] for n in row] for row in wanted],
            self.encoded,
        )

    def to(self, device: torch.device | str) -> RowImages:
        """The same on a device."""
        return RowImages(
            [x.to(device) for x in self.contents], self.grids.to(device), self.rows, self.encoded
        )

    def names(self) -> list[int]:
        """Which distinct image each image of the rows is, row after row."""
        return [number for row in self.rows for number in row]

    def inputs(self) -> dict[str, Any]:
        """What the model's forward takes for these rows, images repeated as often as they are shown; {}
        without any.
        """
        names = self.names()
        if not names:
            return {}
        contents = [self.contents[n] for n in names]
        inputs = {
            "pixel_values": contents[0] if len(contents) == 1 else torch.cat(contents),
            "image_grid_thw": self.grids[names],
        }
        return inputs | ({"image_features_given": True} if self.encoded else {})

    def encode(self, core: torch.nn.Module) -> RowImages:
        """The same with features in the place of patches: one run of the vision tower for all images."""
        if self.encoded or not self.contents:
            return self
        return RowImages(encode(core, torch.cat(self.contents), self.grids), self.grids, self.rows, True)
