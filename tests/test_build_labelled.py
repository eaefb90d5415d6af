"""Classification and grounding rows, a user's own rows, and the notebook."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from virft import prompts
from virft.data.builders.own_rows import drafts
from virft.data.classification import load_coop_split, load_list
from virft.data.lisa import read_split
from virft.data.training import load_rows
from virft.errors import UserError
from virft.rewards import TASK_REWARDS, check_solutions, load_rewards


def program(root: Path, name: str) -> ModuleType:
    """A program of dataset/ as a module."""
    spec = importlib.util.spec_from_file_location(f"dataset_{name}", root / "dataset" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Class folders: 6 wrens, 3 house sparrows."""
    for name, count in (("wren", 6), ("house_sparrow", 3)):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (30, 20)).save(tmp_path / "birds" / name / f"{number}.png")
    return tmp_path / "birds"


BIRD = ["--contains", "a bird", "--to_name", "species of the bird"]


def test_class_folders(root: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    program(root, "build_classification").main(["--folder", str(birds), *BIRD, "--output", str(out)])
    assert "9 rows of 2 classes" in capsys.readouterr().out
    rows = read(out)
    assert rows[0] == {
        "image": "birds/house_sparrow/0.png",
        "problem": prompts.classification("a bird", "species of the bird"),
        "solution": "<answer>house sparrow</answer>",
        "task": "classification",
    }
    check_solutions(load_rewards(TASK_REWARDS["classification"]), load_rows(str(out)))


def test_shots_of_classes(
    root: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, chosen = program(root, "build_classification").main, {}
    for shots in (1, 2, 4):
        out = tmp_path / f"{shots}.jsonl"
        main(["--folder", str(birds), *BIRD, "--output", str(out), "--shots", str(shots), "--seed", "2"])
        chosen[shots] = {row["image"] for row in read(out)}
    assert "1 classes have fewer than 4 images: house sparrow" in capsys.readouterr().err
    assert [len(chosen[k]) for k in (1, 2, 4)] == [2, 4, 7]
    assert chosen[1] < chosen[2] < chosen[4]
    moved = birds.rename(tmp_path / "moved")
    main(
        ["--folder", str(moved), *BIRD, "--output", str(tmp_path / "m.jsonl"), "--shots", "2", "--seed", "2"]
    )
    assert {row["image"].replace("moved", "birds") for row in read(tmp_path / "m.jsonl")} == chosen[2]


def test_lists_with_aliases(root: Path, birds: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,label\nbirds/wren/0.png,1\nbirds/house_sparrow/1.png,0\n")
    (tmp_path / "names.txt").write_text("house sparrow | Passer domesticus\nwren\n")
    out = tmp_path / "rows.parquet"
    arguments = ["--list", str(tmp_path / "list.csv"), "--classes", str(tmp_path / "names.txt"), *BIRD]
    program(root, "build_classification").main([*arguments, "--output", str(out)])
    rows = load_rows(str(out))
    assert rows["solution"] == ["<answer>wren</answer>", "<answer>house sparrow</answer>"]
    assert rows["aliases"] == [["wren"], ["Passer domesticus"]]
    assert Counter(map(str, rows["image_sizes"])) == {"[[30, 20]]": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "no"], "what do the images show"),
        (["--folder", "no", "--contains", "a bird"], "go together"),
        (["--folder", "no", *BIRD], "no: no such folder"),
        (["--coop", "no", "--subject", "flower"], "--coop needs --image_folder"),
        (["--set", "pets37"], "--set needs --root"),
        (["--folder", "no", *BIRD, "--shots", "-1"], "--shots must not be negative"),
        (["--folder", "no", *BIRD, "--split", "val"], "--split is of --set and --coop, not of --folder"),
        (["--list", "no", *BIRD, "--root", "x"], "--root is of --set, not of --list"),
    ],
)
def test_flags_of_classification_that_do_not_fit(root: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        program(root, "build_classification").main([*arguments, "--output", "x.jsonl"])


def test_other_aliases_or_another_folder_are_another_set(root: Path, birds: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,label\nwren/0.png,1\n")
    (tmp_path / "names.txt").write_text("house sparrow\nwren | Troglodytes\n")
    copy = shutil.copytree(birds, tmp_path / "copy" / "birds")
    out, main = tmp_path / "rows.jsonl", program(root, "build_classification").main

    def make(folder: Path) -> None:
        sources = ["--list", str(tmp_path / "list.csv"), "--classes", str(tmp_path / "names.txt")]
        main([*sources, "--image_folder", str(folder), *BIRD, "--output", str(out)])

    make(birds)
    make(birds)
    with pytest.raises(UserError, match="was not built so"):
        make(copy)
    (tmp_path / "names.txt").write_text("house sparrow\nwren | jenny\n")
    with pytest.raises(UserError, match="was not built so"):
        make(birds)


def test_own_rows_of_another_image_folder_are_another_set(root: Path, birds: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(birds, tmp_path / "copy")
    row = {"image": "wren/0.png", "problem": "What?", "solution": "<answer>wren</answer>"}
    (tmp_path / "mine.json").write_text(json.dumps([row]))
    main = program(root, "build_rows").main
    arguments = ["--source", str(tmp_path / "mine.json"), "--output", str(tmp_path / "rows.jsonl")]
    main([*arguments, "--image_folder", str(birds)])
    with pytest.raises(UserError, match="was not built so"):
        main([*arguments, "--image_folder", str(copy)])


def test_a_label_with_two_names_and_a_strange_digit_are_named(tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [["a.jpg", 0, "rose"], ["b.jpg", 0, "tulip"]]}))
    with pytest.raises(UserError, match="label 0 is 'tulip' here but 'rose' before"):
        load_coop_split(split, tmp_path, "train")
    (tmp_path / "list.csv").write_text("image,label\na.jpg,²\n")
    assert load_list(tmp_path / "list.csv", classes=["²", "x"]).items[0][1] == "²"
    assert load_list(tmp_path / "list.csv").items[0][1] == "²"  # a digit, but of no number


def lisa(folder: Path, name: str, shapes: list[dict[str, Any]], text: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (200, 100)).save(folder / f"{name}.jpg")
    (folder / f"{name}.json").write_text(json.dumps({"shapes": shapes, "text": text, "is_sentence": True}))


def polygon(label: str, *points: tuple[float, float]) -> dict[str, Any]:
    return {"label": label, "shape_type": "polygon", "points": [list(point) for point in points]}


def test_grounding_rows(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = polygon("target", (20, 10), (60, 10), (60, 50))
    second = polygon("target", (100, 20), (120, 90.02), (201, 30))
    lisa(
        tmp_path / "train",
        "a b",
        [first, polygon("ignore", (0, 0), (9, 9), (0, 9)), second],
        ["the one", "It."],
    )
    lisa(tmp_path / "train", "none", [polygon("ignore", (0, 0), (9, 9), (0, 9))], ["what?"])
    main = program(root, "build_grounding").main
    out = tmp_path / "rows.jsonl"
    main(["--split", str(tmp_path / "train"), "--output", str(out)])
    assert "2 rows from 2 images (1 without a target left out)" in capsys.readouterr().out
    rows = read(out)
    assert [row["problem"] for row in rows] == [prompts.grounding("the one"), prompts.grounding("It.")]
    # Around both polygons, the last cut at the image's edge.
    assert {row["solution"] for row in rows} == {"<answer>(100,100),(1000,900)</answer>"}
    check_solutions(load_rewards(TASK_REWARDS["grounding"]), load_rows(str(out)))
    main(
        ["--split", str(tmp_path / "train"), "--output", str(out), "--polygons", "first_shape", "--overwrite"]
    )
    assert read(out)[0]["solution"] == "<answer>(100,100),(300,500)</answer>"
    with pytest.raises(UserError, match="--overwrite"):
        main(["--split", str(tmp_path / "train"), "--output", str(out)])


def test_a_polygon_outside_its_image_is_named(root: Path, tmp_path: Path) -> None:
    lisa(tmp_path / "train", "a", [polygon("target", (300, 10), (360, 10), (360, 50))], ["x"])
    with pytest.raises(UserError, match=r"a\.json: its box .* outside of its image, 200 x 100 pixels"):
        program(root, "build_grounding").main(
            ["--split", str(tmp_path / "train"), "--output", str(tmp_path / "rows.jsonl")]
        )
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, True, "3"])
def test_points_that_are_no_numbers_are_named(root: Path, tmp_path: Path, number: Any) -> None:
    lisa(tmp_path / "train", "a", [polygon("target", (number, 10), (60, 10), (60, 50))], ["x"])
    with pytest.raises(UserError, match=r"a\.json: shape 0 must have two or more points"):
        read_split(tmp_path / "train")


