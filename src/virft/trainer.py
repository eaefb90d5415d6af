"""GRPO on Qwen2-VL and Qwen2.5-VL: TRL's trainer with Visual-RFT's meaning of the settings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from virft.boxes import resized
from virft.checkpoint import Manifest
from virft.checkpointing import CarriesManifest
from virft.completions import text_of
from virft.errors import UserError
from virft.grpo_config import VisualRFTConfig
from virft.held_out import GreedyEvaluation, Metric
from virft.images import images_of, open_rgb
from virft.injection import InjectsSolutions
from virft.memory import out_of_memory_advice, trainable_table
from virft.model_setup import load_processor
from virft.probe import SpaceProbe
from virft.reason_shares import TrueReasonShares
from virft.rollouts import RolloutLog
from virft.shared_prefix_trainer import SharedPrefixGRPOTrainer
from virft.survival import EpochSampler, LogBeforeSave
from virft.symmetric import make_forwards_alike

__all__ = ["VisualRFTConfig", "VisualRFTTrainer"]

logger = logging.getLogger(__name__)

TRL_COLUMNS = frozenset(
    {"completion", "completions", "completion_ids", "prompts", "messages", "chosen", "rejected"}
)
"""Columns that mean something else to TRL when a row has them."""


class VisualRFTTrainer(
    InjectsSolutions, TrueReasonShares, GreedyEvaluation, CarriesManifest, SharedPrefixGRPOTrainer
):
    """GRPO for vision-language models.

    Rows hold ``prompt`` (conversation), ``images`` or ``image`` (decoded or not, see
    :func:`virft.images.open_rgb`) and any columns; rewards are whatever TRL takes. The trainer knows no task.

    Args:
        model: a model folder or Hub id, or a loaded model.
        reward_funcs: callables ``reward(completions, **columns)``, or reward models; one or a list.
        args: the configuration; its open choices (pixels, coordinates) take the defaults where still open.
        train_dataset, eval_dataset: rows.
        processing_class: a processor; by default the model's, with the configuration's pixel limits.
        manifest: what is written beside every checkpoint, completed with what the trainer knows.
        metric: task metric of evaluation during training: (rows, replies) -> {name: number}. Without one,
            evaluation is TRL's.
        target: the text of a row that ``inject_solution`` puts into its group.
        others: keyword arguments of :class:`trl.GRPOTrainer`.

    Raises:
        UserError: no rows or fewer than one generation takes, no processor, or an image that cannot be read.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any,
        args: VisualRFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        *,
        manifest: Manifest | None = None,
        metric: Metric | None = None,
        target: Callable[[Mapping[str, Any]], str] | None = None,
        **others: Any,
    ) -> None:
        name = model if isinstance(model, str) else model.config._name_or_path
        if args is None:
            args = VisualRFTConfig(output_dir=f"{Path(name).name}-GRPO")
        check_run(args, train_dataset)
        if args.inject_solution and target is None:
            raise UserError(
                "inject_solution needs target: a function that gives the text of a row's solution"
            )
        if processing_class is None:
            processing_class = load_processor(name, args)
        elif not hasattr(processing_class, "image_processor"):
            raise UserError(
                f"processing_class must be the processor of a Qwen2-VL or Qwen2.5-VL model, "
                f"got a {type(processing_class).__name__}"
            )
        use_cache = isinstance(model, str) or getattr(model.config, "use_cache", True)
        if args.ddp_find_unused_parameters is None:  # TRL's choice is to search for them, in every backward
            args.ddp_find_unused_parameters = False  # here every forward uses all parameters
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **others,
        )
        self.metric, self.target = metric, target
        self.carry(manifest, "grpo", str(name), use_cache)
        self._rollouts = RolloutLog.from_environment(args.output_dir, self.accelerator.process_index)
        self._probe = SpaceProbe(self.manifest.space, self.manifest.min_pixels, self.manifest.max_pixels)
        if args.freeze_vision:
            self.base_model().model.visual.requires_grad_(False)
        make_forwards_alike(self, sampled=self.sharing.generation == "trl" and not self.use_vllm)
        if self.use_vllm:
            self.vllm_generation.generate = none_for_no_image(self.vllm_generation.generate)
        self.add_callback(LogBeforeSave())
        self._check_sampling()

    # --- what a run is made of

    def _check_sampling(self) -> None:
        """Refuse that ``generate`` resolves to something else than asked for: to the model's own defaults.

        Raises:
            UserError: a setting that was left open (None), which the model's own would fill.
        """
        if self.use_vllm:
            return
        resolved, _ = self.base_model()._prepare_generation_config(self.generation_config)
        asked = {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "num_beams": 1,
            "use_cache": True,
        } | (self.args.generation_kwargs or {})
        wrong = {k: getattr(resolved, k) for k, v in asked.items() if getattr(resolved, k, None) != v}
        if wrong:
            raise UserError(
                "; ".join(f"sampling would use {k} {v}, asked for is {asked[k]}" for k, v in wrong.items())
                + " (the model's own generation configuration fills what is None); set it, as with --top_k 0"
            )
        self.sampling = asked

    # --- rows and rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rows = self._decoded(inputs)
        inputs = [{k: v for k, v in row.items() if k not in TRL_COLUMNS} for row in self.rows]
        batch = super()._generate_and_score_completions(inputs)
        if self.args.inject_solution and self.model.training:
            self.weigh_injected(batch)
        return batch

    def _generate(self, prompts: list) -> tuple:
        ids, completion_ids, mask, completions, logps, extra, images, tool_images = super()._generate(prompts)
        # A text-only row of a mixed batch comes out with None for its images, which the processor refuses.
        images = images if images is None else [row or [] for row in images]
        if self.args.inject_solution and self.model.training:
            self.inject(completion_ids, completions)
        return ids, completion_ids, mask, completions, logps, extra, images, tool_images

    def _decoded(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with RGB images, in TRL's columns ``images`` (a list) or ``image``; a group's rows share one
        decoded image."""
        opened: dict[Any, Image.Image] = {}

        def once(image: Any) -> Image.Image:
            if not isinstance(image, Mapping):
                return self._open(image)
            key = (image.get("path"), image.get("bytes"))
            return opened[key] if key in opened else opened.setdefault(key, self._open(image))

        decoded = []
        for row in rows:
            images = [once(image) for image in images_of(row)]
            if row.get("image") is not None and "images" not in row:
                decoded.append({**row, "image": images[0]})
            else:
                decoded.append({**row, "images": images})
        return decoded

    def _open(self, image: Any) -> Image.Image:
        """An image as RGB, for vLLM at the size that the pixel limits give it.

        vLLM resizes by the limits of the model's own files, and would give other numbers of visual tokens
        than the prompt has; an image within all limits it leaves alone.
        """
        opened = open_rgb(image)
        if not self.use_vllm:
            return opened
        size = resized(opened.size, self.manifest.min_pixels, self.manifest.max_pixels)
        return opened if opened.size == size else opened.resize(size, Image.Resampling.BICUBIC)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        replies = [text_of(completion) for completion in completions]
        start = self.accelerator.process_index * len(replies)
        local = rewards[start : start + len(replies)]
        if self._rollouts is not None:
            self._rollouts.write(self.state.global_step, inputs, replies, self.reward_func_names, local)
        if not self._probe.done:
            self._probe.look(inputs, replies)
            if self._probe.done and (warning := self._probe.verdict()):
                logger.warning("coordinates: %s", warning)
        if self.model.training:
            group = self.num_generations
            everyone = gather_object(replies)
            groups = [everyone[i : i + group] for i in range(0, len(everyone), group)]
            unique = sum(len(set(g)) for g in groups) / len(everyone)
            self._metrics["train"]["completions/unique_ratio"].append(unique)
        return rewards

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = EpochSampler.like(super()._get_train_sampler(dataset))
        self.add_callback(sampler.callback())
        return sampler

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's; out of memory is raised again with the flags that would help this run."""
        try:
            return super().training_step(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            lora = hasattr(self.accelerator.unwrap_model(self.model), "peft_config")
            raise torch.OutOfMemoryError(f"{error}\n{out_of_memory_advice(self.args, lora)}") from error

    # --- what the user reads at the start

    def describe(self) -> str:
        """What this run will do: batch arithmetic, sampling, coordinates, trainable parameters."""
        args, rows = self.args, len(self.train_dataset)
        left_out = rows % args.prompts_per_generation
        accumulation = args.prompts_per_step // args.world_size // args.prompts_per_device
        lines = [
            f"rows              {rows}" + (f" ({left_out} of each epoch left out)" if left_out else ""),
            f"prompts/step      {args.prompts_per_step} = {args.world_size} devices x "
            f"{args.prompts_per_device} prompts x {accumulation} accumulation",
            f"completions/step  {args.completions_per_step} ({args.num_generations} a prompt, "
            f"{args.per_device_train_batch_size} a forward)",
            f"steps/epoch       {args.steps_per_epoch(rows)}",
            f"coordinates       {self.manifest.space}",
            f"pixels            {self.manifest.min_pixels}..{self.manifest.max_pixels} an image",
            "sampling          "
            + (", ".join(f"{k} {v}" for k, v in self.sampling.items()) if not self.use_vllm else "vLLM"),
            f"rewards           {', '.join(self.reward_func_names)}",
            trainable_table(self.base_model()),
        ]
        return "\n".join(lines) + "\n"

    def announce(self) -> None:
        """Print :meth:`describe` once, on the main process."""
        if self.accelerator.is_main_process:
            sys.stdout.write(self.describe())
            sys.stdout.flush()


def check_run(args: VisualRFTConfig, rows: Any) -> None:
    """Refuse what no run can be made of, before weights are loaded.

    Raises:
        UserError: another configuration than ours, no rows, a stream of rows, or fewer rows than one
            generation takes.
    """
    if not isinstance(args, VisualRFTConfig):
        raise UserError(
            f"args must be a VisualRFTConfig, whose batch counts prompts; got a {type(args).__name__}"
        )
    if rows is None:
        raise UserError("train_dataset is missing: the trainer needs rows to learn from")
    if not hasattr(rows, "__len__"):
        raise UserError("rows cannot be streamed: their number must be known; load them with streaming=False")
    if len(rows) < args.prompts_per_generation:
        raise UserError(
            f"{len(rows)} rows are fewer than the {args.prompts_per_generation} prompts of one "
            "generation; lower --per_device_train_batch_size, --gradient_accumulation_steps "
            "or the processes"
        )


def none_for_no_image(generate: Callable[..., tuple]) -> Callable[..., tuple]:
    """TRL's vLLM ``generate``, for which a text-only row has None for its images; here it has an empty
    list."""

    def with_none(prompts: list, images: list | None, *args: Any, **kwargs: Any) -> tuple:
        return generate(prompts, images and [row or None for row in images], *args, **kwargs)

    return with_none
