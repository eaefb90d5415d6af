"""Classification and grounding rows, and a user's own rows in the form that training reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from virft import parsing, prompts
from virft.boxes import convert
from virft.data import solutions
from virft.data.builders.choice import rank, shots
from virft.data.builders.entries import image_size
from virft.data.builders.manifest import is_built, write_manifest
from virft.data.builders.ordered import ordered_map
from virft.data.builders.output import Target
from virft.data.builders.progress import Stage, silent
from virft.data.builders.workplace import naming_disk_faults, working_folder
from virft.data.classification import ImageSet
from virft.data.lisa import Annotation, TruthRule, truth_box
from virft.errors import UserError
from virft.types import Box

CHUNK = 200
"""Rows that one worker encodes at once."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A row before its image is looked at: its columns and images, and a box in pixels still to be written.

    Attributes:
        columns: of the row; ``solution`` is set from ``box`` where there is one.
        images: paths of the images.
        box: x1, y1, x2, y2 in pixels of the first image, or None.
        place: what messages call the row.
    """

    columns: Mapping[str, Any]
    images: tuple[Path, ...]
    box: Box | None = None
    place: str = ""


def classification_drafts(
    images: ImageSet, contains: str, to_name: str, per_class: int = 0, seed: int = 0
) -> list[Draft]:
    """One row per image, or of ``per_class`` images of every class.

    Args:
        images: a set of :mod:`virft.data.classification`.
        contains, to_name: as :func:`virft.prompts.classification` takes them.
        per_class: images of each class; 0: all.
        seed: of the choice. An image is known by its file's name and its folder's, so moving the set does not
            change the choice.
    """
    items: Sequence[tuple[str, str]] = images.items
    if per_class:

        def key(item: tuple[str, str]) -> int:
            return rank(seed, item[1], *Path(item[0]).parts[-2:])

        items = shots(items, lambda item: item[1], key, per_class)
    problem = prompts.classification(contains, to_name)
    written = {label: solutions.classification(label) for label in images.classes}
    for label, solution in written.items():
        if parsing.parse_class(solution).value != label:
            raise UserError(f"{images.name}: class {label!r} cannot be read back from an answer: rename it")
    drafts = []
    for path, label in items:
        columns: dict[str, Any] = {
            "problem": problem,
            "solution": written[label],
            "task": "classification",
        }
        if images.aliases:
            columns["aliases"] = list(images.aliases.get(label, ())) or [label]
        drafts.append(Draft(columns, (Path(path),)))
    return drafts


def grounding_drafts(annotations: Iterable[Annotation], rule: TruthRule = "all") -> list[Draft]:
    """One row for each instruction of each annotation; annotations without a target polygon are left out.

    Args:
        annotations: of :func:`virft.data.lisa.read_split`.
        rule: which polygons the box is drawn around, see :func:`virft.data.lisa.truth_box`.
    """
    drafts = []
    for annotation in annotations:
        box = truth_box(annotation, rule)
        for instruction in annotation.instructions if box is not None else ():
            columns = {
                "problem": prompts.grounding(instruction),
                "solution": "",
                "task": "grounding",
                "image_id": annotation.name,
            }
            drafts.append(Draft(columns, (annotation.image,), box, str(annotation.path)))
    return drafts


def write_drafts(
    drafts: Sequence[Draft],
    target: Target,
    settings: Mapping[str, Any],
    counts: Mapping[str, Any],
    *,
    command: str = "",
    processes: int = 1,
    overwrite: bool = False,
    stage: Stage = silent,
) -> dict[str, Any] | None:
    """Write a set and its manifest.

    Args:
        drafts: the rows.
        target: where to.
        settings: what the manifest says of options and sources.
        counts: what the manifest says of what was found; the number of rows is added.
        command: what the user typed.
        processes: how many processes read images.
        overwrite: replace what stands at the target.
        stage: makes progress bars.

    Returns:
        The manifest's counts, or None when the set stands there already, built by the same settings.

    Raises:
        UserError: no rows, an image that cannot be read, a box outside its image, an existing other set, a
            full disk; then nothing is left behind.
    """
    if is_built(target, settings, overwrite):
        return None
    if not drafts:
        raise UserError(f"{target.path}: no rows to write")
    with naming_disk_faults(target.path.parent), working_folder(target.path):
        advance = stage("writing rows", len(drafts))
        single = all(len(draft.images) == 1 for draft in drafts)
        columns = _example(drafts)

        def rows() -> Iterator[dict[str, Any]]:
            chunks = (drafts[start : start + CHUNK] for start in range(0, len(drafts), CHUNK))
            for made in ordered_map(partial(_encode, target, single, tuple(columns)), chunks, processes):
                advance(len(made))
                yield from made

        def describe(count: int, written: Path) -> None:
            write_manifest(target, command, settings, {**counts, "rows": count}, written)

        return {
            **counts,
            "rows": target.write(rows(), {"image" if single else "images": "", **columns}, describe),
        }


def _example(drafts: Sequence[Draft]) -> dict[str, Any]:
    """A value of every column that has one, which tells its kind; drafts without one hold None."""
    found: dict[str, Any] = {}
    for draft in drafts:
        for name, value in draft.columns.items():
            if value not in (None, []):
                found.setdefault(name, value)
    order = dict.fromkeys(name for draft in drafts for name in draft.columns)
    return {name: found[name] for name in order if name in found}


def _encode(
    target: Target, single: bool, names: Sequence[str], drafts: Sequence[Draft]
) -> list[dict[str, Any]]:
    rows = []
    for draft in drafts:
        columns = {name: draft.columns.get(name) for name in names}
        try:
            if draft.box is not None:
                columns["solution"] = solutions.grounding(_norm1000(draft))
            rows.append(target.encode(columns, draft.images, single))
        except ValueError as error:
            raise UserError(f"{draft.place}: {error}" if draft.place else str(error)) from None
    return rows


def _norm1000(draft: Draft) -> Box:
    """The draft's box in thousandths, cut at the image's edge: polygons are drawn a little over it."""
    width, height = image_size(draft.images[0])
    x1, y1, x2, y2 = draft.box
    cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise UserError(
            f"its box {[round(v, 1) for v in draft.box]} is empty or outside of its image, "
            f"{width} x {height} pixels"
        )
    return convert(cut, "pixels", "norm1000", image_size=(width, height))


def per_class(drafts: Iterable[Draft]) -> dict[str, int]:
    """How many classification rows each class has, in the order of first appearance."""
    return dict(Counter(parsing.parse_class(draft.columns["solution"]).value for draft in drafts))
