"""Train with GRPO: ``torchrun --nproc_per_node=8 src/virft/grpo.py --model_name_or_path ... --dataset_name
...``.

Every flag of the reference's command is accepted with its meaning; ``--help`` lists all. What can be wrong
with the input is found before any weights are loaded.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Run by path, this folder comes first on the path, and its types.py would hide the standard library's.
    sys.path.pop(0)

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from virft.checkpoint import Manifest, resume_folder
from virft.data.training import data_summary, rows_and_held_out, target_text
from virft.errors import UserError
from virft.held_out import choose_best
from virft.images import open_rgb
from virft.metrics.rows import LOWER_IS_BETTER, RowMetric
from virft.model_files import check_weights
from virft.model_setup import lora_and_quantization, prepare_model
from virft.programs import claimed, run_program
from virft.resuming import check_same_run
from virft.rewards import Reward, check_solutions
from virft.rewards.arguments import RewardArguments, rewards_of
from virft.settings import ModelArguments, RowArguments, check_held_out, parse_flags, quiet_libraries
from virft.survival import StopOnSignal, train_and_save
from virft.trainer import VisualRFTConfig, VisualRFTTrainer


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, check everything, train, save."""
    quiet_libraries()
    train(*parse_flags((RowArguments, RewardArguments, ModelArguments, VisualRFTConfig), argv))


def train(
    rows_args: RowArguments, reward_args: RewardArguments, model: ModelArguments, args: VisualRFTConfig
) -> None:
    """One run, from parsed flags to a saved model."""
    check_held_out(rows_args, args)
    processor = prepare_model(model, args)
    with claimed("--output_dir", args.output_dir):
        resume = resume_folder(args.output_dir, args.resume_from_checkpoint)
        rows, held_out = rows_and_held_out(rows_args, args, processor)
        rewards = choose_rewards(reward_args, args, rows)
        metric = None
        if held_out is not None:
            metric = RowMetric(reward_args.task, args.coordinates, args.min_pixels, args.max_pixels)
            choose_best(args, metric.names, LOWER_IS_BETTER)
        peft_config, quantization = lora_and_quantization(model)
        stop = StopOnSignal().install()
        summary = data_summary(rows, rows_args.dataset_name, rows_args.dataset_train_split)
        check_same_run(resume, args, summary, model.use_peft, "grpo")
        check_weights(model.model_name_or_path)
        trainer = VisualRFTTrainer(
            model.model_name_or_path,
            rewards,
            args,
            rows,
            held_out,
            processor,
            manifest=Manifest.of_run(args, reward_args.task, summary),
            metric=metric,
            target=target_text,
            callbacks=[stop],
            peft_config=peft_config,
            quantization_config=quantization,
        )
        trainer.announce()
        train_and_save(trainer, resume, stop)


def choose_rewards(arguments: RewardArguments, args: VisualRFTConfig, rows: datasets.Dataset) -> list[Reward]:
    """The rewards of a run, each checked to give its maximum to the solutions of its rows.

    Raises:
        UserError: see :func:`virft.rewards.arguments.rewards_of`; weights that do not fit, or a solution that
            is not worth the maximum.
    """
    rewards = rewards_of(arguments, rows["task"] if "task" in rows.column_names else [None] * len(rows))
    if args.reward_weights is not None and len(args.reward_weights) != len(rewards):
        raise UserError(
            f"--reward_weights has {len(args.reward_weights)} numbers for {len(rewards)} rewards "
            f"({', '.join(reward.name for reward in rewards)}); give one each"
        )
    if not arguments.skip_solution_check:
        check_solutions(rewards, rows_to_check(rows, rewards))
    return rewards


def rows_to_check(rows: datasets.Dataset, rewards: Sequence[Reward]) -> Iterable[Mapping[str, Any]]:
    """Rows for the check on solutions; images are decoded only where a user's own reward may look at them."""
    if all(reward.maximum is not None for reward in rewards):
        return rows.remove_columns(["images", "prompt"])
    return ({**row, "images": [open_rgb(image) for image in row["images"]]} for row in rows)


if __name__ == "__main__":
    sys.exit(run_program(main))
