"""A hermetic tiny Qwen2-VL or Qwen2.5-VL with its real processor, for tests and the quick start.

The architecture and the processor are the real classes; only the sizes are small, the weights random and the
tokenizer trained here, on the project's own prompts. Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from virft import prompts

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
LEARNER: Mapping[str, int] = MappingProxyType({"hidden_size": 128, "layers": 3, "vision_size": 96})
"""Sizes for :func:`build` of a model of 1.24 million parameters that learns on a CPU in minutes."""
# Qwen2-VL's own chat template, less its default system message and its video branch.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(
    folder: str | Path,
    family: str = "qwen2_vl",
    seed: int = 0,
    *,
    words: Sequence[str] = ("cat", "dog"),
    thoughts: Sequence[str] = ("I look for the {}.",),
    texts: Sequence[str] = (),
    hidden_size: int = 64,
    intermediate_size: int | None = None,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int = 2,
    vision_depth: int = 2,
    vision_size: int = 64,
    vision_heads: int = 4,
    vision_mlp_ratio: int = 2,
    min_pixels: int = 56 * 56,
    max_pixels: int = 112 * 112,
) -> Path:
    """Save a randomly initialised model and its processor.

    Args:
        folder: where to save; made when absent.
        family: one of :data:`FAMILIES`.
        seed: of the weights.
        words: category names that become one token each; the prompts about them are the tokenizer's corpus.
        thoughts: what stands in ``<think>`` in that corpus, with ``{}`` for a word.
        texts: more of the corpus: prompts and replies that ought to be a few tokens long.
        hidden_size, intermediate_size, layers, heads, key_value_heads: the language model's sizes; the head
            dimension must be a multiple of 8. The intermediate size defaults to three times the hidden size.
        vision_depth, vision_size, vision_heads, vision_mlp_ratio: the vision tower's sizes.
        min_pixels, max_pixels: the processor's pixel budget.

    Returns:
        ``folder`` as a path, to be given to ``from_pretrained``.

    Raises:
        ValueError: an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    folder = Path(folder)
    tokenizer = _tokenizer(words, thoughts, texts)
    text = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size or 3 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }
    vision = {"depth": vision_depth, "num_heads": vision_heads}
    torch.manual_seed(seed)
    if family == "qwen2_vl":
        vision |= {"embed_dim": vision_size, "hidden_size": hidden_size, "mlp_ratio": vision_mlp_ratio}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**_config(tokenizer, text, vision)))
        processor_class = Qwen2VLProcessor
    else:
        vision |= {
            "hidden_size": vision_size,
            "out_hidden_size": hidden_size,
            "intermediate_size": vision_size * vision_mlp_ratio,
            "window_size": 56,
            "fullatt_block_indexes": [vision_depth - 1],
        }
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**_config(tokenizer, text, vision)))
        processor_class = Qwen2_5_VLProcessor
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor_class(
        image_processor=Qwen2VLImageProcessor(min_pixels=min_pixels, max_pixels=max_pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _config(
    tokenizer: PreTrainedTokenizerFast, text: Mapping[str, int], vision: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments of a family's configuration: sizes, and what follows from them and the tokenizer."""
    token_id = tokenizer.convert_tokens_to_ids
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    spatial = half * 3 // 8  # M-RoPE splits half a head into time, height and width
    return {
        "text_config": {
            **text,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [half - 2 * spatial, spatial, spatial],
                "rope_theta": 10000.0,
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "vision_config": {**vision, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }


def _tokenizer(
    words: Sequence[str], thoughts: Sequence[str], texts: Sequence[str]
) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which digits and ``words`` are tokens of their own; all else may merge across spaces.

    So a detection prompt of 540 characters is some 30 tokens, which is what makes learning on a CPU cheap.
    """
    # Longest first: the regex takes the first alternative that matches.
    whole_words = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]"), "isolated"),
            pre_tokenizers.Split(Regex(whole_words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=5000,  # never reached: merging ends when every piece of the corpus is one token
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(_corpus(words, thoughts), texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def _corpus(words: Sequence[str], thoughts: Sequence[str]) -> Iterator[str]:
    for word in words:
        yield from ("system\n", "user\n", "assistant\n")
        yield from (prompts.detection(word, space) for space in prompts.COORDINATE_PHRASE)
        yield from (prompts.classification(*subject) for subject in prompts.SUBJECTS.values())
        yield prompts.grounding(word)
        for thought in thoughts:
            think = f"<think>{thought.format(word)}</think>"
            yield f"{think}<answer>{word}</answer>"
            yield f"{think}<answer>{prompts.NO_OBJECTS}</answer>"
            yield f"{think}<answer>(1,2),(3,4)</answer>"
            for count in (1, 2, 3):
                boxes = ", ".join(["{'Position': [1, 20, 300, 1000], 'Confidence': 0.50}"] * count)
                yield f"{think}<answer>[{boxes}]</answer>"
