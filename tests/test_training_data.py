"""Rows from every kind of source, their checks, their coordinates, their prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor

from virft import prompts
from virft.boxes import resized
from virft.data import validate
from virft.data.coordinates import convert_answer, convert_rows
from virft.data.lengths import drop_long, prompt_lengths
from virft.data.training import (
    data_hash,
    load_rows,
    target_text,
    to_prompts,
)
from virft.errors import UserError
from virft.images import open_rgb
from virft.parsing import parse_detections

SOLUTION = "<answer>[{'Position': [100, 200, 300, 400], 'Confidence': 1}]</answer>"
MODES = ("RGB", "RGBA", "P", "L")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of four modes and their rows as a.json."""
    rows = []
    for number, mode in enumerate(MODES):
        Image.new(mode, (40 + number, 30)).save(tmp_path / f"{number}.png")
        rows.append(
            {"image": f"{number}.png", "problem": f"p{number}", "solution": SOLUTION, "extra": number}
        )
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def write(folder: Path, rows: list) -> str:
    (folder / "b.json").write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / "b.json")


def test_every_source_gives_the_same_rows(folder: Path) -> None:
    from datasets import Dataset, DatasetDict
    from datasets import Image as ImageFeature

    rows = json.loads((folder / "a.json").read_text())
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    whole = Dataset.from_list([{**row, "image": str(folder / row["image"])} for row in rows])
    whole = whole.cast_column("image", ImageFeature())
    DatasetDict({"train": whole}).save_to_disk(folder / "disk")
    whole.to_parquet(folder / "c.parquet")
    expected = load_rows(str(folder / "a.json"))
    for name in ("a.jsonl", "disk", "c.parquet"):
        loaded = load_rows(str(folder / name))
        assert data_hash(loaded) == data_hash(expected), name
        assert loaded["extra"][:] == [0, 1, 2, 3]
        for row, other in zip(loaded, expected, strict=True):
            assert row["image_sizes"] == other["image_sizes"]
            assert open_rgb(row["images"][0]).tobytes() == open_rgb(other["images"][0]).tobytes()


def test_images_come_as_rgb_whatever_their_mode(folder: Path) -> None:
    for row in load_rows(str(folder / "a.json")):
        assert set(row["images"][0]) == {"bytes", "path"}  # not decoded before it is asked for
        assert open_rgb(row["images"][0]).mode == "RGB"


def test_rows_of_no_one_and_several_images(folder: Path) -> None:
    rows = [
        {"images": value, "problem": "p", "solution": "s"} for value in ([], ["0.png"], ["0.png", "1.png"])
    ]
    loaded = load_rows(write(folder, [*rows, {"problem": "p", "solution": "s"}]))
    assert [len(row["images"]) for row in loaded] == [0, 1, 2, 0]
    assert load_rows(write(folder, [{"problem": "p", "solution": "s"}]))[0]["images"] == []


def test_nulls_among_embedded_images(folder: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "problem": Value("string"), "solution": Value("string")})
    picture = Image.open(folder / "0.png")
    rows = [{"image": value, "problem": "p", "solution": "s"} for value in (None, picture, None, picture)]
    Dataset.from_list(rows, features=features).save_to_disk(folder / "disk")
    loaded = load_rows(str(folder / "disk"))
    assert [len(row["images"]) for row in loaded] == [0, 1, 0, 1]
    assert open_rgb(loaded[3]["images"][0]).size == (40, 30)


