"""Fine-grained classification: ask, score, and both."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virft import prompts
from virft.data import classification as data
from virft.data.records import RECORD_SUFFIXES
from virft.errors import UserError
from virft.evaluate import protocol
from virft.evaluate.asking import ask as ask_model
from virft.evaluate.asking import scores_path, spread
from virft.evaluate.pictures import Panel
from virft.evaluate.protocol import say
from virft.files import check_file
from virft.inference_settings import InferenceSettings
from virft.metrics import classification as metrics
from virft.parsing import normalize_class, parse_class
from virft.predictions import load_meta, load_predictions
from virft.types import Prediction, Sample


@dataclass
class Settings(InferenceSettings):
    """Ask a model which class its images show."""

    dataset: str = field(
        default="flowers102",
        metadata={
            "help": f"{', '.join(data.KNOWN)}; a folder of one folder per class; or a .csv, .json or .jsonl "
            "list with the fields image and label."
        },
    )
    root: str = field(default="data", metadata={"help": "Where torchvision keeps its data sets."})
    split: str = field(default="test", metadata={"help": "The split of a known set or of --split_file."})
    split_file: str | None = field(
        default=None,
        metadata={
            "help": "CoOp's split file, such as split_zhou_OxfordFlowers.json; the paper's Flowers102 "
            "numbers are on it. Its images stand in --image_folder."
        },
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "Where image paths start; default: beside the list."}
    )
    classes: str | None = field(
        default=None,
        metadata={"help": "A class list: one name a line in label order, 'name | alias' for others."},
    )
    subject: str | None = field(
        default=None,
        metadata={"help": f"What is shown: {', '.join(prompts.SUBJECTS)}; default: the known set's."},
    )
    contains: str | None = field(
        default=None, metadata={"help": 'For another subject: what an image contains, e.g. "a bird".'}
    )
    to_name: str | None = field(
        default=None, metadata={"help": 'And what is to be named, e.g. "species of the bird".'}
    )
    download: bool = field(
        default=False, metadata={"help": "Fetch a known set, with torchvision's integrity checks."}
    )
    partial: bool = field(
        default=False, metadata={"help": "Accept a copy that has not the published number of images."}
    )
    max_images: int | None = field(default=None, metadata={"help": "Only so many images, spread evenly."})


@dataclass
class ScoreSettings:
    """Score class answers: strict accuracy, the paper's lenient rule, classes, frequent mistakes."""

    predictions: str = field(
        default="predictions.jsonl", metadata={"help": "predictions.jsonl of the inference program."}
    )
    output: str | None = field(default=None, metadata={"help": "Where to write the numbers as JSON."})
    classes: str | None = field(
        default=None, metadata={"help": "Another class list than the run's, e.g. with more aliases."}
    )
    confusions: int = field(default=20, metadata={"help": "How many of the frequent mistakes are shown."})


def load_images(settings: Settings) -> tuple[data.ImageSet, Path]:
    """The images that the settings name, under the names of ``--classes``, and the folder above them.

    Raises:
        UserError: see the loaders of :mod:`virft.data.classification`.
    """
    listed = data.read_classes(settings.classes) if settings.classes else None
    source = Path(settings.dataset)
    if settings.split_file:
        folder = Path(settings.image_folder or Path(settings.split_file).parent)
        images = data.load_coop_split(settings.split_file, folder, settings.split, partial=settings.partial)
    elif settings.dataset in data.KNOWN:
        folder = Path(settings.root)
        images = data.load_known(
            settings.dataset, folder, settings.split, download=settings.download, partial=settings.partial
        )
    elif source.is_dir():
        folder, images = source, data.load_folder(source)
    elif source.suffix.lower() in RECORD_SUFFIXES:
        folder = Path(settings.image_folder or source.parent)
        images = data.load_list(source, folder, listed[0] if listed else None)
    else:
        raise UserError(
            f"--dataset {settings.dataset!r} is none of {', '.join(data.KNOWN)}, no folder and no "
            f"{', '.join(RECORD_SUFFIXES)} file"
        )
    return (data.with_classes(images, *listed) if listed else images), folder


