"""Answering samples on any number of devices, so that a killed run continues where it was.

While it runs, each process appends its predictions, one JSON line each, to its own file in
``<output>.partial``. Starting again reads these files and asks only what is missing, with any number of
processes. At the end the lines become ``<output>`` (in the samples' order, by rename) and
``<output stem>.meta.json`` says how they were made.

One device: in this process. Several: one process each, either started here or, under ``torchrun``, its ranks
(several nodes must see one file system: there the ranks' replies come together).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import transformers

from virft.checkpoint import installed_versions, resolve_space
from virft.engine import Engine, UnreadableImage, by_images
from virft.errors import UserError, no_room
from virft.files import check_file, replacing
from virft.inference_model import (
    check_attention,
    check_decoding,
    load_processor,
    pick_device,
    pick_dtype,
    resolve_system,
)
from virft.inference_settings import ENGINES, SPEED_ONLY, InferenceSettings
from virft.model_files import check_weights
from virft.predictions import load_meta, load_predictions, meta_path
from virft.types import Prediction, Sample
from virft.unfinished_run import (
    PARTIAL_SUFFIX,
    POLL_SECONDS,
    Progress,
    Skipped,
    is_written,
    own_file,
    read_entries,
)

log = logging.getLogger(__name__)

PASSED_ON = (
    "model_path",
    "dtype",
    "min_pixels",
    "max_pixels",
    "coordinates",
    "system",
    "batch_size",
    "max_new_tokens",
    "temperature",
    "seed",
    "logprobs",
)
"""Settings that every engine takes under the same name."""

ADDED_LATER: Mapping[str, Any] = {"logprobs": False}
"""Settings that the runs of earlier versions do not state -> what they amounted to."""

NO_ROOM = 3
"""Exit code of a process that met a full disk, where it may not be able to write a sentence either."""

ReadReply = Callable[[str], str]
"""From a reply to its reason code, "ok" where the task's reader could read it."""


def check(settings: InferenceSettings) -> None:
    """Refuse settings out of range before data or weights load. Raises UserError naming the flag."""
    if settings.engine not in ENGINES:
        raise UserError(f"--engine {settings.engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    check_decoding(settings.batch_size, settings.max_new_tokens, settings.temperature)
    if settings.processes is not None and settings.processes < 1:
        raise UserError(f"--processes must be at least 1, got {settings.processes}")
    pick_dtype(settings.dtype, pick_device(settings.device))
    if settings.engine == "transformers":
        check_attention(settings.attn_implementation)
    else:
        from virft.vllm_engine import check_vllm

        check_vllm(settings.model_path)
    check_file("--output", settings.output)


def run(
    samples: Sequence[Sample],
    settings: InferenceSettings,
    protocol: Mapping[str, Any] | None = None,
    read: ReadReply | None = None,
) -> list[Prediction]:
    """Answer samples and write predictions and protocol; continue what an earlier run left unfinished.

    Args:
        samples: with ids that are unique.
        settings: how; ``settings.output`` is the file to make.
        protocol: what the caller wants stated in the meta file (candidates, categories, data hashes).
        read: gives a reply's reason code; the meta file counts what was unreadable and why.

    Returns:
        Predictions in the samples' order, without skipped ones. Under torchrun on every rank.

    Raises:
        UserError: nothing to ask, doubled ids, an unreadable image, or earlier work made with other settings.
    """
    check(settings)
    _check_samples(samples)
    # What would be refused after the first work is refused before any.
    load_processor(settings.model_path, settings.min_pixels, settings.max_pixels)
    check_weights(settings.model_path)
    output = Path(settings.output)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder = output.with_name(output.name + PARTIAL_SUFFIX)
    stamp = fingerprint(samples, settings)
    with _ranks(world) as meet, _naming_full_disk(output):
        if rank == 0:
            _begin(output, folder, stamp, settings.overwrite)
        meet()
        unfinished = folder.exists()
        meet()
        if unfinished:
            started = time.monotonic()
            _answer_all(samples, settings, folder, rank, world)
            meet()
            if rank == 0:
                _finish(samples, settings, folder, stamp, protocol or {}, read, time.monotonic() - started)
            meet()
    return load_predictions(output)


def fingerprint(samples: Sequence[Sample], settings: InferenceSettings) -> dict[str, Any]:
    """Everything that decides the replies: settings, the model's files and a hash of the samples."""
    stamp = {k: v for k, v in dataclasses.asdict(settings).items() if _decides(settings, k)}
    stamp["dtype"] = dtype_name(settings)
    digest = hashlib.sha256()
    for s in samples:
        # A picture held in memory has no name: its id and prompt must do.
        images = [str(i) if isinstance(i, str | Path) else "picture" for i in s.images]
        digest.update(json.dumps([s.id, images, s.prompt, s.system]).encode())
    stamp["samples"] = f"{len(samples)} samples, sha256 {digest.hexdigest()[:16]}"
    stamp["model_files"] = _model_files(settings.model_path)
    return stamp


def dtype_name(settings: InferenceSettings) -> str:
    """The data type that the settings resolve to on this machine, e.g. "bfloat16"."""
    return str(pick_dtype(settings.dtype, pick_device(settings.device))).removeprefix("torch.")


def _decides(settings: InferenceSettings, name: str) -> bool:
    own = {f.name for f in dataclasses.fields(InferenceSettings)}
    if name not in own or name in SPEED_ONLY or name == "output":
        return False
    return name != "seed" or settings.temperature > 0


def _model_files(model_path: str) -> str:
    """Names, sizes and times of a model folder's files; a Hub id stands for itself."""
    folder = Path(model_path)
    if not folder.is_dir():
        return str(model_path)
    files = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".bin"})
    listed = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return "sha256 " + hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def _check_samples(samples: Sequence[Sample]) -> None:
    if not samples:
        raise UserError("there is nothing to ask: no samples were chosen")
    doubled = [i for i, n in Counter(s.id for s in samples).items() if n > 1]
    if doubled:
        raise UserError(f"{len(doubled)} sample ids occur more than once, the first is {doubled[0]!r}")


