"""GRPO on Qwen2-VL and Qwen2.5-VL: TRL's trainer with Visual-RFT's meaning of the settings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models.utils import disable_gradient_checkpointing

from virft.boxes import resized
from virft.checkpoint import Manifest
from virft.checkpointing import CarriesManifest
from virft.errors import UserError
from virft.held_out import GreedyEvaluation, Metric
from virft.images import open_rgb
from virft.memory import out_of_memory_advice, trainable_table
from virft.probe import SpaceProbe
from virft.rollouts import RolloutLog
from virft.settings import VisionSettings, load_processor
from virft.shared_prefix_config import SharedPrefixConfig
from virft.shared_prefix_trainer import SharedPrefixGRPOTrainer
from virft.survival import EpochSampler, LogBeforeSave
from virft.symmetric import VisionAlways, has_text_only

logger = logging.getLogger(__name__)

FEW_GENERATIONS = 4
"""Below this many completions a group's mean and deviation are mostly noise."""

TRL_COLUMNS = frozenset(
    {"completion", "completions", "completion_ids", "prompts", "messages", "chosen", "rejected"}
)
"""Columns that mean something else to TRL when a row has them."""


@dataclass
class VisualRFTConfig(VisionSettings, SharedPrefixConfig):
    """TRL's GRPO configuration with Visual-RFT's defaults and its count of the batch.

    ``per_device_train_batch_size`` counts prompts; the configuration converts it to TRL's count,
    completions, and keeps the prompts in ``prompts_per_device``. Everything else is TRL's.
    """

    per_device_train_batch_size: int = field(
        default=1,
        metadata={"help": "PROMPTS a device takes at once; each becomes --num_generations completions."},
    )
    per_device_eval_batch_size: int = field(
        default=8,
        metadata={"help": "Held-out prompts that a device answers at once (one greedy reply each)."},
    )
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={"help": "How many batches of --per_device_train_batch_size prompts make one step."},
    )
    completions_per_forward: int | None = field(
        default=None,
        metadata={
            "help": "Send a device's completions through the policy in pieces of this many; same gradient."
        },
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the rows."})
    beta: float = field(default=0.04, metadata={"help": "Weight of the KL term; 0 loads no reference model."})
    loss_type: str = field(
        default="grpo",
        metadata={
            "help": "grpo (mean over a reply's tokens, then over replies), or any of TRL's loss types."
        },
    )
    max_completion_length: int | None = field(default=1024, metadata={"help": "Longest reply, in tokens."})
    num_generations_eval: int | None = field(default=1, metadata={"help": "Replies to a held-out prompt."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass: slower, less memory."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "bfloat16 mixed precision. Default: on where the GPU has it.",
            "nargs": "?",
            "const": True,
        },
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every so many steps."})
    save_steps: float = field(default=100, metadata={"help": "Save a checkpoint every so many steps."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Keep this many checkpoints (the best one beside); None keeps all."}
    )
    log_multimodal: bool = field(
        default=False,
        metadata={"help": "Gather every rank's images at each generation, for --log_completions' tables."},
    )
    inject_solution: bool = field(
        default=False,
        metadata={
            "help": "Replace one reply of every group by the row's solution, weighted by its probability."
        },
    )
    prompts_per_device: int | None = field(
        default=None, metadata={"help": "Set by the configuration itself; leave it alone."}
    )

    def __post_init__(self) -> None:
        self._check_group()
        if self.prompts_per_device is None:  # else a copy of a configuration would be converted twice
            self._count_completions()
        elif self.steps_per_generation is not None:
            self.generation_batch_size = None  # TRL derives it, and refuses to be told both
        if self.inject_solution and self.use_vllm:
            raise UserError("--inject_solution and --use_vllm exclude each other; drop one")
        super().__post_init__()

    def _check_group(self) -> None:
        group = self.num_generations or 0
        if group < 2:
            raise UserError(
                f"--num_generations {group}: a group needs at least 2 replies to be compared; use 8"
            )
        if group < FEW_GENERATIONS:
            logger.warning(
                "--num_generations %d: advantages of groups below %d are mostly noise", group, FEW_GENERATIONS
            )

    def _count_completions(self) -> None:
        self.prompts_per_device = self.per_device_train_batch_size
        completions = self.prompts_per_device * self.num_generations
        piece = self.completions_per_forward or completions
        if piece < 1 or completions % piece:
            raise UserError(
                f"--completions_per_forward {piece} does not divide the {completions} completions "
                f"of a device "
                f"({self.prompts_per_device} prompts x {self.num_generations})"
            )
        # Pieces become micro-batches: TRL accumulates their gradients, and a reply's share of the sum is the
        # same.
        pieces = completions // piece
        self.per_device_train_batch_size = piece
        self.gradient_accumulation_steps *= pieces
        if self.steps_per_generation is not None:
            self.steps_per_generation *= pieces

    @property
    def completions_per_step(self) -> int:
        """Completions that one optimizer step learns from, on all devices together."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def prompts_per_step(self) -> int:
        """Prompts that one optimizer step learns from, on all devices together."""
        return self.completions_per_step // self.num_generations

    @property
    def prompts_per_generation(self) -> int:
        """Prompts whose completions are sampled together; rows that do not fill a last one are left out."""
        return self.generation_batch_size // self.num_generations

    def steps_per_epoch(self, rows: int) -> int:
        """Optimizer steps of one pass over ``rows`` rows (num_iterations visits each generation so often)."""
        batches = rows // self.prompts_per_generation * self.steps_per_generation * self.num_iterations
        return -(-batches // self.gradient_accumulation_steps)


class VisualRFTTrainer(GreedyEvaluation, CarriesManifest, SharedPrefixGRPOTrainer):
    """GRPO for vision-language models.

    Rows hold ``prompt`` (conversation), ``images`` (undecoded, see :func:`virft.images.open_rgb`) and any
    columns; rewards are TRL-style callables over the columns. The trainer knows no task.

    Args:
        model: a model folder or Hub id, or a loaded model.
        reward_funcs: callables ``reward(completions, **columns)``.
        args: the configuration; its open choices (pixels, coordinates) take the defaults where still open.
        train_dataset, eval_dataset: rows.
        processing_class: a processor; by default the model's, with the configuration's pixel limits.
        manifest: what is written beside every checkpoint, completed with what the trainer knows.
        metric: task metric of evaluation during training: (rows, replies) -> {name: number}.
        target: the text of a row that ``inject_solution`` puts into its group.
        others: keyword arguments of :class:`trl.GRPOTrainer`.

    Raises:
        UserError: fewer rows than one generation takes, or an image that cannot be read.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Callable | list[Callable],
        args: VisualRFTConfig,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        *,
        manifest: Manifest | None = None,
        metric: Metric | None = None,
        target: Callable[[Mapping[str, Any]], str] | None = None,
        **others: Any,
    ) -> None:
        name = model if isinstance(model, str) else model.config._name_or_path
        if processing_class is None:
            processing_class = load_processor(name, args)
        if len(train_dataset) < args.prompts_per_generation:
            raise UserError(
                f"{len(train_dataset)} rows are fewer than the {args.prompts_per_generation} prompts of one "
                "generation; lower --per_device_train_batch_size, --gradient_accumulation_steps "
                "or the processes"
            )
        use_cache = isinstance(model, str) or getattr(model.config, "use_cache", True)
        if args.ddp_find_unused_parameters is None:  # TRL's choice is to search for them, in every backward
            args.ddp_find_unused_parameters = False  # here every forward uses all parameters: VisionAlways
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **others,
        )
        self.metric, self._target = metric, target
        self.carry(manifest, "grpo", str(name), use_cache)
        self._rollouts = RolloutLog.from_environment(args.output_dir, self.accelerator.process_index)
        self._rows: list[Mapping[str, Any]] = []
        self._injected: list[bool] = []
        self._probe = SpaceProbe(self.manifest.space, self.manifest.min_pixels, self.manifest.max_pixels)
        if args.freeze_vision:
            self.base_model().model.visual.requires_grad_(False)
        self._run_vision_on_every_rank()
        if self.use_vllm:
            self.vllm_generation.generate = none_for_no_image(self.vllm_generation.generate)
        self.add_callback(LogBeforeSave())
        self._check_sampling()

    # --- what a run is made of

    def _run_vision_on_every_rank(self) -> None:
        """Make forwards alike on all ranks where some rows have no image."""
        if self.args.world_size > 1 and has_text_only(self.train_dataset):
            if self.log_multimodal:
                raise UserError("--log_multimodal true does not run with text-only rows on several devices")
            if self.args.freeze_vision and is_deepspeed_zero3_enabled():
                raise UserError(
                    "--freeze_vision with text-only rows does not run under ZeRO-3; use "
                    "local_scripts/zero2.json"
                )
            VisionAlways(self.base_model().model)
            if self.ref_model is not None:
                VisionAlways(self.accelerator.unwrap_model(self.ref_model).model)

    def _check_sampling(self) -> None:
        """Assert that what ``generate`` resolves to is what was asked for, not the model's own defaults."""
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
        assert not wrong, f"generation resolved to {wrong}, asked for {asked}"
        self.sampling = asked

    # --- rows and rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = self._decoded(inputs)
        inputs = [{k: v for k, v in row.items() if k not in TRL_COLUMNS} for row in self._rows]
        batch = super()._generate_and_score_completions(inputs)
        if self.args.inject_solution and self.model.training:
            self._weigh_injected(batch)
        return batch

    def _generate(self, prompts: list) -> tuple:
        ids, completion_ids, mask, completions, logps, extra, images, tool_images = super()._generate(prompts)
        # A text-only row of a mixed batch comes out with None for its images, which the processor refuses.
        images = images if images is None else [row or [] for row in images]
        self._injected = [False] * len(prompts)
        if self.args.inject_solution and self.model.training:
            self._inject(completion_ids, completions)
        return ids, completion_ids, mask, completions, logps, extra, images, tool_images

    def _inject(self, completion_ids: list, completions: list) -> None:
        """Put the row's target in the place of each group's last reply, where it is not too long."""
        first = self.accelerator.process_index * len(completion_ids)
        for place, row in enumerate(self._rows):
            if (first + place + 1) % self.num_generations:
                continue
            text = self._target(row)
            tokens = [*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id]
            if len(tokens) <= self.max_completion_length:
                completion_ids[place] = tokens
                completions[place] = [{"role": "assistant", "content": text}]
                self._injected[place] = True
        self._metrics["train"]["injected_ratio"].append(sum(self._injected) / len(self._injected))

    def _weigh_injected(self, batch: dict[str, Any]) -> None:
        """Give injected replies the probability with which they were drawn: one.

        The ratio of importance sampling is policy / behaviour. What wrote an injected reply writes it
        always, so its old log-probs are 0 and each token's ratio is the policy's own probability of it: the
        gradient is that of the probability, not of its logarithm, and clipping leaves it alone while its
        advantage is positive.
        """
        if "old_per_token_logps" not in batch:
            keys = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
            with (
                torch.no_grad(),
                disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            ):
                batch["old_per_token_logps"], _, _ = self._get_per_token_logps_and_entropies(
                    self.model,
                    torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
                    torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
                    batch["completion_ids"].shape[1],
                    self.args.per_device_train_batch_size,
                    **{key: batch[key] for key in keys if key in batch},
                )
        where = torch.tensor(self._injected, device=batch["old_per_token_logps"].device)
        batch["old_per_token_logps"] = batch["old_per_token_logps"].masked_fill(where[:, None], 0.0)

    def _decoded(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with RGB images; a group's rows share one decoded image."""
        opened: dict[Any, Any] = {}
        decoded = []
        for row in rows:
            images = []
            for image in row.get("images") or ():
                if isinstance(image, Mapping):
                    key = (image["path"], image["bytes"])
                    images.append(opened[key] if key in opened else opened.setdefault(key, self._open(image)))
                else:
                    images.append(self._open(image))
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
        replies = [completion[0]["content"] for completion in completions]
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
        lines = [
            f"rows              {rows}" + (f" ({left_out} of each epoch left out)" if left_out else ""),
            f"prompts/step      {args.prompts_per_step} = {args.world_size} devices x "
            f"{args.prompts_per_device} "
            f"prompts x {args.prompts_per_step // args.world_size // args.prompts_per_device} accumulation",
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


def none_for_no_image(generate: Callable[..., tuple]) -> Callable[..., tuple]:
    """TRL's vLLM ``generate``, for which a text-only row has None for its images; here it has an empty
    list."""

    def with_none(prompts: list, images: list | None, *args: Any, **kwargs: Any) -> tuple:
        return generate(prompts, images and [row or None for row in images], *args, **kwargs)

    return with_none
