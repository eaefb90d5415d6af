"""Sampling several replies to each prompt while image and prompt are encoded once.

The prompt without its last token is forwarded once per prompt, the cache is shared by (or repeated for) the
replies, and ``generate`` goes on from there. Only public interfaces of transformers are used: the model's
forward, a ``Cache`` and ``generate(past_key_values=...)``.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel, StaticCache

from virft.shared_prefix import prompt_positions, text_positions
from virft.shared_prefix_attention import NAME
from virft.shared_prefix_cache import SharedPrefixCache

# shared: one copy of each prompt, needs the attention of virft.shared_prefix_attention. expanded: a
# DynamicCache with a copy per reply, any attention. static: a copy per reply in fixed buffers, which
# generate compiles on a GPU.
CACHES = ("shared", "expanded", "static")
# Fixed buffers have a multiple of this many tokens, so that prompts of many lengths need few compilations.
STATIC_STEP = 256


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    replies: int,
    generation_config: GenerationConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
    mm_token_type_ids: torch.Tensor | None = None,
    cache: str = "shared",
    image_features_given: bool = False,
    **options,
) -> torch.Tensor:
    """Generate ``replies`` replies to each of N prompts: the tokens that plain ``generate`` gives on
    repeated rows.

    Args:
        model: the Hugging Face model itself (no wrapper), with ``model.model`` that has ``get_rope_index``.
        replies: rows per prompt; they come next to one another in the result.
        generation_config: as for ``model.generate``; sampling draws the random numbers that plain
            ``generate`` draws.
        input_ids: (N, P) padded on the left.
        attention_mask: (N, P).
        pixel_values, image_grid_thw: of the images of the N prompts, in order; None when there is none.
        mm_token_type_ids: (N, P) 1 on image tokens; needed with images.
        cache: one of :data:`CACHES`.
        image_features_given: ``pixel_values`` are features already (see ``virft.shared_prefix_vision``).
        options: handed to ``model.generate``.

    Returns:
        (N * replies, P + new tokens).

    Raises:
        ValueError: an unknown cache, or a shared one under an attention that cannot read it.
    """
    if cache not in CACHES:
        raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
    if cache == "shared" and model.config.get_text_config()._attn_implementation != NAME:
        raise ValueError("a shared cache needs virft.shared_prefix_attention.enable(model) first")
    core = model.model
    positions, offset = prompt_positions(core, input_ids, attention_mask, image_grid_thw, mm_token_type_ids)
    # generate wants the text's row first.
    positions = torch.cat([text_positions(attention_mask)[None], positions])
    prefix = DynamicCache(config=model.config.get_text_config())
    images = (
        {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw} if image_grid_thw is not None else {}
    )
    if image_features_given:
        images["image_features_given"] = True
    if input_ids.shape[1] > 1:
        core(
            input_ids=input_ids[:, :-1],
            attention_mask=attention_mask[:, :-1],
            position_ids=positions[..., :-1],
            past_key_values=prefix,
            use_cache=True,
            **images,
        )
    longest = generation_config.max_new_tokens or generation_config.max_length or 0
    past = _shared_out(prefix, attention_mask[:, :-1], replies, cache, model, input_ids.shape[1] + longest)
    core.rope_deltas = offset.repeat_interleave(replies, 0)
    generation_config = copy.copy(generation_config)
    generation_config.cache_implementation = None  # the cache is given
    if cache == "static":  # TRL's configuration forbids the compilation that fixed buffers are for
        generation_config.disable_compile = input_ids.device.type != "cuda"
    with past.active() if isinstance(past, SharedPrefixCache) else nullcontext():
        return model.generate(
            input_ids=input_ids.repeat_interleave(replies, 0),
            attention_mask=attention_mask.repeat_interleave(replies, 0),
            position_ids=positions.repeat_interleave(replies, 1),
            past_key_values=past,
            generation_config=generation_config,
            **options,
        )


def _shared_out(
    prefix: DynamicCache,
    prompt_mask: torch.Tensor,
    replies: int,
    cache: str,
    model: PreTrainedModel,
    room: int,
) -> Cache:
    if cache == "shared":
        return SharedPrefixCache(prefix, prompt_mask, replies)
    prefix.batch_repeat_interleave(replies)
    if cache == "expanded":
        return prefix
    room = -(-room // STATIC_STEP) * STATIC_STEP
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=room)
    for index, layer in enumerate(prefix.layers):
        static.update(layer.keys, layer.values, index)
    return static
