"""The quick start: its stages are done once and continued, its report counts rightly, its short mode runs."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from virft.data.digits import Scenes, write
from virft.errors import UserError
from virft.types import Prediction

NUMBERS = {"mean_iou", "map", "ap50", "unreadable"}


@pytest.fixture(scope="module")
def demo(root: Path) -> Path:
    sys.path.insert(0, str(root / "demo"))
    yield root / "demo"
    sys.path.remove(str(root / "demo"))


@pytest.fixture(scope="module")
def stages(demo: Path) -> ModuleType:
    import stages

    return stages


@pytest.fixture(scope="module")
def report(demo: Path) -> ModuleType:
    import report

    return report


def journal(stages: ModuleType, folder: Path):
    plan = [stages.Stage(name, name.title(), "why", 1.0) for name in ("first", "second")]
    return stages.Journal(folder, plan, folder)


def test_a_stage_is_done_once_and_again_when_an_earlier_one_changed(
    stages: ModuleType, tmp_path: Path
) -> None:
    def run(setting: int) -> list[bool]:
        with journal(stages, tmp_path).opened() as book:
            skipped = []
            for name in ("first", "second"):
                folder, done = book.stage(name, {"setting": setting if name == "first" else 0})
                skipped.append(done is not None)
                if done is None:
                    folder.mkdir(exist_ok=True)
                    (folder / f"made-with-{setting}").touch()
                    book.finish({"setting": setting})
            return skipped

    assert run(1) == [False, False]
    assert run(1) == [True, True]
    assert run(2) == [False, False]
    assert [p.name for p in (tmp_path / "second").iterdir()] == ["made-with-2"]


def test_an_unfinished_stage_keeps_its_folder(stages: ModuleType, tmp_path: Path) -> None:
    with journal(stages, tmp_path).opened() as book:
        folder, _ = book.stage("first", {})
        folder.mkdir()
        (folder / "checkpoint").touch()
    with journal(stages, tmp_path).opened() as book:
        folder, done = book.stage("first", {})
        assert done is None and (folder / "checkpoint").exists()
    with journal(stages, tmp_path).opened() as book:
        folder, done = book.stage("first", {"other": True})
        assert done is None and not folder.exists()


def finished_once(stages: ModuleType, folder: Path) -> tuple[Path, Path]:
    """A stage that made a file; its folder and its marker."""
    with journal(stages, folder).opened() as book:
        made, _ = book.stage("first", {})
        made.mkdir()
        (made / "weights").touch()
        book.finish({"number": 1})
    return made, folder / "stages" / "first.json"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 3}'])
def test_a_damaged_marker_means_once_more(stages: ModuleType, tmp_path: Path, damage: str) -> None:
    made, marker = finished_once(stages, tmp_path)
    marker.write_text(damage)
    with journal(stages, tmp_path).opened() as book:
        assert book.stage("first", {}) == (made, None)
    assert not made.exists()


def test_a_finished_stage_whose_folder_is_gone_is_done_once_more(stages: ModuleType, tmp_path: Path) -> None:
    made, _ = finished_once(stages, tmp_path)
    with journal(stages, tmp_path).opened() as book:
        assert book.stage("first", {})[1] == {"number": 1}
    shutil.rmtree(made)
    with journal(stages, tmp_path).opened() as book:
        assert book.stage("first", {})[1] is None


def test_what_another_program_made_is_never_removed(stages: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "thesis.tex").touch()
    # Said before the first stage has worked for minutes.
    with pytest.raises(UserError, match="another --output"), journal(stages, tmp_path).opened():
        pass
    assert (tmp_path / "second" / "thesis.tex").exists()


def test_what_the_user_must_mend_is_one_sentence(
    stages: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results.json")

    with pytest.raises(SystemExit) as ended:
        stages.run_to_the_end(full)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: results.json: No space left on device")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="--output"):
            stages.checked_output(place)
    (tmp_path / "seed-0").touch()
    with pytest.raises(UserError, match="seed-0 is a file"), journal(stages, tmp_path / "seed-0").opened():
        pass


def test_a_small_number_is_read_with_its_exponent(demo: Path) -> None:
    import miniature

    assert re.findall(miniature.validation_pattern("map"), "{'eval_map': '1.5e-05'}") == ["1.5e-05"]


def test_two_runs_in_one_folder_are_refused(stages: ModuleType, tmp_path: Path) -> None:
    with (
        journal(stages, tmp_path).opened(),
        pytest.raises(UserError, match="another run"),
        journal(stages, tmp_path).opened(),
    ):
        pass


def test_a_program_is_shown_followed_and_logged(
    stages: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    code = "import sys; print('hello'); sys.stderr.write('\\r 3/7 [00:01<00:02]');print({'loss': '0.25'})"
    with journal(stages, tmp_path).opened() as book:
        book.stage("first", {})
        log = book.run([sys.executable, "-c", code], "log", 7, watch={"loss": r"'loss'?: '?([0-9.]+)"})
    shown = capfd.readouterr().out
    assert f"$ {Path(sys.executable).name} -c" in shown
    assert "3/7" in shown and "loss 0.25" in shown
    assert log == tmp_path / "logs" / "log.log" and "hello" in log.read_text()


def test_a_program_that_fails_shows_the_end_of_what_it_said(stages: ModuleType, tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('error: no such file\\n'); sys.exit(2)"
    with journal(stages, tmp_path).opened() as book:
        book.stage("first", {})
        with pytest.raises(
            stages.StageFailed, match=r"(?s)'first' failed \(exit code 2\).*no such file.*log\.log"
        ):
            book.run([sys.executable, "-c", code], "log", 1)
        _, done = journal(stages, tmp_path).stage("first", {})
    assert done is None


def test_torchruns_page_about_a_failure_does_not_hide_it(stages: ModuleType, tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text("raise RuntimeError('the cause')")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", program]
    with journal(stages, tmp_path).opened() as book:
        book.stage("first", {})
        with pytest.raises(stages.StageFailed, match="RuntimeError: the cause") as raised:
            book.run(command, "log", 1)
    assert "ChildFailedError" not in str(raised.value)


def test_the_report_reads_replies_as_the_library_does(report: ModuleType, tmp_path: Path) -> None:
    folder = write(tmp_path / "digits", {"heldout": Scenes(4, "heldout")})
    rows = [json.loads(line) for line in (folder / "heldout.jsonl").read_text().splitlines()]
    answers = [
        rows[0]["completion"],
        "<answer>[{'Position': [0, 0, 10, 10], 'Confidence': 0.9}]</answer>",
        "I cannot see any",
        rows[3]["completion"].replace("}]", "}, {'Position': [0, 0, 20, 20], 'Confidence': 0.10}]"),
    ]
    coco = json.loads((folder / "heldout.json").read_text())
    category = {a["image_id"]: a["category_id"] for a in coco["annotations"]}
    predictions = [
        Prediction(
            id=str(n),
            reply=answer,
            space="norm1000",
            meta={"image_id": n + 1, "category_id": category[n + 1]},
        )
        for n, answer in enumerate(answers)
    ]
    scenes = report.replies(list(reversed(predictions)), folder / "heldout.json")
    assert [len(scene.found) for scene in scenes] == [1, 1, 0, 2]
    assert scenes[0].found[0] == pytest.approx(scenes[0].truths[0])
    assert [scene.iou for scene in scenes] == pytest.approx([1.0, 0.0, 0.0, 0.5], abs=0.02)
    assert [scene.category for scene in scenes] == ["zero", "one", "two", "three"]
    with pytest.raises(ValueError, match="exactly one prediction"):
        report.replies(predictions[1:], folder / "heldout.json")


def test_the_interval_is_paired_and_covers_the_mean(report: ModuleType) -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(size=400)
    change = report.gain(before, before + rng.normal(0.05, 0.1, size=400))
    low, high = change["interval"]
    assert low < change["mean_iou"] < high
    # Standard error .1 / sqrt(400) = .005: unpaired it would be some .02.
    assert high - low == pytest.approx(2 * 1.96 * 0.005, rel=0.15)
    assert low > 0
    assert report.gain(before, before)["interval"] == [0.0, 0.0]


def start(root: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, str(root / "demo" / "quickstart.py"), "--short", "--seed", "1"]
    return subprocess.Popen(
        [*command, "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_short_mode_interrupted_and_continued(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    process = start(root, folder)
    deadline = time.monotonic() + 600
    while not (folder / "stages" / "model.json").exists() or not (folder / "warmup").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "continues from here" in said
    assert not (folder / "results.json").exists()

    process = start(root, folder)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert said.count("done before") == 2
    for words in ("src/virft/sft.py", "src/virft/grpo.py", "coco_evaluation.py", "mean IoU", "95 % interval"):
        assert words in said
    results = json.loads((folder / "results.json").read_text())
    assert results["seed"] == 1 and results["scenes"] == 20
    for name in ("base", "sft", "grpo"):
        assert results[name].keys() == NUMBERS
        assert all(0 <= results[name][key] <= 1 for key in NUMBERS - {"unreadable"})
    assert len(results["gain"]["grpo_over_base"]["interval"]) == 2
    for picture in ("rewards", "comparison", "before_and_after"):
        with Image.open(folder / f"{picture}.png") as image:
            assert min(image.size) > 300

    before = (folder / "grpo" / "model.safetensors").stat().st_mtime_ns
    process = start(root, folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and said.count("done before") == 8
    assert (folder / "grpo" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed", "-1"], "'-1' is no whole number from 0 on"),
        (["--seeds", "0", "0"], "--seeds: 0 stands there twice"),
        (["--output", "FILE"], "FILE is a file"),
    ],
)
def test_bad_flags_are_one_sentence(root: Path, tmp_path: Path, flags: list[str], says: str) -> None:
    (tmp_path / "FILE").write_text("in the way")
    command = [sys.executable, str(root / "demo" / "quickstart.py"), "--short", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: " in done.stderr and says in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["FILE"]


def set_up(root: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """setup.sh by itself in a folder, started from elsewhere."""
    folder.mkdir(exist_ok=True)
    shutil.copy(root / "setup.sh", folder)
    script = folder / "setup.sh"
    return subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, env={**os.environ, **variables}
    )


def test_setup_takes_the_python_that_was_asked_for_or_none(root: Path, tmp_path: Path) -> None:
    done = set_up(root, tmp_path / "with space", PYTHON="python2.7")
    assert done.returncode == 2
    assert done.stderr.startswith("error: PYTHON=python2.7 is no Python 3.11 or later")
    chosen = tmp_path / "my python" / "python3"
    chosen.parent.mkdir()
    # New enough, but it cannot make an environment.
    chosen.write_text('#!/bin/sh\n[ "$1" = -c ]\n')
    chosen.chmod(0o755)
    done = set_up(root, tmp_path / "with space", PYTHON=str(chosen))
    assert done.returncode == 2 and done.stderr.startswith(f"error: '{chosen} -m venv' failed")


def test_setup_refuses_an_environment_that_was_moved(root: Path, tmp_path: Path) -> None:
    made = tmp_path / "old" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    made.parent.rename(tmp_path / "new")
    done = set_up(root, tmp_path / "new")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: .venv was made as {made} and then moved")
