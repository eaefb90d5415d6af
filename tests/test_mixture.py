"""Mixed training sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from virft.data.mixture import load_mixture as load_any_mixture
from virft.data.mixture import parts_of
from virft.data.training import load_rows
from virft.errors import UserError


def load_mixture(names: list[str], seed: int = 0) -> Any:
    return load_any_mixture(names, load_rows, seed=seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sets: 10 rows with images and a task, 4 rows of text with another column."""
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    write(tmp_path / "a.jsonl", 10, image="x.png", task="detection")
    write(tmp_path / "b.jsonl", 4, note="kept")
    return tmp_path


def write(path: Path, count: int, **columns: Any) -> None:
    rows = [{"problem": f"{path.stem}{n}", "solution": "<answer>x</answer>", **columns} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_without_shares_every_row_is_there_once(folder: Path) -> None:
    rows = load_mixture([str(folder / "a.jsonl"), str(folder / "b.jsonl")])
    expected = [f"a{n}" for n in range(10)] + [f"b{n}" for n in range(4)]
    assert sorted(rows["problem"]) == expected
    assert rows["problem"] != expected
    by_problem = {row["problem"]: row for row in rows}
    assert by_problem["a1"]["task"] == "detection"
    assert by_problem["a1"]["note"] is None
    assert by_problem["a1"]["image_sizes"] == [[40, 30]]
    assert by_problem["b1"]["task"] is None
    assert by_problem["b1"]["images"] == []


@pytest.mark.parametrize(
    ("shares", "taken"), [((0.7, 0.3), (9, 4)), ((1, 1), (4, 4)), ((10, 1), (10, 1)), ((5, 5), (4, 4))]
)
def test_shares_hold_and_no_row_is_repeated(folder: Path, shares: tuple, taken: tuple) -> None:
    names = [f"{folder / name}:{share}" for name, share in zip(("a.jsonl", "b.jsonl"), shares, strict=True)]
    rows = load_mixture(names)
    assert (sum(p[0] == "a" for p in rows["problem"]), sum(p[0] == "b" for p in rows["problem"])) == taken
    assert len(set(rows["problem"])) == sum(taken)
    assert load_mixture(names)["problem"] == rows["problem"]
    assert load_mixture(names, seed=1)["problem"] != rows["problem"]


def test_a_single_plain_set_keeps_its_order(folder: Path) -> None:
    rows = load_mixture([str(folder / "a.jsonl")])
    assert rows["problem"] == [f"a{n}" for n in range(10)]


def test_a_yaml_file_gives_tasks_and_finds_sets_beside_it(folder: Path) -> None:
    (folder / "mix.yaml").write_text(
        "- {name: a.jsonl, share: 2, task: ignored}\n- {name: b.jsonl, share: 1, task: classification}\n"
    )
    rows = load_mixture([str(folder / "mix.yaml")])
    assert {row["problem"][0]: row["task"] for row in rows} == {"a": "detection", "b": "classification"}
    assert len(rows) == 12


def test_an_image_folder_of_a_yaml_file_stands_beside_it(folder: Path) -> None:
    (folder / "rows").mkdir()
    (folder / "a.jsonl").rename(folder / "rows" / "a.jsonl")
    (folder / "pictures").mkdir()
    (folder / "x.png").rename(folder / "pictures" / "x.png")
    (folder / "mix.yaml").write_text("- {name: rows/a.jsonl, image_folder: pictures}\n")
    assert len(load_mixture([str(folder / "mix.yaml")])) == 10
    (folder / "mix.yaml").write_text("- {name: rows/a.jsonl, image_folder: no such folder}\n")
    with pytest.raises(UserError, match="--image_folder no such folder: no such folder"):
        load_mixture([str(folder / "mix.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jsonl", "must be a list of sets"),
        ("- {share: 1}", "entry 0 must have a name"),
        ("- {name: a, weight: 1}", "entry 0: unknown key 'weight'"),
        ("- {name: a, share: much}", "entry 0: share must be a number"),
        ("- {name: a, task: 3}", "entry 0: task must be text, got 3"),
        ("- {name: a, share: -1}", "its share must be a positive number"),
        ("- {name: a, share: 1}\n- {name: b}", "b has no share but other sets have"),
        ("- {name: [", "not valid YAML"),
    ],
)
def test_faulty_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        parts_of([str(tmp_path / "mix.yaml")])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "--dataset_name is missing"),
        (["a:0", "b:1"], "positive number"),
        (["a:nan"], "positive number"),
        (["a", "b:1"], "a has no share"),
        (["absent.yaml"], "absent.yaml: no such file"),
        (["a:1", "b:1", "a:2"], "a is named twice"),
    ],
)
def test_faulty_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parts_of(names)


def test_columns_of_different_kinds_are_named(folder: Path) -> None:
    write(folder / "c.jsonl", 2, note=7)
    with pytest.raises(
        UserError, match=r"column 'note' is .*string.* in .*b\.jsonl but .*int64.* in .*c\.jsonl"
    ):
        load_mixture([str(folder / "b.jsonl"), str(folder / "c.jsonl")])


def test_a_share_of_no_row_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="its share of 10 mixed rows is none"):
        load_mixture([f"{folder / 'a.jsonl'}:1", f"{folder / 'b.jsonl'}:0.001"])


@pytest.mark.parametrize(
    ("name", "share"),
    [("a.jsonl", None), ("owner/name", None), ("C:rows.jsonl", None), ("a.jsonl:0.5", 0.5)],
)
def test_only_a_number_behind_a_colon_is_a_share(name: str, share: float | None) -> None:
    (part,) = parts_of([name])
    assert part.share == share


def test_a_date_that_there_is_not_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("- name: 2026-13-45\n")
    with pytest.raises(UserError, match="mix.yaml: not valid YAML"):
        parts_of([str(tmp_path / "mix.yaml")])


def test_named_columns() -> None:
    part: Mapping[str, Any] = parts_of(["owner/name:0.25"])[0].__dict__
    assert (part["name"], part["share"]) == ("owner/name", 0.25)
