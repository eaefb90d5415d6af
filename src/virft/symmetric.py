"""Text-only rows among rows with images: every forward runs the vision tower, so that all ranks do the same.

Under ZeRO-3 and FSDP a forward gathers the parameters of each layer from all ranks; a rank whose rows have no
image would leave the vision tower out and hang the others. DDP would find parameters without gradients. A
text-only forward therefore encodes one blank image of four patches and adds zero times its features to the
embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import pyarrow
import pyarrow.compute
import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from virft.errors import UserError

PATCHES = 4
"""Patches of the smallest image: one visual token after merging 2 x 2."""


class VisionAlways:
    """Hooks on one model (``Qwen2VLModel`` or ``Qwen2_5_VLModel``).

    Args:
        core: the model.
        in_generation: whether a generation's first forward does the same, where it runs on sharded weights.

    The vision tower runs between the embedding and the language model, as in a forward with images: ranks
    must gather parameters in the same order, forwards and backwards. Hence the hook stands before those of
    DeepSpeed, which are taken off and put on again around every generation.
    """

    def __init__(self, core: torch.nn.Module, in_generation: bool = False) -> None:
        self.core, self.in_generation = core, in_generation
        self.runs = 0
        self._blank = False
        core.register_forward_pre_hook(self._look, with_kwargs=True)
        core.language_model.register_forward_pre_hook(self._add, prepend=True, with_kwargs=True)

    def _look(self, core: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        values = kwargs.get("pixel_values")
        if isinstance(values, torch.Tensor) and values.numel() == 0:
            kwargs = {k: v for k, v in kwargs.items() if k not in ("pixel_values", "image_grid_thw")}
            values = None
        # A forward that scores switches the cache off; one that generates fills it first.
        past = kwargs.get("past_key_values")
        first = self.in_generation and past is not None and past.get_seq_length() == 0
        self._blank = values is None and (first or kwargs.get("use_cache") is False)
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


def make_forwards_alike(trainer: Any, sampled: bool) -> None:
    """Let all ranks of a trainer run the same modules in every forward, whatever their rows hold.

    Args:
        trainer: with its models and rows.
        sampled: whether ``generate`` answers the rows of training in TRL's way, which encodes images before
            the model's forward.

    Raises:
        UserError: settings under which several devices would not train the same, or wait for one another.
    """
    args, zero3 = trainer.args, is_deepspeed_zero3_enabled()
    if args.world_size == 1:
        return
    text_only = has_text_only(trainer.train_dataset)
    if trainer.is_fsdp_enabled:
        head = trainer.accelerator.unwrap_model(trainer.model).get_output_embeddings()
        if head.weight.requires_grad:
            # TRL's fused head takes a sharded weight together without adding up the ranks' gradients.
            raise UserError(
                "--fsdp would train the output layer with one rank's gradients; add --use_peft true, or use "
                "DeepSpeed: local_scripts/zero3.json"
            )
        held_out = trainer.eval_dataset
        sets = held_out.values() if isinstance(held_out, Mapping) else [held_out]
        if (text_only and sampled) or any(has_text_only(rows) for rows in sets if rows is not None):
            raise UserError(
                "text-only rows cannot be answered under FSDP; use DeepSpeed: local_scripts/zero3.json"
            )
    if not text_only:
        return
    gathered = not zero3 or getattr(args, "ds3_gather_for_generation", True)
    if sampled and not gathered:
        raise UserError(
            "--ds3_gather_for_generation false with text-only rows needs one prefill per prompt "
            "(--shared_prefix); drop it"
        )
    if getattr(trainer, "log_multimodal", False):
        raise UserError("--log_multimodal true does not run with text-only rows on several devices")
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            inner = trainer.accelerator.unwrap_model(model)
            inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
            VisionAlways(inner.model, in_generation=not gathered)


def has_text_only(rows: Any) -> bool:
    """Whether some row has no image, found without decoding any.

    Args:
        rows: a ``datasets.Dataset``; its column ``image_sizes`` (a list for each row), ``images`` or
            ``image`` is looked at.
    """
    if not isinstance(rows, datasets.Dataset):  # a stream, of which nothing is known
        return True
    name = next((n for n in ("image_sizes", "images", "image") if n in rows.column_names), None)
    if name is None:
        return True
    column = rows.select_columns(name).with_format("arrow")[:].column(name)
    lists = pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type)
    if column.null_count or not lists:
        return column.null_count > 0
    return 0 in pyarrow.compute.list_value_length(column).to_pylist()
