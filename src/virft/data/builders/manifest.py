"""The manifest beside a set, which says what it was made from, and the fingerprints of sources in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import virft
from virft.data.builders.output import Target
from virft.data.builders.workplace import naming_disk_faults
from virft.errors import UserError
from virft.files import replacing


def fingerprint(path: Path) -> dict[str, Any]:
    """Path, size and SHA-256 of a file; of a folder, of all files in it.

    Raises:
        UserError: nothing is there.
    """
    if path.is_dir():
        return combined_fingerprint(path, (file for file in path.rglob("*") if file.is_file()))
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    return {"path": path.as_posix(), "bytes": path.stat().st_size, "sha256": _sha256(path)}


def combined_fingerprint(folder: Path, files: Iterable[Path]) -> dict[str, Any]:
    """Path of a folder, number and size of some files in it, and one SHA-256 of their names and contents."""
    total, count, size = hashlib.sha256(), 0, 0
    for file in sorted(files):
        total.update(os.fsencode(f"{file.relative_to(folder).as_posix()}\0{_sha256(file)}\n"))
        count += 1
        size += file.stat().st_size
    return {"path": folder.as_posix(), "files": count, "bytes": size, "sha256": total.hexdigest()}


def listing_sha256(items: Iterable[Sequence[str]]) -> str:
    """One SHA-256 of lines of words, such as images and their labels."""
    total = hashlib.sha256()
    for words in items:
        total.update(("\0".join(words) + "\n").encode(errors="surrogateescape"))
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_built(target: Target, settings: Mapping[str, Any], overwrite: bool = False) -> bool:
    """Whether the set stands there as these settings build it. Settings hold the sources' fingerprints.

    Args:
        target: the set.
        settings: as :func:`write_manifest` writes them.
        overwrite: whether what stands there may be replaced.

    Raises:
        UserError: something else stands there, or what must not be replaced.
    """
    source = settings.get("source", {}).get("path")
    if source is not None and target.path.resolve() == Path(source).resolve():
        raise UserError(f"--output {target.path} is the source itself; name another")
    if not target.path.exists():
        return False
    _check_replaceable(target)
    if overwrite:
        return False
    made = _read_manifest(target)
    if made.get("settings") == settings and made.get("output") == fingerprint(target.path):
        return True
    raise UserError(f"{target.path}: exists and was not built so: pass --overwrite, or another --output")


def _read_manifest(target: Target) -> dict[str, Any]:
    """The manifest beside a set; empty where there is none, or what stands there is none."""
    try:
        made = json.loads(target.manifest.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def _check_replaceable(target: Target) -> None:
    """Refuse to replace what no builder wrote.

    Raises:
        UserError: where a file should go stands a folder or the other way round; or a folder that holds
            anything but a set.
    """
    path = target.path
    if path.is_dir() != (target.kind == "folder"):
        kinds = ("file", "folder") if path.is_dir() else ("folder", "file")
        raise UserError(f"--output {path}: a {kinds[1]} stands where a {kinds[0]} is to be written")
    if path.is_dir() and any(path.iterdir()) and not (path / "dataset_dict.json").is_file():
        raise UserError(f"--output {path}: a folder that is no set of rows is not replaced; name another")


def write_manifest(
    target: Target, command: str, settings: Mapping[str, Any], counts: Mapping[str, Any], written: Path
) -> None:
    """Write the manifest beside a set. It holds no time and no machine: the same command gives the same
    bytes.

    Args:
        target: the set.
        command: as the user typed it.
        settings: every option that the rows depend on, and the sources' fingerprints.
        counts: of what was found, kept and left out.
        written: where the set stands, which is about to be renamed to its place.
    """
    manifest = {
        "command": command,
        "virft": virft.__version__,
        "settings": settings,
        "counts": counts,
        "output": {**fingerprint(written), "path": target.path.as_posix()},
    }
    with naming_disk_faults(target.path.parent), replacing(target.manifest) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
