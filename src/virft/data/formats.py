"""The training formats of the field: telling them apart, and reading their records as rows.

- ``rows``: ``problem``, ``solution``, ``image`` / ``images`` / ``image_path``: Visual-RFT, Visual-ARFT, R1-V
- ``sharegpt``: ``conversations`` of ``from`` / ``value``, ``images`` or ``image``: LLaMA-Factory, VLM-R1, and
  the reference's SFT file for LISA, whose image stands as ``<img>PATH</img>`` in the text
- ``messages``: ``messages`` of ``role`` / ``content``, ``images``: LLaMA-Factory's OpenAI form, ms-swift
- ``answer``: ``problem``, ``answer``, ``images``: EasyR1
- ``question``: ``question``, ``answer`` or ``answers``, an image: MAT-Search and MAT-Coding
- ``lisa_boxes``: ``image_path``, ``instruction``, ``boxes`` (lists, pixels): the reference's
  ``lisa_train.json``

``<image>`` in a text marks where an image goes; rows have their images before the text, so the marks are
taken out, and there must be as many as images. LISA's own LabelMe files are read by :mod:`virft.data.lisa`;
:mod:`virft.data.export` writes rows in these formats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from virft import prompts
from virft.data.records import four_numbers
from virft.data.solutions import tagged
from virft.errors import UserError
from virft.parsing import parse_answer

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("images", "image", "image_path")
"""Where rows and most other formats have their images."""
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
    return next((name for name, wanted in _MARKS if present.issuperset(wanted)), None)


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


def told_apart(columns: Iterable[str]) -> str:
    """What to say of a set of another format that is read as rows; "" for rows and for what is unknown."""
    name = format_of(columns)
    return f"records of the format {name!r} ({USERS[name]}), read as rows" if name in USERS else ""


def to_rows(record: Record) -> list[Row]:
    """A record of any format as rows with ``images`` (list), ``problem``, ``solution`` and its other columns.

    Only ``lisa_boxes`` records give more than one row; theirs are in ``coordinates`` pixels.

    Raises:
        ValueError: not a known format, or a record that no row can be made from.
    """
    rows = READERS[kind_of(record)](record)
    for row in rows:
        for column in ("problem", "solution"):
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise ValueError(f"{column!r} must be text, got {row.get(column)!r}")
        if not isinstance(row.get("system") or "", str):
            raise ValueError(f"'system' must be text, got {row['system']!r}")
    return rows


def _from_rows(record: Record) -> list[Row]:
    return [{"images": _images(record), **_but(record, *IMAGE_COLUMNS)}]


def _but(record: Record, *columns: str) -> Row:
    return {key: value for key, value in record.items() if key not in columns}


def _from_sharegpt(record: Record) -> list[Row]:
    roles = {"human": "user", "gpt": "assistant"}
    turns = _turns(record, "conversations", "from", "value")
    return [_from_turns(record, [(roles.get(role, role), text) for role, text in turns], "conversations")]


def _from_messages(record: Record) -> list[Row]:
    return [_from_turns(record, _turns(record, "messages", "role", "content"), "messages")]


def _turns(record: Record, column: str, role: str, content: str) -> list[tuple[Any, Any]]:
    turns = record[column]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(f"{column!r} must be a list of objects with {role!r} and {content!r}")
    return [(turn.get(role), _text(turn.get(content))) for turn in turns]


def _text(content: Any) -> Any:
    """A message's content as text: parts of type image become marks."""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return content
    parts = [IMAGE_MARK if part.get("type") == "image" else part.get("text") or "" for part in content]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else content


