"""What all suites state about a run, on the screen and in files."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virft.files import replacing
from virft.inference_settings import InferenceSettings
from virft.predictions import load_meta, meta_path
from virft.types import Sample


def say(text: str = "") -> None:
    """A line for the user; under torchrun rank 0 speaks alone."""
    if is_first_rank():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def is_first_rank() -> bool:
    """Whether this process is torchrun's rank 0, or the only one: it alone speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def sha256(path: str | Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file by rename."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def announce(
    settings: InferenceSettings, space: str, samples: Sequence[Sample], own_space: str | None = None
) -> None:
    """Say what will be asked and how, before anything slow begins; also a space that is not the model's."""
    images = len({sample.images for sample in samples})
    decoding = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature}"
    say(f"model        {settings.model_path}")
    by = " (by --coordinates auto)" if settings.coordinates == "auto" else ""
    say(f"coordinates  {space}{by}")
    if own_space not in (None, space):
        say(f"             by --coordinates; by its own account this model writes {own_space}")
    say(f"questions    {len(samples):,} about {images:,} images")
    say(f"decoding     {decoding}, at most {settings.max_new_tokens} tokens")
    say(f"replies      {settings.output}")


def summarize(settings: InferenceSettings, next_command: str) -> None:
    """Say what became of the questions and what to do next."""
    meta = load_meta(settings.output) or {}
    skipped = len(meta.get("skipped_images", ()))
    say(f"\n{meta['questions'] - skipped:,} replies in {settings.output}")
    say(f"  unreadable   {reasons(meta.get('unreadable') or {})}")
    say(f"  cut off      {meta['truncated_replies']} at {settings.max_new_tokens} tokens")
    if skipped:
        say(f"  left out     {skipped} questions, whose image cannot be read")
    say(f"  protocol     {meta_path(settings.output)}")
    say(f"next: {next_command}")


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason in words, e.g. "3 (no_answer 2, no_box 1)"."""
    total = sum(counts.values())
    detail = ", ".join(f"{k} {n}" for k, n in sorted(counts.items(), key=lambda item: -item[1]))
    return f"{total} ({detail})" if total else "0"