def _begin(output: Path, folder: Path, stamp: Mapping[str, Any], overwrite: bool) -> None:
    """Make or check the folder of a run; there is none where ``output`` is already the finished run."""
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
        output.unlink(missing_ok=True)
        meta_path(output).unlink(missing_ok=True)
    elif output.exists():
        meta = load_meta(output)
        if meta is None or "fingerprint" not in meta:
            raise UserError(
                f"{output} exists and {meta_path(output).name} does not say how it was made; "
                "choose another --output or --overwrite"
            )
        _compare(output, stamp, meta["fingerprint"])
        shutil.rmtree(folder, ignore_errors=True)  # left by a kill after the last rename
        log.warning("%s is complete; nothing to ask (--overwrite asks anew)", output)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("rank-*.error"):
        path.unlink()
    known = folder / "settings.json"
    # A run that was refused before its first reply binds nobody to its settings.
    if known.exists() and (is_written(folder) or any(True for _ in read_entries(folder))):
        _compare(output, stamp, json.loads(known.read_text(encoding="utf-8")))
    else:
        with replacing(known) as temporary:
            temporary.write_text(json.dumps(stamp, indent=1), encoding="utf-8")


def _compare(output: Path, stamp: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    earlier = {**ADDED_LATER, **earlier}
    differing = [k for k in stamp if k not in earlier or earlier[k] != stamp[k]]
    if differing:
        was = "; ".join(f"{k}: {earlier.get(k)!r} then, {stamp[k]!r} now" for k in differing)
        raise UserError(
            f"{output} holds replies made with other settings ({was}); "
            "use the same settings to continue, another --output, or --overwrite to start anew"
        )


def _answer_all(
    samples: Sequence[Sample], settings: InferenceSettings, folder: Path, rank: int, world: int
) -> None:
    """Return when every sample has a line in the folder (on rank 0) or this rank's have (elsewhere)."""
    if world > 1 and rank > 0:
        _work(rank, world, samples, settings, folder, None)
        return
    # Closed whatever happens: else what is said about an error goes on in the bar's line.
    with closing(Progress(folder, len(samples))) as bar:
        count = settings.processes or _default_processes(settings.device)
        if world > 1:
            _work(rank, world, samples, settings, folder, bar.poll)
            _wait_until(bar.poll)
        elif count == 1:
            _work(0, 1, samples, settings, folder, bar.poll)
        else:
            _spawn(count, samples, settings, folder, bar)
        bar.poll(force=True)


def _spawn(
    count: int, samples: Sequence[Sample], settings: InferenceSettings, folder: Path, bar: Progress
) -> None:
    # A program's own settings class stands in its main module, which a notebook's children cannot import.
    plain = InferenceSettings(
        **{f.name: getattr(settings, f.name) for f in dataclasses.fields(InferenceSettings)}
    )
    context = torch.multiprocessing.spawn(
        _spawned, (count, list(samples), plain, folder), nprocs=count, join=False
    )
    try:
        while not context.join(timeout=POLL_SECONDS):
            bar.poll(force=True)
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code == NO_ROOM:
            raise OSError(errno.ENOSPC, "no room for predictions") from error
        # torch has ended the other processes; what they had written stays.
        refused = sorted(folder.glob("rank-*.error"))
        if not refused:
            raise UserError(
                f"process {error.error_index + 1} of {count} was ended ({_ended(error)}); start again to "
                "continue, finished replies are kept"
            ) from error
        message = refused[0].read_text(encoding="utf-8")
        for path in refused:
            path.unlink()
        raise UserError(message) from error


def _ended(error: torch.multiprocessing.ProcessExitedException) -> str:
    """How a process ended, in words."""
    if error.signal_name == "SIGKILL":
        return "SIGKILL, as when the machine's memory runs out"
    return error.signal_name or f"exit code {error.exit_code}"


def _spawned(
    rank: int, count: int, samples: Sequence[Sample], settings: InferenceSettings, folder: Path
) -> None:
    """A process of :func:`_spawn`; a refusal travels to the parent as a file."""
    transformers.utils.logging.disable_progress_bar()  # the parent shows one bar for all
    if pick_device(settings.device).type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    try:
        _work(rank, count, samples, settings, folder, None)
    except UserError as error:
        (folder / f"rank-{rank}.error").write_text(str(error), encoding="utf-8")
        sys.exit(2)
    except OSError as error:
        if no_room(error):
            sys.exit(NO_ROOM)
        raise


def _work(
    rank: int,
    world: int,
    samples: Sequence[Sample],
    settings: InferenceSettings,
    folder: Path,
    progressed: Callable[[], Any] | None,
) -> None:
    """Answer this rank's share: every ``world``-th group of samples about the same images, less what is done.

    The share does not depend on what is done, so ranks that start at different moments never overlap.
    """
    mine = [s for group in by_images(samples)[rank::world] for s in group]
    with own_file(folder / f"rank-{rank}.jsonl") as file:
        done = {entry.id for entry in read_entries(folder)}
        mine = [s for s in mine if s.id not in done]
        if not mine:
            return

        def write(entry: Prediction | Skipped) -> None:
            line = (
                entry.to_json() if isinstance(entry, Prediction) else {"skipped": dataclasses.asdict(entry)}
            )
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()

        def skip(sample: Sample, error: UnreadableImage) -> None:
            write(Skipped(sample.id, str(error)))

        engine = make_engine(settings, rank)
        try:
            for prediction in engine.stream(mine, skip if settings.skip_bad_images else None):
                write(prediction)
                if progressed:
                    progressed()
        except UnreadableImage as error:
            raise UserError(f"{error}; mend it, or leave such images out with --skip_bad_images") from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory does not hold --batch_size {settings.batch_size}; start again with a "
                "smaller one, finished replies are kept"
            ) from error


