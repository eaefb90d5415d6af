"""The vision tower once per image: features given from outside, and features shared by rows of one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling


class SharedVision:
    """Stands for ``get_image_features`` of one model (``Qwen2VLModel`` or ``Qwen2_5_VLModel``).

    - With the keyword ``image_features_given`` what comes as ``pixel_values`` are features already, (visual tokens,
      hidden size), in the order of the images; the vision tower does not run.
    - Within :meth:`repeating`, images that are the same run through the tower once.
    - Otherwise it is the model's own method.
    """

    def __init__(self, core: torch.nn.Module):
        self._own = core.get_image_features
        self._merge = core.visual.spatial_merge_size**2
        self._same: Sequence[int] | None = None

    @classmethod
    def install(cls, core: torch.nn.Module) -> SharedVision:
        """Put an instance in the place of ``core.get_image_features``; a second call returns the first instance."""
        present = core.__dict__.get("get_image_features")
        if not isinstance(present, cls):
            core.get_image_features = present = cls(core)
        return present

    @contextmanager
    def repeating(self, same: Sequence[int]) -> Iterator[None]:
        """``same[i]`` names the content of the i-th image of the next forwards; equal numbers are equal images."""
        self._same = same
        try:
            yield
        finally:
            self._same = None

    def __call__(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, image_features_given: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        if image_features_given:
            sizes = (image_grid_thw.prod(-1) // self._merge).tolist()
            return BaseModelOutputWithPooling(pooler_output=torch.split(pixel_values, sizes))
        if self._same is None:
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
    """No parameter of the vision tower learns and no adapter sits in it, so its features never change."""
    return not any(p.requires_grad for p in core.visual.parameters()) and not any(
        "lora_" in name for name, _ in core.visual.named_modules()
    )


@torch.no_grad()
def encode(core: torch.nn.Module, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> list[torch.Tensor]:
    """Features of each image, (visual tokens, hidden size)."""
    return list(core.get_image_features(pixel_values, image_grid_thw, return_dict=True).pooler_output)
