"""SFT against RFT: who is chosen, what the table says, and that one command does it all and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from suite_cases import image, lisa_split

from virft.data.digits import Scenes, write
from virft.errors import UserError
from virft.evaluate import coco
from virft.parsing import parse_detections
from virft.types import Prediction


@pytest.fixture(scope="module")
def demo(root: Path) -> SimpleNamespace:
    """The modules of the comparison."""
    sys.path.insert(0, str(root / "demo"))
    import comparison
    import contest
    import presets
    import scores
    import self_labelled

    yield SimpleNamespace(
        contest=contest, comparison=comparison, presets=presets, scores=scores, self_labelled=self_labelled
    )
    sys.path.remove(str(root / "demo"))


def trial(demo: SimpleNamespace, rate: str, *values: float):
    return demo.contest.Trial("sft", rate, Path(rate), {10 * n: value for n, value in enumerate(values)})


def choose(demo: SimpleNamespace, *trials) -> dict[str, tuple[str, int, str]]:
    contest = demo.contest.Contest(None, None, None, (), demo.contest.RowSet("", "", ""), "base", 0)
    return {c.name: (c.rate, c.step, c.model) for c in contest.choose(trials)}


def test_end_and_best_are_chosen_over_all_rates(demo: SimpleNamespace) -> None:
    chosen = choose(demo, trial(demo, "slow", 0.2, 0.3, 0.4), trial(demo, "fast", 0.2, 0.7, 0.1))
    assert chosen == {
        "sft-end": ("slow", 20, "slow/checkpoint-20"),
        "sft-best": ("fast", 10, "fast"),
    }


def test_a_method_that_never_helps_has_the_base_as_its_best(demo: SimpleNamespace) -> None:
    chosen = choose(demo, trial(demo, "1e-5", 0.5, 0.5, 0.4))
    assert chosen["sft-best"] == ("1e-5", 0, "base")
    assert chosen["sft-end"] == ("1e-5", 20, "1e-5/checkpoint-20")


def test_rules_that_do_not_fit_are_refused(demo: SimpleNamespace) -> None:
    machine = SimpleNamespace(processes=2)
    rules = demo.contest.Rules("detection", 20, 10, 16, 8, 48, 8, (), "coco", ())
    rules.check(machine)
    with pytest.raises(UserError, match="--eval_every 15"):
        replace(rules, every=15).check(machine)
    with pytest.raises(UserError, match="--rows_per_step 12"):
        replace(rules, rows_per_step=12).check(machine)


def test_every_preset_can_be_made(demo: SimpleNamespace) -> None:
    for preset in demo.presets.PRESETS.values():
        assert preset.about and preset.methods
        for kind in (preset, preset.short()):
            splits = kind.splits(0)
            pools = {
                splits[name].pool for name in ("warmup", "validation", "heldout", f"{kind.shots[0]}-shot")
            }
            assert len(pools) == 4, "no scan may be in two splits"
            assert splits["validation"].seed != splits["warmup_validation"].seed
            assert kind.steps % kind.every == 0


@pytest.fixture(scope="module")
def examined(demo: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three contestants' replies to 40 scenes, made by hand and scored by the COCO program."""
    folder = tmp_path_factory.mktemp("examined")
    digits = write(folder / "digits", {"heldout": Scenes(40, "heldout")})
    truth = json.loads((digits / "heldout.json").read_text())
    rows = [json.loads(line) for line in (digits / "heldout.jsonl").read_text().splitlines()]
    blank = "<think></think><answer>[{'Position': [0, 0, 1, 1], 'Confidence': 0.9}]</answer>"
    places = {}
    for name, right in (("base", 10), ("sft", 20), ("rft", 40)):
        place = places[name] = folder / name
        place.mkdir()
        lines = [
            Prediction(
                str(n),
                row["completion"] if n < right else blank,
                "norm1000",
                meta={"image_id": n + 1, "category_id": truth["annotations"][n]["category_id"]},
            ).to_json()
            for n, row in enumerate(rows)
        ]
        (place / demo.scores.REPLIES).write_text("".join(json.dumps(line) + "\n" for line in lines))
        coco.score(
            coco.ScoreSettings(
                str(digits / "heldout.json"),
                str(place / demo.scores.REPLIES),
                str(place / "replies.scores.json"),
            )
        )
    return places


