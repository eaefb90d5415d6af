"""What a run's memory goes to, and what to do when the GPU runs out of it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

PARTS = {"vision": "visual", "language": "language_model", "head": "lm_head"}
"""Part of the model -> the word in its parameters' names."""


def trainable_table(model: PreTrainedModel) -> str:
    """Trainable and all parameters by part of the model, as lines of text."""
    counts = {part: [0, 0] for part in (*PARTS, "other")}
    for name, parameter in model.named_parameters():
        part = next((part for part, word in PARTS.items() if word in name), "other")
        size = getattr(parameter, "ds_numel", parameter.numel())
        counts[part][1] += size
        counts[part][0] += size if parameter.requires_grad else 0
    rows = [f"  {part:<10}{t:>16,} of {a:>16,}" for part, (t, a) in counts.items() if a]
    total = [sum(c[i] for c in counts.values()) for i in (0, 1)]
    return "\n".join(["trainable parameters", *rows, f"  {'all':<10}{total[0]:>16,} of {total[1]:>16,}"])


def out_of_memory_advice(args: Any, lora: bool) -> str:
    """The flags not yet in use that would help a GRPO run, most saving first, as lines of text.

    Args:
        args: a :class:`virft.trainer.VisualRFTConfig`.
        lora: whether LoRA is in use.
    """
    stage = args.deepspeed_plugin.zero_stage if args.deepspeed_plugin is not None else 0
    piece, group = args.per_device_train_batch_size, args.num_generations
    options = [
        (
            not lora,
            "--use_peft true: LoRA needs no optimizer state and gradients for the base, nor a reference",
        ),
        (
            not lora and stage < 3,
            "--deepspeed local_scripts/zero3.json: parameters and optimizer on all GPUs",
        ),
        (
            not lora and stage == 3,
            "--deepspeed local_scripts/zero3_offload.json: optimizer in the host's memory",
        ),
        (not args.gradient_checkpointing, "--gradient_checkpointing true: activations are recomputed"),
        (piece > 1, f"--completions_per_forward {max(1, min(piece // 2, group))}: now {piece} at once"),
        (
            args.prompts_per_device > 1,
            "--per_device_train_batch_size 1 and more --gradient_accumulation_steps",
        ),
        (args.beta != 0 and not lora, "--beta 0: no reference model"),
        (True, f"--max_pixels, now {args.max_pixels}: fewer visual tokens"),
        (True, f"--max_completion_length, now {args.max_completion_length}: shorter replies"),
        (not args.freeze_vision and not lora, "--freeze_vision true: the vision tower is not trained"),
        (args.bf16 is not True and not args.use_cpu, "--bf16 true: half of every activation"),
    ]
    helpful = [text for applies, text in options if applies]
    return "out of memory; what would help here, most saving first:\n" + "\n".join(f"  {t}" for t in helpful)
