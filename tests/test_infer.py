"""Inference over processes: the same predictions, nothing lost or doubled, whatever interrupts it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from virft import infer, unfinished_run
from virft.errors import UserError
from virft.inference_settings import InferenceSettings
from virft.predictions import load_meta, load_predictions
from virft.types import Prediction, Sample


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small images of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        Image.new("RGB", (56 + 28 * i, 84), (40 * i, 90, 200 - 30 * i)).save(folder / f"{i}.png")
    return folder


def questions(pictures: Path, a_picture: int = 3) -> list[Sample]:
    """Several questions about each image."""
    return [
        Sample(f"{i}/{q}", (str(pictures / f"{i}.png"),), f"Question {q}: say it.", meta={"image": i})
        for i in range(6)
        for q in range(a_picture)
    ]


def settings(model: Path, folder: Path, **changed: object) -> InferenceSettings:
    """Short replies on a CPU into ``folder``."""
    fields = {"device": "cpu", "max_new_tokens": 6, "batch_size": 4} | changed
    return InferenceSettings(model_path=str(model), output=str(folder / "predictions.jsonl"), **fields)


def test_predictions_in_order_with_their_protocol(
    tiny_qwen2_5_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    samples = questions(pictures)
    chosen = settings(tiny_qwen2_5_vl, tmp_path, max_pixels=84 * 84)
    predictions = infer.run(
        samples, chosen, {"suite": "a test"}, read=lambda reply: "ok" if "a" in reply else "dull"
    )
    assert [p.id for p in predictions] == [s.id for s in samples]
    assert predictions == load_predictions(chosen.output)
    meta = load_meta(chosen.output)
    assert meta["suite"] == "a test"
    assert (meta["coordinates"], meta["checkpoint_coordinates"]) == ("abs_resized", "abs_resized")
    assert (meta["min_pixels"], meta["max_pixels"]) == (56 * 56, 84 * 84)
    assert meta["decoding"] == {"temperature": 0.0, "greedy": True, "max_new_tokens": 6, "seed": None}
    assert meta["dtype"] == "float32"
    assert meta["questions"] == len(samples)
    assert meta["unreadable"].get("dull", 0) == sum("a" not in p.reply for p in predictions)
    assert {"torch", "transformers", "virft", "python"} <= set(meta["versions"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.jsonl", "predictions.meta.json"]


def test_a_finished_run_is_not_asked_again(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = questions(pictures)
    first = infer.run(samples, settings(tiny_qwen2_vl, tmp_path))
    monkeypatch.setattr(infer, "make_engine", None)
    assert infer.run(samples, settings(tiny_qwen2_vl, tmp_path, batch_size=1)) == first


@pytest.mark.parametrize(
    "changed",
    [
        {"max_new_tokens": 7},
        {"temperature": 0.5},
        {"dtype": "bfloat16"},
        {"system": "Be brief."},
        {"logprobs": True},
    ],
)
def test_other_settings_are_refused(
    changed: dict[str, object], tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    samples = questions(pictures, 1)
    infer.run(samples, settings(tiny_qwen2_vl, tmp_path))
    (name,) = changed
    with pytest.raises(UserError, match=f"{name}: .* then, .* now.*--overwrite"):
        infer.run(samples, settings(tiny_qwen2_vl, tmp_path, **changed))
    with pytest.raises(UserError, match="samples: .* then, .* now"):
        infer.run(samples[1:], settings(tiny_qwen2_vl, tmp_path))
    again = infer.run(samples, settings(tiny_qwen2_vl, tmp_path, overwrite=True, **changed))
    assert [p.id for p in again] == [s.id for s in samples]


def test_a_run_from_before_a_setting_existed_is_a_run_without_it(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    samples = questions(pictures, 1)
    first = infer.run(samples, settings(tiny_qwen2_vl, tmp_path))
    path = tmp_path / "predictions.meta.json"
    meta = json.loads(path.read_text())
    del meta["fingerprint"]["logprobs"]
    path.write_text(json.dumps(meta))
    assert infer.run(samples, settings(tiny_qwen2_vl, tmp_path)) == first
    with pytest.raises(UserError, match="logprobs: False then, True now"):
        infer.run(samples, settings(tiny_qwen2_vl, tmp_path, logprobs=True))


def test_logprobs_survive_the_files_of_a_run(tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path) -> None:
    samples = questions(pictures, 1)
    asked = settings(tiny_qwen2_vl, tmp_path, logprobs=True)
    predictions = infer.run(samples, asked)
    assert predictions == load_predictions(asked.output)
    assert all(len(p.logprobs) == len(p.token_ends) == p.tokens for p in predictions)
    assert load_meta(asked.output)["logprobs"] is True
    line = predictions[0].to_json()
    for odd in ({"logprobs": None}, {"token_ends": [1]}):
        Path(asked.output).write_text(json.dumps(line | odd) + "\n")
        with pytest.raises(UserError, match=r"line 1: .*one number for each token"):
            load_predictions(asked.output)
    plain = infer.run(samples, settings(tiny_qwen2_vl, tmp_path / "plain"))
    assert [p.reply for p in plain] == [p.reply for p in predictions]
    assert not {"logprobs", "token_ends"} & set(plain[0].to_json())


def test_another_model_in_the_same_folder_is_refused(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    import shutil

    model = shutil.copytree(tiny_qwen2_vl, tmp_path / "model")
    samples = questions(pictures, 1)
    infer.run(samples, settings(model, tmp_path))
    weights = next(model.glob("*.safetensors"))
    os.utime(weights, (0, 0))
    with pytest.raises(UserError, match="model_files"):
        infer.run(samples, settings(model, tmp_path))


def interrupted(model: Path, pictures: Path, folder: Path, after: int) -> InferenceSettings:
    """A run that an exception stops after some replies."""
    chosen = settings(model, folder)
    stopped = RuntimeError("the power went")

    def explode(done: int = 0) -> None:
        nonlocal after
        after -= 1
        if after == 0:
            raise stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfinished_run.Progress, "poll", lambda self, force=False: explode())
        with pytest.raises(RuntimeError, match="the power went"):
            infer.run(questions(pictures), chosen)
    return chosen


def test_an_exception_stops_and_a_restart_continues(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    whole = infer.run(questions(pictures), settings(tiny_qwen2_vl, tmp_path / "whole"))
    chosen = interrupted(tiny_qwen2_vl, pictures, tmp_path / "cut", after=5)
    assert not Path(chosen.output).exists()
    written = list(unfinished_run.read_entries(Path(chosen.output + unfinished_run.PARTIAL_SUFFIX)))
    assert len(written) == 5
    asked: list[str] = []
    make = infer.make_engine

    def spied(*arguments: object) -> object:
        engine = make(*arguments)
        stream = engine.stream
        engine.stream = lambda samples, skip: (asked.extend(s.id for s in samples), stream(samples, skip))[1]
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer, "make_engine", spied)
        assert infer.run(questions(pictures), chosen) == whole
    assert sorted(asked) == sorted({p.id for p in whole} - {e.id for e in written})


def test_a_torn_last_line_is_asked_again(tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path) -> None:
    whole = infer.run(questions(pictures), settings(tiny_qwen2_vl, tmp_path / "whole"))
    chosen = interrupted(tiny_qwen2_vl, pictures, tmp_path / "cut", after=5)
    file = Path(chosen.output + unfinished_run.PARTIAL_SUFFIX) / "rank-0.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert infer.run(questions(pictures), chosen) == whole


def test_a_broken_line_in_the_middle_is_named(tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path) -> None:
    chosen = interrupted(tiny_qwen2_vl, pictures, tmp_path, after=5)
    file = Path(chosen.output + unfinished_run.PARTIAL_SUFFIX) / "rank-0.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[1] = lines[1][:20]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"rank-0\.jsonl, line 2, cannot be read"):
        infer.run(questions(pictures), chosen)


def test_a_kill_between_the_last_two_steps_loses_nothing(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tiny_qwen2_vl, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer.shutil, "rmtree", lambda *a, **k: None)  # killed before the folder goes
        whole = infer.run(questions(pictures), chosen)
    folder = Path(chosen.output + unfinished_run.PARTIAL_SUFFIX)
    (folder / "rank-0.jsonl").unlink()
    monkeypatch.setattr(infer, "make_engine", None)
    assert infer.run(questions(pictures), chosen) == whole
    assert not folder.exists()


def test_two_runs_do_not_write_one_file(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    chosen = interrupted(tiny_qwen2_vl, pictures, tmp_path, after=2)
    monkeypatch.setattr(unfinished_run, "LOCK_SECONDS", 0.1)
    with open(Path(chosen.output + unfinished_run.PARTIAL_SUFFIX) / "rank-0.jsonl", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process"):
            infer.run(questions(pictures), chosen)


def test_bad_images_stop_the_run_or_are_left_out_and_counted(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    samples = [
        *questions(pictures, 1),
        Sample("bad/0", (str(broken),), "x"),
        Sample("bad/1", (str(broken),), "y"),
    ]
    with pytest.raises(UserError, match=r"sample 'bad/0'.*broken\.png"):
        infer.run(samples, settings(tiny_qwen2_vl, tmp_path))
    predictions = infer.run(samples, settings(tiny_qwen2_vl, tmp_path, skip_bad_images=True))
    assert [p.id for p in predictions] == [s.id for s in samples[:-2]]
    meta = load_meta(tmp_path / "predictions.jsonl")
    assert [s["id"] for s in meta["skipped_images"]] == ["bad/0", "bad/1"]
    assert "broken.png" in meta["skipped_images"][0]["reason"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"engine": "magic"}, "--engine 'magic' is unknown"),
        ({"processes": 0}, "--processes must be at least 1"),
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"temperature": -1}, "--temperature"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        infer.run([Sample("a", (), "x")], settings(tmp_path, tmp_path, **changed))


def test_nothing_to_ask_and_doubled_ids_are_refused(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to ask"):
        infer.run([], settings(tiny_qwen2_vl, tmp_path))
    with pytest.raises(UserError, match="1 sample ids occur more than once, the first is 'a'"):
        infer.run([Sample("a", (), "x"), Sample("a", (), "y")], settings(tiny_qwen2_vl, tmp_path))


def test_a_predictions_file_of_unknown_making_is_not_overwritten(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "predictions.jsonl").write_text("precious\n")
    with pytest.raises(UserError, match="does not say how it was made"):
        infer.run(questions(pictures), settings(tiny_qwen2_vl, tmp_path))
    assert (tmp_path / "predictions.jsonl").read_text() == "precious\n"


# ------------------------------------------------------------------------------------------- processes


PROGRAM = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from test_infer import questions, settings
    from virft import infer
    from virft.programs import run_program

    def main():
        _, _, model, pictures, folder, processes, tokens = sys.argv
        infer.run(
            questions(Path(pictures), 8),
            settings(model, Path(folder), processes=int(processes), max_new_tokens=int(tokens), batch_size=2),
        )

    if __name__ == "__main__":
        run_program(main)
    """
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that asks the module's questions."""
    path = tmp_path_factory.mktemp("program") / "ask.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def alone(tiny_qwen2_vl: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The predictions file of one process."""
    folder = tmp_path_factory.mktemp("alone")
    infer.run(questions(pictures, 8), settings(tiny_qwen2_vl, folder, max_new_tokens=40, batch_size=2))
    return (folder / "predictions.jsonl").read_bytes()


