"""Text-only rows among rows with images: every forward runs the vision tower, so that all ranks do the same.

Under ZeRO-3 a forward gathers the parameters of each layer from all ranks; a rank whose rows have no image
would leave the vision tower out and hang the others. DDP would find parameters without gradients. A
text-only forward therefore encodes one blank image of four patches and adds zero times its features to the
embeddings.
"""

from __future__ import annotations

from typing import Any

import pyarrow
import pyarrow.compute
import torch

PATCHES = 4
"""Patches of the smallest image: one visual token after merging 2 x 2."""


class VisionAlways:
    """Hooks on one model (``Qwen2VLModel`` or ``Qwen2_5_VLModel``); generation is left alone.

    The vision tower runs between the embedding and the language model, as in a forward with images: ranks
    must gather parameters in the same order, forwards and backwards. Hence the hook stands before those of
    DeepSpeed, which are taken off and put on again around every generation.
    """

    def __init__(self, core: torch.nn.Module) -> None:
        self.core = core
        self.runs = 0
        self._blank = False
        core.register_forward_pre_hook(self._look, with_kwargs=True)
        core.language_model.register_forward_pre_hook(self._add, prepend=True, with_kwargs=True)

    def _look(self, core: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        values = kwargs.get("pixel_values")
        if isinstance(values, torch.Tensor) and values.numel() == 0:
            kwargs = {k: v for k, v in kwargs.items() if k not in ("pixel_values", "image_grid_thw")}
            values = None
        # A forward that scores switches the cache off; one that generates uses it.
        self._blank = values is None and kwargs.get("use_cache") is False
        return args, kwargs

    def _add(self, language_model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        if not self._blank:
            return args, kwargs
        self._blank = False
        self.runs += 1
        embedded = kwargs["inputs_embeds"]
        patch = self.core.visual.patch_embed
        width = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
        pixels = torch.zeros(PATCHES, width, dtype=self.core.visual.dtype, device=embedded.device)
        grid = torch.tensor([[1, 2, 2]], device=embedded.device)
        features = torch.cat(list(self.core.get_image_features(pixels, grid).pooler_output))
        return args, kwargs | {"inputs_embeds": embedded + 0 * features.sum().to(embedded.dtype)}


def has_text_only(rows: Any) -> bool:
    """Whether some row has no image, found without decoding any.

    Args:
        rows: a ``datasets.Dataset``; its column ``image_sizes`` (a list for each row), ``images`` or
            ``image`` is looked at.
    """
    name = next((n for n in ("image_sizes", "images", "image") if n in rows.column_names), None)
    if name is None:
        return True
    column = rows.select_columns(name).with_format("arrow")[:].column(name)
    lists = pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type)
    if column.null_count or not lists:
        return column.null_count > 0
    return 0 in pyarrow.compute.list_value_length(column).to_pylist()
