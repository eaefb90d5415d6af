"""Whether a checkpoint can be gone on from with the flags of this run, found before any weights load."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virft.checkpoint import Manifest, read_manifest
from virft.errors import UserError

logger = logging.getLogger(__name__)

LEARNING = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "beta",
    "loss_type",
    "epsilon",
    "epsilon_high",
    "scale_rewards",
    "importance_sampling_level",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_completion_length",
    "min_pixels",
    "max_pixels",
    "coordinates",
    "system_prompt",
    "freeze_vision",
    "inject_solution",
    "bf16",
    "fp16",
)
"""Settings that change what is learnt, but not which rows come next."""
OPTIMIZER = frozenset({"learning_rate", "lr_scheduler_type", "weight_decay", "adam_beta1", "adam_beta2"})
"""Of these, what a checkpoint's optimizer and schedule bring along."""


def circumstances(args: Any) -> dict[str, Any]:
    """What a run's settings do not say and resuming must know: processes, and the stage of ZeRO."""
    plugin = getattr(args, "deepspeed_plugin", None)
    return {"world_size": args.world_size, "zero_stage": plugin.zero_stage if plugin is not None else None}


def check_same_run(folder: Path | None, args: Any, data: Mapping[str, Any], lora: bool, program: str) -> None:
    """Refuse to go on with other rows, or in another order of rows, than a checkpoint was made with.

    Such a run would leave rows out and repeat others without a word. What only changes how is learnt is
    warned about.

    Args:
        folder: the checkpoint; None where the run starts afresh.
        args: the settings of this run.
        data: of its rows, see :func:`virft.data.training.data_summary`.
        lora: whether it trains LoRA.
        program: "grpo" or "sft".

    Raises:
        UserError: naming what differs, with the mend.
    """
    manifest = read_manifest(folder) if folder else None
    if manifest is None:
        return
    mend = (
        "use the same, or start a new run from its weights: --model_name_or_path "
        f"{folder} with another --output_dir"
    )
    if manifest.program != program:
        raise UserError(f"{folder} is of {manifest.program}.py, and this is {program}.py; {mend}")
    known = manifest.data.get("hash")
    if known is not None and known != data["hash"]:
        raise UserError(
            f"{folder} was trained on other rows ({_rows(manifest.data)} then, {_rows(data)} now); {mend}"
        )
    if (had := (folder / "adapter_config.json").is_file()) != lora:
        was, now = ("a LoRA adapter", "--use_peft is off") if had else ("a whole model", "--use_peft is on")
        raise UserError(f"{folder} holds {was} and {now}; {mend}")
    then, now = {**manifest.config}, args.to_dict() | circumstances(args)
    if "world_size" in then:  # else made before this was written down
        _check_order(folder, then, now, mend)
    _warn(folder, manifest, now)


def _check_order(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any], mend: str) -> None:
    earlier, present = order(then), order(now)
    differing = [name for name, value in present.items() if earlier.get(name, value) != value]
    if differing:
        what = "; ".join(f"{name}: {earlier[name]} then, {present[name]} now" for name in differing)
        raise UserError(
            f"{folder} was made with other settings that decide which rows come next ({what}); {mend}"
        )
    sharded = [c["zero_stage"] for c in (then, now)]
    if sharded[0] != sharded[1] or (sharded[1] is not None and then["world_size"] != now["world_size"]):
        shown = [_deepspeed(c) for c in (then, now)]
        raise UserError(f"{folder} holds an optimizer of {shown[0]}, which {shown[1]} cannot read; {mend}")


def order(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which rows a run takes when, by name, over all processes together."""
    batch = config["per_device_train_batch_size"] * config["world_size"]
    group = config.get("num_generations") or 1
    found = {
        "--seed": config["seed"],
        "--data_seed": config.get("data_seed"),
        "prompts a step": batch * config["gradient_accumulation_steps"] // group,
    }
    if "num_generations" in config:
        found |= {
            "--num_generations": group,
            "--num_iterations": config["num_iterations"],
            "prompts a generation": batch * config["steps_per_generation"] // group,
        }
    return found


def _rows(data: Mapping[str, Any]) -> str:
    return f"{data.get('rows')} of {data.get('name')}, hash {data.get('hash')}"


def _deepspeed(config: Mapping[str, Any]) -> str:
    if config["zero_stage"] is None:
        return "a run without DeepSpeed"
    return f"ZeRO-{config['zero_stage']} on {config['world_size']} processes"


def _warn(folder: Path, manifest: Manifest, now: Mapping[str, Any]) -> None:
    then = manifest.config
    differing = [n for n in LEARNING if n in then and n in now and str(then[n]) != str(now[n])]
    if not differing:
        return
    what = ", ".join(f"{name} {then[name]} then, {now[name]} now" for name in differing)
    kept = [name for name in differing if name in OPTIMIZER]
    stays = f"; of these the checkpoint's own stay in force: {', '.join(kept)}" if kept else ""
    logger.warning("going on from %s with other settings (%s)%s", folder, what, stays)
