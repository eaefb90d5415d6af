"""Detection on COCO-format annotations: ask, score, and both."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virft import prompts
from virft.boxes import convert
from virft.data import coco
from virft.errors import UserError
from virft.evaluate import protocol
from virft.evaluate.asking import ask as ask_model
from virft.evaluate.asking import scores_path
from virft.evaluate.pictures import Panel
from virft.evaluate.protocol import say
from virft.files import check_file
from virft.inference_settings import InferenceSettings
from virft.metrics import detection
from virft.parsing import parse_detections
from virft.predictions import load_meta, load_predictions
from virft.types import Detection, Prediction, Sample


@dataclass
class Settings(InferenceSettings):
    """Ask a model for the boxes of categories in the images of COCO-format annotations."""

    annotations: str = field(
        default="data/coco/annotations/instances_val2017.json",
        metadata={"help": "COCO-format annotations of the images and categories."},
    )
    image_folder: str = field(
        default="data/coco/val2017", metadata={"help": "Folder below which the images stand."}
    )
    categories: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "Names or presets: all, fewshot8, novel15, base65 (LVIS: fewshot6, rare13)."},
    )
    candidates: str = field(
        default="all",
        metadata={
            "help": "Which categories are asked on an image: all, ground_truth (those annotated on it) or a "
            "JSON file {image id: [names]}."
        },
    )
    max_images: int | None = field(default=None, metadata={"help": "Only the first so many images."})


@dataclass
class ScoreSettings:
    """Score detections: COCO results JSON or the replies of the inference program."""

    annotations: str = field(
        default="data/coco/annotations/instances_val2017.json",
        metadata={"help": "COCO-format annotations: the truth."},
    )
    predictions: str = field(
        default="predictions.jsonl",
        metadata={"help": "predictions.jsonl of the inference program, or a COCO results JSON."},
    )
    output: str | None = field(default=None, metadata={"help": "Where to write the numbers as JSON."})
    categories: list[str] | None = field(
        default=None,
        metadata={"help": "Names or presets to score; default: those that were asked, else all."},
    )
    coco_results: str | None = field(
        default=None, metadata={"help": "Where to write the boxes as COCO results JSON, for other tools."}
    )
    missing_score: float = field(
        default=detection.MISSING_SCORE, metadata={"help": "Score of a box without a confidence."}
    )


@dataclass(frozen=True)
class Rules:
    """How AP is counted and which of its numbers a table shows: COCO's rules, unless others are given."""

    precision: Callable[[detection.Results, detection.Truth], dict[str, Any]] = detection.average_precision
    names: tuple[str, ...] = detection.COCO_NUMBERS
    recall: str = "AR100"


def questions(settings: Settings, space: str) -> tuple[list[Sample], dict[str, Any]]:
    """The samples of a run, and the part of its protocol that says which they are."""
    check_choice(settings)
    annotations = coco.load_annotations(settings.annotations)
    samples = coco.detection_samples(
        annotations,
        settings.image_folder,
        settings.categories,
        settings.candidates,
        space,
        settings.max_images,
        require_images=not settings.skip_bad_images,
    )
    return samples, {**stated(settings, annotations), "prompt": prompts.detection("{category}", space)}


def check_choice(settings: Settings) -> None:
    """Refuse a choice of images or pairs that cannot be. Raises UserError naming the flag."""
    if settings.max_images is not None and settings.max_images < 1:
        raise UserError(f"--max_images must be at least 1, got {settings.max_images}")
    if settings.candidates not in coco.CANDIDATES and not Path(settings.candidates).is_file():
        raise UserError(
            f"--candidates {settings.candidates}: no such file, nor {' or '.join(coco.CANDIDATES)}; "
            "coco_evaluation/make_candidates.py makes such files"
        )


