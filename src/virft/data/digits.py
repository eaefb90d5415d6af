"""Scenes of real handwritten digits, written as COCO annotations and training rows.

The scans are scikit-learn's ``load_digits`` (1,797 scans of 8 x 8 pixels that ship inside the package), so
nothing is downloaded. A scene is a noisy canvas with one or more scans pasted on it at random places and
sizes; the task is to find the digit that is asked for, or to name it. Every scan belongs to one pool of
:data:`POOLS`, so a digit of the held-out scenes was never seen in training, in any scene.

A folder written by :func:`write` holds, for each split::

    <split>.jsonl   training rows: id, image (path relative to the file), problem, solution, completion
    <split>.json    COCO annotations of the same images (detection; file names relative to the folder)
    <split>/        the images; for classification one folder per class, as torchvision's ImageFolder reads
    digits.json     what the folder was made from
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from virft import prompts
from virft.boxes import convert
from virft.data import solutions
from virft.errors import UserError
from virft.types import Box, Detection

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Class names; a digit's COCO category id is its index + 1."""

POOLS: Mapping[str, range] = MappingProxyType(
    {
        "warmup": range(0, 900),
        "validation": range(900, 1000),
        "train": range(1000, 1300),
        "heldout": range(1300, 1797),
    }
)
"""Pool -> the indices of its scans in ``load_digits``; disjoint. ``heldout`` is for examination only."""

TASKS = ("detection", "classification")
THOUGHTS: Mapping[str, str] = MappingProxyType(
    {"detection": "I look for the {}.", "classification": "I look at the strokes."}
)
"""Task -> what a reply thinks before it answers, with ``{}`` for the digit's name."""
CLASSIFICATION_SUBJECT = ("a handwritten digit", "name of the digit")
"""The arguments of :func:`virft.prompts.classification` for these rows."""

SETTINGS_FILE = "digits.json"
INK = 0.25
"""Scans are cropped to the pixels above this share of full ink."""


