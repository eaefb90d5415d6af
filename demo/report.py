"""What the quick start shows at its end: numbers with their intervals, a table, and three pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from virft.boxes import convert
from virft.files import replacing
from virft.metrics import bootstrap
from virft.metrics.detection import Pair, from_replies, make_truth, question_ious
from virft.types import Box, Prediction

TITLES = {"base": "warm-up", "sft": "+ SFT, same rows", "grpo": "+ GRPO, same rows"}
"""Contestant -> its name in the table and the pictures."""
COLOURS = {"base": "#8a8f98", "sft": "#d9822b", "grpo": "#1f6fb2"}
TRUE, PREDICTED = "#2ca02c", "#d62728"
COLUMNS = {"mean_iou": "mean IoU", "map": "mAP", "ap50": "AP50", "unreadable": "unreadable"}


@dataclass(frozen=True)
class Replied:
    """A scene's image file, its true boxes and what a model found in it; boxes in pixels of the image.

    ``iou`` is :func:`virft.metrics.detection.question_ious`'s for this scene.
    """

    image: Path
    category: str
    truths: tuple[Box, ...]
    found: tuple[Box, ...]
    confidences: tuple[float, ...]
    iou: float


def replies(predictions: Sequence[Prediction], annotations: Path) -> list[Replied]:
    """Set a model's replies beside the truth, in the order of the image ids.

    Args:
        predictions: one for each image, with ``image_id`` and ``category_id`` in ``meta``.
        annotations: COCO annotations; image files stand relative to the file.

    Raises:
        ValueError: an image with no prediction or with several.
    """
    truth = make_truth(json.loads(annotations.read_text()))
    results = from_replies(predictions, truth)
    names = {category["id"]: category["name"] for category in truth.categories}
    true_boxes = truth.boxes()
    found: dict[Pair, list[tuple[Box, float]]] = {}
    for box in results.boxes:
        pair = (box["image_id"], box["category_id"])
        found.setdefault(pair, []).append((convert(box["bbox"], "xywh", "pixels"), box["score"]))
    ious = dict(sorted(question_ious(results, truth).items()))
    if [image for image, _ in ious] != [image["id"] for image in truth.images]:
        raise ValueError(f"{annotations}: not every image has exactly one prediction")
    return [
        Replied(
            image=annotations.parent / truth.images[image - 1]["file_name"],
            category=names[category],
            truths=tuple(true_boxes.get((image, category), ())),
            found=tuple(box for box, _ in found.get((image, category), ())),
            confidences=tuple(score for _, score in found.get((image, category), ())),
            iou=overlap,
        )
        for (image, category), overlap in ious.items()
    ]


def gain(before: Sequence[float], after: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Mean gain of ``after`` over ``before``, with the 95 % interval of a paired bootstrap over scenes.

    Args:
        before, after: one number for each scene, in the same order.
        seed: of the resampling.
    """
    found = bootstrap.paired(bootstrap.mean(before), bootstrap.mean(after), len(before), seed=seed)
    return {"mean_iou": found.change, "interval": [found.low, found.high]}


