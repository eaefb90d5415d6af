"""What lets a run stop at any moment and go on as if it had not: order of rows, logs, signals, its folder."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

logger = logging.getLogger(__name__)

LINGER = 0.5
"""Seconds for PyTorch's threads to let go of their tensors, see :func:`leave_group`."""


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order of rows that depends on (seed, epoch) alone.

    TRL's draws a fresh order from one generator at every pass, so a run resumed in a later epoch would see
    the first epoch's order again.
    """

    epoch = 0

    @classmethod
    def like(cls, sampler: RepeatSampler) -> EpochSampler:
        """The same sampler, by epoch."""
        return cls(
            sampler.data_source,
            sampler.mini_repeat_count,
            sampler.batch_size,
            sampler.repeat_count,
            sampler.shuffle,
            sampler.seed,
        )

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self.epoch)
        return super().__iter__()

    def callback(self) -> TrainerCallback:
        """The callback that tells the sampler which epoch begins."""
        return _TellEpoch(self)


class _TellEpoch(TrainerCallback):
    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A resumed run begins an epoch with a fraction of it done; whole epochs may be off by rounding.
        self.sampler.epoch = math.floor((state.epoch or 0) + 1e-6)


class LogBeforeSave(TrainerCallback):
    """Log whenever a checkpoint is written, so that no sum towards the next line of the log is lost with
    it; an evaluation may want one."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = control.should_log or control.should_save or control.should_evaluate

    on_epoch_end = on_step_end


class StopOnSignal(TrainerCallback):
    """On SIGTERM (a scheduler's warning) finish the step, save a checkpoint and stop; on every rank
    together."""

    def __init__(self) -> None:
        self.caught = False
        self.stopped = False

    def install(self) -> StopOnSignal:
        """Take the signal over; call it in the main thread."""
        signal.signal(signal.SIGTERM, self._catch)
        return self

    def _catch(self, number: int, frame: Any) -> None:
        self.caught = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        flag = torch.tensor(float(self.caught), device=args.device)
        if args.world_size > 1:  # the signal may have reached some ranks only; all must stop at one step
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        if flag.item():
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def exit_if_stopped(self, trainer: Any) -> None:
        """After ``train()``: where a signal ended it, say how to go on and exit as the signal would have."""
        if not self.stopped:
            return
        if trainer.accelerator.is_main_process:
            sys.stderr.write(
                f"stopped by SIGTERM after step {trainer.state.global_step}, checkpoint saved; "
                "go on with --resume_from_checkpoint auto\n"
            )
        sys.exit(128 + signal.SIGTERM)


def train_and_save(trainer: Any, resume: Path | None, stop: StopOnSignal) -> None:
    """Train, from a checkpoint where one is given, and save the model; exit where a signal ended training."""
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if not stop.stopped:
        trainer.save_model(trainer.args.output_dir)
    trainer.accelerator.wait_for_everyone()
    leave_group(trainer.accelerator)
    stop.exit_if_stopped(trainer)


def leave_group(accelerator: Any) -> None:
    """End trackers and the group of processes, so that this process can exit.

    PyTorch's threads for communication on CPUs let go of their last tensors a moment after the last
    collective returns; one that does so while Python is shutting down aborts the process (signal 6,
    "terminate called without an active exception": pytorch/pytorch issue 190489, pull 179291), although
    everything is saved. Nothing tells when they are done.
    """
    threads = torch.distributed.is_initialized() and "gloo" in torch.distributed.get_backend()
    accelerator.end_training()
    if threads:
        time.sleep(LINGER)
