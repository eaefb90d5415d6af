"""Classification rows from class folders, lists, CoOp split files or torchvision's data sets.

  # a folder with one folder per class
  python dataset/build_classification.py --folder birds/train --contains "a bird" \\
      --to_name "species of the bird" --output data/birds.jsonl

  # the paper's 4-shot sets
  python dataset/build_classification.py --set aircraft100 --root data --split trainval --shots 4 \\
      --output data/aircraft_4_shot.jsonl
  python dataset/build_classification.py --coop split_zhou_OxfordFlowers.json --image_folder jpg \\
      --split train --subject flower --shots 4 --output data/flower_4_shot.jsonl

  # a CSV, JSON or JSONL list with the columns image and label
  python dataset/build_classification.py --list mine.csv --subject car --output data/mine.jsonl

A manifest beside the set holds every option and the counts; the same command gives the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from virft.data.builders.labelled import classification_drafts, per_class, write_drafts
from virft.data.builders.manifest import fingerprint, listing_sha256
from virft.data.builders.output import Target
from virft.data.builders.progress import bars
from virft.data.classification import (
    KNOWN,
    ImageSet,
    load_coop_split,
    load_folder,
    load_known,
    load_list,
    read_classes,
    with_classes,
)
from virft.errors import UserError
from virft.programs import run_program
from virft.prompts import SUBJECTS


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", type=Path, help="a folder with one folder of images per class")
    source.add_argument("--list", type=Path, help=".csv, .json or .jsonl with the columns image and label")
    source.add_argument("--coop", type=Path, help="a split file of CoOp (needs --image_folder)")
    source.add_argument("--set", choices=list(KNOWN), help="a public set, through torchvision (needs --root)")
    add = flags.add_argument
    add("--output", required=True, help="NAME.jsonl, NAME.parquet, or a folder (save_to_disk, images inside)")
    add("--root", type=Path, help="folder of --set, as torchvision's class takes it")
    add("--image_folder", type=Path, help="what image paths of --list or --coop are relative to")
    add("--split", help="of --set or --coop (default: train)")
    add("--download", action="store_true", help="let torchvision fetch --set")
    add("--partial", action="store_true", help="accept a copy whose size is not the published one")
    add("--classes", type=Path, help="class list, 'name | alias' a line; gives names to number labels")
    add("--subject", choices=list(SUBJECTS), help="what the images show (--set knows its own)")
    add("--contains", help='what an image contains, with its article, for other subjects: "a bird"')
    add("--to_name", help='what is to be named: "species of the bird"')
    add("--shots", type=int, default=0, help="this many images of each class (default: all)")
    add("--seed", type=int, default=0, help="of the shots (default: 0)")
    add("--processes", type=int, default=min(4, os.cpu_count() or 1), help="default: %(default)s")
    add("--overwrite", action="store_true", help="replace a set that stands there")
    return flags


TAKERS = {
    "root": ("set",),
    "download": ("set",),
    "partial": ("set", "coop"),
    "split": ("set", "coop"),
    "image_folder": ("list", "coop"),
}
"""Flags that only some sources take."""


def check_source_flags(flags: argparse.Namespace) -> None:
    """Raises UserError for a flag that the chosen source would not look at."""
    source = next(name for name in ("folder", "list", "coop", "set") if getattr(flags, name))
    for name, takers in TAKERS.items():
        if getattr(flags, name) and source not in takers:
            raise UserError(f"--{name} is of --{' and --'.join(takers)}, not of --{source}: leave it out")


def load(flags: argparse.Namespace) -> tuple[ImageSet, dict[str, Any]]:
    """The images and, for the manifest, the source's fingerprint."""
    check_source_flags(flags)
    split = flags.split or "train"
    classes, aliases = read_classes(flags.classes) if flags.classes else ((), {})
    if flags.list:
        images, source = load_list(flags.list, flags.image_folder, classes or None), fingerprint(flags.list)
    elif flags.coop:
        if not flags.image_folder:
            raise UserError("--coop needs --image_folder, the folder of its images")
        images = load_coop_split(flags.coop, flags.image_folder, split, partial=flags.partial)
        source = fingerprint(flags.coop)
    elif flags.folder:
        images, source = load_folder(flags.folder), {"path": flags.folder.as_posix()}
    else:
        if not flags.root:
            raise UserError("--set needs --root, the folder that torchvision's class takes")
        images = load_known(flags.set, flags.root, split, download=flags.download, partial=flags.partial)
        source = {"set": flags.set, "root": flags.root.as_posix()}
    return (with_classes(images, classes, aliases) if classes else images), source


def wording(flags: argparse.Namespace) -> tuple[str, str]:
    """(what an image contains, what is to be named)."""
    if flags.contains or flags.to_name:
        if flags.subject or not (flags.contains and flags.to_name):
            raise UserError("--contains and --to_name go together, and not with --subject")
        return flags.contains, flags.to_name
    subject = flags.subject or (KNOWN[flags.set].subject if flags.set else None)
    if subject is None:
        raise UserError(
            f"what do the images show? pass --subject ({', '.join(SUBJECTS)}) or --contains and --to_name"
        )
    return SUBJECTS[subject]


def main(argv: list[str] | None = None) -> None:
    """Build the set that the flags ask for."""
    flags = parser().parse_args(argv)
    if flags.shots < 0:
        raise UserError("--shots must not be negative")
    contains, to_name = wording(flags)
    images, source = load(flags)
    drafts = classification_drafts(images, contains, to_name, flags.shots, flags.seed)
    found = per_class(drafts)
    settings = {
        "task": "classification",
        "source": source,
        "split": (flags.split or "train") if flags.set or flags.coop else None,
        "image_folder": flags.image_folder and flags.image_folder.as_posix(),
        "classes": flags.classes and fingerprint(flags.classes),
        "items_sha256": listing_sha256((*Path(path).parts[-2:], label) for path, label in images.items),
        "contains": contains,
        "to_name": to_name,
        "shots": flags.shots,
        "seed": flags.seed,
    }
    target = Target.of(flags.output)
    counts = write_drafts(
        drafts,
        target,
        settings,
        {"images": len(images.items), "classes": len(found), "per_class": found},
        command=shlex.join(["dataset/build_classification.py", *(sys.argv[1:] if argv is None else argv)]),
        processes=flags.processes,
        overwrite=flags.overwrite,
        stage=bars,
    )
    if counts is None:
        sys.stdout.write(f"{target.path}: stands there already, built by the same command\n")
        return
    short = [name for name, count in found.items() if count < flags.shots]
    if short:
        sys.stderr.write(
            f"warning: {len(short)} classes have fewer than {flags.shots} images: {short[0]} ...\n"
        )
    sys.stdout.write(f"{target.path}: {counts['rows']} rows of {counts['classes']} classes\n")


if __name__ == "__main__":
    run_program(main)
