"""What a GRPO run would do and whether it would fit, before any weights are loaded.

``python -m virft.doctor --model_name_or_path ... --dataset_name ... FLAGS OF grpo.py [--devices 8]
[--device_gib 80]``

Takes the flags of ``grpo.py`` (``--model`` and ``--dataset`` are short for the first two) and reports:
versions and pairs that do not go together; visual tokens an image takes at this pixel budget; how many
prompts are above the limit and how many solutions above the completion length; prompts and completions a
step; an estimate of peak memory per device (formulas: ``virft/memory_estimate.py``), and where it does not
fit, flags that would make it. Exit code 0: it can run; 1: something named here stands against it; 2: bad
input.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import datasets
import torch
from packaging.requirements import Requirement

from virft.checkpoint import installed_versions
from virft.data.lengths import prompt_lengths, visual_tokens
from virft.data.training import prepared_rows, target_text
from virft.errors import UserError
from virft.grpo_config import VisualRFTConfig
from virft.memory_estimate import GIB, Shape, estimate, shape_of, ways_to_fit
from virft.memory_plan import Plan, plan_of
from virft.model_setup import check_model, load_processor, resolve_vision
from virft.programs import run_program
from virft.rewards import check_solutions
from virft.rewards.arguments import RewardArguments, rewards_of
from virft.settings import ModelArguments, RowArguments, parse_flags, quiet_libraries

RENAMED = {
    "--model": "--model_name_or_path",
    "--dataset": "--dataset_name",
    # DeepSpeed would start its communication; a CPU stands in for the GPU that may not be here.
    "--deepspeed": "--deepspeed_file",
}
"""Flags as they are typed -> as they are parsed."""
PACKAGES = (
    "virft",
    "torchvision",
    "trl",
    "transformers",
    "accelerate",
    "peft",
    "vllm",
    "deepspeed",
    "flash-attn",
)
"""Packages whose own requirements are compared with what is installed."""


@dataclass
class DoctorArguments:
    """The machine that the run is meant for."""

    devices: int = field(
        default=1, metadata={"help": "Processes of the run: torchrun's nproc_per_node x nnodes."}
    )
    device_gib: float | None = field(
        default=None,
        metadata={"help": "Memory of a device in GiB; default: this machine's GPU, else no judgement."},
    )
    deepspeed_file: str | None = field(
        default=None, metadata={"help": "Filled from --deepspeed, which is read here and not started."}
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Report; exits with 1 when something stands against the run."""
    quiet_libraries()
    arguments = list(sys.argv[1:] if argv is None else argv)
    doctor, rows_args, rewards, model, args = parse(arguments)
    problems: list[str] = []
    for title, lines in report(doctor, rows_args, rewards, model, args, problems):
        sys.stdout.write(f"{title}\n" + "".join(f"  {line}\n" for line in lines))
    if problems:
        sys.stdout.write("against it\n" + "".join(f"  {problem}\n" for problem in problems))
        sys.exit(1)
    sys.stdout.write("nothing found against it\n")


def parse(
    arguments: list[str],
) -> tuple[DoctorArguments, RowArguments, RewardArguments, ModelArguments, VisualRFTConfig]:
    """The doctor's flags and those of ``grpo.py``, made ready for a machine that need not be this one."""
    arguments = [_renamed(word) for word in arguments]
    if not any(word.split("=")[0] == "--output_dir" for word in arguments):
        arguments += ["--output_dir", "doctor"]
    here = torch.cuda.is_available()
    says = {word.split("=")[0] for word in arguments}
    meant_for_cpu = "--use_cpu" in says
    if not here and not meant_for_cpu:
        arguments += ["--use_cpu", "true"]
    if not here and not meant_for_cpu and not says & {"--bf16", "--fp16"}:
        arguments += ["--bf16", "true"]
    classes = (DoctorArguments, RowArguments, RewardArguments, ModelArguments, VisualRFTConfig)
    parsed = parse_flags(classes, arguments)
    if parsed[0].devices < 1:
        raise UserError("--devices must be at least 1")
    if parsed[0].device_gib is not None and not 0 < parsed[0].device_gib < inf:
        raise UserError(f"--device_gib {parsed[0].device_gib} must be a positive number of GiB")
    return parsed


