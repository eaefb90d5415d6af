"""TRL's GRPO trainer with image and prompt encoded once per group.

All that this project relies on inside TRL is in :class:`SharedPrefixGRPOTrainer`'s overrides
(tests/test_seams.py holds each of them). Whether and how much is shared follows from the configuration
alone, so that every rank runs the same number of forwards; data that break what the configuration promises
raise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.extras.profiling import profiling_decorator
from trl.models.utils import disable_gradient_checkpointing

from virft.errors import UserError
from virft.image_memo import ImageMemo, RowMemo
from virft.lora_modules import keep_trainable
from virft.shared_prefix import keep_labelled, model_inputs, pack, prompt_positions, unpack
from virft.shared_prefix_attention import enable
from virft.shared_prefix_batches import check_units, differs, micro_batches, no_none, repeat
from virft.shared_prefix_check import compare
from virft.shared_prefix_config import Units, decide
from virft.shared_prefix_generation import generate
from virft.shared_prefix_vision import RowImages, SharedVision, is_frozen
from virft.symmetric import has_text_only


@contextmanager
def _generate_of(model: PreTrainedModel, function: Any) -> Iterator[Any]:
    """Within it ``model.generate`` is ``function``, or its class's where that is None; gives what it was."""
    before = model.__dict__.pop("generate", None)
    if function is not None:
        model.generate = function
    try:
        yield before
    finally:
        model.__dict__.pop("generate", None)
        if before is not None:
            model.generate = before


