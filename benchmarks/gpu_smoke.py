"""Does GRPO train at real size on this GPU? ``python benchmarks/gpu_smoke.py`` (under ten minutes, nothing
downloaded).

Qwen2-VL-2B's and Qwen2.5-VL-3B's shapes with random weights in bfloat16, LoRA, gradient checkpointing, groups
of eight through the policy in pieces, three steps each; prints the peak memory and the time of a step. The
processor is the tiny model's, so prompts are short in text; images have their real number of tokens.
``--tiny`` runs the same on tiny models, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from virft import tiny
from virft.data.training import load_rows, to_prompts
from virft.settings import LANGUAGE_LINEARS
from virft.trainer import VisualRFTConfig, VisualRFTTrainer

TEXT = {"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768}
ROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_vl": {
        "text_config": {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
        },
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "num_heads": 16,
            "mlp_ratio": 4,
            "hidden_size": 1536,
        },
    },
    "qwen2_5_vl": {
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
}
"""Family -> what Qwen2-VL-2B and Qwen2.5-VL-3B have other than the tiny model's configuration."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and run both families."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=tiny.FAMILIES, help="one of the two; default: both")
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU too")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--max_completion_length", type=int, default=256)
    parser.add_argument("--completions_per_forward", type=int, default=4)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and not args.tiny:
        sys.exit("error: no CUDA device; --tiny runs without one")
    for family in [args.family] if args.family else tiny.FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(family, Path(folder), args)), flush=True)


def build(family: str, folder: Path, small: bool) -> tuple[PreTrainedModel, Path]:
    """A model with random weights and the folder of its processor."""
    processor = tiny.build(folder / "tiny", family=family)
    config = AutoConfig.from_pretrained(processor)
    if not small:
        for part, values in SHAPES[family].items():
            own = getattr(config, part)
            for name, value in (values | (TEXT if part == "text_config" else {})).items():
                setattr(own, name, value)
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
        config.text_config.rope_parameters = dict(ROPE)
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32 if small else torch.bfloat16, attn_implementation="sdpa"
        )
    own = AutoModelForImageTextToText.from_pretrained(processor).generation_config
    model.generation_config = own
    return model, processor


def write_rows(folder: Path, count: int) -> Path:
    """``count`` rows with an image of 640 x 480 pixels each."""
    rows = []
    for number in range(count):
        Image.effect_noise((640, 480), 60).convert("RGB").save(folder / f"{number}.png")
        solution = "<answer>[{'Position': [0, 0, 500, 500], 'Confidence': 1}]</answer>"
        rows.append({"image": f"{number}.png", "problem": "Find the cat.", "solution": solution})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "rows.json"


def different_letters(completions: Any, **columns: Any) -> list[float]:
    """A reward that random replies differ in."""
    return [len(set(completion[0]["content"])) / 50 for completion in completions]


def run(family: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps.

    Returns:
        Family, parameters, seconds of the last step, peak memory in GiB (None on a CPU), and the losses.
    """
    model, source = build(family, folder, args.tiny)
    pixels = 12544 if args.tiny else 401408
    config = VisualRFTConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=1,
        num_generations=8,
        completions_per_forward=args.completions_per_forward,
        max_completion_length=16 if args.tiny else args.max_completion_length,
        max_steps=args.steps,
        max_pixels=pixels,
        gradient_checkpointing=True,
        learning_rate=1e-5,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    processor = AutoProcessor.from_pretrained(source, min_pixels=3136, max_pixels=pixels, padding_side="left")
    rows = to_prompts(load_rows(str(write_rows(folder, max(4, args.steps)))))
    lora = LoraConfig(r=16, target_modules=LANGUAGE_LINEARS, task_type="CAUSAL_LM")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer = VisualRFTTrainer(model, [different_letters], config, rows, None, processor, peft_config=lora)
    start = time.perf_counter()
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return {
        "family": family,
        "parameters": sum(p.numel() for p in trainer.base_model().parameters()),
        "seconds": round(time.perf_counter() - start, 2),
        "last_step_seconds": round(lines[-1]["step_time"], 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if torch.cuda.is_available()
        else None,
        "losses": [line["loss"] for line in lines],
    }


if __name__ == "__main__":
    main()
