"""Questions for detection from COCO- or LVIS-format annotations: one for each (image, category) asked.

LVIS annotations are recognised by the ``frequency`` of their categories; their images stand at the last two
parts of ``coco_url`` below the image folder (``val2017/000000000139.jpg``), COCO's at ``file_name``.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virft import prompts
from virft.data.records import read_json
from virft.errors import UserError
from virft.types import Sample

log = logging.getLogger(__name__)

NOVEL_15 = (
    "mouse",
    "fork",
    "hot dog",
    "cat",
    "airplane",
    "suitcase",
    "parking meter",
    "sandwich",
    "train",
    "hair drier",
    "toilet",
    "toaster",
    "snowboard",
    "frisbee",
    "bear",
)
CATEGORY_PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fewshot8": ("bus", "train", "fire hydrant", "stop sign", "cat", "dog", "bed", "toilet"),
        "novel15": NOVEL_15,
        "fewshot6": ("horse_buggy", "die", "kitchen_table", "omelet", "papaya", "stepladder"),
        "rare13": (
            "casserole",
            "die",
            "egg_roll",
            "futon",
            "garbage",
            "handsaw",
            "hippopotamus",
            "kitchen_table",
            "mallet",
            "omelet",
            "shot_glass",
            "stepladder",
            "sugar_bowl",
        ),
    }
)
"""Category choices of the paper by name: fewshot8 and novel15 of COCO, fewshot6 and rare13 of LVIS.

Two more are not lists: ``all``, and ``base65``, the categories of COCO that are not in novel15.
"""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "aeroplane": "airplane",
        "motorbike": "motorcycle",
        "sofa": "couch",
        "tv monitor": "tv",
        "tvmonitor": "tv",
        "television": "tv",
        "diningtable": "dining table",
        "pottedplant": "potted plant",
        "hair dryer": "hair drier",
        "hairdryer": "hair drier",
        "cellphone": "cell phone",
        "mobile phone": "cell phone",
        "doughnut": "donut",
        "hotdog": "hot dog",
    }
)
"""Names of other data sets, in :func:`spelled` form -> COCO's name. LVIS files carry their own synonyms."""

CANDIDATES = ("all", "ground_truth")
IDS = ("id", "image_id", "category_id")


def load_annotations(path: str | Path) -> dict[str, Any]:
    """Read and check a COCO- or LVIS-format annotation file. Annotations of images or categories that it does
    not hold, as a file cut to fewer images keeps them, are warned about. Ids that a table wrote as 7.0 are 7.

    Raises:
        UserError: no such file, no JSON, or a list that it must have is missing or empty.
    """
    content = _read_json(path, "annotations")
    if not isinstance(content, dict):
        raise UserError(
            f"annotations {path}: a COCO annotation file holds an object, not a list (results file?)"
        )
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise UserError(f"annotations {path}: it has no list {key!r}, so it is no COCO annotation file")
    for key in ("images", "categories"):
        if not content[key]:
            raise UserError(f"annotations {path}: the list {key!r} is empty")
    for key, fields in (
        ("images", ("id",)),
        ("categories", ("id", "name")),
        ("annotations", ("image_id", "category_id", "bbox")),
    ):
        for number, entry in enumerate(content[key]):
            missing = [f for f in fields if f not in entry]
            if missing:
                raise UserError(f"annotations {path}: entry {number} of {key!r} has no {missing[0]!r}")
            for f in IDS:
                if isinstance(value := entry.get(f), float) and value.is_integer():
                    entry[f] = int(value)
    _warn_of_strays(path, content)
    return content


def _warn_of_strays(path: str | Path, content: Mapping[str, Any]) -> None:
    for field, key in (("image_id", "images"), ("category_id", "categories")):
        known = {str(entry["id"]) for entry in content[key]}
        strays = [n for n, a in enumerate(content["annotations"]) if str(a[field]) not in known]
        if strays:
            log.warning(
                "annotations %s: %d of %d do not count, for their %s is none of its %s; the first is entry "
                "%d",
                path, len(strays), len(content["annotations"]), field, key, strays[0],
            )  # fmt: skip


