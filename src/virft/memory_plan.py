"""What the flags of a GRPO run mean for memory, and which other flags would save some."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virft.boxes import TOKEN_SIDE
from virft.errors import UserError
from virft.grpo_config import VisualRFTConfig
from virft.model_setup import model_options
from virft.settings import ModelArguments
from virft.shared_prefix_config import decide

BUCKET = 5e8
"""DeepSpeed's default of reduce_bucket_size and allgather_bucket_size, in elements
(deepspeed.ai/docs/config-json)."""


@dataclass(frozen=True)
class Plan:
    """What memory depends on besides the model; a flag is a field, so that alternatives are a ``replace``.

    Attributes:
        devices: W.
        stage: ZeRO stage, 0 without DeepSpeed.
        offload_optimizer, offload_parameters: to the host's memory.
        bucket: bytes of DeepSpeed's communication buckets.
        live: parameters that ZeRO-3 may hold gathered at once.
        lora, lora_vision, freeze_vision, checkpointing, reference: what the names say.
        mask: bytes a number of LoRA's dropout mask, 0 without dropout.
        weight, activation: bytes a number.
        autocast: whether weights in float32 are used in half precision.
        optimizer: bytes of optimizer state a trained parameter, without DeepSpeed.
        prompt: tokens of the longest prompt, visual ones included. visual: of which visual, over its images.
        completion: tokens of the longest reply.
        rows: completions of a micro-batch. branches: of them in one packed row, 1 where nothing is packed.
        per_image: completions of a micro-batch that share one encoding of their image.
        sampled: completions sampled together on a device. prefills: copies of prompts that their cache holds.
    """

    devices: int = 1
    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket: float = 0.0
    live: float = 1e9
    lora: bool = False
    lora_vision: bool = False
    freeze_vision: bool = False
    mask: float = 1.0
    checkpointing: bool = False
    reference: bool = True
    weight: float = 2
    activation: float = 2
    autocast: bool = False
    optimizer: float = 8
    prompt: int = 1024
    visual: int = 512
    completion: int = 1024
    rows: int = 8
    branches: int = 8
    per_image: int = 8
    sampled: int = 8
    prefills: int = 1


def plan_of(
    config: Any,
    model: ModelArguments,
    args: VisualRFTConfig,
    devices: int,
    deepspeed: str | None,
    prompt: int,
    visual: int,
) -> Plan:
    """What the flags of a run mean for memory.

    Args:
        config: the model's.
        model, args: the flags.
        devices: processes of the run.
        deepspeed: the DeepSpeed file, None without.
        prompt: tokens of the longest prompt that is trained on.
        visual: visual tokens among them.

    Raises:
        UserError: see :func:`zero_settings`.
    """
    zero = zero_settings(deepspeed)
    dtype = model_options(model, bool(args.bf16), bool(zero))["dtype"]
    half = bool(args.bf16 or args.fp16)
    weight = 2.0 if dtype in ("bfloat16", "float16") else 4.0
    if model.load_in_4bit or model.load_in_8bit:
        weight = 0.55 if model.load_in_4bit else 1.05  # with the scales of each block of weights
    activation = 2.0 if half or weight == 2.0 else 4.0
    # A CPU keeps the mask of a dropout as numbers, a GPU as booleans.
    mask = activation if args.use_cpu and not half else 1.0
    sharing = decide(args, config)
    sampled = args.per_device_train_batch_size * args.steps_per_generation
    return Plan(
        devices=devices,
        **zero,
        lora=model.use_peft,
        lora_vision=model.lora_vision,
        mask=mask if model.lora_dropout else 0.0,
        freeze_vision=args.freeze_vision,
        checkpointing=bool(args.gradient_checkpointing),
        reference=args.beta != 0,
        weight=weight,
        activation=activation,
        autocast=half and weight == 4.0,
        optimizer=2.0 if "8bit" in str(args.optim) else 2 * max(weight, 2.0),
        prompt=prompt,
        visual=visual,
        completion=args.max_completion_length,
        rows=args.per_device_train_batch_size,
        branches=sharing.train.forward if sharing.logps == "packed" else 1,
        per_image=sharing.train.forward if sharing.logps != "off" else 1,
        sampled=0 if args.use_vllm else sampled,
        prefills=sampled // sharing.train.generation if sharing.generation == "shared" else sampled,
    )


def zero_settings(deepspeed: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a :class:`Plan` that a DeepSpeed file decides.

    Raises:
        UserError: no such file, not JSON, or not of DeepSpeed's form.
    """
    if not deepspeed:
        return {}
    name = deepspeed if isinstance(deepspeed, str) else "(given as a dictionary)"
    if isinstance(deepspeed, str):
        try:
            deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"--deepspeed {name}: no readable JSON ({error})") from error
    try:
        return _zero_fields(deepspeed)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"--deepspeed {name}: not of DeepSpeed's form ({error})") from error


def _zero_fields(deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    zero = deepspeed.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    if stage not in range(4):
        raise ValueError(f"ZeRO has no stage {stage}")
    bucket = zero.get("reduce_bucket_size", BUCKET)
    # "auto" is hidden_size squared (transformers' integration): millions, lost beside the rest.
    numbers = 0 if bucket == "auto" else float(bucket) * (2 if zero.get("overlap_comm") else 1)
    live = zero.get("stage3_max_live_parameters", 1e9)
    return {
        "stage": stage,
        "offload_optimizer": zero.get("offload_optimizer", {}).get("device", "none") != "none",
        "offload_parameters": zero.get("offload_param", {}).get("device", "none") != "none",
        "bucket": 2.0 * numbers if stage else 0.0,
        "live": 1e9 if live == "auto" else float(live),
    }


def alternatives(plan: Plan) -> list[tuple[str, dict[str, Any]]]:
    """Flags not yet in use that save memory without changing the method, each with the fields it changes."""
    options: list[tuple[str, dict[str, Any]]] = []
    if not plan.checkpointing:
        options.append(("--gradient_checkpointing true", {"checkpointing": True}))
    for piece in {plan.rows // 2, 1} if plan.rows > 1 else ():
        options.append((f"--completions_per_forward {piece}", _in_pieces(plan, piece)))
    if not plan.freeze_vision and not plan.lora:
        options.append(("--freeze_vision true", {"freeze_vision": True}))
    if plan.reference and not plan.lora:
        options.append(("--beta 0", {"reference": False}))
    # DeepSpeed's weights are bfloat16 with float32 masters.
    zero = {"stage": 3, "weight": 2.0, "activation": 2.0, "autocast": False, "bucket": 0.0}
    if not plan.lora and plan.devices > 1 and plan.stage < 3:
        options.append(("--deepspeed local_scripts/zero3.json", zero))
    if not plan.lora and not plan.offload_optimizer:
        offloaded = zero | {"offload_optimizer": True, "offload_parameters": True}
        options.append(("--deepspeed local_scripts/zero3_offload.json", offloaded))
    if plan.completion > 1:
        half = plan.completion // 2
        options.append((f"--max_completion_length {half}", {"completion": half}))
    if half := plan.visual // 2:
        options.append(
            (f"--max_pixels {half * TOKEN_SIDE**2}", {"visual": half, "prompt": plan.prompt - half})
        )
    return options


def _in_pieces(plan: Plan, piece: int) -> dict[str, Any]:
    branches = min(plan.branches, piece) if plan.branches > 1 else 1
    return {"rows": piece, "branches": branches, "per_image": min(plan.per_image, piece)}
