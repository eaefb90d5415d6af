"""SFT against RFT: who is chosen, what the table says, and that one command does it all and goes on."""

from __future__ import annotations

import json
import os
import shutil
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
    import compare_sft_rft
    import comparison
    import contest
    import presets
    import scores
    import tasks

    yield SimpleNamespace(
        program=compare_sft_rft,
        contest=contest,
        comparison=comparison,
        presets=presets,
        scores=scores,
        tasks=tasks,
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


def run(root: Path, *flags: object, folder: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(root / "demo" / "compare_sft_rft.py"), *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


OWN = {
    "--task": "detection",
    "--model": "m",
    "--rows": "rows.jsonl",
    "--validation": "rows.jsonl",
    "--suite_flags": "x",
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--validation": ""}, "--validation missing"),
        ({"--model": "", "--rows": ""}, "--model, --rows missing"),
        ({"--rows": "no.jsonl"}, "no.jsonl: no such file"),
        ({"--rows": "{other}.csv"}, "{other}.csv: no such file"),
        ({"--rows": "rows-{seed}.jsonl", "--seeds": "0 1"}, "rows-1.jsonl: no such file"),
        ({"--shots": "3"}, "--shots is for the digit scans"),
        ({"--test": "rows.jsonl"}, "give one examination"),
        (
            {"--test": "rows.jsonl", "--suite_flags": "", "--suite": "lvis"},
            "--suite is for a suite's own data",
        ),
        ({"--suite": "lisa"}, "choose coco or lvis"),
        ({"--train_flags": "--run_name 'a"}, "--train_flags: "),
        ({"--processes": "3"}, "--rows_per_step 16 must be a multiple of the 3 processes"),
        ({"--eval_every": "3"}, "--eval_every 3"),
        ({"--sft_rates": "1e-5 1e-5"}, "--sft_rates: 1e-5 stands there twice"),
        ({"--seeds": "0 0"}, "--seeds: 0 stands there twice"),
        ({"--output": "rows.jsonl"}, "rows.jsonl is a file"),
    ],
)
def test_flags_that_contradict_are_one_sentence(
    demo: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "rows-0.jsonl"):
        (tmp_path / name).touch()
    several = ("--seeds", "--sft_rates")
    words = {"--output": "out"} | OWN | changes
    line = [w for k, v in words.items() if v for w in (k, *(v.split() if k in several else [v]))]
    with pytest.raises(UserError) as raised:
        demo.program.compare(demo.program.parser().parse_args(line))
    assert says in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value"), [("--steps", "0"), ("--seeds", "-1"), ("--rft_rates", "fast"), ("--batch_size", "x")]
)
def test_numbers_are_numbers(
    demo: SimpleNamespace, capsys: pytest.CaptureFixture, flag: str, value: str
) -> None:
    with pytest.raises(SystemExit):
        demo.program.parser().parse_args([f"{flag}={value}"])
    assert f"argument {flag}: '{value}' is no" in capsys.readouterr().err


def own_task(demo: SimpleNamespace, *more: str):
    words = [word for pair in OWN.items() for word in pair]
    return demo.tasks.from_flags(demo.program.parser().parse_args([*words, *more]), 0)


def test_a_file_that_changed_under_its_name_is_another_one(
    demo: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "x"):
        (tmp_path / name).write_text("old")

    def keys() -> tuple[str, str]:
        task = own_task(demo)
        rules = task.rules
        assert rules.suite_content in rules.of_examination().values()
        assert rules.suite_content not in rules.of_training().values()
        return demo.tasks._content(["rows.jsonl"]), rules.suite_content

    before = keys()
    assert keys() == before
    (tmp_path / "rows.jsonl").write_text("new")
    assert keys()[0] != before[0] and keys()[1] == before[1]
    (tmp_path / "x").write_text("new")
    assert keys()[1] != before[1]


def test_every_file_is_checked_by_itself_and_against_the_others(
    demo: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "v.jsonl", "t.jsonl"):
        (tmp_path / name).touch()
    commands = []
    journal = SimpleNamespace(
        stage=lambda *_: (None, None),
        run=lambda command, *_: commands.append([word for word in command if word.endswith(".jsonl")]),
        finish=lambda: None,
    )
    task = own_task(demo, "--validation", "v.jsonl", "--test", "t.jsonl", "--suite_flags", "")
    task.prepare(journal, None)
    assert sorted(commands) == [
        ["rows.jsonl", "t.jsonl"],
        ["rows.jsonl", "v.jsonl"],
        ["t.jsonl"],
        ["v.jsonl", "t.jsonl"],
    ]


def test_damaged_scores_name_the_folder_to_remove(demo: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    for place, stage in (("base", "base"), ("examination/rft-end", "examination")):
        (tmp_path / place).mkdir(parents=True)
        with pytest.raises(UserError, match="missing or damaged") as raised:
            demo.scores.numbers("coco", "detection", tmp_path / place)
        assert f"remove the folder {tmp_path / stage} and" in str(raised.value)


def test_replies_that_were_lost_since_are_noticed(
    demo: SimpleNamespace, examined: dict[str, Path], tmp_path: Path
) -> None:
    methods = (demo.presets.sft("1e-5"), demo.presets.rft("1e-5"))
    known = {"base": 5, "sft-best": 5, "rft-best": 4}

    def statistic(_: str, place: Path):
        return (lambda weights: float(weights.sum())), known[place.name]

    places = {name: [tmp_path / name] for name in known}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.comparison, "statistic", statistic)
        with pytest.raises(UserError, match="rft-best: 4 answers, where the base has 5; remove the folder"):
            demo.comparison._differences("rows", methods, places)
    copy = shutil.copytree(examined["rft"], tmp_path / "rft")
    (copy / "replies.meta.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="the protocol of its replies is missing"):
        demo.scores.statistic("rows", copy)


def test_a_table_of_another_contest_goes_before_this_one_begins(
    demo: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    task = own_task(demo)
    for about, left in ((task.about, True), ("another model", False)):
        said = {"name": task.name, "about": about, "suite": task.rules.suite}
        (tmp_path / "results.json").write_text(json.dumps(said))
        (tmp_path / "table.md").touch()
        demo.program._forget_other_results(tmp_path, task)
        assert (tmp_path / "table.md").exists() is left
        assert (tmp_path / "results.json").exists() is left


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

    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "$ " not in again.stdout, "nothing is left to run"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_and_rows_of_ones_own(root: Path, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    """Grounding, examined by LISA's suite, then by rows: another examination is no reason to train again.

    All paths are relative to the folder in which the program is started.
    """
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
        *("--task", "grounding", "--model", tiny_qwen2_vl, "--rows", "rows-{seed}.jsonl"),
        *("--validation", "validation.jsonl", "--seeds", 0, "--processes", 1),
        *("--steps", 2, "--eval_every", 1, "--rows_per_step", 2, "--max_completion_length", 8),
        *("--sft_rates", "1e-4", "--rft_rates", "1e-4", "--rft_flags", "--num_generations 2"),
        *("--train_flags", "--bf16 false", "--output", "out"),
    ]
    for examination, trainings in (
        (("--suite_flags", f"--annotations {split.name}"), 2),
        (("--test", "test.jsonl"), 0),
    ):
        done = run(root, *contest, *examination, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("torchrun") == trainings
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results["metric"] == "miou"
        names = ["base", "sft-end", "sft-best", "rft-end", "rft-best"]
        assert list(results["sets"][""]["contestants"]) == names
    leaking = run(root, *contest, "--test", "rows-0.jsonl", folder=tmp_path)
    assert leaking.returncode == 1 and "take it out of one set" in leaking.stderr
