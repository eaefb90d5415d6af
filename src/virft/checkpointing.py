"""Checkpoints of a Hugging Face Trainer that carry a manifest, written so that a cut leaves a whole one
behind."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from virft.checkpoint import (
    Manifest,
    file_sizes,
    git_revision,
    installed_versions,
    resolve_space,
    rotate,
    saved_whole,
    write_manifest,
)
from virft.progress import load_progress, save_progress
from virft.resuming import circumstances
from virft.synced_reference import load_reference, save_reference


class CarriesManifest:
    """Mixed into a Trainer, before it in the order of bases; call :meth:`carry` at the end of ``__init__``.

    Every checkpoint gets the processor and generation configuration (by the Trainer), this rank's progress,
    and last of all ``virft.json``; older checkpoints are deleted only after that. The cache that the
    Trainer switches off for training is on in what is saved.
    """

    def carry(self, manifest: Manifest | None, program: str, name: str, use_cache: bool = True) -> None:
        """Complete a run's manifest with what the trainer knows.

        Args:
            manifest: what the program knows (task, data, system prompt); None: nothing.
            program: "grpo" or "sft".
            name: the model that training starts from.
            use_cache: the model configuration's setting before the Trainer changed it.
        """
        manifest = manifest or Manifest("", 0, 0)
        size = self.processing_class.image_processor.size
        config = self.base_model().config
        self._use_cache = use_cache
        self.manifest = replace(
            manifest,
            space=manifest.space or resolve_space(config, self.args.coordinates),
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
            program=program,
            model_type=config.model_type,
            base_model=name,
            seed=self.args.seed,
            versions=installed_versions(),
            git_revision=git_revision(),
            config=self.args.to_dict() | circumstances(self.args),
        )

    def base_model(self) -> PreTrainedModel:
        """The model itself, out of DDP, DeepSpeed and LoRA."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        config = self.base_model().config
        training, config.use_cache = config.use_cache, self._use_cache
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = training

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights, processor and generation configuration; where the user calls it, the manifest as
        well."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        folder = output_dir or self.args.output_dir
        with saved_whole(folder, "make room, then start again with --resume_from_checkpoint auto"):
            super().save_model(output_dir, _internal_call)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_manifest(folder, self.manifest)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        mend = (
            "make room, or keep less with --save_total_limit or --save_only_model true, then start again "
            "with --resume_from_checkpoint auto"
        )
        with saved_whole(folder, mend):
            self._write_checkpoint(folder, model, trial)

    def _write_checkpoint(self, folder: Path, model: Any, trial: Any) -> None:
        # The Trainer deletes older checkpoints before this one has its manifest, so it is kept from that.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if not self.args.save_only_model:
            save_progress(self, folder)
            save_reference(self, folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            files = {} if self.args.save_only_model else file_sizes(folder)
            write_manifest(folder, replace(self.manifest, step=self.state.global_step, files=files))
            best = self.state.best_model_checkpoint
            rotate(self.args.output_dir, limit, keep=[folder, *([Path(best)] if best else [])])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Checkpoints of these families hold the names that their first release used; ``from_pretrained``
        # translates them, while the Trainer would match none, load nothing and say nothing.
        if self.is_fsdp_enabled or hasattr(self.accelerator.unwrap_model(self.model), "peft_config"):
            # PEFT loads adapters as float32; beside quantised weights TRL trains them in bfloat16.
            types = {name: weight.dtype for name, weight in self.model.named_parameters()}
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            for name, weight in self.model.named_parameters():
                if weight.dtype != types[name]:
                    weight.data = weight.data.to(types[name])
            return
        own = self.base_model()
        saved = type(own).from_pretrained(resume_from_checkpoint, dtype=own.dtype)
        own.load_state_dict(saved.state_dict(), strict=True)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer looks whether the last step is done after a step only: a run cut between its last
        # checkpoint and its end would train one step too many at every restart.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # Where evaluations come oftener than checkpoints, the best model would not be on disk.
        best = super()._determine_best_metric(metrics, trial)
        if best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return best

    def _load_best_model(self) -> None:
        folder = self.state.best_model_checkpoint
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(folder)
        self.manifest = replace(self.manifest, step=self.state.best_global_step)
        if self.accelerator.is_main_process:
            sys.stdout.write(
                f"best model: {folder}, {self.args.metric_for_best_model} {self.state.best_metric:g}\n"
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            load_progress(self, checkpoint)
            load_reference(self, checkpoint)
