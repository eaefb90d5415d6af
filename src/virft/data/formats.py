"""The training formats of the field: reading their records as rows, writing rows as their records.

- ``rows``: ``problem``, ``solution``, ``image`` / ``images`` / ``image_path``: Visual-RFT, Visual-ARFT, R1-V
- ``sharegpt``: ``conversations`` of ``from`` / ``value``, ``images`` or ``image``: LLaMA-Factory, VLM-R1, and
  the reference's SFT file for LISA, whose image stands as ``<img>PATH</img>`` in the text
- ``messages``: ``messages`` of ``role`` / ``content``, ``images``: LLaMA-Factory's OpenAI form, ms-swift
- ``answer``: ``problem``, ``answer``, ``images``: EasyR1
- ``question``: ``question``, ``answer`` or ``answers``, an image: MAT-Search and MAT-Coding
- ``lisa_boxes``: ``image_path``, ``instruction``, ``boxes`` (lists, pixels): the reference's
  ``lisa_train.json``

``<image>`` in a text marks where an image goes; rows have their images before the text, so the marks are
taken out, and there must be as many as images. LISA's own LabelMe files are read by :mod:`virft.data.lisa`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virft import prompts
from virft.data.solutions import tagged
from virft.data.training import IMAGE_COLUMNS, target_text
from virft.errors import UserError
from virft.files import replacing
from virft.parsing import parse_answer

IMAGE_MARK = "<image>"
IMAGE_TAG = re.compile(r"<img>([^<]*)</img>\s*")
MAT_IMAGES = ("ori_image_path", "image_path")
"""Where MAT's records name the image that a question is about; a coding record's processed image is the
truth."""

Record = Mapping[str, Any]
Row = dict[str, Any]


def format_of(columns: Iterable[str]) -> str | None:
    """The format that records with these columns have, a key of :data:`READERS`, or None."""
    present = set(columns)
    return next((name for name, wanted in _MARKS.items() if present.issuperset(wanted)), None)


def kind_of(record: Record) -> str:
    """The format of a record, a key of :data:`READERS`.

    Raises:
        ValueError: none of them.
    """
    if name := format_of(record):
        return name
    raise ValueError(
        f"no known format: columns {', '.join(record)}; expected problem and solution, conversations, "
        "messages, problem and answer, or question and answer (name others with --map)"
    )


def to_rows(record: Record) -> list[Row]:
    """A record of any format as rows with ``images`` (list), ``problem``, ``solution`` and its other columns.

    Only ``lisa_boxes`` records give more than one row; they hold ``box`` (pixels) in place of a solution.

    Raises:
        ValueError: not a known format, or a record that no row can be made from.
    """
    return READERS[kind_of(record)](record)


def _from_rows(record: Record) -> list[Row]:
    kept = {key: value for key, value in record.items() if key not in IMAGE_COLUMNS}
    row = {"images": _images(record), **kept}
    for column in ("problem", "solution"):
        if not isinstance(row[column], str) or not row[column].strip():
            raise ValueError(f"{column!r} must be text, got {row[column]!r}")
    return [row]


def _from_sharegpt(record: Record) -> list[Row]:
    turns = [(turn.get("from"), turn.get("value")) for turn in record["conversations"]]
    roles = {"human": "user", "gpt": "assistant"}
    return [_from_turns(record, [(roles.get(role, role), text) for role, text in turns], "conversations")]


def _from_messages(record: Record) -> list[Row]:
    turns = [(turn.get("role"), _text(turn.get("content"))) for turn in record["messages"]]
    return [_from_turns(record, turns, "messages")]


def _text(content: Any) -> Any:
    """A message's content as text: parts of type image become marks."""
    if not isinstance(content, list):
        return content
    return "".join(IMAGE_MARK if part.get("type") == "image" else part.get("text", "") for part in content)