GOOD = {"problem": "p", "solution": "s", "image": "0.png"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "empty"),
        ([{"problems": "p", "solution": "s"}], "rename 'problems' to 'problem'"),
        ([{"problem": "p", "solutions": "s"}], "rename 'solutions' to 'solution'"),
        ([{"problem": "p", "solution": "s", "img": "0.png"}], "rename 'img' to 'image'"),
        ([GOOD, {**GOOD, "solution": None}], "row 1: 'solution' must be text"),
        ([GOOD, {**GOOD, "problem": "  "}], "row 1: 'problem' must be text"),
        ([GOOD, {**GOOD, "image": "absent.png"}], "row 1: image .*absent.png does not exist"),
        ([{**GOOD, "image": "broken.png"}], "row 0: image .*broken.png is unreadable"),
        ([{**GOOD, "image": "sliver.png"}], "row 0: image .*sliver.png is unreadable .* within 200:1"),
        ([{**GOOD, "image": "absent.png"}] * 5, "rows 0, 1, 2 and 2 more"),
        ([{**GOOD, "image": 3}], "row 0: 'image' must be a path"),
        ([{**GOOD, "e": 1}, {**GOOD, "e": "x"}], "column 'e' mixes kinds of values: row 0 .* row 1"),
        ([{**GOOD, "images": ["0.png"]}], "both hold images"),
        ([3], "row 0: an object was expected, got int"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(folder: Path, rows: list, words: str) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (300, 1)).save(folder / "sliver.png")
    with pytest.raises(UserError, match=words) as caught:
        load_rows(write(folder, rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["task", "context", "completion", "thinking", "coordinates", "system"])
@pytest.mark.parametrize("value", [5, ["x"], {"a": "x"}])
def test_columns_with_a_meaning_hold_text(folder: Path, column: str, value: object) -> None:
    with pytest.raises(UserError, match=f"row 0: '{column}' must be text, got"):
        load_rows(write(folder, [{**GOOD, column: value}]))
    assert len(load_rows(write(folder, [{**GOOD, column: None}, {**GOOD, column: "norm1000"}]))) == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"extra": 10**30}], "'extra' cannot be made of rows 0 to 0"),
        ([{"extra": {"a": 1}}, {"extra": {"a": "x"}}], "'extra' cannot be made of rows 0 to 1"),
        ([{"extra": "\ud83d"}], r"'extra' holds '\\ud83d', half of a character"),
        ([{"\ud83d": 1}], "half of a character"),
        ([{"problem": "\ud83d"}], "'problem' holds"),
        # Counted over the whole file, not from the start of what is read at once.
        ([{"extra": 1}] * 4 + [{"extra": "x"}], "row 3 holds int, row 4 holds str"),
    ],
)
def test_values_that_no_column_can_hold_are_named(
    folder: Path, rows: list, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virft.data.sources.CHUNK", 3)
    with pytest.raises(UserError, match=words):
        load_rows(write(folder, [{**GOOD, **row} for row in rows]))


@pytest.mark.parametrize("file", ["dataset_dict.json", "state.json", "dataset_info.json", "data-*.arrow"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_folder_that_is_not_whole_is_named(folder: Path, file: str, damage: str) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{**GOOD, "image": str(folder / GOOD["image"])}] * 50)
    DatasetDict({"train": rows}).save_to_disk(folder / "disk")
    (path,) = (folder / "disk").rglob(file)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    if damage == "removed":
        path.unlink()
    with pytest.raises(UserError, match=r"not whole|neither a folder written by save_to_disk"):
        load_rows(str(folder / "disk"))


def test_missing_things_are_named(folder: Path) -> None:
    for name, words in [
        (folder / "absent.json", "no such file"),
        (folder / "0.png", "cannot read this kind of file"),
        ("owner/name-that-is-nowhere", "not loadable from the Hub"),
    ]:
        with pytest.raises(UserError, match=words):
            load_rows(str(name))
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="neither"):
        load_rows(str(folder / "empty"))
    with pytest.raises(UserError, match="--image_folder"):
        load_rows(str(folder / "a.json"), image_folder=folder / "absent")
    (folder / "text.json").write_text("{not json", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        load_rows(str(folder / "text.json"))


@pytest.mark.parametrize(
    ("column", "word", "expected"),
    [
        ("category", "cat", prompts.detection("cat")),
        ("instruction", "the oldest", prompts.grounding("the oldest")),
        ("subject", "pet", prompts.classification(*prompts.SUBJECTS["pet"])),
    ],
)
def test_rows_without_a_problem_get_the_task_s_own_prompt(
    folder: Path, column: str, word: str, expected: str
) -> None:
    row = {column: word, "solution": "<answer>x</answer>"}
    (folder / "ask.json").write_text(json.dumps([row]))
    assert load_rows(str(folder / "ask.json"))["problem"] == [expected]
    (folder / "ask.json").write_text(json.dumps([row | {"problem": "my own words"}]))
    assert load_rows(str(folder / "ask.json"))["problem"] == ["my own words"]


def test_a_subject_without_a_prompt_is_named(folder: Path) -> None:
    rows = [{"subject": s, "solution": "<answer>x</answer>"} for s in ("pet", "planet")]
    (folder / "ask.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="row 1: no prompt for the subject 'planet'"):
        load_rows(str(folder / "ask.json"))


def test_image_folder(folder: Path) -> None:
    elsewhere = folder / "rows"
    elsewhere.mkdir()
    (elsewhere / "a.json").write_text((folder / "a.json").read_text(), encoding="utf-8")
    with pytest.raises(UserError, match="does not exist"):
        load_rows(str(elsewhere / "a.json"))
    assert len(load_rows(str(elsewhere / "a.json"), image_folder=folder)) == 4


def test_reference_rows_of_every_data_set(shared_data: Path, folder: Path) -> None:
    samples = json.loads((shared_data / "dataset_samples.json").read_text())
    rows = [
        {"image": "0.png", **sample}
        for name, entry in samples.items()
        if name.startswith("ViRFT")
        for sample in entry.get("samples", [])
        if "problem" in sample
    ]
    assert len(rows) > 8
    assert len(load_rows(write(folder, rows))) == len(rows)
    wrong = {k: v for k, v in samples["custom_json_wrong_keys"]["sample"].items() if k != "image_path"}
    with pytest.raises(UserError, match="rename 'problems' to 'problem'"):
        load_rows(write(folder, [wrong]))


def test_prompt_and_target(folder: Path) -> None:
    rows = load_rows(write(folder, [{**GOOD, "context": "step one"}, {**GOOD, "context": None}]))
    first, second = (row["prompt"] for row in to_prompts(rows, "be brief"))
    assert first == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "p\nstep one"}]
    assert second[1]["content"] == "p"
    assert target_text({"solution": "<answer>a</answer>"}) == "<think></think><answer>a</answer>"
    assert target_text({"solution": "S", "thinking": "t"}) == "<think>t</think>S"
    assert target_text({"solution": "S", "completion": "whole"}) == "whole"


