"""F1 and EM of short answers: cases worked by hand, and every saved row of the published evaluations."""

from __future__ import annotations

import json

import pytest

from virft.errors import UserError
from virft.metrics import qa


@pytest.mark.parametrize(
    ("answer", "truths", "f1", "em"),
    [
        ("Play well.", "play well", 1.0, 1.0),
        ("the Eiffel Tower in Paris", ["Eiffel Tower"], 2 * 2 / (4 + 2), 0.0),
        ("15 years", "15", 2 / 3, 0.0),
        ("15 years", ["16", "fifteen", "15 years"], 1.0, 1.0),
        ("A", "A", 1.0, 1.0),  # an article: nothing is left of it, but it is right
        ("", "something", 0.0, 0.0),
        (None, "something", 0.0, 0.0),
        ("sea sea", "sea sea side", 2 / 5, 0.0),
    ],
)
def test_cases_worked_by_hand(answer, truths, f1, em):
    assert qa.f1(answer, truths) == pytest.approx(f1)
    assert qa.exact_match(answer, truths) == em


def test_repeats_count_when_asked():
    assert qa.f1("sea sea", "sea sea side", overlap="counts") == pytest.approx(4 / 5)


def test_chinese_is_compared_by_character_in_the_coding_scheme_only():
    assert qa.f1("苹果。", ["苹果汁"], "coding") == pytest.approx(2 * 2 / (2 + 3))
    assert qa.f1("苹果。", ["苹果汁"], "search") == 0.0
    assert qa.exact_match("苹果。", "苹 果", "coding") == 1.0


def test_score_averages_and_counts_missing_answers():
    result = qa.score([("15 years", "15"), (None, ["x"]), ("x", ["x"])])
    assert (result.f1, result.em) == (pytest.approx((2 / 3 + 0 + 1) / 3), pytest.approx(1 / 3))
    assert (result.questions, result.missing) == (3, 1)


@pytest.mark.parametrize(
    ("pairs", "sentence"), [([], "no question"), ([("a", "b"), ("a", [])], "question 1 has no")]
)
def test_nothing_to_compare_is_refused(pairs, sentence):
    with pytest.raises(UserError, match=sentence):
        qa.score(pairs)


def test_saved_rows_of_the_published_evaluations(shared_data):
    for line in (shared_data / "qa_rows.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        scheme = "coding" if row["file"].startswith("evaluation_coding") else "search"
        where = (row["file"], row["i"])
        assert qa.f1(row["pred_answer"], row["gt"], scheme) == pytest.approx(row["f1"], abs=1e-12), where
        assert qa.exact_match(row["pred_answer"], row["gt"], scheme) == row["em"], where
