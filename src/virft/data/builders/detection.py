"""Detection rows from annotations: one for each chosen image and category."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from virft import prompts
from virft.boxes import MODEL_SPACES, Size, check_pixel_limits, convert, resized, same_shape
from virft.data import solutions
from virft.data.builders.choice import Choice, Chosen, choose
from virft.data.builders.entries import image_size
from virft.data.builders.index import Index, open_read_only, size_of
from virft.data.builders.manifest import (
    combined_fingerprint,
    fingerprint,
    is_built,
    listing_sha256,
    write_manifest,
)
from virft.data.builders.ordered import ordered_map
from virft.data.builders.output import Target
from virft.data.builders.progress import Stage, silent
from virft.data.builders.readers import READERS
from virft.data.builders.rules import BoxRules
from virft.data.builders.table import TABLE_SPACES
from virft.data.builders.workplace import naming_disk_faults, working_folder
from virft.data.builders.yolo import label_files, yolo_folders, yolo_settings
from virft.data.classification import image_files
from virft.data.coco import choose_categories, shown
from virft.data.sources import read_table
from virft.errors import UserError

ANNOTATION_SUFFIXES = (".txt", ".xml")
FOLDER_KINDS = ("yolo", "voc")
"""Kinds whose source is a folder."""
CHUNK = 1_000
"""Images whose rows one worker makes at once."""


@dataclass(frozen=True)
class DetectionSettings:
    """What a detection set is made from and how; paths aside, all of it is written to the manifest.

    Attributes:
        source: the annotation file, or a folder (YOLO, VOC).
        kind: a key of :data:`virft.data.builders.readers.READERS`.
        image_folder: what image paths are relative to; None: the source's folder (YOLO, VOC: their own).
        categories: names and presets of :func:`virft.data.coco.choose_categories`; empty: all.
        leave_out: other sets of the same source, none of whose images are taken.
        shots, rows, negatives, seed: see :class:`virft.data.builders.choice.Choice`.
        space: coordinate space of the rows, a member of :data:`virft.boxes.MODEL_SPACES`.
        min_pixels, max_pixels: the pixel budget that ``abs_resized`` boxes are for; needed by them only.
        rules: which boxes and pairs make rows.
        leave_out_wrong: leave pairs with wrong boxes out, instead of stopping.
        split: of a YOLO or VOC source.
        box_space: of a table's corners.
    """

    source: Path
    kind: str = "coco"
    image_folder: Path | None = None
    categories: tuple[str, ...] = ()
    shots: int = 0
    rows: int = 0
    negatives: float = 0.0
    seed: int = 0
    space: str = "norm1000"
    min_pixels: int | None = None
    max_pixels: int | None = None
    rules: BoxRules = field(default_factory=BoxRules)
    leave_out_wrong: bool = False
    leave_out: tuple[Path, ...] = ()
    split: str | None = None
    box_space: str = "pixels"

    def __post_init__(self) -> None:
        """Raises UserError for a value outside its range."""
        if self.kind not in READERS:
            raise UserError(f"--kind {self.kind}: one of {', '.join(READERS)}")
        if self.kind not in FOLDER_KINDS and self.source.is_dir() and self.source != Path():
            raise UserError(
                f"--source {self.source} is a folder, which --kind {self.kind} is not: name the annotation "
                f"file, or pass --kind {' or '.join(FOLDER_KINDS)}"
            )
        if self.split and self.kind not in FOLDER_KINDS:
            raise UserError(f"--split is of a YOLO or VOC set, not of --kind {self.kind}")
        if self.box_space not in TABLE_SPACES:
            raise UserError(f"--box_space {self.box_space}: one of {', '.join(TABLE_SPACES)}")
        if self.box_space != "pixels" and self.kind != "table":
            raise UserError(f"--box_space is of a table's corners, not of --kind {self.kind}")
        if self.space not in MODEL_SPACES:
            raise UserError(f"--coordinates {self.space}: one of {', '.join(MODEL_SPACES)}")
        if self.space == "abs_resized":
            low, high = self.min_pixels, self.max_pixels
            if low is None or high is None:
                raise UserError(
                    "--coordinates abs_resized counts pixels of the image as the model sees it: pass the "
                    "training's --min_pixels and --max_pixels (norm1000 rows fit any: training converts them)"
                )
            check_pixel_limits(low, high)
        elif self.min_pixels is not None or self.max_pixels is not None:
            raise UserError(
                f"--min_pixels and --max_pixels are of --coordinates abs_resized, not of {self.space}"
            )
        Choice((), self.shots, self.rows, self.negatives, self.seed)

    def manifest(self) -> dict[str, Any]:
        """The settings as JSON, with the source's fingerprint."""
        values = asdict(self) | {"source": self._fingerprint()}
        values["leave_out"] = [fingerprint(path) for path in self.leave_out]
        values["image_folder"] = self.image_folder and self.image_folder.as_posix()
        return {"task": "detection", **json.loads(json.dumps(values))}

    def _fingerprint(self) -> dict[str, Any]:
        """Of the annotations: a folder's images may be many gigabytes."""
        if self.kind == "yolo":
            # Its labels and images may stand anywhere; an image without a label file is a source as well.
            images, labels = yolo_folders(self.source, self.image_folder, self.split)
            made = combined_fingerprint(labels, label_files(labels))
            made["images_sha256"] = listing_sha256(
                (image.relative_to(images).as_posix(),) for image in image_files(images)
            )
            settings = yolo_settings(self.source)
            return {"path": self.source.as_posix(), "settings": fingerprint(settings), "labels": made}
        if not self.source.is_dir():
            return fingerprint(self.source)
        return combined_fingerprint(
            self.source, (file for file in self.source.rglob("*") if file.suffix in ANNOTATION_SUFFIXES)
        )

    def model_size(self, size: Size) -> Size:
        """(width, height) to which the model's processor resizes an image of ``size``.

        Raises:
            UserError: the processor would refuse it.
        """
        try:
            return resized(size, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise UserError(f"{self.source}: {error}") from error

    def extent(self, size: Size) -> Size:
        """An image's width and height in units of the rows' space."""
        return self.model_size(size) if self.space == "abs_resized" else (1000, 1000)

    @property
    def images(self) -> Path:
        """What relative image paths start from."""
        folder = self.source if self.source.is_dir() else self.source.parent
        return self.image_folder or folder


def build(
    settings: DetectionSettings,
    target: Target,
    *,
    command: str = "",
    processes: int = 1,
    overwrite: bool = False,
    work_folder: Path | None = None,
    stage: Stage = silent,
) -> dict[str, Any] | None:
    """Build a set and its manifest.

    Args:
        settings: what to build.
        target: where to.
        command: what the user typed, for the manifest.
        processes: how many processes judge boxes and make rows; the set does not depend on it.
        overwrite: replace what stands at the target.
        work_folder: where the index is kept while the set is built; beside the target by default.
        stage: makes progress bars.

    Returns:
        The manifest's counts, or None when the set stands there already, built by the same settings.

    Raises:
        UserError: bad input, an existing other set, no rows, a full disk; then nothing is left behind.
    """
    made_from = settings.manifest()
    if is_built(target, made_from, overwrite):
        return None
    counts: dict[str, Any] = {}
    with (
        naming_disk_faults(target.path.parent),
        working_folder(target.path, work_folder) as folder,
        closing(Index(folder / "index.sqlite")) as index,
    ):
        chosen = _prepare(index, settings, processes, stage)

        def describe(rows: int, written: Path) -> None:
            counts.update(_counts(index, chosen, rows))
            write_manifest(target, command, made_from, counts, written)

        target.write(_rows(index, settings, target, processes, stage), describe=describe)
    return counts


def _prepare(index: Index, settings: DetectionSettings, processes: int, stage: Stage) -> Chosen:
    source = str(settings.source)
    options = {"split": settings.split} if settings.split else {}
    folder = settings.image_folder if settings.kind in FOLDER_KINDS else settings.images
    entries = READERS[settings.kind](settings.source, folder, box_space=settings.box_space, **options)
    index.load(entries, source, stage("reading annotations", None))
    for other in settings.leave_out:
        index.leave_out(image_ids(other))
    wanted = category_positions(index.categories(), settings.categories)
    judged = stage("applying the rules", index.counts.images)
    index.judge_pairs(
        settings.rules, settings.extent, settings.images, settings.leave_out_wrong, source, processes, judged
    )
    choice = Choice(wanted, settings.shots, settings.rows, settings.negatives, settings.seed)
    chosen = choose(index, choice)
    if not chosen.positives:
        left_out = ", ".join(f"{count} {reason}" for reason, count in _by_reason(chosen).items())
        raise UserError(
            f"{source}: no rows: no image shows these categories as the rules ask "
            f"(left out: {left_out or 'none'})"
        )
    return chosen


def image_ids(rows: Path) -> set[str]:
    """The images of a set that a builder made. Raises UserError for rows without ``image_id``."""
    table, *_ = read_table(str(rows))
    if "image_id" not in table.column_names:
        raise UserError(f"--leave_out {rows}: no column 'image_id'; give a set that this program built")
    return {str(value) for value in table.column("image_id").to_pylist()}


def category_positions(categories: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> tuple[int, ...]:
    """Positions in ``categories`` of the wanted names and presets; of all when none is wanted.

    Raises:
        UserError: a name that is no category (:func:`virft.data.coco.choose_categories`).
    """
    chosen = choose_categories({"categories": categories}, wanted or "all")
    ids = {category["id"] for category in chosen}
    return tuple(position for position, category in enumerate(categories) if category["id"] in ids)


def _rows(
    index: Index, settings: DetectionSettings, target: Target, processes: int, stage: Stage
) -> Iterator[dict[str, Any]]:
    total = next(index.rows("SELECT COUNT(*) FROM chosen"))[0]
    advance = stage("writing rows", total)
    work = partial(_make_rows, index.path, settings, target)
    for made in ordered_map(work, _ranges(index), processes):
        advance(len(made))
        yield from made


def _ranges(index: Index) -> Iterator[tuple[int, int]]:
    """Ranges (first, last) of image numbers that hold the chosen images, CHUNK images each."""
    numbers = index.rows("SELECT DISTINCT image FROM chosen ORDER BY image")
    while batch := list(itertools.islice(numbers, CHUNK)):
        yield batch[0][0], batch[-1][0]


def _make_rows(
    database: Path, settings: DetectionSettings, target: Target, numbers: tuple[int, int]
) -> list[dict[str, Any]]:
    connection = open_read_only(database)
    found = connection.execute(
        "SELECT i.id, i.path, i.width, i.height, c.name, p.boxes FROM chosen p"
        " JOIN images i ON i.number = p.image JOIN categories c ON c.position = p.category"
        " WHERE p.image BETWEEN ? AND ? ORDER BY p.image, p.category",
        numbers,
    )
    rows: list[dict[str, Any]] = []
    for image_id, path, width, height, category, boxes in found:
        pixels = json.loads(boxes)
        size = size_of(path, width, height, settings.images)
        if not rows or rows[-1]["image_id"] != image_id:
            _check_shape(settings.images / path, size)
        model_size = settings.model_size(size) if settings.space == "abs_resized" else None
        converted = [convert(box, "pixels", settings.space, size, model_size) for box in pixels]
        row = {
            "problem": prompts.detection(shown(category), settings.space),
            "solution": solutions.detection(converted),
            "task": "detection",
            "category": category,
            "image_id": image_id,
        }
        if settings.space != "norm1000":
            row["coordinates"] = settings.space
        rows.append(target.encode(row, [settings.images / path]))
    connection.close()
    return rows


def _check_shape(path: Path, said: Size) -> None:
    """Raises UserError where an image has not the shape that its boxes were drawn on.

    A smaller or larger copy is right, since rows hold shares of the sides; one that was turned, or another
    image of the same name, is not. A file that cannot be read is left to training and the validator, which
    name its rows.
    """
    try:
        width, height = image_size(path)
    except UserError:
        return
    if not same_shape((width, height), said):
        raise UserError(
            f"{path}: the picture is {width} x {height} pixels, its annotations are for "
            f"{said[0]} x {said[1]}: is --image_folder right, or was the image turned after it was annotated?"
        )


def _by_reason(chosen: Chosen) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for _, reason, count in chosen.left_out:
        reasons[reason] += count
    return dict(sorted(reasons.items()))


def _counts(index: Index, chosen: Chosen, written: int) -> dict[str, Any]:
    per_category = {
        name: {"positives": positives, "negatives": total - positives}
        for name, total, positives in index.rows(
            "SELECT c.name, COUNT(*), SUM(p.boxes != '[]') FROM chosen p"
            " JOIN categories c ON c.position = p.category GROUP BY p.category ORDER BY p.category"
        )
    }
    for name, reason, count in chosen.left_out:
        counted = per_category.setdefault(name, {"positives": 0, "negatives": 0})
        counted.setdefault("left_out", {})[reason] = count
    counts = index.counts
    return {
        "images": counts.images,
        "images_without_boxes": counts.images_without_boxes,
        "images_left_out": counts.images_left_out,
        "annotations": counts.boxes,
        "categories": counts.categories,
        "pairs_left_out": _by_reason(chosen),
        "rows": written,
        "positives": chosen.positives,
        "negatives": chosen.negatives,
        "negatives_wanted": chosen.wanted_negatives,
        "categories_short_of_shots": dict(chosen.short),
        "per_category": per_category,
    }
