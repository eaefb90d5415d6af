"""One short training run, by TRL's trainer or by ours; also a program for ``torchrun``.

With arguments ``CLASS OUTPUT JSON`` it writes what rank r saw to ``OUTPUT.r``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig
from shared_prefix_cases import image, sharpen
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from virft.shared_prefix_config import SharedPrefixConfig
from virft.shared_prefix_trainer import SharedPrefixGRPOTrainer

CLASSES = {"stock": (GRPOTrainer, GRPOConfig), "shared": (SharedPrefixGRPOTrainer, SharedPrefixConfig)}
SIZES = [(112, 84), (84, 112), (112, 112), (56, 140)]
LOGGED = ("loss", "grad_norm", "reward", "completions/mean_length", "eval_loss", "eval_reward", "eval_kl")
DEFAULTS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "steps_per_generation": 2,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 12,
    "max_steps": 2,
    "beta": 0.04,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "temperature": 0.9,
    "logging_steps": 1,
    "seed": 7,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def sharpened(folder: Path, target: Path) -> str:
    """A copy of a tiny model whose weights matter (see ``shared_prefix_cases.sharpen``)."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    sharpen(model)
    model.save_pretrained(target)
    AutoProcessor.from_pretrained(folder, padding_side="left").save_pretrained(target)
    return str(target)


def rows(counts: tuple[int, ...] = (1,)) -> Dataset:
    """Sixteen rows; the i-th shows ``counts[i % len(counts)]`` images of different sizes."""
    made = []
    for i in range(16):
        count = counts[i % len(counts)]
        words = {"type": "text", "text": "Detect all cats. " * (1 + i % 3)}
        content = [{"type": "image"}] * count + [words]
        images = [image(*SIZES[(i + j) % 4], seed=10 * i + j) for j in range(count)]
        made.append({"prompt": [{"role": "user", "content": content}], "images": images})
    return Dataset.from_list(made)


def build(
    which: str,
    model: str,
    output: Path,
    *,
    adapter: list[str] | PeftConfig | None = None,
    freeze_vision: bool = False,
    counts: tuple[int, ...] = (1,),
    rewards: Any = None,
    **settings: Any,
) -> tuple[Any, list]:
    """A trainer, and the list to which its reward appends the replies it sees."""
    seen: list[list[list[int]]] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.append([list(ids) for ids in completion_ids])
        return [float(sum(ids) % 7) for ids in completion_ids]

    if isinstance(adapter, list):
        adapter = LoraConfig(r=4, target_modules=adapter, lora_dropout=0.0)
    trainer_class, config_class = CLASSES[which]
    defaults = DEFAULTS | {"use_cpu": "deepspeed" not in settings, "output_dir": str(output)}
    args = config_class(**(defaults | settings))
    data = rows(tuple(counts))
    trainer = trainer_class(
        model=model,
        reward_funcs=[rewards or reward],
        args=args,
        train_dataset=data,
        eval_dataset=data.select(range(3)) if args.eval_strategy != "no" else None,
        processing_class=AutoProcessor.from_pretrained(model, padding_side="left"),
        peft_config=adapter,
    )
    if freeze_vision:
        unwrapped = trainer.accelerator.unwrap_model(trainer.model)
        base = unwrapped.get_base_model() if adapter else unwrapped
        base.model.visual.requires_grad_(False)
    return trainer, seen


def run(which: str, model: str, output: Path, **settings: Any) -> dict[str, Any]:
    """Train; what was sampled, what was logged, and the weights that learnt."""
    trainer, seen = build(which, model, output, **settings)
    trainer.train()
    log = [
        {k: row[k] for k in LOGGED if k in row}
        for row in trainer.state.log_history
        if "loss" in row or "eval_loss" in row
    ]
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    weights = {n: p.detach().float().clone() for n, p in named if p.requires_grad}
    return {"seen": seen, "log": log, "weights": weights, "trainer": trainer}


def main() -> None:
    """One rank of a run under ``torchrun``."""
    which, output, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    found = run(which, settings.pop("model"), output.parent / "out", **settings)
    found.pop("trainer")
    torch.save(found, f"{output}.{os.environ['RANK']}")


if __name__ == "__main__":
    main()
