"""The field's training formats: read as rows, written from rows, and there and back."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from virft.data.export import JSON_LISTS, WRITERS, export, write_dataset_info
from virft.data.formats import kind_of, to_rows
from virft.data.mixture import load_mixture
from virft.data.training import load_rows, target_text
from virft.errors import UserError
from virft.parsing import parse_grounding

TAGGED = "<answer>cat</answer>"
THOUGHT = "<think>It has whiskers.</think><answer>cat</answer>"
TURNS = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "cat"}]


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"image": "x.jpg", "problem": "What?", "solution": TAGGED}, {}),
        (
            {"image_path": "x.jpg", "problem": "What?", "solution": TAGGED, "type": "pre_code"},
            {"type": "pre_code"},
        ),
        ({"conversations": TURNS, "images": ["x.jpg"]}, {}),
        ({"id": 4, "conversations": TURNS, "image": "x.jpg"}, {"id": 4}),
        ({"conversations": TURNS, "images": ["x.jpg"], "system": "Be brief."}, {"system": "Be brief."}),
        (
            {
                "conversations": [
                    {"from": "user", "value": "<img>x.jpg</img>\n What?"},
                    {"from": "assistant", "value": "cat"},
                ]
            },
            {},
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "What?<image>"},
                    {"role": "assistant", "content": THOUGHT},
                ],
                "images": ["x.jpg"],
            },
            {"completion": THOUGHT, "system": "Be brief."},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                ],
                "images": ["x.jpg"],
                "solution": TAGGED,
            },
            {},
        ),
        ({"problem": "<image>What?", "answer": "cat", "images": ["x.jpg"]}, {}),
        (
            {"id": 1, "question": "What?", "answer": "cat", "image_path": "x.jpg"},
            {"id": 1, "answers": ["cat"]},
        ),
        (
            {"question": "What?", "answers": ["cat", "Cat"], "ori_image_path": "x.jpg", "split": "hard"},
            {"answers": ["cat", "Cat"], "split": "hard"},
        ),
    ],
)
def test_records_become_rows(record: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    kept = {k: v for k, v in to_rows(record)[0].items() if k != "processed_image_path"}
    assert kept == {"images": ["x.jpg"], "problem": "What?", "solution": TAGGED, **row}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "no known format: columns text"),
        (
            {"conversations": [*TURNS, *TURNS], "images": ["a", "b"]},
            "one question of a user and at most one answer",
        ),
        ({"conversations": [{"from": "tool", "value": "x"}, *TURNS], "image": "a"}, "one question of a user"),
        ({"conversations": TURNS[:1], "image": "a"}, "has no answer, and there is no column 'solution'"),
        ({"conversations": TURNS, "images": ["a", "b"]}, "1 <image> marks for 2 images"),
        ({"conversations": TURNS}, "1 <image> marks for 0 images"),
        (
            {"messages": [{"role": "user", "content": "a <image> b"}], "images": ["x"], "solution": "s"},
            "<image> stands between words",
        ),
        ({"problem": 3, "solution": "x"}, "'problem' must be text, got 3"),
    ],
)
def test_records_that_make_no_row_are_refused(record: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rows(record)


def test_every_sample_of_the_field_is_read(shared_data: Path) -> None:
    samples = json.loads((shared_data / "dataset_samples.json").read_text())
    read = 0
    for name in ("ViRFT_COCO_base65", "ViRFT_COCO", "ViRFT_COCO_8_cate_4_shot"):
        for record in samples[name]["samples"]:
            assert kind_of(record) == "rows"
            assert to_rows(record)[0]["solution"] == record["solution"]
            read += 1
    for record in samples["MAT-Coding.json"]["samples"]:
        row = to_rows(record)[0]
        assert (row["images"], row["problem"]) == ([record["ori_image_path"]], record["question"])
        assert row["answers"] == record["answers"]
        read += 1
    field = samples["LLaMA-Factory sharegpt multimodal"]
    assert kind_of(field["sample_sharegpt"]) == "sharegpt"
    assert to_rows(field["sample_sharegpt"])[0]["problem"] == "human instruction"
    assert to_rows(field["sample_openai"])[0]["problem"] == "Who are they?"
    lisa = samples["lisa_train.json / lisa_train_sft.json"]
    boxes = to_rows(lisa["lisa_train"])[0]
    assert parse_grounding(boxes["solution"]).value == (1, 2, 3, 4)
    assert boxes["coordinates"] == "pixels"
    assert to_rows(lisa["sft"])[0]["images"] == ["PATH"]
    assert read == 15


ROWS = [
    {"images": ["p/x.png"], "problem": "What?", "solution": TAGGED, "task": "classification"},
    {
        "images": ["p/x.png", "p/x.png"],
        "problem": "Same?",
        "solution": "<answer>yes</answer>",
        "completion": "<think>I look.</think><answer>yes</answer>",
    },
    {"images": [], "problem": "1 + 1?", "solution": "<answer>2</answer>", "system": "Count."},
]


@pytest.mark.parametrize("name", WRITERS)
def test_rows_come_back_from_every_format(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out" / f"rows{'.json' if name in JSON_LISTS else '.jsonl'}"
    rows = [{**row, "images": [str(tmp_path / path) for path in row["images"]]} for row in ROWS]
    assert export(rows, name, out) == 3
    text = out.read_text()
    records = json.loads(text) if name in JSON_LISTS else [json.loads(line) for line in text.splitlines()]
    for record, row in zip(records, ROWS, strict=True):
        back = to_rows(record)[0]
        assert back["images"] == [f"../{path}" for path in row["images"]]
        assert back["problem"] == row["problem"]
        assert back["solution"] == row["solution"]
        if name in ("llamafactory", "openai", "swift"):
            assert back["completion"] == target_text(row)
            assert back.get("system") == row.get("system")
        # As many marks as images: LLaMA-Factory refuses anything else.
        assert json.dumps(record).count("<image>") == len(row["images"])


def test_swift_grpo_records_keep_what_rewards_need(tmp_path: Path) -> None:
    export([ROWS[0]], "swift-grpo", tmp_path / "x.jsonl", absolute=True)
    record = json.loads((tmp_path / "x.jsonl").read_text())
    assert record["messages"] == [{"role": "user", "content": "<image>What?"}]
    assert (record["solution"], record["task"]) == (TAGGED, "classification")
    assert Path(record["images"][0]).is_absolute()


def export_program(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("dataset_export", root / "dataset" / "export.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_export_for_llama_factory_runs_as_it_is(root: Path, tmp_path: Path) -> None:
    import yaml

    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    row = {"image": "x.png", "problem": "What?", "solution": TAGGED}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    folder = tmp_path / "lf"
    folder.mkdir()
    (folder / "dataset_info.json").write_text('{"other": {"file_name": "o.json"}}')
    arguments = ["--dataset_name", str(tmp_path / "rows.jsonl"), "--format", "llamafactory"]
    recipe = ["--model_name_or_path", "m", "--min_pixels", "3136", "--max_pixels", "401408"]
    export_program(root)([*arguments, "--output", str(folder / "cats.json"), *recipe])
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["other"] == {"file_name": "o.json"}
    assert info["cats"] == {
        "file_name": "cats.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
    }
    record = json.loads((folder / "cats.json").read_text())[0]
    assert record == {
        "conversations": [
            {"from": "human", "value": "<image>What?"},
            {"from": "gpt", "value": f"<think></think>{TAGGED}"},
        ],
        "images": ["../x.png"],
    }
    settings = yaml.safe_load((folder / "cats_lora_sft.yaml").read_text())
    assert (settings["dataset"], settings["dataset_dir"], settings["template"]) == (
        "cats",
        str(folder),
        "qwen2_vl",
    )
    assert (settings["image_min_pixels"], settings["image_max_pixels"]) == (3136, 401408)
    assert settings["learning_rate"] == 1e-4
    assert settings["bf16"] is True


def test_embedded_images_are_written_out(root: Path, tmp_path: Path) -> None:
    from virft.data.builders.output import Target

    Image.new("RGB", (40, 30), (1, 2, 3)).save(tmp_path / "x.png")
    target = Target.of(tmp_path / "rows.parquet")
    target.write([target.encode({"problem": "What?", "solution": TAGGED}, [tmp_path / "x.png"])])
    (tmp_path / "x.png").unlink()
    out = tmp_path / "out" / "rows.jsonl"
    export_program(root)(["--dataset_name", str(target.path), "--format", "vlm-r1", "--output", str(out)])
    record = json.loads(out.read_text())
    with Image.open(out.parent / record["image"]) as image:
        assert image.getpixel((0, 0)) == (1, 2, 3)
    (tmp_path / "again.jsonl").write_text(json.dumps({**to_rows(record)[0]}))
    assert load_rows(str(tmp_path / "again.jsonl"), image_folder=out.parent)["image_sizes"] == [[[40, 30]]]


def test_an_export_into_a_linked_folder_finds_its_images(root: Path, tmp_path: Path) -> None:
    deep = tmp_path / "disk" / "deep" / "folder"
    deep.mkdir(parents=True)
    (tmp_path / "out").symlink_to(deep)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    row = {"image": "a.png", "problem": "p", "solution": "s"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out" / "swift.jsonl"
    export_program(root)(
        ["--dataset_name", str(tmp_path / "rows.jsonl"), "--format", "vlm-r1", "--output", str(out)]
    )
    assert load_rows(str(out))["image_sizes"] == [[[40, 30]]]


def test_an_export_of_a_mixture_replaces_nothing_unasked(root: Path, tmp_path: Path) -> None:
    for name in "ab":
        rows = [{"problem": f"{name}{n}", "solution": "s"} for n in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "swift.jsonl"
    names = [f"{tmp_path / 'a.jsonl'}:2", f"{tmp_path / 'b.jsonl'}:1"]
    flags = ["--dataset_name", *names, "--format", "swift-grpo", "--output", str(out)]
    export_program(root)(flags)
    whole = load_mixture(names, load_rows, seed=42)
    assert load_rows(str(out))["problem"] == whole["problem"] and len(whole) == 9
    before = out.read_bytes()
    with pytest.raises(UserError, match="swift.jsonl exists: pass --overwrite"):
        export_program(root)([*flags, "--seed", "1"])
    assert out.read_bytes() == before
    export_program(root)([*flags, "--seed", "1", "--overwrite"])
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "llamafactory", "--output", "x.jsonl"], "llamafactory is written as .json"),
        (["--format", "swift", "--output", "x.json"], "swift is written as .jsonl"),
        (["--format", "openai", "--output", "x.json", "--model_name_or_path", "m"], "needs --min_pixels"),
        (["--format", "swift", "--output", "rows.jsonl"], "is the rows themselves"),
        (["--format", "openai", "--output", "x.json", "--min_pixels", "9"], "--min_pixels is of the recipe"),
        (["--format", "openai", "--output", "x.json", "--cutoff_len", "9"], "--cutoff_len is of the recipe"),
    ],
)
def test_flags_of_export_that_do_not_fit(root: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_program(root)(["--dataset_name", "rows.jsonl", *arguments])


def test_an_export_that_fails_leaves_no_images(tmp_path: Path) -> None:
    image = {"bytes": b"x", "path": "a.png"}
    row = {"problem": "p", "solution": "s", "images": [image]}
    out = tmp_path / "out" / "x.jsonl"
    with pytest.raises(TypeError):
        export([row, {**row, "extra": object()}], "swift-grpo", out)
    assert list(out.parent.iterdir()) == []
    assert export([row], "swift", out) == 1
    with pytest.raises(TypeError):
        export([{**row, "extra": object()}], "swift-grpo", out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["x.jsonl", "x_images"]  # the old ones


def test_a_broken_dataset_info_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        write_dataset_info(tmp_path, "x", "x.json", "openai")