def stated(settings: Settings, annotations: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a protocol that says which pairs of which data were asked."""
    said = {
        "suite": "coco",
        "annotations": settings.annotations,
        "annotations_sha256": protocol.sha256(settings.annotations),
        "categories": [c["name"] for c in coco.choose_categories(annotations, settings.categories)],
        "candidates": settings.candidates,
        "max_images": settings.max_images,
    }
    if settings.candidates not in coco.CANDIDATES:
        said["candidates_sha256"] = protocol.sha256(settings.candidates)
        said["candidates_protocol"] = load_meta(settings.candidates)
        named = set(coco.load_candidates(settings.candidates))
        known = [str(image["id"]) for image in annotations["images"]]
        chosen = set(known[: settings.max_images])
        unknown, without = len(named.difference(known)), len(chosen - named)
        said["candidates_unknown_images"] = unknown
        said["images_without_candidates"] = without
        if unknown or without:
            say(
                f"candidates   {without:,} of {len(chosen):,} images are not in {settings.candidates} and "
                f"not asked; {unknown:,} of its image ids are not in the annotations"
            )
    return said


def ask(settings: Settings) -> list[Prediction]:
    """Ask the model; replies and protocol stand at ``settings.output`` afterwards.

    Raises:
        UserError: see :func:`virft.data.coco.detection_samples` and :func:`virft.infer.run`.
    """
    return ask_model(
        settings,
        lambda space: questions(settings, space),
        lambda reply: parse_detections(reply).reason,
        score_command(settings),
    )


def score_command(settings: Settings) -> str:
    """The command that scores what :func:`ask` wrote."""
    paths = f"--annotations {shlex.quote(settings.annotations)} --predictions {shlex.quote(settings.output)}"
    return f"python coco_evaluation/coco_evaluation.py {paths}"


def score(settings: ScoreSettings, rules: Rules | None = None) -> dict[str, Any]:
    """Score a file of replies or results; print the table; write ``settings.output``.

    Args:
        settings: what to score.
        rules: of AP; COCO's by default.

    Returns:
        What :func:`virft.metrics.detection.evaluate` gives, ``skipped``: how many questions were left out for
        an unreadable image (whose objects count as missed), and ``protocol``: how the replies were made.

    Raises:
        UserError: a file that is missing or of another kind, an unknown category.
    """
    if not 0 <= settings.missing_score <= 1:
        raise UserError(f"--missing_score must be between 0 and 1, got {settings.missing_score}")
    for flag in ("output", "coco_results"):
        if getattr(settings, flag):
            check_file(f"--{flag}", getattr(settings, flag))
    annotations = coco.load_annotations(settings.annotations)
    replies, entries = read_predictions(settings.predictions)
    meta = load_meta(settings.predictions) if replies is not None else None
    chosen = settings.categories or (meta or {}).get("categories") or "all"
    truth = detection.make_truth(
        annotations, coco.choose_categories(annotations, chosen), (meta or {}).get("max_images")
    )
    if replies is not None:
        results = detection.from_replies(replies, truth, settings.missing_score)
    else:
        results = detection.from_coco_results(entries, truth, settings.missing_score)
    rules = rules or Rules()
    numbers = detection.evaluate(results, truth, rules.precision)
    numbers["skipped"] = len((meta or {}).get("skipped_images", ()))
    numbers["protocol"] = {
        "predictions": settings.predictions,
        "annotations": settings.annotations,
        "annotations_sha256": protocol.sha256(settings.annotations),
        "categories": [c["name"] for c in truth.categories],
        "missing_score": settings.missing_score,
        "inference": meta,
    }
    say(table(numbers, rules))
    if settings.coco_results:
        protocol.write_json(settings.coco_results, detection.to_coco_results(results, truth))
    if settings.output:
        protocol.write_json(settings.output, numbers)
        say(f"written to {settings.output}")
    return numbers


def evaluate(settings: Settings) -> dict[str, Any]:
    """Ask, then score; the numbers stand beside the replies in ``<output stem>.scores.json``."""
    ask(settings)
    return score(
        ScoreSettings(
            annotations=settings.annotations,
            predictions=settings.output,
            output=str(scores_path(settings.output)),
        )
    )


def panels(
    annotations: str, image_folder: str, predictions: str, count: int = 8, best: bool = False
) -> list[Panel]:
    """The questions with the lowest IoU (or the highest) as pictures to look at.

    Args:
        annotations, image_folder, predictions: as for :func:`ask` and :func:`score`; predictions are replies.
        count: how many.
        best: the highest instead; questions without object and box are left out.
    """
    content = coco.load_annotations(annotations)
    truth = detection.make_truth(content)
    asked = load_predictions(predictions)
    results = detection.from_replies(asked, truth)
    by_pair = {
        (
            truth.image_ids.get(detection.id_text(p.meta["image_id"])),
            truth.category_ids.get(detection.id_text(p.meta["category_id"])),
        ): p
        for p in asked
    }
    ious = detection.question_ious(results, truth)
    objects = truth.boxes()
    boxes: dict[detection.Pair, list[Detection]] = {}
    for box in results.boxes:
        found = Detection(convert(box["bbox"], "xywh", "pixels"), box["score"])
        boxes.setdefault((box["image_id"], box["category_id"]), []).append(found)
    worth_a_look = [pair for pair in ious if pair in objects or pair in boxes]
    chosen = sorted(worth_a_look, key=ious.__getitem__, reverse=best)[:count]
    lvis = coco.is_lvis(content)
    return [
        Panel(
            image=coco.image_path(truth.images[pair[0] - 1], image_folder, lvis),
            title=f"{by_pair[pair].meta['category']}: IoU {ious[pair]:.2f}",
            truth=tuple(objects.get(pair, ())),
            predicted=tuple(boxes.get(pair, ())),
            reply=by_pair[pair].reply,
        )
        for pair in chosen
    ]


def read_predictions(path: str) -> tuple[list[Prediction] | None, Sequence[Mapping[str, Any]] | None]:
    """Replies (``.jsonl``) or the entries of a COCO results file, by what stands in the file.

    Raises:
        UserError: no such file, or neither kind.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"predictions {file}: no such file; make it with the inference program")
    with open(file, "rb") as opened:
        start = opened.read(64).lstrip()
    if not start.startswith(b"["):
        replies = load_predictions(file)
        if not replies:
            raise UserError(f"predictions {file}: no reply in it")
        return replies, None
    try:
        return None, json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"predictions {file}: not a JSON file ({error})") from error


