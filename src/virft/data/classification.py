"""Classification sets: four public ones through torchvision's classes, CoOp split files, folders, CSV and
JSON lists.

Whatever the source, it becomes an :class:`ImageSet`: paths and class names. No image is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virft import parsing, prompts
from virft.data.records import read_json, read_text, records
from virft.errors import UserError
from virft.types import Sample

WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
"""A label that is a number, also as a table of decimals writes it, such as 3.0."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True, slots=True)
class Known:
    """A public set: its class in torchvision, what its prompt asks, and its published sizes.

    Attributes:
        loader: name in ``torchvision.datasets``.
        subject: key of :data:`virft.prompts.SUBJECTS`.
        classes: number of classes.
        sizes: split -> number of images.
    """

    loader: str
    subject: str
    classes: int
    sizes: Mapping[str, int]


KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "flowers102": Known("Flowers102", "flower", 102, {"train": 1020, "val": 1020, "test": 6149}),
        "pets37": Known("OxfordIIITPet", "pet", 37, {"trainval": 3680, "test": 3669}),
        "cars196": Known("StanfordCars", "car", 196, {"train": 8144, "test": 8041}),
        "aircraft100": Known(
            "FGVCAircraft", "aircraft", 100, {"train": 3334, "val": 3333, "trainval": 6667, "test": 3333}
        ),
    }
)
"""The paper's four sets. Its Flowers102 numbers are on the CoOp split, see :data:`COOP_FLOWERS`."""

COOP_FLOWERS: Mapping[str, int] = MappingProxyType({"train": 4093, "val": 1633, "test": 2463})
"""Sizes of CoOp's ``split_zhou_OxfordFlowers.json`` (https://github.com/KaiyangZhou/CoOp, DATASETS.md)."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images and the class of each.

    Attributes:
        name: of the set, for reports.
        classes: the class names, in the set's order.
        items: (path of the image, class name).
        aliases: class name -> further names that a right answer may give.
    """

    name: str
    classes: tuple[str, ...]
    items: tuple[tuple[str, str], ...] = field(repr=False)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def load_known(
    name: str, root: str | Path, split: str = "test", *, download: bool = False, partial: bool = False
) -> ImageSet:
    """One of :data:`KNOWN` from a local root, or downloaded with torchvision's integrity checks.

    Args:
        name: a key of :data:`KNOWN`.
        root: the folder that torchvision's class takes as ``root``.
        split: a split of that class.
        download: whether the set may be fetched.
        partial: accept a copy whose size is not the published one.

    Raises:
        UserError: an unknown name or split, the set is not there or cannot be fetched, or its size is not the
            published one.
    """
    if name not in KNOWN:
        raise UserError(f"data set {name!r} is unknown; known: {', '.join(KNOWN)}")
    known = KNOWN[name]
    if split not in known.sizes:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(known.sizes)}")
    dataset = _torchvision(known.loader, root, split, download)
    if known.loader == "OxfordIIITPet":
        # The only one of the four without a ``loader`` argument: its items come as decoded pictures. The
        # lists behind them hold the paths.
        pairs = list(zip(dataset._images, dataset._labels, strict=True))
    else:
        pairs = [dataset[index] for index in range(len(dataset))]
    classes = tuple(dataset.classes)
    items = tuple((str(path), classes[label]) for path, label in pairs)
    _check_size(f"{name} {split} under {root}", len(items), known.sizes[split], partial)
    return ImageSet(name, classes, items)


def _torchvision(loader: str, root: str | Path, split: str, download: bool) -> Any:
    from torchvision import datasets

    # A loader that keeps the path leaves decoding to the engine, which names an image that it cannot read.
    options: dict[str, Any] = {} if loader == "OxfordIIITPet" else {"loader": str}
    try:
        return getattr(datasets, loader)(str(root), split=split, download=download, **options)
    except (RuntimeError, ValueError, OSError) as error:
        mend = "check the root" if download else "give its root, or allow --download"
        raise UserError(f"torchvision's {loader} under {root}: {_sentence(error)}; {mend}") from error


def _sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_size(what: str, found: int, published: int, partial: bool) -> None:
    if found != published and not partial:
        raise UserError(
            f"{what} has {found} images, the published set {published}: complete the copy or pass --partial"
        )


def load_coop_split(
    path: str | Path, image_folder: str | Path, split: str = "test", *, partial: bool = False
) -> ImageSet:
    """A split file of CoOp: ``{"train"|"val"|"test": [[image path, label, class name], ...]}``.

    The size is checked against :data:`COOP_FLOWERS` where the file has that set's 102 classes.

    Raises:
        UserError: no such file, not of the format, no such split, or a size that is not the published one.
    """
    path, folder = Path(path), Path(image_folder)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(split), list):
        raise UserError(f'{path}: not a split file with a list named "{split}"')
    classes: dict[int, str] = {}
    for name, part in content.items():
        for number, row in enumerate(part if isinstance(part, list) else [part]):
            if not _is_coop(row):
                raise UserError(
                    f"{path}: {name} row {number} is not [image path, label, class name] but {row!r}"
                )
            if classes.setdefault(row[1], row[2]) != row[2]:
                raise UserError(
                    f"{path}: {name} row {number}: label {row[1]} is {row[2]!r} here but "
                    f"{classes[row[1]]!r} before: give every class one name"
                )
    items = [(str(folder / image), name) for image, _, name in content[split]]
    if len(classes) == KNOWN["flowers102"].classes:
        _check_size(f"{path} {split}", len(items), COOP_FLOWERS.get(split, len(items)), partial)
    return _image_set(path.stem, [classes[label] for label in sorted(classes)], items, str(path))


def _is_coop(row: Any) -> bool:
    return isinstance(row, list) and [type(value) for value in row] == [str, int, str]