def test_conversion_keeps_prompt_and_truth_together(folder: Path) -> None:
    Image.new("RGB", (640, 480)).save(folder / "large.png")
    rows = [
        {
            "image": "large.png",
            "problem": prompts.detection("cat"),
            "solution": SOLUTION,
            "completion": f"so {SOLUTION}",
        },
        {
            "image": "large.png",
            "problem": prompts.grounding("it"),
            "solution": "<answer>(1,2),(500,1000)</answer>",
        },
        {
            "image": "large.png",
            "problem": prompts.detection("dog"),
            "solution": "<answer>No Objects</answer>",
        },
        {"image": None, "problem": "name it", "solution": "<answer>737-200</answer>"},
    ]
    rows = load_rows(write(folder, [{"completion": None, **row} for row in rows]))
    assert convert_rows(rows, "norm1000", 3136, 401408) is rows
    moved = convert_rows(rows, "abs_resized", 3136, 401408)
    width, height = resized((640, 480), 3136, 401408)
    box = parse_detections(moved[0]["solution"]).value[0].box
    assert box == tuple(
        round(v * s / 1000) for v, s in zip((100, 200, 300, 400), (width, height) * 2, strict=True)
    )
    assert moved[0]["problem"] == prompts.detection("cat", "abs_resized")
    assert moved[0]["completion"] == f"so {moved[0]['solution']}"
    assert (
        moved[1]["solution"]
        == f"<answer>({round(width / 1000)},{round(height * 2 / 1000)}),({width // 2},{height})</answer>"
    )
    assert moved[1]["problem"] == prompts.grounding("it")
    assert [row["solution"] for row in moved][2:] == [row["solution"] for row in rows][2:]