def subject(settings: Settings) -> tuple[str, str]:
    """What an image contains and what is to be named, for the prompt.

    Raises:
        UserError: an unknown subject, one of the two phrases alone, or a set of one's own without any.
    """
    if settings.contains or settings.to_name:
        if not (settings.contains and settings.to_name):
            raise UserError("--contains and --to_name go together: the prompt needs both")
        return settings.contains, settings.to_name
    known = data.KNOWN.get(settings.dataset)
    name = settings.subject or (known.subject if known else None)
    if name is None:
        raise UserError(
            f"what --dataset {settings.dataset} shows is not known: pass --subject "
            f"({', '.join(prompts.SUBJECTS)}) or --contains and --to_name"
        )
    if name not in prompts.SUBJECTS:
        raise UserError(f"--subject {name!r} is unknown; choose one of {', '.join(prompts.SUBJECTS)}")
    return prompts.SUBJECTS[name]


def questions(settings: Settings) -> tuple[list[Sample], dict[str, Any]]:
    """The samples of a run, and the part of its protocol that says which they are."""
    contains, to_name = subject(settings)
    images, folder = load_images(settings)
    samples = spread(data.classification_samples(images, contains, to_name, folder), settings.max_images)
    missing = [s.images[0] for s in samples if not Path(s.images[0]).is_file()]
    if missing and not settings.skip_bad_images:
        raise UserError(
            f"{len(missing)} of {len(samples)} images are missing, the first is {missing[0]}; "
            "check --root or --image_folder, or pass --skip_bad_images"
        )
    stated = {
        "suite": "classification",
        "dataset": settings.dataset,
        "split": settings.split,
        "split_file": settings.split_file,
        "split_file_sha256": protocol.sha256(settings.split_file) if settings.split_file else None,
        "classes": list(images.classes),
        "aliases": {name: list(others) for name, others in images.aliases.items()},
        "max_images": settings.max_images,
        "prompt": prompts.classification(contains, to_name),
    }
    return samples, stated


def ask(settings: Settings) -> list[Prediction]:
    """Ask the model; see :func:`virft.evaluate.asking.ask`."""
    return ask_model(
        settings,
        lambda space: questions(settings),
        lambda reply: parse_class(reply).reason,
        f"python classification/classification_evaluation.py --predictions {shlex.quote(settings.output)}",
    )


def score(settings: ScoreSettings) -> dict[str, Any]:
    """Score a file of replies; print the tables; write ``settings.output``.

    Returns:
        The fields of :class:`virft.metrics.classification.ClassificationScore` less its rows, ``skipped`` and
        ``protocol``.

    Raises:
        UserError: a file that is missing or of another kind, or a class that the list lacks.
    """
    if settings.confusions < 0:
        raise UserError(f"--confusions must be at least 0, got {settings.confusions}")
    if settings.output:
        check_file("--output", settings.output)
    predictions = load_predictions(settings.predictions)
    meta = load_meta(settings.predictions) or {}
    if settings.classes:
        names, aliases = data.read_classes(settings.classes)
        listed = data.by_reading(names)
        predictions = [relabelled(p, listed, aliases) for p in predictions]
    else:
        names = meta.get("classes", ())
    numbers = count(predictions, names, len(meta.get("skipped_images", ())))
    numbers["protocol"] = {
        "predictions": settings.predictions,
        "classes": settings.classes,
        "classes_sha256": protocol.sha256(settings.classes) if settings.classes else None,
        "inference": meta or None,
    }
    say(table(numbers, settings.confusions))
    if settings.output:
        protocol.write_json(settings.output, numbers)
        say(f"written to {settings.output}")
    return numbers


