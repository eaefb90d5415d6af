"""Supervised fine-tuning on the rows that GRPO trains on: TRL's trainer, with the target alone in the
loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import ProcessorMixin
from trl import SFTConfig, SFTTrainer
from trl.data_utils import prepare_multimodal_messages

from virft.checkpoint import Manifest
from virft.checkpointing import CarriesManifest
from virft.errors import UserError
from virft.held_out import GreedyEvaluation, Metric
from virft.images import open_rgb
from virft.lora_modules import keep_trainable
from virft.survival import LogBeforeSave
from virft.symmetric import make_forwards_alike
from virft.training_config import TrainingConfig


@dataclass
class VisualSFTConfig(TrainingConfig, SFTConfig):
    """TRL's SFT configuration with defaults that fit beside GRPO's; prompts are never cut."""

    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows a device takes at once."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Highest learning rate."})
    max_length: int | None = field(
        default=None, metadata={"help": "Not used: neither prompt nor target is cut."}
    )
    max_completion_length: int = field(
        default=1024, metadata={"help": "Longest reply to a held-out row, in tokens."}
    )
    remember_rows: int = field(
        default=0,
        metadata={
            "help": "Keep this many rows' tokens and pixels in memory instead of making them every time."
        },
    )

    def __post_init__(self) -> None:
        if self.packing:
            raise UserError("--packing does not go with images; drop it")
        if self.max_length is not None:
            raise UserError(
                "--max_length would cut images out of prompts; use --max_prompt_length to refuse rows"
            )
        super().__post_init__()


class TargetCollator:
    """Rows to a batch: prompt and target tokens, loss on the target's alone.

    Args:
        processor: the model's.
        target: the text that a row teaches; the end-of-turn token follows it.
        remember: how many rows' tensors to keep (keyed by their position in the data set), 0 for none.
    """

    def __init__(
        self, processor: ProcessorMixin, target: Callable[[Mapping[str, Any]], str], remember: int = 0
    ) -> None:
        self.processor, self.target, self.remember = processor, target, remember
        self._known: dict[int, dict[str, Any]] = {}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        encoded = [self._encoded(row) for row in rows]
        width = max(len(e["input_ids"]) for e in encoded)
        pad = self.processor.tokenizer.pad_token_id
        fill = {"input_ids": pad, "attention_mask": 0, "labels": -100, "mm_token_type_ids": 0}
        batch = {
            key: torch.stack(
                [torch.nn.functional.pad(e[key], (0, width - len(e[key])), value=value) for e in encoded]
            )
            for key, value in fill.items()
        }
        for key in ("pixel_values", "image_grid_thw"):
            parts = [e[key] for e in encoded if key in e]
            if parts:
                batch[key] = torch.cat(parts)
        return batch

    def _encoded(self, row: Mapping[str, Any]) -> dict[str, Any]:
        number = row.get("row_number")
        if number in self._known:
            return self._known[number]
        encoded = self._encode(row)
        if number is not None and len(self._known) < self.remember:
            self._known[number] = encoded
        return encoded

    def _encode(self, row: Mapping[str, Any]) -> dict[str, Any]:
        images = [open_rgb(image) for image in row["images"]]
        messages = prepare_multimodal_messages(row["prompt"], images=images)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = self.processor(text=[text], images=[images] if images else None, return_tensors="pt")
        tokenizer = self.processor.tokenizer
        target = torch.tensor(tokenizer(self.target(row))["input_ids"] + [tokenizer.eos_token_id])
        prompt = inputs["input_ids"][0]
        ids = torch.cat([prompt, target])
        nothing = torch.zeros_like(target)
        kinds = inputs["mm_token_type_ids"][0] if "mm_token_type_ids" in inputs else torch.zeros_like(prompt)
        encoded = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.cat([torch.full_like(prompt, -100), target]),
            "mm_token_type_ids": torch.cat([kinds, nothing]),
        }
        return encoded | {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}


class VisualSFTTrainer(GreedyEvaluation, CarriesManifest, SFTTrainer):
    """SFT for vision-language models.

    Args:
        model: a model folder or Hub id.
        args: the configuration.
        train_dataset, eval_dataset: rows with ``prompt`` and ``images``; held-out rows are answered, not
            taught.
        processing_class: the processor with the configuration's pixel limits.
        target: the text that a row teaches.
        manifest, metric: as for :class:`virft.trainer.VisualRFTTrainer`.
        others: keyword arguments of :class:`trl.SFTTrainer`.
    """

    def __init__(
        self,
        model: str,
        args: VisualSFTConfig,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: ProcessorMixin,
        target: Callable[[Mapping[str, Any]], str],
        *,
        manifest: Manifest | None = None,
        metric: Metric | None = None,
        **others: Any,
    ) -> None:
        if args.remember_rows:
            train_dataset = train_dataset.add_column("row_number", list(range(len(train_dataset))))
        args.remove_unused_columns = False
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every forward uses all parameters
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=TargetCollator(processing_class, target, args.remember_rows),
            **others,
        )
        self.metric = metric
        self.carry(manifest, "sft", model)
        keep_trainable(self.model)
        if args.freeze_vision:
            self.base_model().model.visual.requires_grad_(False)
        make_forwards_alike(self, sampled=False)
        self.add_callback(LogBeforeSave())