@dataclass(frozen=True)
class Scenes:
    """What one split of a folder holds. The defaults are the quick start's: one clear digit a scene.

    Attributes:
        count: number of scenes. Scene i asks for digit ``classes[i % len(classes)]``, so every class has the
            same number of scenes, and k scenes a class ("k-shot") is ``count = k * len(classes)``.
        pool: the scans that may appear, a key of :data:`POOLS`.
        seed: of the scenes. Scene i depends on (seed, pool, i) alone: a larger count keeps the first ones.
        task: "detection" or "classification" (then exactly one digit a scene).
        classes: the digits that are asked for and pasted.
        targets: (fewest, most) digits of the class asked for.
        distractors: (fewest, most) digits of other classes.
        absent: share of scenes without the digit asked for; their answer is "No Objects".
        faded: share of the digits that are nearly invisible, contrast within 0 to 0.06.
        contrast: (least, most) contrast of the other digits, 1 is full ink.
        canvas: side of the image in pixels. 84 is three of Qwen2-VL's merged patches: 9 visual tokens.
        sides: (least, most) height of a digit in thousandths of the canvas.
        grid: box corners are multiples of this many thousandths. On 100 a tiny model can learn to place
            them in minutes; with 1 there is nothing for it to hold on to.
        noise: deviation of the canvas's grey noise, 1 is full scale.
        ramp: red grows with x and blue with y by this much: a model whose vision knows places only through
            rotary embeddings learns where things are some ninety steps sooner.
        confidence: (least, most) confidence in the column ``completion``, drawn uniformly from the tenths
            between them. A model warmed up on many confidences explores them; (0.9, 0.9) is a constant.
    """

    count: int
    pool: str
    seed: int = 0
    task: str = "detection"
    classes: tuple[int, ...] = tuple(range(10))
    targets: tuple[int, int] = (1, 1)
    distractors: tuple[int, int] = (0, 0)
    absent: float = 0.0
    faded: float = 0.0
    contrast: tuple[float, float] = (0.3, 1.0)
    canvas: int = 84
    sides: tuple[int, int] = (200, 600)
    grid: int = 100
    noise: float = 0.08
    ramp: float = 0.4
    confidence: tuple[float, float] = (0.9, 0.9)

    def __post_init__(self) -> None:
        """Raises UserError for a value that no scene can be made from."""
        if self.pool not in POOLS:
            raise UserError(f"pool must be one of {', '.join(POOLS)}, got {self.pool!r}")
        if self.task not in TASKS:
            raise UserError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.count < 1:
            raise UserError(f"count must be at least 1, got {self.count}")
        if (
            not self.classes
            or len(set(self.classes)) < len(self.classes)
            or set(self.classes) - set(range(10))
        ):
            raise UserError(f"classes must be different digits 0 to 9, got {self.classes}")
        one_digit = (self.targets, self.distractors, self.absent) == ((1, 1), (0, 0), 0)
        if self.task == "classification" and not one_digit:
            raise UserError(
                "classification needs one digit a scene: targets (1, 1), distractors (0, 0), absent 0"
            )
        if self.distractors[1] and len(self.classes) < 2:
            raise UserError("distractors need at least two classes")
        if 1000 % self.grid or not self.grid <= self.sides[0] <= self.sides[1] <= 1000:
            raise UserError(
                f"sides must lie between grid {self.grid}, a divisor of 1000, and 1000: {self.sides}"
            )
        for name in ("targets", "distractors", "contrast", "confidence"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise UserError(f"{name} must be (least, most), got {(low, high)}")


@dataclass(frozen=True)
class Scene:
    """One image and its truth: the digit asked for and its boxes in thousandths, in no particular order."""

    image: Image.Image
    digit: int
    boxes: tuple[Box, ...]


def write(
    folder: str | Path,
    splits: Mapping[str, Scenes],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the scenes of every split into ``folder``, which appears whole or not at all.

    A folder that already holds exactly these splits is left as it is.

    Args:
        folder: the folder to make.
        splits: name of a split -> what it holds.
        progress: called after each scene with the number of scenes done and to do.

    Returns:
        ``folder`` as a path.

    Raises:
        UserError: the folder exists and holds something else.
    """
    folder = Path(folder)
    made_from = json.dumps({"splits": {k: asdict(v) for k, v in splits.items()}}, indent=2) + "\n"
    if folder.exists():
        settings = folder / SETTINGS_FILE
        if settings.is_file() and settings.read_text(encoding="utf-8") == made_from:
            return folder
        raise UserError(f"{folder} exists and was made from other settings: remove it or name another folder")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    total = sum(scenes.count for scenes in splits.values())
    done = 0
    try:
        for name, scenes in splits.items():
            (unfinished / name).mkdir(parents=True)
            _write_split(unfinished, name, scenes, lambda i, before=done: progress(before + i, total))
            done += scenes.count
        (unfinished / SETTINGS_FILE).write_text(made_from, encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_split(folder: Path, name: str, scenes: Scenes, progress: Callable[[int], None]) -> None:
    rows: list[dict[str, Any]] = []
    coco: dict[str, Any] = {
        "info": {"description": f"scikit-learn digit scans on a canvas, split {name}"},
        "images": [],
        "annotations": [],
        "categories": [{"id": digit + 1, "name": NAMES[digit]} for digit in scenes.classes],
    }
    for index in range(scenes.count):
        scene = draw(scenes, index)
        parent = f"{name}/{NAMES[scene.digit]}" if scenes.task == "classification" else name
        path = f"{parent}/{index:05d}.png"
        (folder / parent).mkdir(exist_ok=True)
        scene.image.save(folder / path)
        rows.append({"id": f"{name}-{index:05d}", "image": path} | _texts(scenes, index, scene))
        size = scene.image.size
        coco["images"].append({"id": index + 1, "file_name": path, "width": size[0], "height": size[1]})
        for box in scene.boxes:
            x, y, w, h = convert(box, "norm1000", "xywh", image_size=size)
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": index + 1,
                    "category_id": scene.digit + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        progress(index + 1)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if scenes.task == "detection":
        (folder / f"{name}.json").write_text(json.dumps(coco), encoding="utf-8")


def draw(scenes: Scenes, index: int) -> Scene:
    """Scene ``index`` of a split; the same for the same arguments."""
    import numpy as np
    from PIL import Image

    rng = _rng(scenes, index, 0)
    digit = scenes.classes[index % len(scenes.classes)]
    others = [other for other in scenes.classes if other != digit]
    canvas = _canvas(scenes, rng)
    absent = rng.random() < scenes.absent
    boxes: list[Box] = []
    taken: list[tuple[int, int, int, int]] = []
    for of_target, (least, most) in ((True, scenes.targets), (False, scenes.distractors)):
        if of_target and absent:
            continue
        for _ in range(int(rng.integers(least, most + 1))):
            cells = _paste(scenes, rng, canvas, digit if of_target else int(rng.choice(others)), taken)
            if cells is not None:
                taken.append(cells)
                if of_target:
                    boxes.append(Box(*(float(cell * scenes.grid) for cell in cells)))
    pixels = (np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return Scene(Image.fromarray(pixels), digit, tuple(boxes))


def _texts(scenes: Scenes, index: int, scene: Scene) -> dict[str, str]:
    """The row's problem, its solution, and the whole reply that supervised fine-tuning teaches."""
    name = NAMES[scene.digit]
    if scenes.task == "classification":
        problem, replied = prompts.classification(*CLASSIFICATION_SUBJECT), name
        solution = solutions.classification(name)
    else:
        # A generator of its own: labels with other confidences leave the scenes as they are.
        tenths = [round(10 * bound) for bound in scenes.confidence]
        drawn = _rng(scenes, index, 1).integers(tenths[0], tenths[1] + 1, size=len(scene.boxes))
        found = [Detection(box, tenth / 10) for box, tenth in zip(scene.boxes, drawn, strict=True)]
        problem, replied = (
            prompts.detection(name),
            (solutions.detection_answer(found) if found else prompts.NO_OBJECTS),
        )
        solution = solutions.detection(scene.boxes)
    thought = THOUGHTS[scenes.task].format(name)
    completion = f"<think>{thought}</think>{solutions.tagged(replied)}"
    return {"problem": problem, "solution": solution, "completion": completion}


def _rng(scenes: Scenes, index: int, stream: int) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng([scenes.seed, POOLS[scenes.pool].start, index, stream])


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans (1797, 8, 8) with ink in [0, 1], and their digits (1797,)."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return loaded.images / loaded.images.max(), loaded.target


def _canvas(scenes: Scenes, rng: np.random.Generator) -> np.ndarray:
    """An empty scene (canvas, canvas, 3): a random dark colour, the ramp and the noise; may leave [0, 1]."""
    import numpy as np

    side = scenes.canvas
    canvas = np.ones((side, side, 3)) * rng.uniform(0.0, 0.35, size=3)
    along = np.arange(side) / side
    canvas[..., 0] += scenes.ramp * along[None, :]
    canvas[..., 2] += scenes.ramp * along[:, None]
    return canvas + rng.normal(0, scenes.noise, size=canvas.shape)


def _paste(
    scenes: Scenes,
    rng: np.random.Generator,
    canvas: np.ndarray,
    digit: int,
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """Paste a scan of ``digit`` on a free place; its corners in grid cells, or None where none was free."""
    import numpy as np
    from PIL import Image

    scans, digits = _scans()
    pool = np.asarray(POOLS[scenes.pool])
    scan = scans[rng.choice(pool[digits[pool] == digit])]
    rows, columns = np.where(scan > INK)
    scan = scan[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    cells = _place(scenes, rng, scan.shape[1] / scan.shape[0], taken)
    if cells is None:
        return None
    x1, y1, x2, y2 = (round(cell * scenes.grid * scenes.canvas / 1000) for cell in cells)
    ink = Image.fromarray((scan * 255).astype(np.uint8)).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)
    contrast = rng.uniform(0.0, 0.06) if rng.random() < scenes.faded else rng.uniform(*scenes.contrast)
    # The factor 1.3 undoes the thinning of strokes by the interpolation.
    opacity = np.clip(np.asarray(ink)[..., None] / 255 * 1.3, 0, 1) * contrast
    colour = rng.uniform(0.6, 1.0, size=3)
    canvas[y1:y2, x1:x2] = canvas[y1:y2, x1:x2] * (1 - opacity) + colour * opacity
    return cells


def _place(
    scenes: Scenes, rng: np.random.Generator, aspect: float, taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Corners in grid cells of a random box, width / height about ``aspect``, clear of all ``taken``."""
    across = 1000 // scenes.grid
    least, most = (max(1, round(side / scenes.grid)) for side in scenes.sides)
    for _ in range(50):
        height = int(rng.integers(least, most + 1))
        narrowest = max(1, round(0.6 * height))
        width = min(max(round(height * aspect * rng.uniform(0.8, 1.6)), narrowest), most)
        x, y = int(rng.integers(across - width + 1)), int(rng.integers(across - height + 1))
        if all(x >= t[2] or x + width <= t[0] or y >= t[3] or y + height <= t[1] for t in taken):
            return x, y, x + width, y + height
    return None