def _from_turns(record: Record, turns: Sequence[tuple[Any, Any]], column: str) -> Row:
    system = [text for role, text in turns if role == "system"] + [record.get("system")]
    asked = [text for role, text in turns if role == "user"]
    told = [text for role, text in turns if role == "assistant"]
    known = len(asked) + len(told) + sum(role == "system" for role, _ in turns) == len(turns)
    if not known or len(asked) != 1 or len(told) > 1 or not all(isinstance(t, str) for _, t in turns):
        raise ValueError(f"{column!r} must be one question of a user and at most one answer, as text")
    kept = {k: v for k, v in record.items() if k not in (*IMAGE_COLUMNS, column, "system")}
    images = _images(record) + IMAGE_TAG.findall(asked[0])
    row: Row = {
        "images": images,
        **kept,
        "problem": _unmarked(IMAGE_TAG.sub("", asked[0]), len(_images(record))),
    }
    if "solution" not in row:
        if not told:
            raise ValueError(f"{column!r} has no answer, and there is no column 'solution'")
        answer = parse_answer(told[0])
        row["solution"] = tagged(answer.value if answer.ok else told[0])
    if told and "<think>" in told[0]:
        row["completion"] = told[0]
    if system[0]:
        row["system"] = system[0]
    return row


def _unmarked(text: str, images: int) -> str:
    """``text`` without its image marks, where they stand before or after all words."""
    marks = text.count(IMAGE_MARK)
    if marks not in (0, images):
        raise ValueError(f"{marks} {IMAGE_MARK} marks for {images} images")
    bare = text.strip()
    while bare.startswith(IMAGE_MARK) or bare.endswith(IMAGE_MARK):
        bare = bare.removeprefix(IMAGE_MARK).removesuffix(IMAGE_MARK).strip()
    if IMAGE_MARK in bare:
        raise ValueError(f"{IMAGE_MARK} stands between words; rows have their images before the text")
    return bare


def _from_answer(record: Record) -> list[Row]:
    row = {key: value for key, value in record.items() if key not in (*IMAGE_COLUMNS, "answer")}
    images = _images(record)
    return [
        {
            "images": images,
            **row,
            "problem": _unmarked(row["problem"], len(images)),
            **_solved(record["answer"]),
        }
    ]


def _from_question(record: Record) -> list[Row]:
    image = [record[name] for name in MAT_IMAGES if record.get(name)][:1]
    answers = record.get("answers", record.get("answer"))
    truths = answers if isinstance(answers, list) else [answers]
    kept = {k: v for k, v in record.items() if k not in (*MAT_IMAGES, "question", "answer", "answers")}
    return [{"images": image, **kept, "problem": record["question"], **_solved(truths[0]), "answers": truths}]


def _solved(answer: Any) -> Row:
    text = str(answer)
    return {"solution": text if "<answer>" in text else tagged(text)}


def _from_lisa_boxes(record: Record) -> list[Row]:
    instructions, boxes = record["instruction"], record["boxes"]
    if isinstance(instructions, str):
        instructions = [instructions]
    if not instructions or not boxes:
        raise ValueError("'instruction' and 'boxes' must not be empty")
    x1s, y1s, x2s, y2s = zip(*boxes, strict=True)
    # One answer names one box: the one around every target, as virft.data.lisa.truth_box draws it.
    hull = [min(x1s), min(y1s), max(x2s), max(y2s)]
    return [
        {"images": _images(record), "problem": prompts.grounding(text), "box": hull, "task": "grounding"}
        for text in instructions
    ]


def _images(record: Record) -> list[Any]:
    value = next((record[name] for name in IMAGE_COLUMNS if record.get(name)), [])
    return list(value) if isinstance(value, list) else [value]


_MARKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sharegpt": ("conversations",),
        "messages": ("messages",),
        "rows": ("problem", "solution"),
        "answer": ("problem", "answer"),
        "question": ("question",),
        "lisa_boxes": ("instruction", "boxes"),
    }
)
READERS: Mapping[str, Callable[[Record], list[Row]]] = MappingProxyType(
    {
        "rows": _from_rows,
        "sharegpt": _from_sharegpt,
        "messages": _from_messages,
        "answer": _from_answer,
        "question": _from_question,
        "lisa_boxes": _from_lisa_boxes,
    }
)
"""Format -> its reader."""


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
    write = WRITERS[name]
    count = 0
    with replacing(output) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
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


def _located(image: Any, output: Path, name: str, absolute: bool) -> str:
    """The path of an image, written out first where its bytes are embedded."""
    if isinstance(image, Mapping):
        path = Path(image["path"] or "")
        if image["bytes"] is not None:
            path = output.with_name(f"{output.stem}_images") / f"{name}{path.suffix or '.png'}"
            with replacing(path) as unfinished:
                unfinished.write_bytes(image["bytes"])
    else:
        path = Path(image)
    return str(path.resolve()) if absolute else Path(os.path.relpath(path, output.parent)).as_posix()


DATASET_INFO = "dataset_info.json"


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
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); mend or remove it") from None
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
