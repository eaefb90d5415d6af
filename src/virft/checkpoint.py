"""What a checkpoint carries besides weights: the manifest ``virft.json``, and which checkpoints are whole.

The manifest is the last file written into a checkpoint, by rename. A folder without one was cut off while it
was being written (or is not ours), so a run never resumes from it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from virft import __version__
from virft.boxes import FAMILY_SPACE, MODEL_SPACES
from virft.errors import UserError, no_room
from virft.files import replacing
from virft.model_files import model_config

logger = logging.getLogger(__name__)

MANIFEST = "virft.json"
COORDINATES = ("auto", *MODEL_SPACES)
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "deepspeed", "datasets")


@dataclass(frozen=True)
class Manifest:
    """What evaluation and resuming need to know about a checkpoint.

    Attributes:
        space: coordinate space in which the model was trained to write boxes.
        min_pixels, max_pixels: area limits of a resized image, in pixels.
        system_prompt: the system message of every prompt, None without one.
        task: the tasks that it was trained on, e.g. ("detection",); empty when unknown.
        program: "grpo", "sft" or "merge".
        model_type: the configuration's, e.g. "qwen2_vl".
        base_model: what training started from.
        step: optimizer steps that made these weights; None for the last ones of a run.
        seed: of the run.
        data: {"name", "split", "rows", "hash"} of the training rows.
        versions: package -> version.
        git_revision: of the source tree that ran, with "+" when it had changes; None outside a repository.
        config: every setting of the run, as plain JSON values.
        files: path within the checkpoint -> bytes, of every file that resuming needs; empty for a model.
    """

    space: str
    min_pixels: int
    max_pixels: int
    system_prompt: str | None = None
    task: tuple[str, ...] = ()
    program: str = ""
    model_type: str = ""
    base_model: str = ""
    step: int | None = None
    seed: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_run(cls, args: Any, task: Iterable[str], data: Mapping[str, Any]) -> Manifest:
        """What a program knows of its run: a training configuration whose choices are settled, tasks and
        data."""
        return cls(
            space=args.coordinates,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
            system_prompt=args.system_prompt or None,
            task=tuple(task),
            data=data,
        )


def write_manifest(folder: str | Path, manifest: Manifest) -> Path:
    """Write ``virft.json`` into a checkpoint; call it when every other file of the checkpoint is on disk."""
    path = Path(folder) / MANIFEST
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(manifest), indent=2, default=str) + "\n", encoding="utf-8")
    return path


def read_manifest(folder: str | Path) -> Manifest | None:
    """The manifest of a checkpoint folder, None where there is none (a Hub id, somebody else's folder).

    Raises:
        UserError: a ``virft.json`` that is no manifest.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    known = {f.name for f in fields(Manifest)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**{k: tuple(v) if k == "task" else v for k, v in content.items() if k in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a manifest of a checkpoint ({error}); remove it or save again"
        ) from None
    if manifest.space not in MODEL_SPACES:
        raise UserError(
            f"{path}: its space {manifest.space!r} is none of {', '.join(MODEL_SPACES)}; correct the file"
        )
    return manifest


def resolve_space(model: str | Path | Any, override: str = "auto") -> str:
    """The coordinate space of a model's boxes: the override, else its manifest's, else its family's.

    Args:
        model: a checkpoint folder, a Hub id, or a configuration object with ``model_type``.
        override: "auto" or a member of :data:`virft.boxes.MODEL_SPACES`.

    Raises:
        UserError: an unknown space, no model there, or a family that has no known space.
    """
    if override not in COORDINATES:
        raise UserError(f"--coordinates {override!r} is unknown; choose one of {', '.join(COORDINATES)}")
    if override != "auto":
        return override
    if isinstance(model, str | Path):
        manifest = read_manifest(model)
        if manifest is not None:
            return manifest.space
        model = model_config(model)
    if model.model_type not in FAMILY_SPACE:
        raise UserError(
            f"models of type {model.model_type!r} have no known coordinate space; "
            f"pass --coordinates {' or '.join(MODEL_SPACES)}"
        )
    return FAMILY_SPACE[model.model_type]


def installed_versions() -> dict[str, str]:
    """Package -> version of what decides a run's numbers."""
    found = {"virft": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_revision(folder: str | Path | None = None) -> str | None:
    """Commit of the source tree at ``folder`` (default: virft's own), with "+" where tracked files differ."""
    where = str(folder or Path(__file__).parent)
    try:
        commit = subprocess.run(
            ["git", "-C", where, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", where, "diff", "--quiet", "HEAD"], capture_output=True, timeout=20
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def last_checkpoint(output_dir: str | Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint of a run that can be resumed, and the newer ones that cannot.

    Returns:
        The folder ``checkpoint-<step>`` with the highest step that is whole (None when there is none), and
        the folders with a higher step, which were cut off or hold weights only.
    """
    passed = []
    for _, folder in reversed(_numbered_checkpoints(output_dir)):
        if is_whole(folder):
            return folder, passed
        passed.append(folder)
    return None, passed


def resume_folder(output_dir: str | Path, wanted: str | None) -> Path | None:
    """The checkpoint to go on from, the same on all processes: what the first one finds.

    Args:
        output_dir: the run's; held by this run, so that nothing else writes checkpoints there.
        wanted: ``--resume_from_checkpoint``: None or "false" for none, a folder, or "auto" (or "true") for
            the newest whole checkpoint of the run, if there is one.

    Raises:
        UserError: the folder is not there, was cut off while it was written, or holds weights only.
    """
    if not wanted or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() not in ("auto", "true"):
        if not Path(wanted).is_dir() or not is_whole(wanted):
            raise UserError(
                f"--resume_from_checkpoint {wanted}: no whole checkpoint with full state there (cut off, "
                "damaged, or weights only); auto takes the newest that can be resumed"
            )
        return Path(wanted)
    found = [None]
    if PartialState().is_main_process:
        found[0], passed = last_checkpoint(output_dir)
        for broken in passed:
            logger.warning("%s was cut off, is damaged, or holds weights only: passed over", broken)
    return broadcast_object_list(found)[0]


@contextmanager
def saved_whole(folder: str | Path, mend: str) -> Iterator[None]:
    """Where the disk becomes full while a model is saved into ``folder``, leave nothing of it there.

    Args:
        folder: a ``checkpoint-<step>``, of which nothing is left; or another, whose subfolders and older
            files stay.
        mend: what the user can do, for the end of the sentence.

    Raises:
        UserError: the disk is full.
    """
    root = Path(folder)
    whole = root.name.startswith("checkpoint-") or not root.exists()
    before = _written(root)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not no_room(error):
            raise
        for path, state in _written(root).items():
            if before.get(path) != state:
                path.unlink(missing_ok=True)
        if whole:
            shutil.rmtree(root, ignore_errors=True)
        raise UserError(
            f"{folder}: no room on the disk (or a quota or a limit of file sizes is reached); what was "
            f"written of it is removed: {mend}"
        ) from error


def _written(folder: Path) -> dict[Path, tuple[int, int]]:
    """File -> (bytes, time of its last change), of every file that stands in a folder."""
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except FileNotFoundError:
        return {}
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def file_sizes(folder: str | Path) -> dict[str, int]:
    """Path within a folder -> bytes, of every file in it but the manifest."""
    root = Path(folder)
    found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: path.stat().st_size for name, path in found.items() if name != MANIFEST}


def is_whole(folder: str | Path) -> bool:
    """Whether a checkpoint was written to its end, holds the full state of training, and its files still
    have their sizes (a machine that lost power may keep a file's name and not its content)."""
    names = set(os.listdir(folder))
    has_optimizer = bool(
        names & {"optimizer.pt", "optimizer.bin", "optimizer_0"}
        or any(n.startswith("global_step") for n in names)
    )
    if not ({MANIFEST, "trainer_state.json"} <= names and has_optimizer):
        return False
    try:
        written = read_manifest(folder).files
    except UserError:
        return False
    found = file_sizes(folder) if written else {}
    return all(found.get(name) == size for name, size in written.items())


def rotate(output_dir: str | Path, limit: int | None, keep: Iterable[Path]) -> list[Path]:
    """Delete a run's oldest checkpoints until ``limit`` are left; those in ``keep`` always stay.

    The manifest goes first, so that a deletion cut short leaves no folder that looks whole.

    Returns:
        The folders deleted.
    """
    if not limit or limit < 1:
        return []
    protected = {folder.resolve() for folder in keep}
    numbered = _numbered_checkpoints(output_dir)
    surplus = max(0, len(numbered) - max(limit, len(protected)))
    deleted = [folder for _, folder in numbered if folder.resolve() not in protected][:surplus]
    for folder in deleted:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return deleted


def _numbered_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every ``checkpoint-<step>``, oldest first."""
    numbered = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        if folder.is_dir() and number.isdigit():
            numbered.append((int(number), folder))
    return sorted(numbered)