def load_folder(root: str | Path) -> ImageSet:
    """A folder of one folder per class, the class named by its folder (underscores read as spaces).

    Raises:
        UserError: no such folder, or no image in any of its folders.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder that holds one folder per class")
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    items = [(str(image), _named(folder.name)) for folder in folders for image in image_files(folder)]
    return _image_set(root.name, [_named(folder.name) for folder in folders], items, str(root))


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and below it, sorted; not the hidden ones that macOS puts beside each."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _named(folder: str) -> str:
    return " ".join(folder.replace("_", " ").split())


def load_list(
    path: str | Path, image_folder: str | Path | None = None, classes: Sequence[str] | None = None
) -> ImageSet:
    """A CSV (with a header), JSON (a list) or JSONL file of rows with the fields ``image`` and ``label``.

    Args:
        path: the file; images are relative to it, or to ``image_folder``.
        image_folder: the folder that image paths start from.
        classes: class names; needed where labels are numbers, which count from 0.

    Raises:
        UserError: no such file, another format, a row (named by its number, counted from 0) without one of
            the fields, or a number that names no class.
    """
    path = Path(path)
    folder = Path(image_folder) if image_folder is not None else path.parent
    items = []
    for number, row in enumerate(records(path)):
        image, label = row.get("image"), row.get("label")
        if not isinstance(image, str) or not image or label is None or label == "":
            raise UserError(f'{path} row {number}: needs the fields "image" and "label", got {row!r}')
        items.append((str(folder / image), _label(label, classes, f"{path} row {number}")))
    return _image_set(path.stem, classes or sorted({label for _, label in items}), items, str(path))


def _label(label: Any, classes: Sequence[str] | None, where: str) -> str:
    """The class name: the text itself, or the name at that index where the label is a whole number."""
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise UserError(f"{where}: its label must be text or a whole number, got {label!r}")
    text = str(label).strip()
    named = isinstance(label, str) and text in (classes or ())
    if named or not WHOLE.fullmatch(text):
        return text
    if classes is None:
        raise UserError(f"{where}: its label is the number {label}; give the class names with --classes")
    index = int(text.partition(".")[0])
    if not 0 <= index < len(classes):
        raise UserError(f"{where}: label {label}, but there are {len(classes)} classes, counted from 0")
    return classes[index]


def _image_set(name: str, classes: Iterable[str], items: Sequence[tuple[str, str]], where: str) -> ImageSet:
    if not items:
        raise UserError(f"{where}: holds no image")
    seen: dict[str, str] = {}
    for image, label in items:
        if seen.setdefault(image, label) != label:
            raise UserError(f"{where}: {image} is listed as {seen[image]!r} and as {label!r}")
    readings: dict[str, str] = {}
    for label in dict.fromkeys(seen.values()):
        reading = parsing.normalize_class(label)
        if not reading or readings.setdefault(reading, label) != label:
            raise UserError(
                f"{where}: class {label!r} is empty or reads the same as {readings.get(reading, '')!r}; a "
                "reply could not tell them apart: rename one"
            )
    return ImageSet(name, tuple(classes), tuple(seen.items()))


def read_classes(path: str | Path) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """A class list: one name a line in the order of the labels, ``name | alias | alias`` where it has others.

    Returns:
        (names, name -> aliases).

    Raises:
        UserError: no such file, no name in it, or two names that no reply can tell apart.
    """
    path = Path(path)
    lines = [line.strip() for line in read_text(path).split("\n")]
    entries = [tuple(part.strip() for part in line.split("|")) for line in lines if line and line[0] != "#"]
    if not entries:
        raise UserError(f"{path}: holds no class name")
    owners: dict[str, str] = {}
    for name, *aliases in entries:
        for text in (name, *aliases):
            key = parsing.normalize_class(text)
            if not key or owners.setdefault(key, name) != name:
                raise UserError(f"{path}: {text!r} is empty or reads the same as {owners.get(key, '')!r}")
    return tuple(name for name, *_ in entries), {name: tuple(rest) for name, *rest in entries if rest}


def with_classes(
    images: ImageSet, classes: Sequence[str], aliases: Mapping[str, tuple[str, ...]]
) -> ImageSet:
    """The set under the names of a class list, matched by what a reply can tell apart (case, hyphens ...).

    Raises:
        UserError: a class of the set that the list lacks.
    """
    listed = by_reading(classes)
    names = {label: listed.get(parsing.normalize_class(label)) for _, label in images.items}
    missing = sorted(label for label, name in names.items() if name is None)
    if missing:
        raise UserError(
            f"{images.name}: {len(missing)} classes are not in the class list, e.g. {missing[0]!r}"
        )
    items = tuple((path, names[label]) for path, label in images.items)
    return ImageSet(images.name, tuple(classes), items, dict(aliases))


def by_reading(classes: Iterable[str]) -> dict[str, str]:
    """What a reply's class is compared by (:func:`virft.parsing.normalize_class`) -> the class."""
    return {parsing.normalize_class(name): name for name in classes}


def classification_samples(
    images: ImageSet, contains: str, to_name: str, root: str | Path, system: str | None = None
) -> list[Sample]:
    """One question per image.

    Args:
        images: a set.
        contains, to_name: as :func:`virft.prompts.classification` takes them.
        root: what sample ids are relative to, so that moving the set does not change them.
        system: an optional system message.

    Returns:
        Samples whose ``meta`` holds ``label`` and ``aliases``.
    """
    prompt = prompts.classification(contains, to_name)
    root = Path(root)
    return [
        Sample(
            id=Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path,
            images=(path,),
            prompt=prompt,
            system=system,
            meta={"label": label, "aliases": list(images.aliases.get(label, ()))},
        )
        for path, label in images.items
    ]
