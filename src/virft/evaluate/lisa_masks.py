"""Boxes to masks with SAM, and gIoU and cIoU of masks by LISA's own rule."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from virft.data import lisa as data
from virft.errors import UserError
from virft.evaluate import protocol
from virft.evaluate.lisa_boxes import asked, check_rule, truth_hash
from virft.evaluate.protocol import say
from virft.files import check_file, replacing
from virft.image_header import shown_size
from virft.metrics import grounding as metrics
from virft.predictions import load_meta, load_predictions, meta_path
from virft.types import Prediction, Sample

log = logging.getLogger(__name__)

SAM = "facebook/sam-vit-huge"
"""The paper's SAM, ViT-H."""
NO_MASK = "no_mask"
"""Why there is no mask, where the masks' file does not say."""


@dataclass
class MaskSettings:
    """Turn the boxes of replies into masks with SAM."""

    annotations: str = field(
        default="data/ReasonSeg/val", metadata={"help": "Folder of the split, for its images."}
    )
    predictions: str = field(
        default="predictions.jsonl", metadata={"help": "predictions.jsonl of the inference program."}
    )
    output: str = field(default="masks.jsonl", metadata={"help": "Where the masks go, one JSON line each."})
    sam_model: str = field(default=SAM, metadata={"help": "Folder or Hub id of a SAM."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1, mps."})
    dtype: str = field(default="float32", metadata={"help": "auto (bfloat16 on a GPU) or a name."})
    overwrite: bool = field(default=False, metadata={"help": "Throw away what stands at --output."})


@dataclass
class MaskScoreSettings:
    """Score masks: gIoU and cIoU by LISA's own rule."""

    annotations: str = field(
        default="data/ReasonSeg/val", metadata={"help": "Folder of the split: the truth."}
    )
    masks: str = field(default="masks.jsonl", metadata={"help": "Masks of box2mask.py."})
    output: str | None = field(default=None, metadata={"help": "Where to write the numbers as JSON."})
    truth: str = field(
        default="all",
        metadata={"help": "all target polygons, LISA's rule; or first_shape of a file, the reference's."},
    )


def make_masks(settings: MaskSettings) -> Path:
    """Boxes to masks, one JSON line per question: id, box in pixels, reason, rle (None without a box).

    Lines are appended as they are made; a killed run continues where it was. ``<output stem>.meta.json``
    states the SAM and the protocol of the predictions.

    Raises:
        UserError: a file or model that cannot be used, or earlier masks of other predictions or another SAM.
    """
    from virft.inference_model import pick_device, pick_dtype
    from virft.masks import check_sam

    pick_dtype(settings.dtype, pick_device(settings.device))
    check_file("--output", settings.output)
    predictions = load_predictions(settings.predictions)
    meta = load_meta(settings.predictions)
    samples = asked(settings.annotations, meta)
    replies = metrics.by_id(samples, predictions)
    stamp = {
        "sam_model": settings.sam_model,
        "dtype": settings.dtype,
        "predictions_sha256": protocol.sha256(settings.predictions),
    }
    output = Path(settings.output)
    partial = output.with_name(output.name + ".partial")
    if settings.overwrite:
        output.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    if output.exists():
        _same_run(output, stamp, load_meta(output) or {})
        log.warning("%s is complete; nothing to do (--overwrite makes it anew)", output)
        return output
    done = _begin(partial, stamp)
    waiting = [sample for sample in samples if sample.id not in done]
    if waiting:
        check_sam(settings.sam_model)  # it loads at the first box, which may be far behind
        _segment(waiting, replies, settings, partial)
    lines = {line["id"]: line for line in _lines(partial)[1:]}
    statement = {**stamp, "annotations": settings.annotations, "inference": meta}
    protocol.write_json(meta_path(output), statement)
    with replacing(output) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(lines[sample.id]) + "\n")
    partial.unlink()
    boxes = sum(line["rle"] is not None for line in lines.values())
    say(f"{boxes:,} masks of {len(samples):,} questions in {output}")
    return output


def _segment(
    samples: Sequence[Sample], replies: Mapping[str, Prediction], settings: MaskSettings, partial: Path
) -> None:
    """Append a line for each sample; the SAM loads at the first box."""
    from tqdm import tqdm

    from virft.images import open_rgb
    from virft.masks import BoxSegmenter

    segmenter: BoxSegmenter | None = None
    with open(partial, "a", encoding="utf-8") as file:
        for sample in tqdm(samples, desc="masks", unit="box"):
            box, reason = metrics.predicted_box(replies.get(sample.id))
            rle = None
            if box is not None:
                segmenter = segmenter or BoxSegmenter(settings.sam_model, settings.device, settings.dtype)
                rle = metrics.encode_mask(segmenter.masks(open_rgb(sample.images[0]), [box])[0])
            line = {"id": sample.id, "box": box, "reason": reason, "rle": rle}
            file.write(json.dumps(line) + "\n")
            file.flush()


def _begin(partial: Path, stamp: Mapping[str, Any]) -> set[str]:
    """Make or check the file of a run; the ids that it holds already. A torn last line is cut off."""
    lines = _lines(partial) if partial.exists() else []
    if len(lines) > 1:  # a run that ended before its first mask binds nobody to its settings
        _same_run(partial, stamp, lines[0])
    with replacing(partial) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for line in [dict(stamp), *lines[1:]]:
            file.write(json.dumps(line) + "\n")
    return {line["id"] for line in lines[1:]}


def _same_run(path: Path, stamp: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    differing = [name for name in stamp if earlier.get(name) != stamp[name]]
    if differing:
        was = "; ".join(f"{name}: {earlier.get(name)!r} then, {stamp[name]!r} now" for name in differing)
        raise UserError(
            f"{path} holds masks made otherwise ({was}); use another --output, or --overwrite to start anew"
        )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a masks file.

    Raises:
        UserError: no such file, or a line that is not JSON, with its number. A last line without its end is
            what a kill left and is passed over.
    """
    if not path.is_file():
        raise UserError(f"masks {path}: no such file; make it with box2mask.py")
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"masks {path}, line {number}: not JSON ({error})") from error
    return lines


def score_masks(settings: MaskScoreSettings) -> dict[str, Any]:
    """gIoU and cIoU of masks; print them; write ``settings.output``.

    Every question of the run counts: one without a mask has IoU 0 and its truth's area in the union.

    Returns:
        ``giou``, ``ciou``, ``questions``, ``without_mask`` {reason: count}, ``rows`` (id, intersection,
        union, iou) and ``protocol``.

    Raises:
        UserError: a file that is missing or of another kind, masks of another split or size.
    """
    check_rule(settings.truth)
    if settings.output:
        check_file("--output", settings.output)
    masks = _masks(Path(settings.masks))
    meta = load_meta(settings.masks)
    samples = asked(settings.annotations, (meta or {}).get("inference"))
    strangers = set(masks) - {sample.id for sample in samples}
    if strangers:
        raise UserError(
            f"masks {settings.masks}: {len(strangers)} belong to no question of {settings.annotations}, "
            f"e.g. {min(strangers)!r}; check --annotations"
        )
    by_name = {annotation.name: annotation for annotation in data.read_split(settings.annotations)}
    rows = []
    without: Counter[str] = Counter()
    for sample in samples:
        line = masks.get(sample.id, {"rle": None, "reason": metrics.MISSING})
        common, union = _areas(by_name[sample.meta["annotation"]], sample.id, line["rle"], settings.truth)
        if line["rle"] is None:
            without[line.get("reason", NO_MASK)] += 1
        rows.append({"id": sample.id, "intersection": common, "union": union})
    scored = metrics.score_masks((row["intersection"], row["union"]) for row in rows)
    numbers = {
        "giou": scored.giou,
        "ciou": scored.ciou,
        "questions": len(rows),
        "without_mask": dict(without),
        "rows": [{**row, "iou": iou} for row, iou in zip(rows, scored.ious, strict=True)],
        "protocol": {
            **dataclasses.asdict(settings),
            "annotations_sha256": truth_hash(settings.annotations),
            "made": meta,
        },
    }
    say(
        f"{len(rows):,} questions, truth: {settings.truth}\n"
        f"gIoU         {100 * scored.giou:6.2f}\ncIoU         {100 * scored.ciou:6.2f}\n"
        f"without mask {protocol.reasons(without)}"
    )
    if settings.output:
        protocol.write_json(settings.output, numbers)
        say(f"written to {settings.output}")
    return numbers


def _masks(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a finished masks file by their id."""
    found = {}
    lines = _lines(path)
    if not lines or not path.read_bytes().endswith(b"\n"):
        raise UserError(f"masks {path}: {'cut off in its last line' if lines else 'empty'}; make it anew")
    for number, line in enumerate(lines, 1):
        rle = line.get("rle", "") if isinstance(line, dict) else ""
        if (
            not (rle is None or (isinstance(rle, dict) and {"size", "counts"} <= set(rle)))
            or "id" not in line
        ):
            raise UserError(
                f'masks {path}, line {number}: needs an "id" and an "rle" (null or {{"size", "counts"}})'
            )
        found[str(line["id"])] = line
    return found


def _areas(
    annotation: data.Annotation, identity: str, rle: Mapping[str, Any] | None, rule: str
) -> tuple[int, int]:
    with Image.open(annotation.image) as image:
        size = shown_size(image)
    try:
        predicted = metrics.decode_mask(rle) if rle is not None else None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the mask of {identity!r} cannot be read ({error}); make it anew") from error
    if predicted is not None and predicted.shape != size[::-1]:
        raise UserError(
            f"the mask of {identity!r} has {predicted.shape[1]} x {predicted.shape[0]} pixels, "
            f"its image {size[0]} x {size[1]}"
        )
    return metrics.mask_areas(predicted, *data.truth_mask(annotation, size, rule))
