"""``python -m virft.score``: one JSON line a row, a summary, two sets compared, bad input named by line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from virft import score
from virft.errors import UserError

SOLUTION = "<answer>[{'Position': [0, 0, 100, 100], 'Confidence': 1}]</answer>"
REPLY = "<think>t</think><answer>[{'Position': [0, 0, 80, 100], 'Confidence': 0.9}]</answer>"
MESSAGES = [{"role": "assistant", "content": "<answer>[]</answer>"}]
ROWS = [
    {"id": "a", "completion": REPLY, "solution": SOLUTION, "weight": 2},
    {"id": 7, "completion": "what?", "solution": "<answer>No Objects</answer>", "weight": 3},
    {"completion": MESSAGES, "solution": "No Objects", "weight": 4},
]


@pytest.fixture
def replies(tmp_path: Path) -> Path:
    path = tmp_path / "replies.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8")
    return path


def lines(text: str) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_one_line_a_row(replies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score.main(["--reward_funcs", "accuracy_iou", "format", str(replies)])
    out, err = capsys.readouterr()
    assert lines(out) == [
        {"id": "a", "rewards": {"accuracy_iou": 0.8, "format": 1.0},
         "reasons": {"accuracy_iou": "ok", "format": "ok"}},
        {"id": 7, "rewards": {"accuracy_iou": 0.0, "format": 0.0},
         "reasons": {"accuracy_iou": "no_answer", "format": "bad_format"}},
        {"id": 5, "rewards": {"accuracy_iou": 1.0, "format": 0.0},
         "reasons": {"accuracy_iou": "agree_none", "format": "bad_format"}},
    ]  # fmt: skip
    assert "3 rows" in err and "accuracy_iou: mean 0.6000 over 3 rows" in err and "bad_format 2" in err


FIRST = ["--reward_funcs", "accuracy_iou", "format"]
SECOND = ["--against", "accuracy_iou:threshold=0.8", "format"]


@pytest.mark.parametrize(
    "arguments",
    [
        [*FIRST, *SECOND, "FILE"],
        ["FILE", *FIRST, *SECOND],
        [*SECOND, *FIRST, "FILE"],
        ["FILE", *SECOND, *FIRST],
    ],
)
def test_two_sets_list_the_rows_that_differ(
    replies: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    score.main([str(replies) if word == "FILE" else word for word in arguments])
    out, err = capsys.readouterr()
    assert lines(out) == [
        {
            "id": "a",
            "rewards": {"accuracy_iou": 0.8, "format": 1.0},
            "reasons": {"accuracy_iou": "ok", "format": "ok"},
            "against": {
                "rewards": {"accuracy_iou": 0.0, "format": 1.0},
                "reasons": {"accuracy_iou": "no_match", "format": "ok"},
            },
        }
    ]
    assert "1 of 3 rows differ" in err


def test_a_user_s_reward_gets_the_columns_and_may_print(
    replies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def bonus(completion, weight, **columns):\n    print('looking')\n"
        "    return None if weight == 3 else weight\n"
    )
    score.main(["--reward_funcs", f"{mine}:bonus", str(replies)])
    out, err = capsys.readouterr()
    assert [row["rewards"] for row in lines(out)] == [{"bonus": 2.0}, {"bonus": None}, {"bonus": 4.0}]
    assert [row["reasons"]["bonus"] for row in lines(out)] == ["custom", "not_applicable", "custom"]
    assert err.count("looking") == 3 and "bonus: mean 3.0000 over 2 rows" in err


def test_stdin_and_rows_as_they_come(replies: Path) -> None:
    found = score.read_rows(io.BytesIO(replies.read_bytes()), "stdin")
    assert next(found)[0] == 1 and next(found)[0] == 3


GOOD = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: must be an object"),
        ('{"completion": "x"}', "line 2: no field 'solution'; the fields are completion"),
        ("{}", "line 2: no field 'completion'; the fields are none"),
        ('{"completion": "x", "solution": 3}', "line 2: 'solution' must be text"),
        ('{"completion": null, "solution": "x"}', "line 2: 'completion' must be text"),
        ('{"completion": "x", "solution": "x", "id": NaN}', "line 2: not JSON: NaN"),
        ('{"completion": "x", "solution": "x", "id": 1e999}', "line 2: not JSON: 1e999"),
        ('{"completion": "x", "solution": "x", "id": ' + "9" * 5000 + "}", "line 2: not JSON"),
        ("[" * 100_000, "line 2: nested too deeply"),
        ("\udcff", "line 2: not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(f"{GOOD}\n".encode() + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        score.main(["--reward_funcs", "format", str(path)])
    assert f"bad.jsonl, {said}" in str(caught.value)


BAD_REWARDS = """
import numpy