def command(program: Path, model: Path, pictures: Path, folder: Path, processes: int) -> list[str]:
    """How the script is started."""
    here = str(Path(__file__).parent)
    return [*(str(program), here, str(model), str(pictures), str(folder)), str(processes), "40"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_equal_one(
    processes: int, alone: bytes, program: Path, tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    arguments = command(program, tiny_qwen2_vl, pictures, tmp_path, processes)
    subprocess.run([sys.executable, *arguments], check=True, timeout=300)
    assert (tmp_path / "predictions.jsonl").read_bytes() == alone


@pytest.mark.slow
def test_ranks_of_torchrun_equal_one_process(
    alone: bytes, program: Path, tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    arguments = command(program, tiny_qwen2_vl, pictures, tmp_path, 1)
    done = subprocess.run(
        [*launcher, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions.jsonl").read_bytes() == alone


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 1), (2, 3)])
def test_killed_and_continued_nothing_is_lost_or_doubled(
    first: int,
    then: int,
    alone: bytes,
    program: Path,
    tiny_qwen2_vl: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    arguments = command(program, tiny_qwen2_vl, pictures, tmp_path, first)
    folder = tmp_path / ("predictions.jsonl" + unfinished_run.PARTIAL_SUFFIX)
    running = subprocess.Popen([sys.executable, *arguments], start_new_session=True)
    deadline = time.monotonic() + 120
    while sum(f.read_bytes().count(b"\n") for f in folder.glob("rank-*.jsonl")) < 4:
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "predictions.jsonl").exists()
    kept = [entry.id for entry in unfinished_run.read_entries(folder)]
    assert len(kept) >= 4
    again = command(program, tiny_qwen2_vl, pictures, tmp_path, then)
    subprocess.run([sys.executable, *again], check=True, timeout=300)
    assert (tmp_path / "predictions.jsonl").read_bytes() == alone
    assert not folder.exists()


@pytest.mark.slow
def test_a_refusal_in_a_process_reaches_the_user(
    program: Path, tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    import shutil

    some = shutil.copytree(pictures, tmp_path / "pictures")
    (some / "3.png").write_bytes(b"no picture")
    done = subprocess.run(
        [sys.executable, *command(program, tiny_qwen2_vl, some, tmp_path, 2)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "3.png" in errors[0]
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ vLLM


STAND_IN = textwrap.dedent(
    '''
    """vLLM's interface over transformers, as far as the engine uses it: the real one needs a GPU."""
    from types import SimpleNamespace
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    class SamplingParams:
        def __init__(self, **settings):
            self.__dict__.update(settings)

    class LLM:
        def __init__(self, model, mm_processor_kwargs, generation_config, limit_mm_per_prompt, **settings):
            assert generation_config == "vllm" and settings["dtype"] == "float32"
            self.limit = limit_mm_per_prompt["image"]
            size = {
                "shortest_edge": mm_processor_kwargs["min_pixels"],
                "longest_edge": mm_processor_kwargs["max_pixels"],
            }
            self.processor = AutoProcessor.from_pretrained(model, size=size)
            self.model = AutoModelForImageTextToText.from_pretrained(model).eval()

        def generate(self, prompts, decoding, use_tqdm):
            return [self.answer(p, d) for p, d in zip(prompts, decoding, strict=True)]

        def answer(self, prompt, how):
            images = prompt.get("multi_modal_data", {}).get("image")
            assert len(images or ()) <= self.limit
            assert how.temperature == 0 and how.repetition_penalty == 1.0 and how.top_p == 1.0
            inputs = self.processor(images=images, text=[prompt["prompt"]], return_tensors="pt")
            out = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=how.max_tokens, eos_token_id=how.stop_token_ids,
                return_dict_in_generate=True, output_logits=True,
            )
            made = out.sequences[0, inputs["input_ids"].shape[1]:]
            stopped = int(made[-1]) in how.stop_token_ids
            text = self.processor.tokenizer.decode(made, skip_special_tokens=True)
            completion = SimpleNamespace(
                text=text, token_ids=made.tolist(), finish_reason="stop" if stopped else "length",
                logprobs=None if how.logprobs is None else self.chosen(made, out.logits),
            )
            return SimpleNamespace(outputs=[completion])

        def chosen(self, made, logits):
            values = (step[0].float().log_softmax(-1) for step in logits)
            return [{t: SimpleNamespace(logprob=v[t].item())} for t, v in zip(made.tolist(), values)]
    '''
)


@pytest.mark.parametrize("logprobs", [False, True])
def test_vllm_stands_behind_the_same_function(
    logprobs: bool, tiny_qwen2_5_vl: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [*questions(pictures, 2), Sample("text", (), "Say it.")]
    how = {"max_pixels": 84 * 84, "logprobs": logprobs}
    expected = infer.run(samples, settings(tiny_qwen2_5_vl, tmp_path / "a", **how))
    (tmp_path / "stand_in/vllm").mkdir(parents=True)
    (tmp_path / "stand_in/vllm/__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "stand_in")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    asked = settings(tiny_qwen2_5_vl, tmp_path / "b", engine="vllm", **how)
    answered = infer.run(samples, asked)
    if logprobs:
        for p, other in zip(answered, expected, strict=True):
            assert p.logprobs == pytest.approx(other.logprobs, abs=2e-4)
            assert len(p.logprobs) == p.tokens
        expected = [
            dataclasses.replace(e, logprobs=p.logprobs) for e, p in zip(expected, answered, strict=True)
        ]
    assert answered == expected
    meta = load_meta(asked.output)
    # It chooses its own attention, and is given the type that is stated.
    assert (meta["engine"], meta["attn_implementation"], meta["dtype"]) == ("vllm", None, "float32")
    sys.modules.pop("vllm")


@pytest.mark.skipif(__import__("importlib").util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_refused(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vllm, which is not installed"):
        infer.run([Sample("a", (), "x")], settings(tiny_qwen2_vl, tmp_path, engine="vllm"))


def test_entries_are_predictions_or_skipped(tmp_path: Path) -> None:
    wrote = Prediction("a", "reply", "norm1000")
    skipped = infer.Skipped("b", "gone")
    lines = [wrote.to_json(), {"skipped": {"id": "b", "reason": "gone"}}]
    (tmp_path / "rank-0.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"id": "torn'
    )
    assert list(unfinished_run.read_entries(tmp_path)) == [wrote, skipped]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"device": "cpuu"}, "--device 'cpuu' is no device"),
        ({"dtype": "bf16"}, "--dtype 'bf16' is unknown"),
        ({"attn_implementation": "spda"}, "--attn_implementation spda is unknown"),
        ({"max_pixels": 0}, "not above --max_pixels 0"),
        ({"min_pixels": -4}, "--min_pixels -4 must be positive"),
        ({"output": "/dev/null/p.jsonl"}, "--output /dev/null/p.jsonl: /dev/null is a file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    changed: dict[str, object], sentence: str, tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    asked = dataclasses.replace(settings(tiny_qwen2_vl, tmp_path / "out"), **changed)
    with pytest.raises(UserError, match=sentence):
        infer.run([Sample("a", (), "x")], asked)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_folder_is_refused_even_to_overwrite(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    asked = dataclasses.replace(settings(tiny_qwen2_vl, tmp_path), output=str(tmp_path), overwrite=True)
    with pytest.raises(UserError, match="is a folder; name a file"):
        infer.run([Sample("a", (), "x")], asked)


def test_a_run_without_a_reply_binds_nobody_to_its_settings(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    """What a refusal or a kill leaves before the first reply is not "replies made with other settings"."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png.*--skip_bad_images"):
        infer.run([Sample("a", (str(broken),), "x")], settings(tiny_qwen2_vl, tmp_path, max_new_tokens=3))
    folder = tmp_path / "predictions.jsonl.partial"
    assert (folder / "settings.json").is_file()
    with unfinished_run.own_file(folder / "rank-0.jsonl"), pytest.raises(UserError, match="3 then, 6 now"):
        infer.run(questions(pictures, 1), settings(tiny_qwen2_vl, tmp_path))  # somebody is at work there
    assert len(infer.run(questions(pictures, 1), settings(tiny_qwen2_vl, tmp_path))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    processes: int, tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    samples = questions(pictures, 1)
    expected = infer.run(samples, settings(tiny_qwen2_vl, tmp_path / "whole"))
    asked = settings(tiny_qwen2_vl, tmp_path / "cut", processes=processes)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit of file sizes is what a full disk is to a program; it holds for the processes started as well.
    size = (tmp_path / "whole/predictions.jsonl").stat().st_size // (2 * processes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 1000), before[1]))
    try:
        with pytest.raises(UserError, match="no room on the disk .*finished replies are kept"):
            infer.run(samples, asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not Path(asked.output).exists()
    assert infer.run(samples, asked) == expected


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reply": None}, "line 2: not a prediction .*reply is None"),
        ({"reply": 5}, "reply is 5"),
        ({"id": 7}, "id is 7"),
        ({"meta": None}, "meta is None"),
        ({"image_size": "x"}, "image_size is 'x', not a width and a height"),
        ({"model_size": [0, 4]}, r"model_size is \[0, 4\]"),
        ({"id": "a"}, "line 2: 'a' is the id of line 1 as well; keep one"),
    ],
)
def test_lines_that_are_no_predictions_are_named(changed: dict, words: str, tmp_path: Path) -> None:
    lines = [Prediction(name, "reply", "norm1000").to_json() for name in "ab"]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[1] | changed)))
    with pytest.raises(UserError, match=words):
        load_predictions(path)


def test_files_that_are_no_text_or_no_protocol_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="line 1: not a prediction .*decode"):
        load_predictions(path)
    (tmp_path / "p.meta.json").write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        load_meta(path)


@pytest.mark.slow
def test_a_process_that_is_killed_is_one_sentence(
    tiny_qwen2_vl: Path, pictures: Path, tmp_path: Path
) -> None:
    """As the machine does when its memory runs out."""
    asked = settings(tiny_qwen2_vl, tmp_path, processes=2, max_new_tokens=30)
    partial = Path(asked.output + ".partial")

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(path.stat().st_size for path in partial.glob("rank-*.jsonl")):
                workers = [c for c in multiprocessing.active_children() if "Spawn" in type(c).__name__]
                os.kill(workers[-1].pid, signal.SIGKILL)
                return
            time.sleep(0.002)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(UserError, match="process . of 2 was ended .SIGKILL, as when .* finished replies are"):
        infer.run(questions(pictures, 12), asked)
    killer.join()
    assert len(infer.run(questions(pictures, 12), asked)) == 72