def count(predictions: Sequence[Prediction], names: Sequence[str], skipped: int) -> dict[str, Any]:
    """The numbers of :func:`score` without its protocol.

    Args:
        predictions: with ``label`` and ``aliases`` in their meta.
        names: the classes; without them those of the predictions.
        skipped: how many images were left out.
    """
    judged = metrics.score(predictions, names)
    numbers = {
        f.name: getattr(judged, f.name) for f in dataclasses.fields(judged) if f.name in metrics.NUMBERS
    }
    numbers["classes"] = [{**dataclasses.asdict(c), "accuracy": c.accuracy} for c in judged.classes]
    numbers["confusions"] = [dataclasses.asdict(c) for c in judged.confusions]
    numbers["skipped"] = skipped
    return numbers


def relabelled(
    prediction: Prediction, listed: Mapping[str, str], aliases: Mapping[str, tuple[str, ...]]
) -> Prediction:
    """The prediction with its label as a class list (:func:`virft.data.classification.by_reading`) spells it.

    Raises:
        UserError: a label that the list lacks.
    """
    written = str(prediction.meta.get("label", ""))
    label = listed.get(normalize_class(written))
    if label is None:
        raise UserError(f"prediction {prediction.id!r}: the class list lacks {written!r}")
    meta = {**prediction.meta, "label": label, "aliases": list(aliases.get(label, ()))}
    return dataclasses.replace(prediction, meta=meta)


def evaluate(settings: Settings) -> dict[str, Any]:
    """Ask, then score; the numbers stand beside the replies in ``<output stem>.scores.json``."""
    ask(settings)
    return score(ScoreSettings(predictions=settings.output, output=str(scores_path(settings.output))))


def panels(settings: Settings, count: int = 8) -> list[Panel]:
    """Images of the most frequent mistakes, one of each, with the reply.

    Args:
        settings: of the run; its replies stand at ``settings.output``.
        count: how many.
    """
    images = {sample.id: sample.images[0] for sample in questions(settings)[0]}
    predictions = load_predictions(settings.output)
    replies = {prediction.id: prediction.reply for prediction in predictions}
    judged = metrics.score(predictions, (load_meta(settings.output) or {}).get("classes", ()))
    wrong = {(row.truth, row.answer or f"({row.reason})"): row.id for row in judged.rows if not row.right}
    return [
        Panel(
            image=images[wrong[c.truth, c.answer]],
            title=f"{c.truth}\nanswered: {textwrap.shorten(c.answer, 40)} ({c.count} times)",
            reply=replies[wrong[c.truth, c.answer]],
        )
        for c in judged.confusions[:count]
    ]


def table(numbers: Mapping[str, Any], confusions: int = 20) -> str:
    """The numbers as text, in percent."""
    unreadable = {code: n for code, n in numbers["reasons"].items() if code != "ok"}
    lines = [
        f"{numbers['images']:,} images of {len(numbers['classes'])} classes, {numbers['skipped']} left out",
        f"accuracy              {100 * numbers['accuracy']:6.2f}  (the answer equals the class)",
        f"accuracy, paper rule  {100 * numbers['accuracy_paper_rule']:6.2f}  (one contains the other)",
        f"mean class accuracy   {100 * numbers['mean_class_accuracy']:6.2f}",
        f"unreadable replies    {protocol.reasons(unreadable)}",
        f"no class of the set   {numbers['off_list']}",
        "",
        f"{'class':40s}{'images':>7s}{'right':>7s}{'paper':>7s}{'unread':>7s}{'acc':>7s}",
    ]
    lines += [
        f"{c['name'][:39]:40s}{c['images']:7d}{c['right']:7d}{c['right_paper_rule']:7d}{c['unreadable']:7d}"
        f"{100 * c['accuracy']:7.1f}"
        for c in numbers["classes"]
    ]
    if numbers["confusions"] and confusions:
        lines += ["", f"{'frequent mistakes: class':40s} {'answer':40s}{'times':>6s}"]
        lines += [
            f"{c['truth'][:39]:40s} {c['answer'][:39]:40s}{c['count']:6d}"
            for c in numbers["confusions"][:confusions]
        ]
    return "\n".join(lines)
