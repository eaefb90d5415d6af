"""How many tokens prompts take as the model sees them, and rows whose prompt is too long."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from virft.boxes import resized
from virft.errors import UserError, named

if TYPE_CHECKING:
    import datasets


def visual_tokens(rows: datasets.Dataset, processor: Any) -> list[int]:
    """Visual tokens of every row, over all its images.

    Args:
        rows: with ``image_sizes``.
        processor: the model's; its pixel limits decide how many tokens an image takes.
    """
    image_processor = processor.image_processor
    side = image_processor.patch_size * image_processor.merge_size
    limits = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    return [
        sum(math.prod(resized((w, h), *limits, side)) // side**2 for w, h in sizes)
        for sizes in rows["image_sizes"]
    ]


def prompt_lengths(rows: datasets.Dataset, processor: Any) -> list[int]:
    """Tokens of every row's prompt as the model sees it: chat template, text, and each image's visual tokens.

    Args:
        rows: from :func:`virft.data.training.to_prompts`.
        processor: as for :func:`visual_tokens`.
    """
    counts = [len(sizes) for sizes in rows["image_sizes"]]
    texts = []
    for prompt, count in zip(rows["prompt"], counts, strict=True):
        *earlier, last = prompt
        content = [{"type": "image"}] * count + [{"type": "text", "text": last["content"]}]
        messages = [*earlier, {"role": last["role"], "content": content}]
        texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    # Each image's placeholder is one token of the text already.
    return [
        len(ids) + visual - count
        for ids, visual, count in zip(
            processor.tokenizer(texts)["input_ids"], visual_tokens(rows, processor), counts, strict=True
        )
    ]


def drop_long(rows: datasets.Dataset, processor: Any, limit: int, skip: bool) -> tuple[datasets.Dataset, int]:
    """Rows whose prompt has at most ``limit`` tokens, and how many were left out. A prompt is never cut.

    Raises:
        UserError: a longer prompt and not ``skip``, or no row is left.
    """
    lengths = prompt_lengths(rows, processor)
    long = [number for number, length in enumerate(lengths) if length > limit]
    if long and not skip:
        raise UserError(
            f"{named(long)}: prompt of {lengths[long[0]]} tokens is above --max_prompt_length "
            f"{limit}; raise it, lower --max_pixels, or pass --skip_long_prompts"
        )
    if len(long) == len(rows):
        raise UserError(
            f"every prompt is above --max_prompt_length {limit}; the shortest has {min(lengths)} tokens"
        )
    if long:
        rows = rows.select([number for number, length in enumerate(lengths) if length <= limit])
    return rows, len(long)