def several(completion): return numpy.array([0.5, 1.0])
def huge(completion): return 10**400
def reasonless(completion):
    from virft.rewards import Outcome
    return Outcome(0.5, None)
def fails(completion): raise KeyError("x")
"""


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("several", "must return a number or None for a reply, got ndarray"),
        ("huge", "returned inf for a reply"),
        ("reasonless", "must give its reason as text, got None"),
    ],
)
def test_what_a_reward_may_not_return_is_named_with_its_line(
    replies: Path, tmp_path: Path, reward: str, said: str
) -> None:
    (tmp_path / "bad.py").write_text(BAD_REWARDS, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        score.main(["--reward_funcs", f"{tmp_path / 'bad.py'}:{reward}", str(replies)])
    assert f"replies.jsonl, line 1: reward {reward} {said}" in str(caught.value)


def test_an_error_within_a_reward_says_where(replies: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD_REWARDS, encoding="utf-8")
    with pytest.raises(KeyError) as caught:
        score.main(["--reward_funcs", f"{tmp_path / 'bad.py'}:fails", str(replies)])
    assert caught.value.__notes__ == [f"reward fails raised this at {replies}, line 1"]


def test_a_file_without_replies(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"empty\.jsonl holds no replies"):
        score.main(["--reward_funcs", "format", str(tmp_path / "empty.jsonl")])


def test_a_column_of_another_kind_is_named_with_its_line(tmp_path: Path) -> None:
    row = {"completion": "tulip", "solution": "<answer>tulip</answer>", "aliases": 5}
    (tmp_path / "odd.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(UserError, match=r"odd\.jsonl, line 1: reward accuracy: column 'aliases' must be"):
        score.main(["--reward_funcs", "accuracy", str(tmp_path / "odd.jsonl")])


def test_sets_of_different_length_and_a_missing_file(replies: Path) -> None:
    with pytest.raises(UserError, match="name as many"):
        score.main(["--reward_funcs", "format", "--against", "format", "accuracy", str(replies)])
    with pytest.raises(UserError, match="no such file"):
        score.main(["--reward_funcs", "format", "nowhere.jsonl"])


def test_surrogates_and_odd_ids_come_out_as_strict_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"id": {"a": ["\\ud800"]}, "completion": "\\ud800\\u0000", "solution": "tulip"}\n')
    score.main(["--reward_funcs", "accuracy", "format", str(path)])
    assert lines(capsys.readouterr().out)[0]["id"] == {"a": ["\ud800"]}


def test_as_a_program_without_torch(replies: Path) -> None:
    run = [sys.executable, "-X", "importtime", "-m", "virft.score"]
    done = subprocess.run(
        [*run, "--reward_funcs", "accuracy_iou", str(replies)], capture_output=True, text=True
    )
    assert done.returncode == 0 and len(lines(done.stdout)) == 3
    loaded = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")
    }
    assert "virft.rewards" in loaded and not loaded & {"torch", "numpy", "scipy", "transformers"}
    bad = subprocess.run(
        [*run[:1], *run[3:], "--reward_funcs", "nope", str(replies)], capture_output=True, text=True
    )
    assert bad.returncode == 2 and bad.stderr.startswith("error: unknown reward 'nope'; known: accuracy_iou")
    nothing = subprocess.run([*run[:1], *run[3:], "--reward_funcs"], capture_output=True, text=True)
    assert nothing.returncode == 2 and "Traceback" not in nothing.stderr
    helped = subprocess.run([*run[:1], *run[3:], "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and "denominator=max" in helped.stdout


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text((GOOD + "\n") * 20_000)
    command = f"{sys.executable} -m virft.score --reward_funcs format {path} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert len(lines(done.stdout)) == 1 and "Traceback" not in done.stderr
