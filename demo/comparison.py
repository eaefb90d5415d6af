"""The table, the numbers and the picture of a contest of SFT and RFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contest import BASE, CHOICES, Method
from matplotlib.figure import Figure
from report import COLOURS, save
from scores import columns, damaged, numbers, statistic

from virft.metrics import bootstrap

RESAMPLES = 1000
PALETTE = {"sft": COLOURS["sft"], "sft-self": "#8c6bb1", "rft": COLOURS["grpo"]}


def results(
    name: str,
    about: str,
    suite: str,
    task: str,
    methods: Sequence[Method],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything that ``results.json`` holds but the versions.

    Args:
        name, about: of the contest.
        suite, task: of the examination.
        methods: who competed.
        runs: one for each seed, from :func:`compare_sft_rft.run_seed`.

    Returns:
        ``sets``: name -> ``contestants`` {name: {"rows": one entry a seed, "mean", "deviation" by column}}
        and ``differences`` {"a over b": {"seeds": one interval each, "all": over all seeds}}; the trials.
    """
    sets = {}
    for chosen in runs[0]["sets"]:
        contests = [run["sets"][chosen] for run in runs]
        places = {BASE: [Path(run["base"]) for run in runs]}
        for contestant in contests[0]["contestants"]:
            places[contestant] = [Path(c["contestants"][contestant]["examination"]) for c in contests]
        sets[chosen] = {
            "contestants": {n: _summary(suite, task, where) for n, where in places.items()},
            "differences": _differences(suite, methods, places),
            "chosen": [
                {n: {k: c[k] for k in ("rate", "step", "validation")} for n, c in each["contestants"].items()}
                for each in contests
            ],
            "trials": [each["trials"] for each in contests],
        }
    return {
        "name": name,
        "about": about,
        "suite": suite,
        "task": task,
        "metric": next(iter(columns(suite, task))),
        "titles": {m.name: m.title for m in methods},
        "seeds": [run["seed"] for run in runs],
        "sets": sets,
        "rules": runs[0]["rules"],
        "seconds": [run["seconds"] for run in runs],
        "cpu_seconds": [run["cpu_seconds"] for run in runs],
    }


def _summary(suite: str, task: str, places: Sequence[Path]) -> dict[str, Any]:
    rows = [numbers(suite, task, place) for place in places]
    known = [name for name in columns(suite, task) if all(row[name] is not None for row in rows)]
    return {
        "rows": rows,
        "mean": {name: float(np.mean([row[name] for row in rows])) for name in known},
        # Of the sample, as papers give it; of one seed there is none.
        "deviation": {
            name: float(np.std([row[name] for row in rows], ddof=1)) if len(rows) > 1 else None
            for name in known
        },
    }


@dataclass(frozen=True)
class _Resampled:
    """A contestant's main number for one seed: on the examination itself, and on every resample of it."""

    units: int
    value: float
    values: np.ndarray

    @classmethod
    def of(cls, suite: str, place: Path) -> _Resampled:
        number, units = statistic(suite, place)
        values = bootstrap.resampled(number, units, RESAMPLES)
        return cls(units, number(np.ones(units, dtype=int)), values)


def _differences(
    suite: str, methods: Sequence[Method], places: Mapping[str, Sequence[Path]]
) -> dict[str, Any]:
    """Paired bootstrap of every method's best over the base, and of RFT over each SFT, end and best.

    All draws are the same for units of one number, so that what is subtracted belongs together: two
    contestants, and the same seeds' means where every seed sat the same examination.
    """
    pairs = [(f"{m.name}-best", BASE) for m in methods]
    pairs += [(f"rft-{c}", f"{m.name}-{c}") for m in methods if m.name != "rft" for c in CHOICES]
    # Two contestants may be one model.
    known: dict[Path, _Resampled] = {}
    for where in places.values():
        for place in where:
            if place not in known:
                known[place] = _Resampled.of(suite, place)
    for where in places.values():
        for place, base in zip(where, places[BASE], strict=True):
            answered, asked = known[place].units, known[base].units
            if answered != asked:
                raise damaged(place, f"{answered} answers, where the base has {asked}")
    found = {}
    for after, before in pairs:
        if after not in places or before not in places:
            continue
        ends = [[known[place] for place in places[name]] for name in (before, after)]
        seeds = [_change([b], [a]) for b, a in zip(*ends, strict=True)]
        same = len({each.units for end in ends for each in end}) == 1
        found[f"{after} over {before}"] = {"seeds": seeds, "all": _change(*ends) if same else None}
    return found


def _change(before: Sequence[_Resampled], after: Sequence[_Resampled]) -> dict[str, Any]:
    """The change of the mean over seeds, and its interval."""
    change = np.mean([each.value for each in after]) - np.mean([each.value for each in before])
    changes = np.mean([e.values for e in after], axis=0) - np.mean([e.values for e in before], axis=0)
    found = bootstrap.interval(float(change), changes)
    return {"change": found.change, "interval": [found.low, found.high]}