def test_the_table_holds_the_scorers_numbers_and_the_pairs(
    demo: SimpleNamespace, examined: dict[str, Path], tmp_path: Path
) -> None:
    methods = (demo.presets.sft("1e-5"), demo.presets.rft("1e-5"))
    contestants = {
        f"{method}-{choice}": {
            "examination": str(examined[method]),
            "rate": "1e-5",
            "step": 2,
            "validation": 0.5,
        }
        for method in ("sft", "rft")
        for choice in ("end", "best")
    }
    trials = [{"method": m, "rate": "1e-5", "values": {"0": 0.1, "2": 0.5}} for m in ("sft", "rft")]
    runs = [
        {
            "seed": seed,
            "base": str(examined["base"]),
            "sets": {"1-shot": {"contestants": contestants, "trials": trials}},
            "rules": {},
            "seconds": {},
            "cpu_seconds": {},
        }
        for seed in (0, 1)
    ]
    found = demo.comparison.results("preset", "about", "coco", "detection", methods, runs)
    shot = found["sets"]["1-shot"]
    scores = {n: json.loads((p / "replies.scores.json").read_text()) for n, p in examined.items()}
    assert shot["contestants"]["rft-best"]["mean"]["map"] == scores["rft"]["AP"]
    assert shot["contestants"]["base"]["deviation"]["mean_iou"] == 0.0
    change = shot["differences"]["rft-best over sft-best"]
    assert change["all"]["change"] == pytest.approx(scores["rft"]["AP"] - scores["sft"]["AP"], abs=1e-9)
    assert change["seeds"][0]["interval"][0] > 0
    table = demo.comparison.table(found)
    assert f"| RFT, best | {scores['rft']['AP']:.3f} ± 0.000" in table
    assert "| RFT, best over SFT, best |" in table and "all seeds" in table
    demo.comparison.draw(found, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert min(image.size) > 300


def run(root: Path, *flags: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(root / "demo" / "compare_sft_rft.py"), *map(str, flags)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--model", "m", "--rows", "rows.jsonl", "--task", "detection"],
            "--validation missing",
        ),
        (
            [
                "--model",
                "m",
                "--rows",
                "no.jsonl",
                "--validation",
                "no.jsonl",
                "--task",
                "detection",
                "--suite_flags",
                "x",
            ],
            "no.jsonl: no such file",
        ),
        (["--short", "--eval_every", "3"], "--eval_every 3"),
        (
            [
                "--short",
                "--model",
                "m",
                "--rows",
                "r",
                "--validation",
                "v",
                "--task",
                "detection",
                "--suite_flags",
                "x",
            ],
            "--short is for the digit scans",
        ),
    ],
)
def test_bad_flags_are_one_sentence(root: Path, tmp_path: Path, flags: list[str], says: str) -> None:
    done = run(root, *flags, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_short_mode_killed_and_continued(demo: SimpleNamespace, root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(root / "demo" / "compare_sft_rft.py"), "--short", "--seeds", "1"]
    command += ["--processes", "1", "--preset", "confidence", "--output", str(tmp_path / "out")]
    seed = tmp_path / "out" / "seed-1"
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (seed / "16-shot-sft-3e-6" / "checkpoint-2").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done before") >= 4
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    contestants = results["sets"]["16-shot"]["contestants"]
    assert list(contestants) == [
        *("base", "sft-end", "sft-best", "sft-self-end", "sft-self-best", "rft-end", "rft-best")
    ]
    assert all("map_likelihood" in c["mean"] for c in contestants.values())
    assert all(set(t["values"]) == {"0", "2", "4"} for t in results["sets"]["16-shot"]["trials"][0])
    for name in ("table.md", "comparison.png"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    # The rival's labels claim .9 or .1, the given ones nothing but .9.
    for folder, known in (("digits", {0.9}), ("16-shot-self-labels", {0.1, 0.9})):
        lines = (seed / folder / "16-shot.jsonl").read_text().splitlines()
        replies = [parse_detections(json.loads(line)["completion"]) for line in lines]
        assert {d.score for reply in replies for d in reply.value} <= known

    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "$ " not in again.stdout, "nothing is left to run"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_and_rows_of_ones_own(root: Path, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    """Grounding, examined by LISA's suite, then by rows: another examination is no reason to train again."""
    split = lisa_split(tmp_path / "val")
    build = [sys.executable, str(root / "dataset" / "build_grounding.py")]
    colours = {"rows-0": ("red", "green", "blue"), "validation": ("cyan", "pink", "gold")}
    colours["test"] = ("black", "white", "brown")
    for name, chosen in colours.items():
        images = lisa_split(tmp_path / name)
        for picture, colour in zip(sorted(images.glob("*.jpg")), chosen, strict=True):
            image(picture, colour)
        flags = ["--split", str(images), "--output", str(tmp_path / f"{name}.jsonl")]
        subprocess.run([*build, *flags], check=True, capture_output=True)
    contest = [
        *("--task", "grounding", "--model", tiny_qwen2_vl, "--rows", tmp_path / "rows-{seed}.jsonl"),
        *("--validation", tmp_path / "validation.jsonl", "--seeds", 0, "--processes", 1),
        *("--steps", 2, "--eval_every", 1, "--rows_per_step", 2, "--max_completion_length", 8),
        *("--sft_rates", "1e-4", "--rft_rates", "1e-4", "--rft_flags", "--num_generations 2"),
        *("--train_flags", "--bf16 false", "--output", tmp_path / "out"),
    ]
    for examination, trainings in (
        (("--suite_flags", f"--annotations {split}"), 2),
        (("--test", tmp_path / "test.jsonl"), 0),
    ):
        done = run(root, *contest, *examination)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("torchrun") == trainings
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results["metric"] == "miou"
        names = ["base", "sft-end", "sft-best", "rft-end", "rft-best"]
        assert list(results["sets"][""]["contestants"]) == names
    leaking = run(root, *contest, "--test", tmp_path / "rows-0.jsonl")
    assert leaking.returncode == 1 and "take it out of one set" in leaking.stderr
