"""The reader: what it accepts, what it refuses and why, and that no text makes it raise or dawdle."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virft import parsing, prompts
from virft.answer_tags import has_format
from virft.parsing import (
    COORDINATE_LIMIT,
    REASONS,
    normalize_class,
    parse_answer,
    parse_class,
    parse_detections,
    parse_grounding,
)
from virft.types import Box, Detection

ONE = (Detection(Box(1, 2, 3, 4), 0.5),)
TWO = (*ONE, Detection(Box(5, 6, 7, 8), 0.25))
A = "{'Position': [1, 2, 3, 4], 'Confidence': 0.5}"
B = "{'Position': [5, 6, 7, 8], 'Confidence': 0.25}"


def answer(text: str) -> str:
    return f"<think> a thought </think>\n<answer>{text}</answer>"


# ------------------------------------------------------------------------------------------ where it stands


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("<think>t</think><answer>x</answer>", "x"),
        ("<answer>a</answer> <answer>b</answer>", "b"),
        ("<think><answer>draft</answer></think><answer>x</answer>", "x"),
        ("the prompt opened it <answer>draft</answer></think> <answer>x</answer>", "x"),
        ("<think>one</think><think>two <answer>draft</answer></think><answer>x</answer>", "x"),
        ("<think>never closed <answer>x</answer>", "x"),
        ("<think>t</think><answer>x</answer></think>", "x"),
        ("<think>t</think><answer>x</answer><think>a second thought", "x"),
        ("<answer>x</answer><answer>cut off", "x"),
        ("<answer><answer>x</answer>", "x"),
        ("<answer>x</answer></answer>", "x"),
        ("</answer><answer>x</answer>", "x"),
        ("<answer>\n x \n</answer><|im_end|>", "x"),
    ],
)
def test_the_last_complete_answer_after_the_thinking_counts(reply: str, found: str) -> None:
    assert parse_answer(reply).value == found


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty_reply"),
        (" \n\t", "empty_reply"),
        ("<think>t</think> <answer> \n </answer>", "empty_answer"),
        ("<think> <answer>x</answer> </think>", "answer_in_thinking"),
        ("<think> thinking and thinking", "unclosed_thinking"),
        ("<think>t</think>", "no_answer"),
        ("a plain sentence", "no_answer"),
        ("<ANSWER>x</ANSWER>", "no_answer"),
        ("&lt;answer&gt;x&lt;/answer&gt;", "no_answer"),
        ("</answer> x <answer>", "unclosed_answer"),
        ("<answer>x</answer", "unclosed_answer"),
    ],
)
def test_an_answer_that_is_not_there_has_a_reason(reply: str, reason: str) -> None:
    parsed = parse_answer(reply)
    assert (parsed.value, parsed.reason, parsed.ok) == (None, reason, False)


# ---------------------------------------------------------------------------------------------- detections


@pytest.mark.parametrize(
    "text",
    [
        f"[{A}, {B}]",
        f"\n[\n  {A},\n  {B},\n]\n",
        f"```json\n[{A}, {B}]\n```",
        f"```[{A}, {B}]```",
        f"[{A}, {B}, ...]",
        f"[{A}, {B}, …]",
        f"[{A} {B}]",
        f"{A}, {B}",
        f"[[{A}, {B}]]",
        f"[{A}, {B}]\\n",
        f"The boxes are: [{A}, {B}]. It's that.",
        '[{"Position": [1, 2, 3, 4], "Confidence": 0.5}, {"Position": [5, 6, 7, 8], "Confidence": 0.25}]',
        "[{“Position”: [1, 2, 3, 4], “Confidence”: 0.5}, " + B.replace("'", "’") + "]",
        "[{Position: [1, 2, 3, 4], Confidence: 0.5}, {Position: [5, 6, 7, 8], Confidence: 0.25}]",
        "[{'bbox_2d': [1, 2, 3, 4], 'score': 0.5}, {'bbox': [5, 6, 7, 8], 'Score': 0.25}]",
        "[{'box': (1, 2, 3, 4), 'confidence': '0.5'}, {'POSITION': [[5, 6], [7, 8]], 'Confidence': ' .25 '}]",
        "[{'Position': ['1', \"2\", '3.0', '4'], 'Confidence': 5e-1}, "
        + B.replace("8]", "8,]").replace("}", ",}")
        + "]",
        "[{'Position': [1., +2, 3., 4e0], 'Confidence': .5}, {'Confidence':.25,'Position': [[5, 6, 7, 8]]}]",
        "[{'Position': [１, 2, ٣, 4], 'Confidence': ０.5}, " + B + "]",
        "[{'label': 'the dog's bowl, red', 'Position': [1, 2, 3, 4], 'Confidence': 0.5}, " + B + "]",
        '[{"label": "a \\"quoted\\" word", "Position": [1, 2, 3, 4], "Confidence": 0.5}, ' + B + "]",
        "[{'Position': [9, 9, 9, 9], 'bbox': [1, 2, 3, 4], 'Confidence': 0.5}, " + B + "]",
        "[{'point': [1, [2]], 'Position': [1, 2, 3, 4], 'x': {'y': 1}, 'Confidence': 0.5}, " + B + "]",
    ],
)
def test_ways_of_writing_two_boxes(text: str) -> None:
    parsed = parse_detections(answer(text))
    assert (parsed.value, parsed.reason, parsed.notes) == (TWO, "ok", ())


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("{'Position': [1, 2, 3], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [1, 2, 3, 4, 5], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [1, 2, 3, 4 5], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [1 2 3 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [1,, 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [1, 2, 3, 4, ...], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [[1, 2, 3, 4], [5, 6, 7, 8]], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': '[1, 2, 3, 4]', 'Confidence': 0.5}", "bad_position"),
        ("{'Position': {'x1': 1, 'y1': 2, 'x2': 3, 'y2': 4}, 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [x1, y1, x2, y2], 'Confidence': number}", "bad_position"),
        ("{'Position': [True, 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [null, 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [NaN, 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [1_0, 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [0x10, 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [9**9**9, 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [" + "9" * 5000 + ", 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': [1, 2, 3, 4] [1, 2, 3, 4], 'Confidence': 0.5}", "bad_position"),
        ("{'Position': , 'Confidence': 0.5}", "no_position"),
        ("{'Position': [1, 2, 3, 1e9], 'Confidence': 0.5}", "bad_coordinate"),
        ("{'Position': [1, 2, 3, 1e999], 'Confidence': 0.5}", "bad_coordinate"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': 1.01}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': -0.01}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': NaN}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': -Infinity}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': null}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': true}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': '95%'}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': [0.5]}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4], 'Confidence': 0.5 0.6}", "bad_confidence"),
        ("{'Position': [1, 2, 3, 4}, 'Confidence': 0.5}", "malformed_object"),
        ("{'label': 'dog'}", "no_position"),
        ("{}", "no_position"),
    ],
)
def test_one_bad_box_is_dropped_with_a_note_and_alone_it_is_the_reason(bad: str, code: str) -> None:
    beside = parse_detections(answer(f"[{A}, {bad}, {B}]"))
    assert beside.ok and beside.notes == (code,)
    assert beside.value == TWO
    alone = parse_detections(answer(f"[{bad}]"))
    assert (alone.value, alone.reason) == (None, code)


@pytest.mark.parametrize(
    ("text", "boxes", "note"),
    [
        (f"[{A}, {B}", TWO, "truncated"),
        (f"[{A}, {B[:-1]}", ONE, "truncated"),
        (f"[{A}, {B[:-6]}", ONE, "truncated"),
        (f"[{A}, {{'Position': [5, 6", ONE, "truncated"),
        (f"[{A}, {{'Posi", ONE, "truncated"),
        (f"[{A}, {{'label': 'never closed", ONE, "truncated"),
    ],
)
def test_a_truncated_list_keeps_its_complete_boxes(
    text: str, boxes: tuple[Detection, ...], note: str
) -> None:
    for reply in (f"<think> t </think> <answer>{text}", text, answer(text)):
        parsed = parse_detections(reply)
        assert (parsed.value, parsed.notes) == (boxes, (note,))


@pytest.mark.parametrize(
    "text",
    [
        "No Objects",
        "no objects",
        " No  Objects. ",
        "'No Objects'",
        "['No Objects']",
        "[]",
        "[ ]",
        "```json\n[]\n```",
        "```\nNo Objects\n```",
        "“No Objects”",
    ],
)
def test_saying_that_there_is_nothing(text: str) -> None:
    assert parse_detections(answer(text)).value == ()
    assert parse_detections(text).value == (), "a solution without tags"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("None", "no_box"),
        ("No ObjectsOutputOutput", "no_box"),
        ("[...]", "no_box"),
        ("[,]", "no_box"),
        ("[] or not", "no_box"),
        ("{}", "no_position"),
        ("(1,2),(3,4)", "no_box"),
        ("[1, 2, 3, 4]", "no_box"),
        ("[245,[234,543,542,244]]", "no_box"),
        ("9**9**9**9", "no_box"),
        (f"['No Objects', {A}]", "contradiction"),
        (f"No Objects. Or rather [{A}]", "contradiction"),
        ("[" * 33, "too_deep"),
        ('["{"Position": [1, 2, 3, 4], "Confidence": 0.9}]', "no_box"),
    ],
)
def test_answers_that_are_neither_boxes_nor_an_abstention(text: str, reason: str) -> None:
    parsed = parse_detections(answer(text))
    assert (parsed.value, parsed.reason) == (None, reason)


def test_an_abstention_must_be_complete() -> None:
    assert parse_detections("<answer>No Objects").reason == "unclosed_answer"
    assert parse_detections("<answer>[]").reason == "unclosed_answer"
    assert parse_detections("<answer>[").reason == "truncated"


@pytest.mark.parametrize(
    ("reply", "boxes"),
    [
        (f"[{A}, {B}]", TWO),
        (f"```json\n[{A}, {B}]\n```", TWO),
        (f"<think>t</think> [{A}]<|im_end|>", ONE),
        (A, ONE),
        (f"Here it is: [{A}]", None),
        (f"<think> maybe [{A}]", None),
        (f"<ANSWER>[{A}]</ANSWER>", None),
        (f"&lt;answer&gt;[{A}]&lt;/answer&gt;", None),
    ],
)
def test_without_tags_the_reply_must_be_the_list(reply: str, boxes: tuple[Detection, ...] | None) -> None:
    assert parse_detections(reply).value == boxes


def test_boxes_are_kept_as_written() -> None:
    text = "[{'Position': [9, 8, 1, 2]}, {'Position': [-5, -5.5, 5000, 2]}, {'Position': [1, 1, 1, 1]}]"
    boxes = [d.box for d in parse_detections(answer(text)).value]
    assert boxes == [(9, 8, 1, 2), (-5, -5.5, 5000, 2), (1, 1, 1, 1)]
    assert all(d.score is None for d in parse_detections(answer(text)).value)


# -------------------------------------------------------------------------------------- grounding and classes


@pytest.mark.parametrize(
    "text",
    [
        "(1,2),(3,4)",
        " ( 1 , 2 ) , ( 3 , 4 ) ",
        "(1.0,2.),(3,4)",
        "(1,2)(3,4)",
        "(1,2)\n(3,4)",
        "[(1,2),(3,4)]",
        "The box is (1,2),(3,4).",
        "(1,2),(3,4) and again (1,2),(3,4)",
        "{'bbox_2d': [1, 2, 3, 4]}",
        '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]\n```',
        "(１,２),(３,４)",
    ],
)
def test_ways_of_writing_the_box_of_a_grounding_reply(text: str) -> None:
    for reply in (answer(text), text, f"<|box_start|>{text}<|box_end|><|im_end|>"):
        assert parse_grounding(reply).value == Box(1, 2, 3, 4)


def test_signs_and_decimals_are_read() -> None:
    assert parse_grounding(answer("(-1.5,+2.25),(3e1,4.0)")).value == Box(-1.5, 2.25, 30, 4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(x1,y1),(x2,y2)", "no_box"),
        ("(1,2),(3,4),(5,6),(7,8)", "several_boxes"),
        ("(1,2),(3,4) or (5,6),(7,8)", "several_boxes"),
        ("(1,2),(3,4),(5,6)", "ok"),
        ("(1,2)", "bad_position"),
        ("(1,2) to (3,4)", "bad_position"),
        ("(501,10), (995987)", "bad_position"),
        ("(1,2,3,4)", "no_box"),
        ("[1,2],[3,4]", "no_box"),
        ("(1,2),(3,1e9)", "bad_coordinate"),
        ("(1,2),(3,NaN)", "bad_position"),
        ("{'bbox_2d': [1, 2, 3]}", "bad_position"),
        ("nowhere", "no_box"),
    ],
)
def test_grounding_answers_and_their_reasons(text: str, reason: str) -> None:
    parsed = parse_grounding(answer(text))
    assert parsed.reason == reason
    assert parsed.ok == (parsed.value is not None)


def test_coordinates_in_the_thinking_are_not_the_box() -> None:
    assert parse_grounding("<think> around (1,2),(3,4)").reason == "unclosed_thinking"
    assert parse_grounding("<think> around (1,2),(3,4) </think> nowhere").reason == "no_answer"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (" American Bulldog ", "american_bulldog", True),
        ("737-200", "737 200", True),
        ("Tulip.", "tulip", True),
        ("ＴＵＬＩＰ", "tulip", True),
        ("Café", "CAFE\u0301", True),
        ("Straße", "STRASSE", True),
        ("tulips", "tulip", False),
        ("A340", "A340-300", False),
        ("rose", "desert-rose", False),
        ("की", "का", False),
    ],
)
def test_class_names_are_equal_without_case_and_punctuation(one: str, other: str, same: bool) -> None:
    assert (normalize_class(one) == normalize_class(other)) is same


@pytest.mark.parametrize(
    ("reply", "value", "reason"),
    [
        (answer("\nrose\n"), "rose", "ok"),
        ("tulip", "tulip", "ok"),
        ("<think>t</think> tulip<|im_end|>", "tulip", "ok"),
        (answer("_"), None, "no_class"),
        (answer(""), None, "empty_answer"),
        (answer("x" * 257), None, "long_class"),
        ("<answer>tul", None, "unclosed_answer"),
        ("<think> tulip", None, "unclosed_thinking"),
    ],
)
def test_class_answers(reply: str, value: str | None, reason: str) -> None:
    parsed = parse_class(reply)
    assert (parsed.value, parsed.reason) == (value, reason)


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("<think> a </think> <answer> b </answer>", True),
        ("\n<think></think><answer></answer>\n", True),
        ("<think>\n1\n</think>\n\n<answer>\n2\n</answer>", True),
        ("<think>a</think><answer>b</answer><answer>c</answer>", True),
        ("<think>a</think> so <answer>b</answer>", False),
        ("so <think>a</think><answer>b</answer>", False),
        ("<think>a</think><answer>b</answer><|im_end|>", False),
        ("<think>a<answer>b</answer>", False),
        ("<answer>b</answer>", False),
        ("<think></think><answer>", False),
        ("<think></think></answer>", False),
        ("<think><answer></think></answer>", False),
        ("<Think>a</Think><Answer>b</Answer>", False),
        ("", False),
    ],
)
def test_format(reply: str, right: bool) -> None:
    assert has_format(reply) is right


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "x", "\n"]), max_size=12)
)
def test_format_is_the_written_expression(parts: list[str]) -> None:
    import re

    text = "".join(parts)
    expression = r"<think>.*?</think>\s*<answer>.*?</answer>"
    assert has_format(text) == (re.fullmatch(expression, text.strip(), re.DOTALL) is not None)


# -------------------------------------------------------------------------------------------------- any text

READERS: tuple[Callable, ...] = (
    parse_answer,
    parse_detections,
    parse_grounding,
    parse_class,
    has_format,
    normalize_class,
)
WORDS = """<think> </think> <answer> </answer> [ ] { } ( ) , : ' " \\ ` Position 'Position': 'Confidence':
bbox_2d 0.5 1 NaN 1e999 ... １ “ <|im_end|> (1,2)"""
PIECES = st.sampled_from(
    [*WORDS.split(), "No Objects", "\n", " ", "\x00", "\ud800", "\u0301", "[1, 2, 3, 4]", A]
)
HOSTILE = st.lists(PIECES | st.text(max_size=3), max_size=60).map("".join)


@settings(max_examples=400, deadline=None)
@given(HOSTILE | st.text())
def test_no_text_makes_a_reader_raise_and_what_it_gives_is_sound(text: str) -> None:
    for reply in (text, answer(text), f"<answer>{text}"):
        for reader in READERS[:4]:
            parsed = reader(reply)
            assert parsed.reason in REASONS and set(parsed.notes) <= set(REASONS) - {"ok"}
            assert parsed.ok == (parsed.value is not None)
        has_format(reply)
        normalize_class(reply)
        for detection in parse_detections(reply).value or ():
            assert all(abs(v) <= COORDINATE_LIMIT and isinstance(v, float) for v in detection.box)
            assert detection.score is None or 0 <= detection.score <= 1


NUMBER = st.integers(-2000, 2000) | st.floats(-2000, 2000, allow_nan=False).map(lambda v: round(v, 3))
DETECTIONS = st.lists(
    st.builds(
        Detection,
        st.tuples(*[NUMBER] * 4).map(lambda v: Box(*map(float, v))),
        st.none() | st.floats(0, 1).map(lambda v: round(v, 4)),
    ),
    max_size=6,
).map(tuple)


def written(detections: tuple[Detection, ...], quote: str) -> str:
    if not detections:
        return prompts.NO_OBJECTS
    parts = []
    for d in detections:
        score = "" if d.score is None else f", {quote}Confidence{quote}: {d.score:.4f}"
        parts.append(f"{{{quote}Position{quote}: {[*d.box]}{score}}}")
    return f"[{', '.join(parts)}]"


@given(DETECTIONS, st.sampled_from(["'", '"', ""]))
def test_what_is_written_is_read_back(detections: tuple[Detection, ...], quote: str) -> None:
    parsed = parse_detections(answer(written(detections, quote)))
    assert (parsed.value, parsed.notes) == (detections, ())


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
def test_reading_what_was_read_changes_nothing(text: str) -> None:
    first = parse_detections(answer(text))
    if first.ok:
        exact = tuple(Detection(d.box, d.score and round(d.score, 4)) for d in first.value)
        assert parse_detections(answer(written(exact, '"'))).value == exact


@pytest.mark.parametrize(
    ("reply", "numbers"),
    [
        (answer(f"[{A}, {B}]"), ["1, 2, 3, 4", "5, 6, 7, 8"]),
        (answer(f"[{A}, {A}]"), ["1, 2, 3, 4", "1, 2, 3, 4"]),  # the second one where it stands itself
        (f"<answer>[{A}, {B}, {{'Pos", ["1, 2, 3, 4", "5, 6, 7, 8"]),
        (f" \n```json\n[{A}]\n```", ["1, 2, 3, 4"]),
        (f"<think> [9, 9, 9, 9] </think> <|im_start|> [{A}]<|im_end|>", ["1, 2, 3, 4"]),
        (answer("{“bbox”: [[1, 2], [3, 4]]}"), ["[1, 2], [3, 4]"]),
        (answer("{'bbox': ('1', '2', 3, 4.0)}"), ["'1', '2', 3, 4.0"]),
        (answer("{'bbox': [9, 9, 9, 9], 'Confidence': 1, 'bbox_2d': [1, 2, 3, 4]}"), ["1, 2, 3, 4"]),
        (answer("{'bbox': [9, 9, 9, 9], 'bbox': [ 1,2,3,4 ]}"), [" 1,2,3,4 "]),
    ],
)
def test_a_box_says_where_its_numbers_stand(reply: str, numbers: list[str]) -> None:
    assert [reply[slice(*d.span)] for d in parse_detections(reply).value] == numbers


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
def test_numbers_stand_where_a_box_says(text: str) -> None:
    for reply in (text, answer(f"[{A}, {text}, {B}]"), f"[{A}, {text}, {B}]"):
        for detection in parse_detections(reply).value or ():
            again = parse_detections(f"{{'bbox': [{reply[slice(*detection.span)]}]}}")
            assert [d.box for d in again.value] == [detection.box]


def test_where_a_box_stands_does_not_make_it_another() -> None:
    first, second = parse_detections(answer(f"[{A}, {A}]")).value
    assert first.span != second.span
    assert first == second and hash(first) == hash(second) and repr(first) == repr(second)


@given(DETECTIONS.filter(bool), st.data())
def test_cutting_a_list_anywhere_keeps_the_boxes_before_the_cut(
    detections: tuple[Detection, ...], data: st.DataObject
) -> None:
    text = written(detections, "'")
    cut = data.draw(st.integers(0, len(text)))
    kept = parse_detections(f"<think> t </think> <answer>{text[:cut]}").value or ()
    assert kept == detections[: text[:cut].count("}")]


FAMILIES: dict[str, Callable[[int], str]] = {
    "open brackets": lambda n: "<answer>" + "[" * n,
    "open brackets, complete": lambda n: "<answer>" + "[" * n + "</answer>",
    "close brackets": lambda n: "<answer>" + "[" * 20 + "}" * n + "</answer>",
    "empty lists": lambda n: "<answer>" + "[]" * (n // 2) + "</answer>",
    "deep and back": lambda n: "<answer>" + ("[" * 31 + "]" * 31) * (n // 62) + "</answer>",
    "braces": lambda n: "<answer>" + "{'a':[" * (n // 6) + "</answer>",
    "answer tags": lambda n: "<answer>" * (n // 8),
    "closing answer tags": lambda n: "</answer>" * (n // 9),
    "think tags": lambda n: "<think>" * (n // 7),
    "closing think tags": lambda n: "<think>" + "</think> " * (n // 9) + "</answer>",
    "white space": lambda n: "<think></think>" + " " * n + "<answer></answer>x",
    "single quotes": lambda n: "<answer>[" + "'" * n + "</answer>",
    "nested quotes": lambda n: "<answer>[" + "'\"" * (n // 2) + "</answer>",
    "spaced quotes": lambda n: "<answer>[" + "' " * (n // 2) + "</answer>",
    "apostrophes": lambda n: "<answer>['" + "'x" * (n // 2) + "</answer>",
    "backslashes": lambda n: "<answer>['" + "\\" * n + "</answer>",
    "digits": lambda n: "<answer>[{'Position': [" + "9" * n + ", 1, 2, 3]}]</answer>",
    "digits, points": lambda n: "<answer>(" + "9." * (n // 2) + ",1),(2,3)</answer>",
    "numbers": lambda n: "<answer>[{'Position': [" + "1," * (n // 2) + "]}]</answer>",
    "commas": lambda n: "<answer>[" + "," * n + "]</answer>",
    "colons": lambda n: "<answer>{" + ":" * n + "}</answer>",
    "corners": lambda n: "(1,2)," * (n // 6),
    "boxes": lambda n: "<answer>[" + f"{A}, " * (n // 48) + "]</answer>",
    "keys": lambda n: "<answer>[{" + "'Position': 1," * (n // 14) + "}]</answer>",
    "special tokens": lambda n: "<|" * (n // 2),
    "fences": lambda n: "```" * (n // 3),
    "combining marks": lambda n: "<answer>" + "\u0301\u0323" * (n // 2) + "</answer>",
    "null bytes": lambda n: "\x00" * n,
    "surrogates": lambda n: "<answer>[" + "\ud800" * n + "]</answer>",
}


def seconds(text: str) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for reader in READERS:
            reader(text)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("family", FAMILIES)
def test_time_grows_with_the_length_and_not_with_its_square(family: str) -> None:
    small, large = seconds(FAMILIES[family](12_500)), seconds(FAMILIES[family](100_000))
    # Eight times the text: linear is 8, quadratic 64; the constant is for clocks that tick coarsely.
    assert large < 24 * small + 0.02


def test_reasons_are_sentences() -> None:
    assert all(code.isidentifier() and sentence for code, sentence in parsing.REASONS.items())