def is_lvis(annotations: Mapping[str, Any]) -> bool:
    """Whether annotations are LVIS's, whose categories have a frequency."""
    return all("frequency" in c for c in annotations["categories"])


def spelled(name: str) -> str:
    """A category's name as people and models write it: lower case, spaces for underscores, single spaces."""
    return " ".join(name.replace("_", " ").lower().split())


def shown(name: str) -> str:
    """A category's name as the model is asked: LVIS's underscores become spaces, all else stays."""
    return name.replace("_", " ")


def choose_categories(annotations: Mapping[str, Any], chosen: str | Sequence[str]) -> list[dict[str, Any]]:
    """The chosen categories, in the annotations' order.

    Args:
        annotations: see :func:`load_annotations`.
        chosen: names and presets. Case, underscores, :data:`ALIASES` and LVIS synonyms are understood.

    Raises:
        UserError: a name that is no category, with the nearest ones; or none is left.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for category in annotations["categories"]:
        for synonym in category.get("synonyms", ()):
            by_name.setdefault(spelled(synonym), category)
    # A category's own name goes before another's synonym.
    own: dict[str, dict[str, Any]] = {}
    for category in annotations["categories"]:
        if (twin := own.setdefault(spelled(category["name"]), category)) is not category:
            raise UserError(
                f"the annotations have two categories called {category['name']!r} (ids {twin['id']} and "
                f"{category['id']}), which no question can tell apart: rename or join them"
            )
    by_name.update(own)
    wanted: set[str] = set()
    for name in [chosen] if isinstance(chosen, str) else chosen:
        wanted.update(str(_find(n, by_name)["id"]) for n in _expanded(name, annotations))
    categories = [c for c in annotations["categories"] if str(c["id"]) in wanted]
    if not categories:
        raise UserError("--categories chose no category; name some, a preset, or all")
    return categories


def _expanded(name: str, annotations: Mapping[str, Any]) -> Iterable[str]:
    names = [c["name"] for c in annotations["categories"]]
    if name == "all":
        return names
    if name == "base65":
        return [n for n in names if spelled(n) not in NOVEL_15]
    return CATEGORY_PRESETS.get(name, (name,))


def _find(name: str, by_name: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    wanted = spelled(name)
    found = by_name.get(wanted) or by_name.get(spelled(ALIASES.get(wanted, wanted)))
    if found is None:
        near = difflib.get_close_matches(wanted, by_name, n=3)
        known = ["all", "base65", *CATEGORY_PRESETS]
        hint = f"did you mean {' or '.join(repr(by_name[n]['name']) for n in near)}? " if near else ""
        raise UserError(
            f"--categories: {name!r} is no category of these annotations; {hint}presets: {', '.join(known)}"
        )
    return found


def image_path(image: Mapping[str, Any], folder: str | Path, lvis: bool = False) -> Path:
    """Where an image of the annotations stands below the image folder.

    Raises:
        UserError: the annotations do not say, or say something else.
    """
    key = "coco_url" if lvis else "file_name"
    if key not in image:
        raise UserError(f"image {image['id']!r} of the annotations has no {key!r}")
    if not isinstance(image[key], str) or not image[key].strip():
        raise UserError(f"image {image.get('id')!r}: its {key!r} must be a path, got {image[key]!r}")
    return Path(folder).joinpath(*image[key].split("/")[-2:]) if lvis else Path(folder) / image[key]


def load_candidates(path: str | Path) -> dict[str, list[str]]:
    """Which categories are asked on which image: a JSON object {image id: [category names]}.

    Raises:
        UserError: no such file, or another content.
    """
    content = _read_json(path, "candidates")
    if not isinstance(content, dict) or not all(
        isinstance(v, list) and all(isinstance(n, str) for n in v) for v in content.values()
    ):
        raise UserError(f"candidates {path}: it must hold an object {{image id: [category names]}}")
    return content


def asked_pairs(
    annotations: Mapping[str, Any],
    categories: Sequence[Mapping[str, Any]],
    candidates: str = "all",
    max_images: int | None = None,
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The (image, category) pairs to ask, image by image in the annotations' order.

    Args:
        annotations: see :func:`load_annotations`.
        categories: the chosen ones; no other is asked.
        candidates: "all" asks every category on every image, "ground_truth" those that are annotated on it,
            a path those that the file names (:func:`load_candidates`); images that it lacks are not asked.
        max_images: only the first so many images of the annotations.

    Raises:
        UserError: a file that names an unknown category, or that fits none of these images.
    """
    images = annotations["images"][:max_images]
    ids = [str(c["id"]) for c in categories]
    if candidates == "all":
        return [(image, category) for image in images for category in categories]
    if candidates == "ground_truth":
        present = {(str(a["image_id"]), str(a["category_id"])) for a in annotations["annotations"]}
    else:
        named = load_candidates(candidates)
        known = {str(i["id"]) for i in annotations["images"]}
        if not known & set(named):
            raise UserError(f"candidates {candidates}: none of its image ids stands in the annotations")
        by_name = {spelled(c["name"]): c for c in annotations["categories"]}
        present = set()
        for image_id, names in named.items():
            for name in names:
                if spelled(name) not in by_name:
                    raise UserError(f"candidates {candidates}: image {image_id}: {name!r} is no category")
                present.add((image_id, str(by_name[spelled(name)]["id"])))
    return [
        (image, category)
        for image in images
        for category, category_id in zip(categories, ids, strict=True)
        if (str(image["id"]), category_id) in present
    ]