def table(numbers: Mapping[str, Any], rules: Rules | None = None) -> str:
    """The numbers as text, in percent; "-" where nothing is annotated that would define one."""
    rules = rules or Rules()
    lines = [
        f"{numbers['objects']:,} objects of {len(numbers['per_category'])} categories, "
        f"{numbers['boxes']:,} boxes, {numbers['questions']:,} questions",
        "  ".join(f"{name:>6s}" for name in rules.names),
        "  ".join(f"{percent(numbers[name]):>6s}" for name in rules.names),
        f"mean IoU {percent(numbers['mean_iou'])} (where an object is annotated "
        f"{percent(numbers['mean_iou_present'])}); AP with one confidence for all boxes "
        f"{percent(numbers['constant_confidence']['AP'])}",
        *likelihood_line(numbers),
        *skipped_line(numbers),
        f"unreadable replies {protocol.reasons(numbers['unreadable'])}; "
        f"boxes dropped or mended {protocol.reasons(numbers['dropped'])}",
        "",
        f"{'category':24s}{'AP':>7s}{'AP50':>7s}{rules.recall:>7s}{'objects':>9s}{'boxes':>8s}",
    ]
    lines += [
        f"{name[:23]:24s}{percent(c['AP']):>7s}{percent(c['AP50']):>7s}{percent(c[rules.recall]):>7s}"
        f"{c['objects']:9d}{c['boxes']:8d}"
        for name, c in numbers["per_category"].items()
    ]
    return "\n".join(lines)


def likelihood_line(numbers: Mapping[str, Any]) -> list[str]:
    """The table's line about the boxes ranked by their likelihood; nothing where that is not known."""
    ranked = numbers.get("likelihood_ranked")
    if ranked is None:
        return []
    return [
        f"AP with the boxes ranked by the likelihood of their coordinates {percent(ranked['AP'])}, "
        f"AP50 {percent(ranked['AP50'])}"
    ]


def skipped_line(numbers: Mapping[str, Any]) -> list[str]:
    """The table's line about questions that were not asked; nothing where all were."""
    skipped = numbers.get("skipped")
    return [f"{skipped:,} questions left out: their image cannot be read"] if skipped else []


def percent(value: float) -> str:
    """A share in percent with one decimal; "-" for -1, the undefined."""
    return "-" if value < 0 else f"{100 * value:.1f}"
