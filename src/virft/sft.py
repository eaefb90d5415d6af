"""Supervised fine-tuning on the same rows and prompts as GRPO: the baseline, and the warm-up.

``python src/virft/sft.py --model_name_or_path ... --dataset_name ... --output_dir ...``; under torchrun for
several devices. The model learns a row's target alone, never the prompt: the column ``completion`` where a
row has one (``--completion_column`` names another), else ``<think>`` + the column ``thinking`` +
``</think>`` + the solution.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Run by path, this folder comes first on the path, and its types.py would hide the standard library's.
    sys.path.pop(0)

from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets

from virft.checkpoint import Manifest, resume_folder
from virft.data.training import data_summary, rows_and_held_out, target_text
from virft.errors import UserError
from virft.held_out import StopAt, check_metric, choose_best
from virft.metrics.rows import LOWER_IS_BETTER, RowMetric
from virft.model_files import check_weights
from virft.model_setup import lora_and_quantization, prepare_model
from virft.programs import claimed, run_program
from virft.resuming import check_same_run
from virft.settings import ModelArguments, RowArguments, check_held_out, parse_flags, quiet_libraries
from virft.sft_trainer import VisualSFTConfig, VisualSFTTrainer
from virft.survival import StopOnSignal, train_and_save


@dataclass
class TargetArguments:
    """What is taught, and when it is enough."""

    task: str = field(
        default="detection", metadata={"help": "The task whose metric held-out rows are scored by."}
    )
    completion_column: str = field(
        default="completion", metadata={"help": "Column with whole replies to teach; rows may go without."}
    )
    stop_metric: str | None = field(
        default=None,
        metadata={"help": "End training when this metric of held-out rows reaches --stop_value."},
    )
    stop_value: float | None = field(default=None, metadata={"help": "See --stop_metric."})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, check everything, train, save."""
    quiet_libraries()
    train(*parse_flags((RowArguments, TargetArguments, ModelArguments, VisualSFTConfig), argv))


def train(
    rows_args: RowArguments, target: TargetArguments, model: ModelArguments, args: VisualSFTConfig
) -> None:
    """One run, from parsed flags to a saved model."""
    if (target.stop_metric is None) != (target.stop_value is None):
        raise UserError("--stop_metric and --stop_value need each other")
    if target.stop_metric and args.eval_strategy == "no":
        raise UserError(
            "--stop_metric needs held-out rows: add --eval_strategy steps --eval_dataset_name ..."
        )
    check_held_out(rows_args, args)
    processor = prepare_model(model, args)
    with claimed("--output_dir", args.output_dir):
        resume = resume_folder(args.output_dir, args.resume_from_checkpoint)
        rows, held_out = rows_and_held_out(rows_args, args, processor)
        rows = with_completions(rows, target.completion_column)
        metric = RowMetric((target.task,), args.coordinates, args.min_pixels, args.max_pixels)
        if held_out is not None:
            choose_best(args, metric.names, LOWER_IS_BETTER)
            if target.stop_metric:
                check_metric("--stop_metric", target.stop_metric, metric.names)
        peft_config, quantization = lora_and_quantization(model)
        stop = StopOnSignal().install()
        enough = [StopAt(target.stop_metric, target.stop_value)] if target.stop_metric else []
        summary = data_summary(rows, rows_args.dataset_name, rows_args.dataset_train_split)
        check_same_run(resume, args, summary, model.use_peft, "sft")
        check_weights(model.model_name_or_path)
        trainer = VisualSFTTrainer(
            model.model_name_or_path,
            args,
            rows,
            held_out,
            processor,
            target_text,
            manifest=Manifest.of_run(args, (target.task,), summary),
            metric=metric,
            callbacks=[stop, *enough],
            peft_config=peft_config,
            quantization_config=quantization,
        )
        train_and_save(trainer, resume, stop)


def with_completions(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Rows whose ``completion`` is the named column. Raises UserError where they have no such column."""
    if column == "completion":
        return rows
    if column not in rows.column_names:
        raise UserError(
            f"--completion_column {column}: no such column; there are {', '.join(rows.column_names)}"
        )
    if "completion" in rows.column_names:
        rows = rows.remove_columns("completion")
    return rows.rename_column(column, "completion")


if __name__ == "__main__":
    sys.exit(run_program(main))