@pytest.mark.parametrize(
    ("answer", "converted"),
    [
        (
            "[{'Position': [500, 100, 501, 900], 'Confidence': 1}, {'Position': [500, 100, 502, 900]}]",
            "[{'Position': [98, 11, 99, 101], 'Confidence': 1}]",
        ),
        ("(500,100),(501,900)", "(98,11),(99,101)"),
        ("(500,100),(500,900)", "(98,11),(98,101)"),  # empty from the start: left to the checks
    ],
)
def test_narrow_boxes_stay_boxes_when_converted(answer: str, converted: str) -> None:
    text = f"<answer>{answer}</answer>"  # an image of 200 x 100 is resized to 196 x 112
    assert convert_answer(text, "norm1000", "abs_resized", [200, 100], 28 * 28, 10**6) == (
        f"<answer>{converted}</answer>"
    )


def test_rows_may_say_their_space(folder: Path) -> None:
    row = {**GOOD, "solution": SOLUTION}
    rows = load_rows(write(folder, [{**row, "coordinates": "pixels"}, {**row, "coordinates": None}]))
    moved = convert_rows(rows, "norm1000", 3136, 401408)
    assert moved["coordinates"][:] == ["norm1000"] * 2
    assert parse_detections(moved[0]["solution"]).value[0].box == (2500, 6667, 7500, 13333)
    assert moved[1]["solution"] == SOLUTION
    with pytest.raises(UserError, match="row 0: coordinates 'inches' unknown"):
        convert_rows(load_rows(write(folder, [{**row, "coordinates": "inches"}])), "norm1000", 3136, 401408)
    two = {**row, "image": None, "images": ["0.png", "1.png"]}
    del two["image"]
    with pytest.raises(UserError, match="row 0: solution cannot be converted.*one image"):
        convert_rows(load_rows(write(folder, [two])), "abs_resized", 3136, 401408)


def test_confidence_survives_conversion() -> None:
    text = "<think>x</think><answer>[{'Position': [0, 0, 1000, 1000], 'Confidence': 0.25}]</answer>"
    moved = convert_answer(text, "norm1000", "abs_resized", (56, 84), 3136, 401408)
    assert moved == "<think>x</think><answer>[{'Position': [0, 0, 56, 84], 'Confidence': 0.25}]</answer>"


def test_prompt_length_is_what_the_model_sees(folder: Path, tiny_qwen2_vl: Path) -> None:
    rows = [
        {"images": value, "problem": "p", "solution": "s"} for value in ([], ["0.png"], ["0.png", "1.png"])
    ]
    rows = to_prompts(load_rows(write(folder, rows)))
    processor = AutoProcessor.from_pretrained(tiny_qwen2_vl, min_pixels=3136, max_pixels=12544)
    expected = []
    for row in rows:
        images = [open_rgb(image) for image in row["images"]]
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": "p"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        expected.append(
            processor(text=[text], images=images or None, return_tensors="pt")["input_ids"].shape[1]
        )
    assert prompt_lengths(rows, processor) == expected
    with pytest.raises(
        UserError, match=f"row 2: prompt of {expected[2]} tokens is above --max_prompt_length"
    ):
        drop_long(rows, processor, expected[1], skip=False)
    kept, dropped = drop_long(rows, processor, expected[1], skip=True)
    assert (len(kept), dropped) == (2, 1)
    with pytest.raises(UserError, match="every prompt"):
        drop_long(rows, processor, 1, skip=True)