def _from_turns(record: Record, turns: Sequence[tuple[Any, Any]], column: str) -> Row:
    system = [text for role, text in turns if role == "system"] + [record.get("system")]
    asked = [text for role, text in turns if role == "user"]
    told = [text for role, text in turns if role == "assistant"]
    known = len(asked) + len(told) + sum(role == "system" for role, _ in turns) == len(turns)
    if not known or len(asked) != 1 or len(told) > 1 or not all(isinstance(t, str) for _, t in turns):
        raise ValueError(f"{column!r} must be one question of a user and at most one answer, as text")
    row: Row = {
        "images": _images(record) + IMAGE_TAG.findall(asked[0]),
        **_but(record, *IMAGE_COLUMNS, column, "system"),
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
    if not isinstance(text, str):
        raise ValueError(f"'problem' must be text, got {text!r}")
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
    images = _images(record)
    kept = _but(record, *IMAGE_COLUMNS, "answer")
    problem = _unmarked(record["problem"], len(images))
    return [{"images": images, **kept, "problem": problem, **_solved(record["answer"])}]


def _from_question(record: Record) -> list[Row]:
    images = next(([record[name]] for name in MAT_IMAGES if record.get(name)), _images(record))
    answers = record["answers"] if "answers" in record else record["answer"]
    truths = answers if isinstance(answers, list) else [answers]
    if not truths:
        raise ValueError("'answers' is empty")
    kept = _but(record, *MAT_IMAGES, *IMAGE_COLUMNS, "question", "answer", "answers")
    return [
        {"images": images, **kept, "problem": record["question"], **_solved(truths[0]), "answers": truths}
    ]


def _solved(answer: Any) -> Row:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError(f"its answer must be text or a number, got {answer!r}")
    text = str(answer)
    return {"solution": text if "<answer>" in text else tagged(text)}


def _from_lisa_boxes(record: Record) -> list[Row]:
    instructions, boxes = record["instruction"], record["boxes"]
    if isinstance(instructions, str):
        instructions = [instructions]
    for name, value in (("instruction", instructions), ("boxes", boxes)):
        if not isinstance(value, list) or not value:
            raise ValueError(f"{name!r} must be a list that is not empty, got {value!r}")
    x1s, y1s, x2s, y2s = zip(*map(four_numbers, boxes), strict=True)
    # One answer names one box: the one around every target, as virft.data.lisa.truth_box draws it.
    solution = tagged(f"({min(x1s)},{min(y1s)}),({max(x2s)},{max(y2s)})")
    row = {"images": _images(record), "solution": solution, "task": "grounding", "coordinates": "pixels"}
    return [{**row, "problem": prompts.grounding(str(text))} for text in instructions]


def _images(record: Record) -> list[Any]:
    value = next((record[name] for name in IMAGE_COLUMNS if record.get(name)), [])
    return list(value) if isinstance(value, list) else [value]


_MARKS = (
    ("rows", ("problem", "solution")),
    ("sharegpt", ("conversations",)),
    ("messages", ("messages",)),
    ("answer", ("problem", "answer")),
    ("question", ("question", "answer")),
    ("question", ("question", "answers")),
    ("rows", ("instruction", "solution")),
    ("lisa_boxes", ("instruction", "boxes")),
)
"""(format, columns that it is known by); the first that fits."""

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

USERS: Mapping[str, str] = MappingProxyType(
    {
        "sharegpt": "LLaMA-Factory, VLM-R1",
        "messages": "ms-swift, LLaMA-Factory",
        "answer": "EasyR1",
        "question": "MAT",
        "lisa_boxes": "the reference's lisa_train.json",
    }
)
"""Format -> who uses it; all but ``rows``, which are what training reads."""


def table_of_rows(table: pa.Table, name: str) -> tuple[pa.Table, list[int]]:
    """Records of another format than ``rows`` as a table of rows.

    Args:
        table: the records; images may be paths, or structs of ``bytes`` and ``path``, which are not copied.
        name: what messages call the set.

    Returns:
        The rows, and the number of each one's record.

    Raises:
        UserError: a record that no row can be made from; names it.
    """
    import pyarrow as pa

    from virft.data.sources import table_of

    columns = [c for c in IMAGE_COLUMNS if c in table.column_names and _is_embedded(table.field(c).type)]
    embedded = columns[0] if columns else None
    words = table.drop_columns(columns)
    rows: list[Row] = []
    origins: list[int] = []
    records = (record for batch in words.to_batches(10_000) for record in batch.to_pylist())
    counts = _image_counts(table.column(embedded)) if embedded else [0] * table.num_rows
    for number, (record, count) in enumerate(zip(records, counts, strict=True)):
        known = {key: value for key, value in record.items() if value is not None}
        known = known if format_of([*known, *columns]) else record  # whose own column is then named
        standing = list(range(count))  # stands for the embedded images, which follow as they are
        try:
            made = to_rows(known | ({embedded: standing} if embedded else {}))
        except ValueError as error:
            raise UserError(f"{name}: row {number}: {error}") from None
        for row in made:
            if embedded and row.pop("images") != standing:
                raise UserError(f"{name}: row {number}: names images though others are embedded")
        rows += made
        origins += [number] * len(made)
    result = table_of(iter(rows), name)
    if embedded:
        result = result.append_column("images", table.column(embedded).take(pa.array(origins)))
    return result, origins


def _is_embedded(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) or (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))


def _image_counts(column: Any) -> list[int]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):
        return [int(there) for there in column.is_valid().to_pylist()]
    return pc.list_value_length(column).fill_null(0).to_pylist()