def test_an_annotation_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match=r"a\.json: cannot be read \(Is a directory\)"):
        read_split(tmp_path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows"])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"problem": "half \ud83d"}, "row 1: holds .*, half of a character"),
        ({"extra": 5}, "a column holds values of several kinds"),
    ],
)
def test_values_that_no_set_can_hold_are_named(
    root: Path, tmp_path: Path, name: str, column: Mapping[str, Any], message: str
) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "x.jpg")
    row = {"image": "x.jpg", "problem": "p", "solution": "<answer>x</answer>", "extra": {"a": 1}}
    (tmp_path / "mine.json").write_text(json.dumps([row, {**row, **column}]))
    arguments = ["--source", str(tmp_path / "mine.json"), "--output", str(tmp_path / "o" / name)]
    if name == "rows.jsonl" and "extra" in column:
        program(root, "build_rows").main(arguments)
        return
    with pytest.raises(UserError, match=message):
        program(root, "build_rows").main(arguments)
    assert list((tmp_path / "o").iterdir()) == []


def test_a_box_smaller_than_the_grid_is_named(root: Path, tmp_path: Path) -> None:
    points = [(30, 10), (30.02, 10), (30.02, 50)]
    lisa(tmp_path / "train", "a", [polygon("target", *points)], ["x"])
    with pytest.raises(UserError, match=r"a\.json: its box .* is empty in whole numbers"):
        program(root, "build_grounding").main(
            ["--split", str(tmp_path / "train"), "--output", str(tmp_path / "rows.jsonl")]
        )
    assert not (tmp_path / "rows.jsonl").exists()


