"""Rows in the training formats of other frameworks, and what LLaMA-Factory needs to train on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virft.data.builders.output import relative_path
from virft.data.builders.workplace import naming_disk_faults
from virft.data.formats import IMAGE_MARK, Row
from virft.data.records import read_json
from virft.data.training import target_text
from virft.errors import UserError
from virft.files import replacing


def _marked(row: Row) -> str:
    return IMAGE_MARK * len(row["images"]) + row["problem"]


def _sharegpt(row: Row) -> Row:
    turns = [{"from": "human", "value": _marked(row)}, {"from": "gpt", "value": target_text(row)}]
    system = {"system": row["system"]} if row.get("system") else {}
    return {"conversations": turns, **system, "images": row["images"]}


def _messages(row: Row, answered: bool = True) -> Row:
    turns = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    turns.append({"role": "user", "content": _marked(row)})
    if answered:
        turns.append({"role": "assistant", "content": target_text(row)})
    return {"messages": turns, "images": row["images"]}


def _swift_grpo(row: Row) -> Row:
    # ms-swift hands every further column to the rewards.
    known = ("images", "problem", "system", "completion", "thinking", "image_sizes")
    return {**_messages(row, answered=False), **{k: v for k, v in row.items() if k not in known}}


def _vlm_r1(row: Row) -> Row:
    image = {"image": row["images"][0]} if len(row["images"]) == 1 else {"image": row["images"]}
    turns = [{"from": "human", "value": _marked(row)}, {"from": "gpt", "value": row["solution"]}]
    return {**image, "conversations": turns}


def _easyr1(row: Row) -> Row:
    return {"problem": _marked(row), "answer": row["solution"], "images": row["images"]}


WRITERS: Mapping[str, Callable[[Row], Row]] = MappingProxyType(
    {
        "llamafactory": _sharegpt,
        "openai": _messages,
        "swift": _messages,
        "swift-grpo": _swift_grpo,
        "vlm-r1": _vlm_r1,
        "easyr1": _easyr1,
    }
)
"""Format -> its writer. SFT formats teach :func:`virft.data.training.target_text`, as ``sft.py`` does."""

JSON_LISTS = ("llamafactory", "openai")
"""Formats written as one JSON list; the others have one record a line."""


def export(rows: Iterable[Row], name: str, output: Path, absolute: bool = False) -> int:
    """Write rows in another format.

    Args:
        rows: with ``problem``, ``solution`` and ``images``: paths, or dictionaries of ``bytes`` and
            ``path`` as :func:`virft.data.training.load_rows` gives them. Embedded images are written to a
            folder beside ``output``.
        name: a key of :data:`WRITERS`.
        output: the file.
        absolute: write absolute image paths instead of relative to the output's folder.

    Returns:
        The number of records.
    """
    images = _images_folder(output)
    stood = images.exists()
    try:
        count = _write(rows, name, output, absolute)
        stood = True
    finally:
        if not stood:
            shutil.rmtree(images, ignore_errors=True)
    return count


def _write(rows: Iterable[Row], name: str, output: Path, absolute: bool) -> int:
    write = WRITERS[name]
    count = 0
    with (
        naming_disk_faults(output.parent),
        replacing(output) as unfinished,
        open(unfinished, "w", encoding="utf-8") as file,
    ):
        as_list = name in JSON_LISTS
        file.write("[\n" if as_list else "")
        for number, row in enumerate(rows):
            paths = [
                _located(image, output, f"{number:06d}_{i}", absolute)
                for i, image in enumerate(row["images"])
            ]
            record = json.dumps(write({**row, "images": paths}), ensure_ascii=False)
            file.write((",\n" if as_list and number else "") + record + ("" if as_list else "\n"))
            count += 1
        file.write("\n]\n" if as_list else "")
    return count


def _images_folder(output: Path) -> Path:
    """Where embedded images are written out."""
    return output.with_name(f"{output.stem}_images")


def _located(image: Any, output: Path, name: str, absolute: bool) -> str:
    """The path of an image, written out first where its bytes are embedded."""
    if isinstance(image, Mapping):
        path = Path(image["path"] or "")
        if image["bytes"] is not None:
            path = _images_folder(output) / f"{name}{path.suffix or '.png'}"
            with replacing(path) as unfinished:
                unfinished.write_bytes(image["bytes"])
    else:
        path = Path(image)
    return str(path.resolve()) if absolute else relative_path(path, output.parent)


DATASET_INFO = "dataset_info.json"


def read_dataset_info(folder: Path) -> dict[str, Any]:
    """The entries of a folder's ``dataset_info.json``; none where there is no such file.

    Raises:
        UserError: the file is not a JSON object.
    """
    path = folder / DATASET_INFO
    entries = read_json(path) if path.exists() else {}
    if not isinstance(entries, dict):
        raise UserError(f"{path}: must hold an object of data sets; mend or remove it")
    return entries


def write_dataset_info(folder: Path, name: str, file_name: str, form: str, system: bool = False) -> Path:
    """Add the entry of an exported file to LLaMA-Factory's ``dataset_info.json``; other entries stay.

    Args:
        folder: that LLaMA-Factory gets as ``dataset_dir``.
        name: of the data set.
        file_name: of the exported file in that folder.
        form: "llamafactory" or "openai", see :data:`WRITERS`.
        system: whether the records have a column ``system``; LLaMA-Factory fails on a column that is not
            there.

    Raises:
        UserError: the file that is there is not JSON.
    """
    path = folder / DATASET_INFO
    entries = read_dataset_info(folder)
    column = "conversations" if form == "llamafactory" else "messages"
    entry: Row = {
        "file_name": file_name,
        "formatting": "sharegpt",
        "columns": {"messages": column, "images": "images"},
    }
    if form == "llamafactory":
        entry["columns"] |= {"system": "system"} if system else {}
    else:
        roles = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
        entry["tags"] = roles | {"assistant_tag": "assistant", "system_tag": "system"}
    entries[name] = entry
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_lora_recipe(
    path: Path, *, model: str, dataset: str, dataset_dir: str, min_pixels: int, max_pixels: int, cutoff: int
) -> None:
    """A LoRA SFT recipe that ``llamafactory-cli train`` runs as it is.

    The values are those of LLaMA-Factory's examples/train_lora/qwen2_5vl_lora_sft.yaml; both families use its
    template ``qwen2_vl``. The pixel budget is the one of the reinforcement run, so that the two compare.
    """
    recipe = f"""### model
model_name_or_path: {json.dumps(model)}
image_min_pixels: {min_pixels}
image_max_pixels: {max_pixels}

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: {json.dumps(dataset)}
dataset_dir: {json.dumps(dataset_dir)}
template: qwen2_vl
cutoff_len: {cutoff}
preprocessing_num_workers: 4

### output
output_dir: {json.dumps(f"saves/{dataset}/lora/sft")}
logging_steps: 1
save_steps: 500
plot_loss: true
report_to: none

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""
    with replacing(path) as unfinished:
        unfinished.write_text(recipe, encoding="utf-8")
