"""Rewards of the user's own: found by name, called for one reply or for a batch, refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from virft.errors import UserError
from virft.rewards import Outcome, check_solutions, load_rewards
from virft.rewards.custom import custom_reward

SOURCE = """
import helper_beside_me


def length(completion, **columns):
    return len(completion) / 10


def reply_first(text, solution):
    return float(solution in text)


def by_name(solution, reply, weight, scale=1):
    return scale * weight * (reply == solution)


def batch(completions, solution, **kwargs):
    return [None if s == "" else float(s in c[0]["content"]) for c, s in zip(completions, solution)]


def trl_style(prompts, completions, completion_ids, **kwargs):
    assert len(prompts) == len(completions) == len(completion_ids)
    return [helper_beside_me.ONE for _ in completions]


def keywords_only(**kwargs):
    return [float(len(k)) for k in kwargs["completions"]]


def everything(completion, **columns):
    return float(sorted(columns) == ["problem", "solution", "weight"])


def none(completion):
    return None


def text(completion):
    return "1.0"


def not_a_number(completion):
    return float("nan")


def too_few(completions, **kwargs):
    return []


def not_a_list(completions, **kwargs):
    return 1.0


def numpy_values(completions, **kwargs):
    import numpy

    return numpy.ones(len(completions), dtype=numpy.float32)


async def later(completions, **kwargs):
    return [1.0]


def nothing():
    return 1.0


def needs_gt(completion, gt):
    return 1.0


def full(completion, solution):
    return 2.0 * (solution in completion)


full.maximum = 2.0


class Scorer:
    def __call__(self, completion, solution):
        return 0.25


scorer = Scorer()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "helper_beside_me.py").write_text("ONE = 1.0\n")
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rewards.py").write_text("def half(completion):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one(name: str, completion: Any = "abcd", **columns: Any) -> Outcome:
    (reward,) = load_rewards([f"my_rewards.py:{name}"])
    return reward.score(completion, columns)


@pytest.mark.usefixtures("folder")
def test_one_reply_at_a_time_with_the_columns_it_names() -> None:
    assert one("length") == Outcome(0.4, "custom")
    assert one("reply_first", solution="bc", unused=1).value == 1
    assert one("by_name", solution="abcd", weight=2).value == 2
    assert one("by_name:scale=3", solution="abcd", weight=2).value == 6
    assert one("everything", problem="p", solution="s", weight=2).value == 1
    assert one("none") == Outcome(None, "not_applicable")
    assert one("scorer", solution="").value == 0.25
    assert one("length", [{"role": "assistant", "content": "abcdef"}]).value == 0.6


@pytest.mark.usefixtures("folder")
def test_a_batch_at_a_time_as_trl_calls_it() -> None:
    (reward,) = load_rewards(["my_rewards.py:batch"])
    completions = [[{"role": "assistant", "content": c}] for c in ("tulip", "rose", "rose")]
    shared = {"prompts": ["p"] * 3, "completion_ids": [[1]] * 3, "trainer_state": object()}
    assert reward.__name__ == "batch"
    assert reward(completions=completions, solution=["tulip", "lily", ""], **shared) == [1.0, 0.0, None]
    assert reward.score(completions[0], {"solution": "tulip"}).value == 1
    for name in ("trl_style", "numpy_values"):
        (reward,) = load_rewards([f"my_rewards.py:{name}"])
        assert reward(completions=["a", "b", "c"], solution=["x"] * 3, **shared) == [1.0, 1.0, 1.0]
    (reward,) = load_rewards(["my_rewards.py:keywords_only"])
    assert reward(completions=["a", "bb"], solution=["x"] * 2) == [1.0, 2.0]


@pytest.mark.usefixtures("folder")
def test_modules_of_the_working_folder() -> None:
    rewards = load_rewards(["my_package.rewards:half", "my_rewards.py:length", "format"])
    assert [r.__name__ for r in rewards] == ["half", "length", "format"]
    assert rewards[0].score("x", {}).value == 0.5


def test_two_files_of_the_same_name_are_two_files(tmp_path: Path) -> None:
    for folder, number in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rewards.py").write_text(f"def bonus(completion):\n    return {number}\n")
    names = [f"{tmp_path}/{folder}/rewards.py:bonus" for folder in "ab"]
    rewards = load_rewards(names)
    assert [r.score("", {}).value for r in rewards] == [1, 2]
    assert [r.__name__ for r in rewards] == names


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text", "reward text must return a number or None for a reply, got str '1.0'"),
        ("not_a_number", "reward not_a_number returned nan"),
        ("too_few", "must return a list of 1 values, one a reply, got 0 values"),
        ("not_a_list", "must return a list of 1 values, one a reply, got float"),
        ("needs_gt", "needs the column 'gt', which the rows do not have; they have solution"),
        ("later", "is an async function"),
        ("nothing", "has no parameter for the reply"),
        ("absent", "has no function 'absent'; functions in it: batch, by_name"),
        ("length:scale=", "cannot read the reward"),
        ("none:scale=2", "has no parameter 'scale'; it takes completion"),
    ],
)
def test_what_is_wrong_with_a_function_is_said_in_one_sentence(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        one(name, solution="s")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_inside_of_the_user_s_file_keeps_its_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module_anywhere\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            load_rewards([f"{broken}:f"])


@pytest.mark.usefixtures("folder")
def test_solutions_are_checked_against_a_maximum_where_one_is_set() -> None:
    check_solutions(load_rewards(["my_rewards.py:length", "my_rewards.py:none"]), [{"solution": "x"}])
    check_solutions(load_rewards(["my_rewards.py:full"]), [{"solution": "x"}])
    with pytest.raises(UserError, match="needs the column 'gt'"):
        check_solutions(load_rewards(["my_rewards.py:needs_gt"]), [{"solution": "x"}])


def test_a_batch_reward_gets_messages_everywhere_as_in_training() -> None:
    def words(completions, **columns):
        return [float(len(completion[0]["content"].split())) for completion in completions]

    reward = custom_reward("words", words, {})
    assert reward.score("two words", {"solution": "x"}).value == 2.0
    assert reward([[{"role": "assistant", "content": "two words"}]], solution=["x"]) == [2.0]
