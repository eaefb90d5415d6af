"""Score saved replies with any rewards, without a model and without torch.

    python -m virft.score --reward_funcs accuracy_iou accuracy_confidence format replies.jsonl
    python -m virft.score --reward_funcs accuracy_iou --against accuracy_iou:threshold=0.75 replies.jsonl

Each line of the input is a JSON object with "completion" (the reply), "solution" and any other columns,
which the rewards get by name. For each there is one line on stdout:
{"id", "rewards": {name: value}, "reasons": {name: code}}; the id is the row's, or its line number where it
has none. With --against only the rows that differ are listed, with the other set's values and reasons under
"against". A summary is written to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from virft.errors import UserError
from virft.programs import run_program
from virft.rewards import Outcome, Reward, describe_rewards, load_rewards, scored

SAME = 1e-9
"""Values that differ by less are the same."""


def read_rows(lines: Iterable[bytes], source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of a JSON Lines file; blank lines are skipped.

    Raises:
        UserError: a line that is no JSON object, or without text in ``completion`` or ``solution``.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(
                line.decode("utf-8-sig"), parse_constant=_finite_number, parse_float=_finite_number
            )
        except RecursionError as error:
            raise UserError(f"{where}: nested too deeply") from error
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: must be an object with 'completion' and 'solution'")
        for column in ("completion", "solution"):
            if column not in row:
                raise UserError(f"{where}: no field {column!r}; the fields are {', '.join(row) or 'none'}")
        if not isinstance(row["solution"], str):
            raise UserError(f"{where}: 'solution' must be text")
        if not isinstance(row["completion"], str | list):
            raise UserError(f"{where}: 'completion' must be text, or a list of messages with 'content'")
        yield number, row


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number that JSON can hold")
    return number


def score_row(rewards: Sequence[Reward], row: dict[str, Any], where: str) -> dict[str, Outcome]:
    """Reward name -> outcome of one row; ``where`` it stands is for errors."""
    columns = {name: value for name, value in row.items() if name != "completion"}
    return {reward.name: scored(reward, row["completion"], columns, where) for reward in rewards}


def as_json(outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    """The part of an output line that tells of outcomes."""
    return {
        "rewards": {name: outcome.value for name, outcome in outcomes.items()},
        "reasons": {name: outcome.reason for name, outcome in outcomes.items()},
    }


def differ(first: dict[str, Outcome], second: dict[str, Outcome]) -> bool:
    """Whether two sets of rewards, compared in the order named, value a reply differently."""
    return any(
        (a.value is None) != (b.value is None) or (a.value is not None and abs(a.value - b.value) > SAME)
        for a, b in zip(first.values(), second.values(), strict=True)
    )


class Summary:
    """Means and reasons over the rows, for stderr."""

    def __init__(self, names: Sequence[str]) -> None:
        self.rows = 0
        self.sums = dict.fromkeys(names, 0.0)
        self.valued = Counter()
        self.reasons = {name: Counter() for name in names}

    def add(self, outcomes: dict[str, Outcome]) -> None:
        """Count one row."""
        self.rows += 1
        for name, outcome in outcomes.items():
            self.reasons[name][outcome.reason] += 1
            if outcome.value is not None:
                self.sums[name] += outcome.value
                self.valued[name] += 1

    def __str__(self) -> str:
        lines = [f"{self.rows} rows"]
        for name, total in self.sums.items():
            valued = self.valued[name]
            mean = f"mean {total / valued:.4f} over {valued} rows" if valued else "no value on any row"
            codes = ", ".join(f"{code} {count}" for code, count in self.reasons[name].most_common())
            lines.append(f"  {name}: {mean}; {codes}")
        return "\n".join(lines) + "\n"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags; the file may stand first or last, where it would otherwise be taken for one more reward."""
    parser = argparse.ArgumentParser(
        prog="python -m virft.score",
        usage="%(prog)s --reward_funcs NAME [NAME ...] [--against NAME [NAME ...]] replies.jsonl",
        description=__doc__,
        epilog=describe_rewards(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reward_funcs", nargs="+", default=[], metavar="NAME", help="rewards, see below")
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="NAME",
        help="a second set; it is compared with the first one by one",
    )
    parser.add_argument("replies", nargs="?", help="JSON Lines file, or - for stdin")
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(given)
    if parsed.replies is None:
        last = parsed.against if given[-1:] == parsed.against[-1:] else parsed.reward_funcs
        parsed.replies = last.pop() if last else None
    if parsed.replies is None or not parsed.reward_funcs or ("--against" in given and not parsed.against):
        parser.error(
            "name at least one reward after --reward_funcs (and --against), then the file of replies"
        )
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """The program; see the module's docstring."""
    options = parse_arguments(arguments)
    rewards = load_rewards(options.reward_funcs)
    others = load_rewards(options.against) if options.against else []
    if others and len(others) != len(rewards):
        raise UserError(
            f"--against names {len(others)} rewards and --reward_funcs {len(rewards)}: name as many, "
            "they are compared one by one"
        )
    if options.replies != "-" and not Path(options.replies).is_file():
        raise UserError(f"{options.replies}: no such file of replies")
    source = sys.stdin.buffer if options.replies == "-" else open(options.replies, "rb")  # noqa: SIM115
    output = sys.stdout
    summary = Summary([reward.name for reward in rewards])
    other_summary = Summary([reward.name for reward in others])
    different = 0
    # What a user's reward prints is for people; stdout holds nothing but JSON lines.
    with source, redirect_stdout(sys.stderr):
        for number, row in read_rows(source, options.replies):
            where = f"{options.replies}, line {number}"
            outcomes = score_row(rewards, row, where)
            summary.add(outcomes)
            line = {"id": row.get("id", number), **as_json(outcomes)}
            if others:
                second = score_row(others, row, where)
                other_summary.add(second)
                if not differ(outcomes, second):
                    continue
                different += 1
                line["against"] = as_json(second)
            output.write(json.dumps(line, allow_nan=False) + "\n")
    output.flush()
    if not summary.rows:
        raise UserError(f"{options.replies} holds no replies")
    sys.stderr.write(str(summary))
    if others:
        sys.stderr.write(f"against:\n{other_summary}{different} of {summary.rows} rows differ\n")


def _main() -> None:
    try:
        main()
    except BrokenPipeError:
        # Whoever read our output (head, less) has closed it: no error, but stdout must not be flushed again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_program(_main)
