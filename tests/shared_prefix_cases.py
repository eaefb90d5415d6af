"""Models, prompts and replies for the tests of the shared prefix, and TRL's own way of scoring them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.utils import add_fused_lm_head

GROUP, LONGEST = 4, 24
LENGTHS = [24, 5, 17, 24, 1, 24, 9, 0, 24, 24, 2, 20]  # of three groups; one reply has no token that counts
TEMPERATURE = 0.9


def sharpen(model: torch.nn.Module) -> None:
    """Larger weights: fresh ones give nearly uniform logits, in which positions and masks hardly matter."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
            elif "bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def load(folder: Path, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model whose weights matter, with TRL's language-model head."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=attention)
    sharpen(model)
    model = model.to(dtype)
    add_fused_lm_head(model, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
    return model


def image(width: int, height: int, seed: int) -> Image.Image:
    """An image of coarse random colours."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (max(height // 16, 1), max(width // 16, 1), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


def message(text: str, images: list[Image.Image]) -> list[dict[str, Any]]:
    """One user's message; the text's words stand between the images."""
    content: list[dict[str, Any]] = []
    for shown in images:
        content += [{"type": "image", "image": shown}, {"type": "text", "text": "and "}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


PROMPTS = {
    "one image each": [
        ("Detect all cats in the image", [(112, 84)]),
        (
            "Detect the dog. Output the thinking process in <think> </think> and nothing else, please.",
            [(112, 112)],
        ),
        ("cat", [(56, 140)]),
    ],
    "two, one, none": [
        ("compare", [(112, 84), (56, 112)]),
        ("Detect the dog.", [(112, 112)]),
        ("no image here, a question in words alone", []),
    ],
    "none": [("a question", []), ("a longer question without any image", []), ("cat?", [])],
}


@dataclass
class Case:
    """Three prompts, unique and repeated for their replies as TRL repeats them."""

    prompts: dict[str, torch.Tensor]
    rows: dict[str, torch.Tensor]
    replies: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor


def case(folder: Path, kind: str = "one image each") -> Case:
    """Prompts of different lengths and image sizes with four replies each."""
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    prompts = PROMPTS[kind]

    def encode(repeats: int) -> dict[str, torch.Tensor]:
        messages = [
            message(text, [image(*size, seed=10 * i + j) for j, size in enumerate(sizes)])
            for i, (text, sizes) in enumerate(prompts)
            for _ in range(repeats)
        ]
        return dict(
            processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        )

    generator = torch.Generator().manual_seed(0)
    size = len(processor.tokenizer)
    replies = torch.randint(7, size, (len(LENGTHS), LONGEST), generator=generator)
    mask = (torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]).long()
    replies = replies.masked_fill(mask == 0, processor.tokenizer.pad_token_id)
    weights = torch.randn(mask.shape, generator=generator) * mask
    return Case(encode(1), encode(GROUP), replies, mask, weights)


def stock_logps(model: Any, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies (rows, LONGEST) by the code of TRL's ``_get_per_token_logps_and_entropies``."""
    rows = case.rows
    ids = torch.cat([rows["input_ids"], case.replies], 1)
    mask = torch.cat([rows["attention_mask"], case.mask], 1)
    inputs = {k: rows[k] for k in ("pixel_values", "image_grid_thw") if k in rows}
    if inputs:
        kinds = rows["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(case.replies.shape)], 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-LONGEST] = -100
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, **inputs)
    return output.log_probs[:, -LONGEST:], output.entropy[:, -LONGEST:]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