def test_own_rows_with_other_names_and_pixels(root: Path, tmp_path: Path) -> None:
    # The shape of a file that a user of the reference could not train on (shared cases:
    # custom_json_wrong_keys).
    Image.new("RGB", (200, 100)).save(tmp_path / "pole.jpg")
    problem = prompts.detection("ShortPole")
    solution = '<answer>[{"position": [20.2, 10, 120, 60], "Confidence": 1}]</answer>'
    record = {"id": "65", "image_path": "pole.jpg", "problems": problem, "solutions": solution}
    (tmp_path / "mine.json").write_text(json.dumps([record]))
    main, out = program(root, "build_rows").main, tmp_path / "rows.jsonl"
    arguments = ["--source", str(tmp_path / "mine.json"), "--output", str(out), "--task", "detection"]
    main([*arguments, "--map", "problem=problems", "solution=solutions", "--box_space", "pixels"])
    assert read(out) == [
        {
            "image": "pole.jpg",
            "id": "65",
            "problem": problem,
            "solution": "<answer>[{'Position': [101, 100, 600, 600], 'Confidence': 1}]</answer>",
            "task": "detection",
        }
    ]
    with pytest.raises(
        UserError, match="row 0: no known format: columns id, image_path, problems, solutions"
    ):
        main([*arguments, "--overwrite"])
    with pytest.raises(UserError, match="--map names the column 'question', which it lacks"):
        main([*arguments, "--overwrite", "--map", "problem=question"])
    with pytest.raises(UserError, match="write OURS=THEIRS"):
        main([*arguments, "--map", "problem"])
    with pytest.raises(UserError, match="--map =x: write OURS=THEIRS"):
        main([*arguments, "--map", "=x"])
    with pytest.raises(UserError, match="one of our columns twice"):
        main([*arguments, "--map", "problem=problems", "problem=solutions"])


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        (
            {"problem": "p", "solution": "<answer>[]]</answer"},
            {"task": "grounding"},
            "not a grounding answer",
        ),
        ({"problem": "p", "solution": " "}, {}, "'solution' must be text"),
        (
            {"problem": "p", "solution": "<answer></answer>"},
            {"task": "classification"},
            "not a classification",
        ),
        (
            {"problem": "p", "solution": "<answer>(9,9),(5,20)</answer>"},
            {"task": "grounding"},
            "is empty, inverted or outside of its image",
        ),
        (
            {
                "problem": "p",
                "image": "x.png",
                "solution": "<answer>[{'Position': [1, 2, 2000, 3]}]</answer>",
            },
            {"task": "detection"},
            "is --box_space right",
        ),
        (
            {"problem": "p", "solution": "<answer>(1,2),(3,4)</answer>"},
            {"task": "tracking"},
            "--task tracking",
        ),
        ({"problem": "p", "solution": "s"}, {"box_space": "abs_resized"}, "--box_space abs_resized"),
        ({"instruction": ["x"], "boxes": []}, {}, "row 1: 'boxes' must be a list that is not empty"),
        ({"problem": "p", "solution": "s", "task": ["x"]}, {}, "row 1: its task must be text, got ['x']"),
        (
            {
                "problem": "p",
                "solution": "<answer>(1,2),(3,4)</answer>",
                "task": "grounding",
                "coordinates": "pixels",
            },
            {},
            "row 1: its boxes are in pixels, which takes one image",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            {},
            "row 1: 'messages' must be one question",
        ),
    ],
)
def test_own_rows_that_cannot_be_read_are_named(record: Mapping, options: Mapping, message: str) -> None:
    good = {"problem": "p", "solution": "<answer>x</answer>", "task": "other"}
    with pytest.raises(UserError) as raised:
        list(drafts([good, record], "mine.json", Path(), **options))
    assert message in str(raised.value)


