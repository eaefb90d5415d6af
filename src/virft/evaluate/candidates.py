"""Which categories a model sees in which image: a file for ``--candidates``.

Detection asks one question for each (image, category). Asking all is what AP means, and slow; the paper's
numbers ask the pairs that a baseline model named. One such file can be made here and used for every model
that is to be compared. The file is {image id: [category names]}, for every image that was asked about; beside
it stands how it was made, which the protocol of a run that uses it repeats.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from virft import prompts
from virft.data import coco as data
from virft.evaluate import coco, protocol
from virft.evaluate.asking import ask as ask_model
from virft.evaluate.protocol import say
from virft.files import check_file
from virft.parsing import parse_presence
from virft.predictions import load_meta, meta_path
from virft.types import Prediction, Sample


@dataclass
class Settings(coco.Settings):
    """Ask a model which categories are present in each image, and write a --candidates file."""

    output: str = field(
        default="presence.jsonl",
        metadata={"help": "Where the raw replies go; a run that was cut off continues from them."},
    )
    candidates_file: str = field(
        default="candidates.json", metadata={"help": "The file to make: {image id: [category names]}."}
    )
    max_new_tokens: int = field(default=8, metadata={"help": "Limit of a reply, which is yes or no."})


def questions(settings: Settings, space: str) -> tuple[list[Sample], dict[str, Any]]:
    """One yes-or-no question for each pair, and the protocol."""
    coco.check_choice(settings)
    check_file("--candidates_file", settings.candidates_file)
    annotations = data.load_annotations(settings.annotations)
    samples = data.detection_samples(
        annotations,
        settings.image_folder,
        settings.categories,
        settings.candidates,
        space,
        settings.max_images,
        require_images=not settings.skip_bad_images,
        ask=lambda category, _: prompts.presence(category),
    )
    said = coco.stated(settings, annotations)
    return samples, {**said, "suite": "candidates", "prompt": prompts.presence("{category}")}


def present(predictions: Iterable[Prediction]) -> dict[str, list[str]]:
    """{image id: names that were affirmed}; a reply that is neither yes nor no counts as yes.

    A needless question costs time, a missing one loses the objects.
    """
    found: dict[str, list[str]] = {}
    for prediction in predictions:
        names = found.setdefault(str(prediction.meta["image_id"]), [])
        parsed = parse_presence(prediction.reply)
        if parsed.value or not parsed.ok:
            names.append(prediction.meta["category"])
    return found


def make(settings: Settings) -> dict[str, list[str]]:
    """Ask the model and write ``settings.candidates_file`` with its protocol beside it.

    Raises:
        UserError: see :func:`virft.data.coco.detection_samples` and :func:`virft.infer.run`.
    """
    file = settings.candidates_file
    predictions = ask_model(
        settings,
        lambda space: questions(settings, space),
        lambda reply: parse_presence(reply).reason,
        f"python coco_evaluation/Qwen2_VL_coco_infere.py --candidates {shlex.quote(file)}",
    )
    found = present(predictions)
    if protocol.is_first_rank():
        protocol.write_json(file, found)
        protocol.write_json(meta_path(file), load_meta(settings.output))
    pairs = sum(len(names) for names in found.values())
    say(f"{pairs:,} of {len(predictions):,} pairs are candidates, in {file}")
    return found