def detection_samples(
    annotations: Mapping[str, Any],
    image_folder: str | Path,
    categories: str | Sequence[str] = "all",
    candidates: str = "all",
    space: str = "norm1000",
    max_images: int | None = None,
    require_images: bool = True,
    ask: Callable[[str, str], str] = prompts.detection,
) -> list[Sample]:
    """One sample for each (image, category) that is asked; its meta holds image_id, category_id and category.

    Args:
        annotations: COCO's or LVIS's, see :func:`load_annotations`.
        image_folder: where the images stand, see :func:`image_path`.
        categories: see :func:`choose_categories`.
        candidates, max_images: see :func:`asked_pairs`.
        space: the coordinate space that the prompt asks for.
        require_images: refuse when an image file is missing; otherwise it is left to the engine.
        ask: from a category's name and the space to the prompt.

    Raises:
        UserError: a folder, a file, a category or a candidate that is not there; nothing to ask.
    """
    folder = Path(image_folder)
    if not folder.is_dir():
        raise UserError(f"--image_folder {folder}: no such folder")
    chosen = choose_categories(annotations, categories)
    lvis = is_lvis(annotations)
    samples, missing = [], {}
    for image, category in asked_pairs(annotations, chosen, candidates, max_images):
        path = image_path(image, folder, lvis)
        if require_images and str(path) not in missing:
            missing[str(path)] = not path.is_file()
        samples.append(
            Sample(
                id=f"{image['id']}/{category['id']}",
                images=(str(path),),
                prompt=ask(shown(category["name"]), space),
                meta={"image_id": image["id"], "category_id": category["id"], "category": category["name"]},
            )
        )
    absent = [path for path, gone in missing.items() if gone]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(missing)} images are missing, the first is {absent[0]}; "
            "check --image_folder, or pass --skip_bad_images"
        )
    if not samples:
        raise UserError(f"--candidates {candidates}: no chosen category is to be asked on any image")
    return samples


def _read_json(path: str | Path, what: str) -> Any:
    try:
        return read_json(Path(path))
    except UserError as error:
        raise UserError(f"{what} {error}") from None