class SharedPrefixGRPOTrainer(GRPOTrainer):
    """:class:`trl.GRPOTrainer` that encodes a group's image and prompt once; arguments are TRL's.

    Same samples, losses and gradients as TRL's, up to rounding. Shuffling within a generation moves whole
    micro-batches, so that a group's rows stay together. ``sharing`` says what is shared. ``pixel_values``
    of the prepared batches holds the fields of a :class:`virft.shared_prefix_vision.RowImages`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Remembered, with the wrapper so that its id stays its own: unwrapping asks for installed packages,
        # which takes milliseconds.
        self._unwrapped: dict[int, tuple[Any, PreTrainedModel]] = {}
        core_model = self._hugging_face(self.model)
        keep_trainable(core_model)
        foreign = {
            "tools": self.tools,
            "rollout_func": self.rollout_func,
            "environments": self.environment_factories,
        }
        peft_config = getattr(self.model, "peft_config", {})
        self.sharing = decide(
            self.args,
            core_model.config,
            foreign_rollouts=", ".join(name for name, value in foreign.items() if value) or None,
            aux_loss=self.aux_loss_enabled,
            prompt_learning=any(c.is_prompt_learning for c in peft_config.values()),
        )
        self._check_attention()
        # FSDP's weights are whole within a forward of the model alone; ZeRO-3's are gathered from all ranks,
        # of which one may have no image.
        mixed = self.args.world_size > 1 and has_text_only(self.train_dataset)
        self._vision_runs_apart = not (self.is_fsdp_enabled or (mixed and is_deepspeed_zero3_enabled()))
        self._memo: ImageMemo | None = None
        self._batch_images: RowImages | None = None  # of the generation batch that is being scored
        self._raw_images: RowImages | None = None  # the same before a frozen vision tower encoded them
        self._prompt_numbers: list[int] | None = None
        self._prompt_features: list[torch.Tensor] | None = None
        self._scoring = False
        self._checked = False
        if self.sharing.logps != "off":
            self._memo = ImageMemo.install(self.processing_class.image_processor)
            for model in (self.model, self.ref_model):
                if model is not None:
                    self._prepare_model(self._hugging_face(model))
        if self.accelerator.is_main_process:
            sys.stdout.write(self.sharing.describe() + "\n")

    # --- the models

    def _hugging_face(self, model: Any) -> PreTrainedModel:
        """The Hugging Face model within DDP, DeepSpeed and PEFT."""
        if id(model) not in self._unwrapped:
            inner = self.accelerator.unwrap_model(model)
            found = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
            self._unwrapped[id(model)] = (model, found)
        return self._unwrapped[id(model)][1]

    def _in_half_precision(self) -> bool:
        mixed = self.accelerator.mixed_precision != "no"
        return mixed or self._hugging_face(self.model).dtype != torch.float32

    def _check_attention(self) -> None:
        """Refuse a kernel that would fail at the first step.

        Raises:
            UserError: varlen without a GPU or in float32.
        """
        varlen = getattr(self.args, "shared_prefix_attention", "split") == "varlen"
        able = self.accelerator.device.type == "cuda" and self._in_half_precision()
        if varlen and not able and self.sharing.logps == "packed":
            raise UserError("--shared_prefix_attention varlen needs a CUDA GPU and --bf16 true; use split")

    def _prepare_model(self, model: PreTrainedModel) -> None:
        SharedVision.install(model.model)
        if self.sharing.logps == "packed":
            enable(model)
            if not getattr(model.model, "keeps_labelled", False):  # an earlier trainer's model may come again
                model.model.register_forward_hook(keep_labelled, with_kwargs=True)
                model.model.keeps_labelled = True

    @property
    def _units(self) -> Units:
        return self.sharing.train if self.model.training else self.sharing.evaluation

    # --- rows are read and decoded once

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        if self.sharing.logps != "off" and isinstance(dataset, datasets.Dataset):
            dataset = RowMemo(self._remove_unused_columns(dataset, description=description))
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    # --- sampling

    def _tokenize_prompts(self, prompts: list) -> tuple[list, list | None, dict]:
        unit = self._units.generation
        if self.sharing.logps == "off":
            return super()._tokenize_prompts(prompts)
        if unit == 1 or (self.sharing.generation == "trl" and not self.use_vllm):
            with self._memo.distinct(False):
                ids, images, fields = super()._tokenize_prompts(prompts)
            return ids, no_none(images), fields
        first = prompts[::unit]
        for row, prompt in enumerate(prompts):
            if prompt != first[row // unit]:
                raise RuntimeError(differs("prompt", row, row - row % unit, unit))
        with self._memo.distinct():
            ids, images, fields = super()._tokenize_prompts(first)
        self._prompt_numbers = self._memo.numbers
        return repeat(ids, unit), no_none(images, unit), fields

    def _generate_single_turn(
        self,
        prompt_ids: list,
        images: list | None,
        multimodal_fields: Mapping,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple:
        unit = self._units.generation
        if self.sharing.generation == "trl" or unit == 1:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        fields, shown = dict(multimodal_fields), None
        if "pixel_values" in fields:
            counts = [len(row or ()) for row in images[::unit]]
            values, grids = fields.pop("pixel_values"), fields.pop("image_grid_thw")
            shown = RowImages.of_batch(values, grids, counts, self._prompt_numbers).to(
                self.accelerator.device
            )
        with self._generating(shown, unit):
            return super()._generate_single_turn(prompt_ids, images, fields, num_generations)

    @contextmanager
    def _generating(self, shown: RowImages | None, unit: int) -> Iterator[None]:
        """The policy's ``generate`` takes TRL's repeated rows and prefills each prompt once."""
        model = self._hugging_face(self.model)

        def shared(input_ids, attention_mask, generation_config, mm_token_type_ids=None, **options):
            images = shown
            if shown is not None and self._reuse_features(model, sampling=True):
                images = shown.encode(model.model)
                self._prompt_features = images.contents
            # Less work per operation; but parameters that are gathered within it could not be trained.
            plain = not (
                self.is_deepspeed_enabled or self.is_fsdp_enabled or getattr(model, "is_quantized", False)
            )
            with _generate_of(model, own), torch.inference_mode() if plain else nullcontext():
                return generate(
                    model,
                    unit,
                    generation_config,
                    input_ids[::unit],
                    attention_mask[::unit],
                    mm_token_type_ids=mm_token_type_ids,
                    cache=self.sharing.generation,
                    **({} if images is None else images.inputs()),
                    **options,
                )

        with _generate_of(model, shared) as own:
            yield

    def _reuse_features(self, model: PreTrainedModel, sampling: bool = False) -> bool:
        """Whether features of the vision tower may be computed once for several passes.

        Log-probs run under autocast and sampling does not, so the two agree exactly only without mixed
        precision.
        """
        exact = not sampling or self.accelerator.mixed_precision == "no"
        return (
            exact
            and self.sharing.logps == "packed"
            and not self.args.sync_ref_model
            and self._vision_runs_apart
            and is_frozen(model.model)
        )

    # --- scoring

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.sharing.logps == "off":
            return super()._generate_and_score_completions(inputs)
        self._batch_images = self._raw_images = self._prompt_features = None
        self._memo.numbers = None
        self._scoring = True
        try:
            with self._memo.distinct():
                batch = super()._generate_and_score_completions(inputs)
            images = self._images(batch.pop("pixel_values", None), batch.pop("image_grid_thw", None), batch)
            if self.sharing.logps == "packed" and not self._checked and self.model.training:
                self._compare_with_stock(batch)
                self._checked = True
        finally:
            self._scoring = False
            self._batch_images = self._raw_images = self._prompt_features = None
        batch.pop("num_images", None)
        if images is not None:
            batch["pixel_values"] = images
        return batch

    def _images(
        self, pixel_values: Any, image_grid_thw: torch.Tensor | None, batch: Mapping[str, Any]
    ) -> RowImages | None:
        if pixel_values is None or isinstance(pixel_values, RowImages):
            return pixel_values
        if isinstance(pixel_values, dict):
            return RowImages(**pixel_values)
        if not self._scoring:
            return RowImages.of_batch(pixel_values, image_grid_thw, batch["num_images"])
        if self._batch_images is None:
            images = RowImages.of_batch(pixel_values, image_grid_thw, batch["num_images"], self._memo.numbers)
            self._raw_images = images
            model = self._hugging_face(self.model)
            if self._prompt_features is not None:
                images = RowImages(self._prompt_features, images.grids, images.rows, True)
            elif self._reuse_features(model):
                with self.accelerator.autocast():
                    images = images.encode(model.model)
            self._batch_images = images
        return self._batch_images

    @profiling_decorator
    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        pixel_values: Any = None,
        image_grid_thw: torch.Tensor | None = None,
        num_images: list[int] | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        rows = input_ids.shape[0]
        options = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss}
        if self.sharing.logps == "off":
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                num_images=num_images,
                mm_token_type_ids=mm_token_type_ids,
                **options,
                **others,
            )
        images = self._images(pixel_values, image_grid_thw, {"num_images": num_images})
        chunks = []
        for start in range(0, rows, batch_size or rows):
            chunk = range(start, min(start + (batch_size or rows), rows))
            at = slice(chunk.start, chunk.stop)
            one = self._packed if self.sharing.logps == "packed" else self._stock
            chunks.append(
                one(
                    model,
                    input_ids[at],
                    attention_mask[at],
                    logits_to_keep,
                    None if images is None else images.take(chunk),
                    None if mm_token_type_ids is None else mm_token_type_ids[at],
                    **options,
                )
            )
        logps, entropies, aux = (list(x) for x in zip(*chunks, strict=True))
        return (
            torch.cat(logps),
            torch.cat(entropies) if compute_entropy else None,
            torch.stack(aux).mean() if compute_aux_loss else None,
        )

    def _stock(
        self, model, input_ids, attention_mask, logits_to_keep, images, mm_token_type_ids, **options
    ) -> tuple:
        """TRL's own rows; images that are the same within them are encoded once."""
        shown = {} if images is None else images.inputs() | {"num_images": [len(row) for row in images.rows]}
        vision = self._hugging_face(model).model.get_image_features
        names = [] if images is None else images.names()
        with vision.repeating(names) if names else nullcontext():
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                mm_token_type_ids=mm_token_type_ids,
                **shown,
                **options,
            )

    def _packed(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        images: RowImages | None,
        mm_token_type_ids: torch.Tensor | None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        unit: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probs (rows, replies' length) of whole units: one forward of one row without padding.

        ``compute_aux_loss`` is never true here: where the objective has such a loss, nothing is packed.
        """
        unit, prompt = unit or self._units.forward, input_ids.shape[1] - logits_to_keep
        check_units(input_ids[:, :prompt], unit)
        core = self._hugging_face(model).model
        shown, names = {}, []
        if images is not None:
            images = images.take(range(0, len(images.rows), unit))
            shown, names = images.inputs(), images.names()
        kinds = None if mm_token_type_ids is None else mm_token_type_ids[::unit, :prompt]
        prompts = input_ids[::unit, :prompt], attention_mask[::unit, :prompt]
        positions, _ = prompt_positions(core, *prompts, shown.get("image_grid_thw"), kinds)
        completion_mask = attention_mask[:, prompt:]
        backend = getattr(self.args, "shared_prefix_attention", "split")
        row = pack(*prompts, positions, input_ids[:, prompt:], completion_mask, backend)
        # Several prompts about one image.
        again = shown and not images.encoded and len(set(names)) < len(names)
        with (
            self.accelerator.autocast(),
            core.get_image_features.repeating(names) if again else nullcontext(),
        ):
            output = model(**model_inputs(row), **shown, fused_lm_head=True)
        entropies = unpack(output.entropy, completion_mask) if compute_entropy else None
        return unpack(output.log_probs, completion_mask), entropies, None

    # --- the buffer of micro-batches

    @profiling_decorator
    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if self.sharing.logps == "off":
            return super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = micro_batches(
                self._generate_and_score_completions(generation_batch), steps
            )
        return self._buffered_inputs[self._step % steps]

    # --- the first step's check

    def _compare_with_stock(self, batch: Mapping[str, Any]) -> None:
        """Score one group both ways, on every rank.

        Raises:
            RuntimeError: on every rank when any rank's log-probs differ by more than rounding explains.
        """
        unit, mask = self.sharing.train.forward, batch["completion_mask"]
        first = int(mask.view(-1, unit, mask.shape[1]).sum((1, 2)).argmax()) * unit
        at = slice(first, first + unit)
        rows = (
            self.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)[at],
            torch.cat([batch["prompt_mask"], mask], 1)[at],
            mask.shape[1],
        )
        kinds = batch["mm_token_type_ids"][at] if batch.get("mm_token_type_ids") is not None else None
        # Ours as training has them, which may be features computed once; TRL's are patches.
        ours, raw = (
            None if images is None else images.take(range(first, first + unit))
            for images in (self._batch_images, self._raw_images)
        )
        self.model.eval()  # dropout would differ
        try:
            with (
                torch.no_grad(),
                disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            ):
                packed = self._packed(*rows, ours, kinds, unit=unit)[0].float()
                stock = self._stock(*rows, raw, kinds)[0].float()
        finally:
            self.model.train()
        # The kernels of quantised weights compute in half precision, and pick another by the number of rows.
        rounded = self._in_half_precision() or getattr(self._hugging_face(self.model), "is_quantized", False)
        self.self_check = compare(packed, stock, mask[at], rounded, self.accelerator, first)