def _renamed(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{RENAMED.get(flag, flag)}{equals}{value}"


def report(
    doctor: DoctorArguments,
    rows_args: RowArguments,
    rewards: RewardArguments,
    model: ModelArguments,
    args: VisualRFTConfig,
    problems: list[str],
) -> Iterator[tuple[str, list[str]]]:
    """The sections of the report, each (title, lines); what stands against the run is added to
    ``problems``."""
    yield "versions", list(_versions(problems))
    config = check_model(model, args)
    resolve_vision(args, model.model_name_or_path, config)
    processor = load_processor(model.model_name_or_path, args, model.model_revision)
    limit, args.max_prompt_length = args.max_prompt_length, None
    rows = prepared_rows(
        rows_args.dataset_name, rows_args.dataset_train_split, rows_args.image_folder, args, processor
    )
    args.max_prompt_length = limit
    lengths = prompt_lengths(rows, processor)
    visual = visual_tokens(rows, processor)
    yield "rows", list(_rows(rows, lengths, visual, args, processor, problems))
    yield "rewards", list(_rewards(rewards, rows, problems))
    yield "batch", list(_batch(len(rows), doctor, args, problems))
    kept = [i for i, length in enumerate(lengths) if limit is None or length <= limit] or range(len(lengths))
    longest = max(kept, key=lambda i: lengths[i])
    rank = model.lora_r if model.use_peft else 0
    shape = shape_of(config, model.lora_target_modules, rank)
    config._attn_implementation = model.attn_implementation
    plan = plan_of(
        config, model, args, doctor.devices, doctor.deepspeed_file, lengths[longest], visual[longest]
    )
    yield "memory of a device", list(_memory(shape, plan, doctor, args, problems))


def _versions(problems: list[str]) -> Iterator[str]:
    yield ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    problems += conflicts()


def conflicts() -> list[str]:
    """Installed packages outside of what another installed package asks for, one sentence each."""
    found = []
    for package in PACKAGES:
        try:
            requirements = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in requirements:
            wanted = Requirement(text)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            try:
                version = importlib.metadata.version(wanted.name)
            except importlib.metadata.PackageNotFoundError:
                found.append(f"{package} needs {wanted.name}, which is not installed: bash setup.sh")
                continue
            # A local label such as +cu130 is another build of the same version.
            if not wanted.specifier.contains(version.split("+")[0], prereleases=True):
                have = importlib.metadata.version(package)
                found.append(
                    f"{package} {have} wants {wanted.name} {wanted.specifier}, but {version} is installed: "
                    "bash setup.sh"
                )
    return found


def _rows(
    rows: datasets.Dataset,
    lengths: list[int],
    visual: list[int],
    args: VisualRFTConfig,
    processor: Any,
    problems: list[str],
) -> Iterator[str]:
    yield f"{len(rows)} rows, coordinates {args.coordinates}, pixels {args.min_pixels} to {args.max_pixels}"
    yield f"visual tokens a row    {_spread(visual)}"
    yield f"prompt tokens a row    {_spread(lengths)}"
    if args.max_prompt_length is not None:
        long = sum(length > args.max_prompt_length for length in lengths)
        yield f"above --max_prompt_length {args.max_prompt_length}: {long} ({long / len(rows):.1%})"
        if long and (not args.skip_long_prompts or long == len(rows)):
            problems.append(
                f"{long} prompts are above --max_prompt_length {args.max_prompt_length}: raise it to "
                f"{max(lengths)}, lower --max_pixels, or pass --skip_long_prompts true"
            )
    texts = [target_text(row) for row in rows.remove_columns(["images", "prompt"])]
    solutions = [len(ids) + 1 for ids in processor.tokenizer(texts)["input_ids"]]
    cut = sum(length > args.max_completion_length for length in solutions)
    yield f"solution tokens a row  {_spread(solutions)} (a reply thinks before it)"
    if cut:
        problems.append(
            f"{cut} solutions are longer than --max_completion_length {args.max_completion_length}: no reply "
            f"to them can be right; raise it above {max(solutions)}, or leave those rows out"
        )


def _rewards(arguments: RewardArguments, rows: datasets.Dataset, problems: list[str]) -> Iterator[str]:
    rewards = rewards_of(arguments, rows["task"] if "task" in rows.column_names else [None] * len(rows))
    yield ", ".join(reward.name for reward in rewards)
    # A reward of the user's own may want images, decoded: only training runs it.
    known = [reward for reward in rewards if reward.maximum is not None]
    if not arguments.skip_solution_check:
        try:
            check_solutions(known, rows.remove_columns(["images", "prompt"]))
        except UserError as error:
            problems.append(str(error))


def _spread(values: Sequence[int]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]} to {ordered[-1]}, half of them up to {ordered[len(ordered) // 2]}"


def _batch(rows: int, doctor: DoctorArguments, args: VisualRFTConfig, problems: list[str]) -> Iterator[str]:
    # The configuration was made in one process; every count is a device's.
    prompts, completions = args.prompts_per_step * doctor.devices, args.completions_per_step * doctor.devices
    yield f"prompts/step           {prompts}"
    yield f"completions/step       {completions} ({args.num_generations} a prompt, {doctor.devices} devices)"
    together = args.prompts_per_generation * doctor.devices
    if rows < together:
        problems.append(
            f"{rows} rows are fewer than the {together} prompts of one generation: lower --devices, "
            "--per_device_train_batch_size or --gradient_accumulation_steps"
        )
    else:
        yield f"steps/epoch            {rows // together * together // prompts * args.num_iterations}"


def _memory(
    shape: Shape, plan: Plan, doctor: DoctorArguments, args: VisualRFTConfig, problems: list[str]
) -> Iterator[str]:
    made = estimate(shape, plan)
    yield f"{shape.parameters / 1e9:.2f} billion parameters, {shape.vision / 1e9:.2f} of them vision" + (
        f"; LoRA trains {shape.adapter / 1e6:.1f} million" if plan.lora else ""
    )
    if plan.lora and not shape.adapter:
        problems.append("LoRA would train nothing: no layer is called as --lora_target_modules says")
    for phase, parts in (("training", made.training), ("sampling", made.sampling)):
        shown = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size > GIB / 100)
        yield f"{phase:<9} {sum(parts.values()) / GIB:6.2f} GiB: {shown}"
    yield f"peak      {made.peak / GIB:6.2f} GiB with context and slack"
    if args.use_vllm:
        yield "vLLM's own memory is not in it"
    limit = doctor.device_gib
    if limit is None and torch.cuda.is_available():
        limit = torch.cuda.get_device_properties(0).total_memory / GIB
    if limit is None:
        yield "no GPU here: pass --device_gib to be told whether it fits"
        return
    yield f"a device has {limit:.1f} GiB"
    if made.peak > limit * GIB:
        ways = ways_to_fit(shape, plan, limit * GIB)
        problems.append(
            f"out of memory: {made.peak / GIB:.1f} GiB on a device of {limit:.1f}; "
            + (
                f"would fit with {' or with '.join(ways)}"
                if ways
                else "no flag alone or pair of flags makes it fit"
            )
        )


if __name__ == "__main__":
    sys.exit(run_program(main))