def table(results: Mapping[str, Any]) -> str:
    """The table of one run, and what the interval says, as text."""
    widths = [max(len(title) for title in TITLES.values()), *(max(8, len(c)) for c in COLUMNS.values())]
    head = [f"{'':{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(COLUMNS.values(), widths[1:], strict=True))]
    lines = ["  ".join(head)]
    for name, title in TITLES.items():
        numbers = [
            f"{results[name][key]:>{width}.3f}" if key != "unreadable" else f"{results[name][key]:>{width}d}"
            for key, width in zip(COLUMNS, widths[1:], strict=True)
        ]
        lines.append("  ".join([f"{title:{widths[0]}}", *numbers]))
    return "\n".join(lines)


def verdict(results: Mapping[str, Any]) -> str:
    """The gains over the warm-up in words, with their intervals."""
    lines = []
    for name in ("grpo", "sft"):
        change = results["gain"][f"{name}_over_base"]
        low, high = change["interval"]
        said = "a real gain" if low > 0 else "a real loss" if high < 0 else "no difference that counts"
        lines.append(
            f"{name.upper():4} over the warm-up: mean IoU {change['mean_iou']:+.3f}, "
            f"95 % interval over scenes [{low:+.3f}, {high:+.3f}]: {said}."
        )
    return "\n".join(lines)


def seeds_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table of several runs in Markdown: mean IoU / mAP of each contestant, and the gain of GRPO."""
    lines = [
        "| seed | " + " | ".join(TITLES.values()) + " | GRPO over warm-up, 95 % interval |",
        "|---" * (len(TITLES) + 2) + "|",
    ]
    for run in runs:
        cells = [f"{run[name]['mean_iou']:.3f} / {run[name]['map']:.3f}" for name in TITLES]
        change = run["gain"]["grpo_over_base"]
        low, high = change["interval"]
        cells.append(f"{change['mean_iou']:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {run['seed']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_rewards(history: Sequence[Mapping[str, Any]], keys: Mapping[str, str], path: Path) -> None:
    """Curves of GRPO's rewards, each in a panel of its own.

    Apart, because their sum misleads: the confidence reward alone also rises when a policy loses its boxes
    and says so.

    Args:
        history: the trainer's log: dictionaries with ``step``.
        keys: title of a panel -> key of a reward's mean.
        path: the PNG file to write.
    """
    figure = Figure(figsize=(4.2 * len(keys), 3.4), layout="constrained")
    for axes, (title, key) in zip(np.atleast_1d(figure.subplots(1, len(keys))), keys.items(), strict=True):
        points = [(entry["step"], float(entry[key])) for entry in history if key in entry]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=COLOURS["grpo"], alpha=0.35, linewidth=1)
            axes.plot(steps, _smooth(values), color=COLOURS["grpo"], linewidth=2)
        axes.set(title=title, xlabel="GRPO step", ylabel="mean over sampled replies")
        axes.grid(alpha=0.3)
    figure.suptitle("Rewards while GRPO trains")
    save(figure, path)


def _smooth(values: Sequence[float], span: int = 9) -> np.ndarray:
    """Centred running mean over at most ``span`` values; shorter at the ends."""
    half = span // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def draw_comparison(results: Mapping[str, Any], ious: Mapping[str, Sequence[float]], path: Path) -> None:
    """Bars of mean IoU (with the 95 % interval over scenes), mAP and AP50 for the three contestants."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    keys = [key for key in COLUMNS if key != "unreadable"]
    for place, (name, title) in enumerate(TITLES.items()):
        values = [results[name][key] for key in keys]
        across = np.arange(len(keys)) + (place - 1) * 0.27
        bars = axes.bar(across, values, width=0.25, color=COLOURS[name], label=title)
        axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=9)
        low, high = gain([0.0] * len(ious[name]), ious[name])["interval"]
        spread = [[values[0] - low], [high - values[0]]]
        axes.errorbar(across[:1], values[:1], spread, color="black", capsize=3, linewidth=1)
    axes.set_xticks(range(len(keys)), [COLUMNS[key] for key in keys])
    axes.set(
        ylim=(0, 1.08), title=f"{results['scenes']} held-out scenes, greedy answers, seed {results['seed']}"
    )
    axes.legend(ncols=3, loc="upper center", fontsize=9, frameon=False)
    save(figure, path)


def draw_scenes(before: Sequence[Replied], after: Sequence[Replied], path: Path, count: int = 10) -> None:
    """The first ``count`` scenes whose box GRPO moved, before above and after below; better or worse alike.

    Args:
        before, after: the same scenes in the same order.
        path: the PNG file to write.
        count: how many scenes are shown; filled up with unmoved ones where too few moved.
    """
    pairs = list(zip(before, after, strict=True))
    moved = [pair for pair in pairs if pair[0].found != pair[1].found]
    better = sum(b.iou < a.iou for b, a in moved)
    worse = sum(b.iou > a.iou for b, a in moved)
    shown = [*moved, *(pair for pair in pairs if pair[0].found == pair[1].found)][:count]
    figure = Figure(figsize=(1.4 * max(len(shown), 5), 4.0), layout="constrained")
    grid = figure.subplots(2, len(shown), squeeze=False)
    for row, name in enumerate(("base", "grpo")):
        for axes, pair in zip(grid[row], shown, strict=True):
            _draw_scene(axes, pair[row])
        grid[row][0].set_ylabel(TITLES[name], fontsize=10)
    figure.suptitle(
        f"GRPO moved boxes in {len(moved)} of {len(pairs)} held-out scenes: {better} better, {worse} worse; "
        f"here the first {len(shown)}\ngreen: true box    red: predicted, with its confidence",
        fontsize=10,
    )
    save(figure, path)


def _draw_scene(axes: Any, scene: Replied) -> None:
    with Image.open(scene.image) as image:
        axes.imshow(np.asarray(image.convert("RGB")))
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{scene.category}: IoU {scene.iou:.2f}", fontsize=8)
    for boxes, colour in ((scene.truths, TRUE), (scene.found, PREDICTED)):
        for x1, y1, x2, y2 in boxes:
            xs, ys = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
            axes.plot([x - 0.5 for x in xs], [y - 0.5 for y in ys], color=colour, linewidth=2)
    for box, confidence in zip(scene.found, scene.confidences, strict=True):
        axes.text(box.x1, box.y1 - 1, f"{confidence:.2f}", color="white", fontsize=7, clip_on=True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