def table(found: Mapping[str, Any]) -> str:
    """Markdown: one row a contestant with mean and deviation over seeds, then the differences."""
    titles = {name: column.title for name, column in columns(found["suite"], found["task"]).items()}
    parts = []
    for name, each in found["sets"].items():
        shown = [c for c in titles if c in each["contestants"][BASE]["mean"]]
        head = "| " + " | ".join([name or "model", *(titles[c] for c in shown)]) + " |"
        lines = [head, "|---" * (len(shown) + 1) + "|"]
        for contestant, summary in each["contestants"].items():
            cells = [_cell(c, summary) for c in shown]
            lines.append("| " + " | ".join([_title(found, contestant), *cells]) + " |")
        metric = titles[found["metric"]]
        lines += ["", f"| {metric}: difference, 95 % interval | "
                  + " | ".join(f"seed {s}" for s in found["seeds"]) + " | all seeds |",
                  "|---" * (len(found["seeds"]) + 2) + "|"]  # fmt: skip
        for pair, change in each["differences"].items():
            after, before = pair.split(" over ")
            cells = [_shown(c) for c in (*change["seeds"], change["all"])]
            title = f"{_title(found, after)} over {_title(found, before)}"
            lines.append("| " + " | ".join([title, *cells]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _title(found: Mapping[str, Any], contestant: str) -> str:
    if contestant == BASE:
        return BASE
    method, choice = contestant.rsplit("-", 1)
    return f"{found['titles'][method]}, {choice}"


def _cell(column: str, summary: Mapping[str, Any]) -> str:
    mean, deviation = summary["mean"][column], summary["deviation"][column]
    if column == "unreadable":
        return f"{mean:.1f}"
    return f"{mean:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def _shown(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return ""
    low, high = change["interval"]
    return f"{change['change']:+.3f} [{low:+.3f}, {high:+.3f}]"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Left the validation rows while training, one line a seed (the chosen rate); right the examination.

    With several row sets the right panel has them along its axis; the left one shows the last of them.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_validation(left, found)
    _draw_examination(right, found)
    figure.suptitle(f"{found['name']}: {found['about']}", fontsize=10)
    save(figure, path)


def _draw_validation(axes: Any, found: Mapping[str, Any]) -> None:
    name, last = list(found["sets"].items())[-1]
    for trials, chosen in zip(last["trials"], last["chosen"], strict=True):
        for method in found["titles"]:
            rate = chosen[f"{method}-best"]["rate"]
            trial = next(t for t in trials if (t["method"], t["rate"]) == (method, rate))
            steps = [int(step) for step in trial["values"]]
            axes.plot(steps, list(trial["values"].values()), color=_colour(method), alpha=0.8, linewidth=1.2)
    for method, title in found["titles"].items():
        axes.plot([], [], color=_colour(method), label=title)
    of = f" ({name})" if name else ""
    axes.set(title=f"validation rows{of}, each seed's best rate", xlabel="step", ylabel=found["metric"])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)


def _draw_examination(axes: Any, found: Mapping[str, Any]) -> None:
    metric, sets = found["metric"], found["sets"]
    contestants = list(next(iter(sets.values()))["contestants"])
    width = 0.8 / len(contestants)
    for place, contestant in enumerate(contestants):
        method, _, choice = contestant.rpartition("-")
        colour = _colour(method) if method else COLOURS["base"]
        across = np.arange(len(sets)) + (place - (len(contestants) - 1) / 2) * width
        summaries = [each["contestants"][contestant] for each in sets.values()]
        heights = [s["mean"][metric] for s in summaries]
        face = colour if choice != "end" else "white"
        label = _title(found, contestant)
        axes.bar(across, heights, width=0.9 * width, facecolor=face, edgecolor=colour, label=label)
        for x, summary in zip(across, summaries, strict=True):
            points = [row[metric] for row in summary["rows"]]
            axes.plot([x] * len(points), points, "k.", markersize=3)
    axes.set_xticks(range(len(sets)), list(sets))
    axes.set(title="examination: mean, and each seed", ylabel=metric)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    # Bars from zero would hide what is compared; the axis says where it begins.
    lowest = min(row[metric] for s in sets.values() for c in s["contestants"].values() for row in c["rows"])
    highest = max(row[metric] for s in sets.values() for c in s["contestants"].values() for row in c["rows"])
    margin = 0.15 * (highest - lowest) + 0.01
    axes.set_ylim(max(0.0, lowest - margin), min(1.0, highest + 3 * margin))


def _colour(method: str) -> str:
    return PALETTE.get(method, "#333333")
