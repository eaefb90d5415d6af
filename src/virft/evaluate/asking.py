"""The half of every suite that needs a model: ask its questions, say before and after what was asked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from virft.errors import UserError
from virft.evaluate import protocol
from virft.inference_settings import InferenceSettings
from virft.types import Prediction, Sample

Questions = Callable[[str], tuple[list[Sample], dict[str, Any]]]
"""From the model's coordinate space to the samples and the part of the protocol that says which they are."""


def ask(
    settings: InferenceSettings, questions: Questions, read: Callable[[str], str], next_command: str
) -> list[Prediction]:
    """Ask the model; replies and protocol stand at ``settings.output`` afterwards.

    Args:
        settings: how the model is asked.
        questions: called before any weights load, so that bad data is refused early.
        read: a reply's reason code; "ok" where the suite's reader could read it.
        next_command: what the user runs next.

    Raises:
        UserError: a setting, data or a model that cannot be used; see :func:`virft.infer.run`.
    """
    # Imported here so that scoring and --help, which share the suites' modules, load no torch.
    from virft import infer
    from virft.checkpoint import resolve_space

    infer.check(settings)
    space = resolve_space(settings.model_path, settings.coordinates)
    samples, stated = questions(space)
    protocol.announce(settings, space, samples, infer.own_space(settings.model_path))
    predictions = infer.run(samples, settings, stated, read=read)
    protocol.summarize(settings, next_command)
    return predictions


def spread(samples: Sequence[Sample], max_images: int | None) -> list[Sample]:
    """At most so many samples, spread evenly, since data sets are often sorted by class. None keeps all.

    Raises:
        UserError: a limit below 1.
    """
    if max_images is not None and max_images < 1:
        raise UserError(f"--max_images must be at least 1, got {max_images}")
    if max_images is None or max_images >= len(samples):
        return list(samples)
    return [samples[number * len(samples) // max_images] for number in range(max_images)]


def leads() -> bool:
    """Whether this is the only process, or the first of torchrun's."""
    return os.environ.get("RANK", "0") == "0"


def scores_path(predictions: str | Path) -> Path:
    """Where the numbers of a predictions file stand: ``x.jsonl`` -> ``x.scores.json`` beside it."""
    path = Path(predictions)
    return path.with_name(path.stem + ".scores.json")


def hash_of(paths: Iterable[str | Path]) -> str:
    """One sha256 over the names and bytes of several files, in the order given."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
