"""Evaluation during training: greedy replies to held-out rows, and the task's metric of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig, TrainerCallback
from trl.data_utils import prepare_multimodal_messages
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

from virft.errors import UserError
from virft.images import images_of, open_rgb

Metric = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], Mapping[str, float]]


def choose_best(args: Any, names: Sequence[str], lower_is_better: Sequence[str] = ()) -> None:
    """Settle which number of held-out rows tells the best checkpoint, and which way.

    Args:
        args: a training configuration; its ``metric_for_best_model`` may be open, or have the prefix
            ``eval_``.
        names: the numbers that evaluation gives; the first is the default.
        lower_is_better: those of which less is better.

    Raises:
        UserError: evaluation has no such number.
    """
    name = check_metric("--metric_for_best_model", args.metric_for_best_model or names[0], names)
    args.metric_for_best_model = name
    if name in lower_is_better:
        args.greater_is_better = False
    elif args.greater_is_better is None:
        args.greater_is_better = True


def check_metric(flag: str, name: str, names: Sequence[str]) -> str:
    """A metric's name without its prefix, if evaluation gives it; else a :class:`UserError` about the
    flag."""
    name = name.removeprefix("eval_")
    if name not in names:
        raise UserError(f"{flag} {name}: evaluation gives no such number; there are {', '.join(names)}")
    return name


class GreedyEvaluation:
    """Mixed into a Trainer, before it in the order of bases.

    Set ``metric``: a function of all rows (without images) and their replies, in the order of the rows.
    """

    metric: Metric | None = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answer every held-out row greedily and log the metric as ``<prefix>_<name>``; no randomness is
        used. Without a metric, TRL's evaluation; several sets are evaluated one by one."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.metric is None or isinstance(rows, Mapping):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if isinstance(rows, str):  # one of several sets
            rows = self.eval_dataset[rows]
        replies = self.answers(rows)
        words = rows.remove_columns([c for c in ("image", "images", "prompt") if c in rows.column_names])
        found = self.metric(list(words), replies)
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def answers(self, rows: Any) -> list[str]:
        """The greedy replies to all rows, on every rank, in the order of the rows."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = -(-len(rows) // world)
        # Ranks without a row of their own repeat the last one: all make the same number of calls.
        own = [min(rank * share + i, len(rows) - 1) for i in range(share)]
        size = self.args.per_device_eval_batch_size
        training = self.model.training
        self.model.eval()
        replies: list[str] = []
        with (
            torch.no_grad(),
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
            DistributedBackend(self.accelerator).summon_full_params(self.model_wrapped, recurse=False),
        ):
            for start in range(0, share, size):
                replies += self._answer([rows[i] for i in own[start : start + size]], model)
        self.model.train(training)
        return gather_object(replies)[: len(rows)]

    def _answer(self, rows: Sequence[Mapping[str, Any]], model: Any) -> list[str]:
        images = [[open_rgb(image) for image in images_of(row)] for row in rows]
        texts = [self._text(row["prompt"], own) for row, own in zip(rows, images, strict=True)]
        inputs = self.processing_class(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.accelerator.device)
        tokens = model.generate(**inputs, generation_config=self._greedy())
        return self.processing_class.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )

    def _text(self, prompt: Any, images: list) -> str:
        """A prompt as the model reads it, by the settings of training."""
        if isinstance(prompt, str):
            return prompt
        return self.processing_class.apply_chat_template(
            prepare_multimodal_messages(prompt, images=images),
            tokenize=False,
            add_generation_prompt=True,
            **getattr(self, "chat_template_kwargs", {}),
        )

    def _greedy(self) -> GenerationConfig:
        tokenizer = self.processing_class.tokenizer
        own = self.base_model().generation_config.eos_token_id
        ends = own if isinstance(own, list) else [own]
        return GenerationConfig(
            max_new_tokens=self.args.max_completion_length,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            repetition_penalty=1.0,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted({tokenizer.eos_token_id, *(e for e in ends if e is not None)}),
            suppress_tokens=[self.base_model().config.image_token_id],
        )


class StopAt(TrainerCallback):
    """End training as soon as an evaluated metric reaches a value."""

    def __init__(self, name: str, value: float) -> None:
        self.name, self.value = name.removeprefix("eval_"), value

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any
    ) -> None:
        reached = metrics.get(f"eval_{self.name}")
        if reached is not None and reached >= self.value:
            control.should_training_stop = True