def make_engine(settings: InferenceSettings, rank: int = 0) -> Any:
    """The engine of a rank: on CUDA the rank-th visible device, where no index was given."""
    device = settings.device
    if settings.engine == "transformers" and pick_device(device).type == "cuda" and ":" not in device:
        local = int(os.environ.get("LOCAL_RANK", rank))
        device = f"cuda:{local % torch.cuda.device_count()}"
    kwargs = {name: getattr(settings, name) for name in PASSED_ON}
    if settings.engine == "vllm":
        from virft.vllm_engine import VLLMEngine

        # By name, so that the protocol states what is used: vLLM has its own idea of "auto".
        return VLLMEngine(**{**kwargs, "dtype": dtype_name(settings)})
    return Engine(device=device, attn_implementation=settings.attn_implementation, **kwargs)


def _finish(
    samples: Sequence[Sample],
    settings: InferenceSettings,
    folder: Path,
    stamp: Mapping[str, Any],
    protocol: Mapping[str, Any],
    read: ReadReply | None,
    seconds: float,
) -> None:
    """Put the ranks' lines together; nothing may be missing or doubled."""
    entries: dict[str, Prediction | Skipped] = {}
    for entry in read_entries(folder):
        entries.setdefault(entry.id, entry)
    missing = [s.id for s in samples if s.id not in entries]
    if missing:
        raise UserError(f"{len(missing)} samples have no reply, the first is {missing[0]!r}; start again")
    ordered = [entries[s.id] for s in samples]
    predictions = [e for e in ordered if isinstance(e, Prediction)]
    skipped = [e for e in ordered if isinstance(e, Skipped)]
    meta = {
        **protocol,
        **_statement(settings, predictions),
        "questions": len(samples),
        "skipped_images": [dataclasses.asdict(e) for e in skipped],
        "truncated_replies": sum(p.truncated for p in predictions),
        "unreadable": None if read is None else dict(_unreadable(predictions, read)),
        "seconds": round(seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": dict(stamp),
    }
    output = Path(settings.output)
    with replacing(meta_path(output)) as temporary:
        temporary.write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(output) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
    shutil.rmtree(folder)


def _statement(settings: InferenceSettings, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The part of the protocol that the machinery knows."""
    size = load_processor(settings.model_path, settings.min_pixels, settings.max_pixels).image_processor.size
    return {
        "model_path": str(settings.model_path),
        "engine": settings.engine,
        "dtype": dtype_name(settings),
        # vLLM chooses its own.
        "attn_implementation": settings.attn_implementation if settings.engine == "transformers" else None,
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
        "system": resolve_system(settings.model_path, settings.system),
        "coordinates": predictions[0].space if predictions else settings.coordinates,
        "checkpoint_coordinates": own_space(settings.model_path),
        "decoding": {
            "temperature": settings.temperature,
            "greedy": settings.temperature == 0,
            "max_new_tokens": settings.max_new_tokens,
            "seed": settings.seed if settings.temperature else None,
        },
        "logprobs": settings.logprobs,
        "versions": {"python": sys.version.split()[0], **installed_versions()},
    }


def own_space(model_path: str) -> str | None:
    """The space in which a checkpoint writes boxes by its own account; None where it gives none."""
    try:
        return resolve_space(model_path)
    except UserError:
        return None


def _unreadable(predictions: Sequence[Prediction], read: ReadReply) -> Counter[str]:
    return Counter(code for p in predictions if (code := read(p.reply)) != "ok")


def _default_processes(device: str) -> int:
    chosen = pick_device(device)
    return torch.cuda.device_count() if chosen.type == "cuda" and chosen.index is None else 1


@contextmanager
def _naming_full_disk(output: Path) -> Iterator[None]:
    """Say in one sentence that the disk is full. Raises UserError; the replies of the run stay."""
    try:
        yield
    except OSError as error:
        if not no_room(error):
            raise
        raise UserError(
            f"{output}: no room on the disk (or a quota or a limit of file sizes is reached); make room and "
            "start again, finished replies are kept"
        ) from error


@contextmanager
def _ranks(world: int) -> Iterator[Callable[[], None]]:
    """Gives a function that waits for all ranks of torchrun; alone it does nothing."""
    own = world > 1 and not torch.distributed.is_initialized()
    if own:
        # A rank may have to wait for another's whole share; a dead one is torchrun's to notice.
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield torch.distributed.barrier if world > 1 else lambda: None
    finally:
        if own:
            torch.distributed.destroy_process_group()


def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(POLL_SECONDS)
