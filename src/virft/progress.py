"""A rank's place within a generation, which the Trainer's own checkpoints do not hold."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from virft.errors import UserError
from virft.shared_prefix_vision import RowImages


def save_progress(trainer: Any, folder: str | Path) -> None:
    """Write this rank's place within the current generation: step count, completions still to be learnt
    from."""
    # Sums that TRL's own checkpoints lack: SFT counts tokens in one, GRPO in the Trainer's state.
    state = {"metrics": dict(trainer._metrics["train"]), "tokens": trainer._total_train_tokens}
    if hasattr(trainer, "_buffered_inputs"):  # SFT has nothing between its steps
        unfinished = trainer._buffered_inputs if trainer._step % _cycle(trainer) else None
        state |= {"step": trainer._step, "buffer": unfinished, "split": _split(trainer)}
    torch.save(state, _progress_file(trainer, folder))


def load_progress(trainer: Any, folder: str | Path) -> None:
    """The inverse of :func:`save_progress`; nothing happens for a checkpoint without the file."""
    path = _progress_file(trainer, folder)
    if not path.is_file():  # of more processes than made it, the first speaks for all
        path = path.with_name("progress_0.pt")
    if not path.is_file():
        return
    device = trainer.accelerator.device
    with torch.serialization.safe_globals([RowImages]):
        # torch.load knows no "cpu:0", which is what the device is called under torchrun.
        state = torch.load(path, map_location=device if device.type != "cpu" else "cpu", weights_only=True)
    trainer._metrics["train"] = defaultdict(list, state["metrics"])
    trainer._total_train_tokens = state.get("tokens", 0)
    if "step" not in state:
        return
    if state.get("split", _split(trainer)) == _split(trainer):
        trainer._step, trainer._buffered_inputs = state["step"], state["buffer"]
    elif state["buffer"] is not None:
        raise UserError(
            f"{folder} stands within a generation, whose replies are dealt out over "
            f"{_described(state['split'])}, and this run has {_described(_split(trainer))}; use as many"
        )


def _cycle(trainer: Any) -> int:
    """Micro-batches from one generation to the next."""
    return trainer.args.steps_per_generation * trainer.num_iterations


def _split(trainer: Any) -> list[int]:
    """[processes, completions in a micro-batch]: how a generation's replies are dealt out."""
    return [trainer.args.world_size, trainer.args.per_device_train_batch_size]


def _described(split: list[int]) -> str:
    return f"{split[0]} processes with {split[1]} completions at once"


def _progress_file(trainer: Any, folder: str | Path) -> Path:
    return Path(folder) / f"progress_{trainer.accelerator.process_index}.pt"