def test_lisa_train_json_as_the_reference_writes_it(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "x.jpg")
    record = {
        "image_path": "x.jpg",
        "instruction": ["a", "b"],
        "boxes": [[20, 10, 60, 50], [100, 20, 120, 90]],
    }
    (tmp_path / "lisa_train.json").write_text(json.dumps([record]))
    out = tmp_path / "rows.jsonl"
    program(root, "build_rows").main(["--source", str(tmp_path / "lisa_train.json"), "--output", str(out)])
    assert [row["solution"] for row in read(out)] == ["<answer>(100,100),(600,900)</answer>"] * 2
    assert [row["task"] for row in read(out)] == ["grounding"] * 2


@pytest.mark.slow
def test_the_notebook_builds_sets(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    path = root / "dataset" / "build_dataset.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "def " not in code and "class " not in code
    assert all(not cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("VIRFT_NOTEBOOK_FOLDER", str(tmp_path))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    made = {p.name for p in tmp_path.iterdir()}
    assert {"detection.jsonl", "detection.jsonl.manifest.json", "classification.jsonl"} <= made
    assert len(load_rows(str(tmp_path / "detection.jsonl"))) > 10


@pytest.mark.parametrize(
    "name", ["build_classification", "build_detection", "build_grounding", "build_rows", "export"]
)
def test_the_commands_that_help_shows_parse(root: Path, name: str) -> None:
    module = program(root, name)
    text = module.__doc__.replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.strip().startswith("python dataset/")]
    assert commands
    for _, script, *arguments in commands:
        assert script == f"dataset/{name}.py"
        module.parser().parse_args(arguments)  # leaves with an error where a command is broken in two