def test_validate_finds_what_rows_hide(folder: Path) -> None:
    def check(rows: list, *flags: str) -> None:
        validate.main([write(folder, rows), *flags])

    good = {**GOOD, "solution": SOLUTION}
    outside = "<answer>[{'Position': [900, 0, 1001, 100], 'Confidence': 1}]</answer>"
    with pytest.raises(
        UserError, match=r"row 1: box \[900.0, 0.0, 1001.0, 100.0\] in norm1000 is empty, inverted or leaves"
    ):
        check([good, {**good, "problem": "another", "solution": outside}])
    with pytest.raises(UserError, match="row 1: the same images and problem as row 0"):
        check([good, good])
    with Image.open(folder / good["image"]) as image:
        image.convert("RGB").save(folder / "copy.bmp")
    held_out = folder / "held_out.json"
    held_out.write_text(json.dumps([{**good, "problem": "another", "image": "copy.bmp"}]))
    with pytest.raises(UserError, match="row 0: the image of row 0 of .*held_out.json"):
        check([good], "--held_out", str(held_out))


def test_validate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validate.main([str(folder / "a.json")])
    assert "4 rows, all sound" in capsys.readouterr().out
    Image.effect_noise((64, 64), 50).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    good = {**GOOD, "solution": SOLUTION}
    name = write(folder, [good, {**good, "image": "cut.png"}])
    assert len(load_rows(name)) == 2  # its header is in order
    with pytest.raises(UserError, match="row 1: image .*cut.png is damaged"):
        validate.main([name])
    Image.effect_noise((64, 64), 50).save(folder / "odd.png")
    odd = bytearray((folder / "odd.png").read_bytes())
    odd[odd.index(b"IDAT") - 4 : odd.index(b"IDAT")] = (100).to_bytes(4, "big")
    (folder / "odd.png").write_bytes(odd)  # its second chunk is none: Pillow calls that a SyntaxError
    with pytest.raises(UserError, match="row 0: image .*odd.png is damaged"):
        validate.main([write(folder, [{**good, "image": "odd.png"}])])
    with pytest.raises(UserError, match="row 1 "):
        unreadable = {**good, "problem": "another", "solution": "<answer>[{'Position': [1]}]</answer>"}
        validate.main([write(folder, [good, unreadable])])


def test_a_rows_own_system_message_goes_before_the_runs(folder: Path) -> None:
    row = {"problem": "p", "solution": SOLUTION}
    rows = load_rows(write(folder, [row | {"system": "own"}, row | {"system": ""}, row | {"system": None}]))
    prompts_ = to_prompts(rows, "the run's")["prompt"]
    assert [[m["content"] for m in prompt] for prompt in prompts_] == [
        ["own", "p"],
        ["the run's", "p"],
        ["the run's", "p"],
    ]
    assert [len(prompt) for prompt in to_prompts(rows)["prompt"]] == [2, 1, 1]
    with pytest.raises(UserError, match="row 0: 'system' must be text, got 7"):
        load_rows(write(folder, [row | {"system": 7}]))


OTHER_FORMATS = {
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "<image>p"},
            {"from": "gpt", "value": SOLUTION},
        ],
        "images": ["0.png"],
    },
    "messages": {
        "messages": [{"role": "user", "content": "<image>p"}, {"role": "assistant", "content": SOLUTION}],
        "images": ["0.png"],
    },
    "answer": {"problem": "<image>p", "answer": SOLUTION, "images": ["0.png"]},
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_records_of_another_format_are_read_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    record = OTHER_FORMATS[kind]
    name = write(folder, [record])
    validate.main([name])
    said = capsys.readouterr().out
    assert f"records of the format {kind!r}" in said and "1 rows, all sound" in said
    rows = load_rows(name)
    assert f"records of the format {kind!r}" in caplog.text
    assert (rows[0]["problem"], rows[0]["solution"], rows[0]["image_sizes"]) == ("p", SOLUTION, [[40, 30]])
    broken = json.loads(json.dumps(record).replace("100, 200", "1000, 200"))
    with pytest.raises(UserError, match="rows? 1"):
        validate.main([write(folder, [record, broken])])


def test_the_references_boxes_are_validated_as_grounding(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"image_path": "0.png", "instruction": ["a", "b"], "boxes": [[1.0, 2.0, 30.0, 20.0]]}
    validate.main([write(folder, [record]), "--task", "grounding"])
    assert "2 rows, all sound" in capsys.readouterr().out
