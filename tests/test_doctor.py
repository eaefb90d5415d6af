"""The doctor: what it reports, what it finds against a run, and its estimate of memory against measured
runs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from virft import doctor, prompts, tiny
from virft.errors import UserError
from virft.memory_estimate import (
    GIB,
    Shape,
    block_bytes,
    estimate,
    layer_bytes,
    shape_of,
    ways_to_fit,
)
from virft.memory_plan import Plan, alternatives, zero_settings
from virft.model_files import model_config


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows with images of two sizes."""
    folder = tmp_path_factory.mktemp("rows")
    written = []
    for number in range(8):
        size = (140, 112) if number % 2 else (336, 280)
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")
        solution = "<answer>[{'Position': [100, 100, 600, 600], 'Confidence': 1}]</answer>"
        written.append({"image": f"{number}.png", "problem": prompts.detection("cat"), "solution": solution})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    return folder / "rows.jsonl"


def run(capsys: pytest.CaptureFixture[str], *flags: Any) -> tuple[int, str]:
    """Exit code and report."""
    try:
        doctor.main([str(flag) for flag in flags])
        code = 0
    except SystemExit as left:
        code = left.code
    return code, capsys.readouterr().out


def test_a_run_that_can_start(rows: Path, tiny_qwen2_vl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(
        capsys, "--model", tiny_qwen2_vl, "--dataset", rows, "--max_pixels", 100352,
        "--max_completion_length",
        64, "--device_gib", 80, "--num_generations", 4, "--gradient_accumulation_steps", 2,
    )  # fmt: skip
    assert code == 0, out
    assert out.endswith("nothing found against it\n")
    # 336 x 280 is 12 x 10 merged patches, 140 x 112 is 5 x 4; four of eight rows have the small one.
    assert "visual tokens a row    20 to 120, half of them up to 120" in out
    assert "prompts/step           2" in out
    assert "completions/step       8 (4 a prompt, 1 devices)" in out
    assert "steps/epoch            4" in out
    assert f"torch {torch.__version__.split('+')[0]}" in out


def test_what_stands_against_a_run(
    rows: Path, tiny_qwen2_vl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(
        capsys, "--model", tiny_qwen2_vl, "--dataset", rows, "--max_pixels", 100352,
        "--max_completion_length",
        5, "--max_prompt_length", 100, "--device_gib", 0.5, "--devices", 16,
    )  # fmt: skip
    assert code == 1
    against = out[out.index("against it") :]
    assert "4 prompts are above --max_prompt_length 100: raise it to " in against
    assert "8 solutions are longer than --max_completion_length 5" in against
    assert "8 rows are fewer than the 16 prompts of one generation" in against
    assert "out of memory" in against
    assert "above --max_prompt_length 100: 4 (50.0%)" in out


def test_bad_input_is_refused_before_the_report_ends(rows: Path, tiny_qwen2_vl: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        doctor.main(["--model", str(tiny_qwen2_vl), "--dataset", "absent.jsonl"])
    with pytest.raises(UserError, match="--devices must be at least 1"):
        doctor.main(["--model", str(tiny_qwen2_vl), "--dataset", str(rows), "--devices", "0"])
    with pytest.raises(UserError, match="no readable JSON"):
        doctor.main(["--model", str(tiny_qwen2_vl), "--dataset", str(rows), "--deepspeed", "absent.json"])
    with pytest.raises(UserError, match="--device_gib nan must be a positive number"):
        doctor.main(["--model", str(tiny_qwen2_vl), "--dataset", str(rows), "--device_gib", "nan"])
    with pytest.raises(UserError, match="ZeRO has no stage 9"):
        zero_settings({"zero_optimization": {"stage": 9}})


def test_solutions_below_the_maximum_stand_against_a_run(
    tiny_qwen2_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"problem": prompts.detection("cat"), "solution": "<answer>a cat</answer>"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    flags = ("--model", tiny_qwen2_vl, "--dataset", tmp_path / "rows.jsonl", "--max_completion_length", 64)
    code, out = run(capsys, *flags)
    assert code == 1
    assert "rewards\n  accuracy_iou, accuracy_confidence, format\n" in out
    assert "row 0 (0, bad_solution)" in out[out.index("against it") :]
    code, out = run(capsys, *flags, "--skip_solution_check")
    assert code == 0, out


def test_a_deepspeed_file_may_be_given_either_way(
    rows: Path, tiny_qwen2_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ds.json").write_text("[]")
    for flags in ([f"--deepspeed={tmp_path / 'ds.json'}"], ["--deepspeed", tmp_path / "ds.json"]):
        with pytest.raises(UserError, match="not of DeepSpeed's form"):
            run(capsys, "--model", tiny_qwen2_vl, "--dataset", rows, *flags)


def test_lora_that_finds_no_layer_stands_against_a_run(
    rows: Path, tiny_qwen2_vl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(
        capsys, "--model", tiny_qwen2_vl, "--dataset", rows, "--use_peft",
        "--lora_target_modules", "no_layer", "--max_completion_length", 64,
    )  # fmt: skip
    assert code == 1
    assert "LoRA would train nothing" in out[out.index("against it") :]


def test_no_weights_are_read(rows: Path, tiny_qwen2_vl: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_qwen2_vl.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    code, out = run(capsys, "--model", folder, "--dataset", rows, "--max_completion_length", 64)
    assert code == 0, out
    assert "no GPU here" in out or torch.cuda.is_available()


def test_packages_that_do_not_go_together_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "1.17.2" if n == "trl" else real(n))
    assert any("wants trl <1.17,>=1.16, but 1.17.2 is installed" in line for line in doctor.conflicts())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_activations_are_what_autograd_saves(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """The formulas for a layer and a block, from two models that differ by one of each."""
    saved, shapes, grid = [], [], torch.tensor([[1, 16, 16]])
    for layers in (2, 3):
        folder = tiny.build(
            tmp_path / str(layers), family, hidden_size=128, layers=layers, vision_depth=layers,
            intermediate_size=320, vision_size=96, vision_heads=2,
        )  # fmt: skip
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).train()
        shapes.append(shape_of(model.config))
        patches, tokens = 16 * 16, 200
        pixels = torch.randn(patches, 3 * 2 * 14 * 14, dtype=dtype)
        embedded = torch.randn(1, tokens, 128, dtype=dtype, requires_grad=True)
        positions = torch.arange(tokens).expand(3, 1, -1)
        inputs = {"inputs_embeds": embedded, "position_ids": positions, "use_cache": False}
        tower = _saved(model, lambda m=model, p=pixels: m.model.visual(p, grid_thw=grid))
        language = _saved(model, lambda m=model, i=inputs: m.model.language_model(**i))
        saved.append((tower / patches, language / tokens))
    size = torch.finfo(dtype).bits / 8
    assert saved[1][1] - saved[0][1] == pytest.approx(layer_bytes(shapes[1], size), rel=0.01)
    assert saved[1][0] - saved[0][0] == pytest.approx(block_bytes(shapes[1], size), rel=0.02)


def _saved(model: torch.nn.Module, forward: Any) -> int:
    """Bytes of the different storages that autograd keeps, the model's own left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    assert result is not None
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_parameters_are_counted_on_the_meta_device(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    shape = shape_of(model_config(str(folder)), r".*language_model.*\.(q_proj|v_proj)", 8)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.vision == sum(p.numel() for p in model.model.visual.parameters())
    assert shape.adapter == 2 * 8 * ((64 + 64) + (64 + 32))  # two layers, 4 heads of 16, 2 key-value heads
    assert shape.blocks == 2


def big() -> Shape:
    """Qwen2-VL-2B, from its published configuration."""
    config = AutoConfig.for_model(
        "qwen2_vl",
        text_config={
            "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6
            },
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16},
        tie_word_embeddings=True,
    )  # fmt: skip
    return shape_of(config)


def test_the_2b_model_has_its_published_size() -> None:
    shape = big()
    assert shape.parameters == pytest.approx(2.21e9, rel=0.01)
    assert shape.vision == pytest.approx(0.665e9, rel=0.01)


def test_zero_states_are_deepspeeds_own_figures() -> None:
    """Against deepspeed's estimators, which know neither activations nor a reference model."""
    zero1 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    zero3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    shape, devices = big(), 8
    base = Plan(devices=devices, weight=2, reference=False)

    def states(**changes: Any) -> float:
        parts = estimate(shape, replace(base, **changes)).training
        return sum(parts.get(name, 0) for name in ("weights", "gradients", "optimizer"))

    n = shape.parameters
    _, second = zero1.estimate_zero2_model_states_mem_needs(n, devices, 1, cpu_offload=False)
    assert states(stage=2) == pytest.approx(second, rel=1e-6)
    _, third, layer = zero3.estimate_zero3_model_states_mem_needs(n, shape.widest, devices, 1, False, False)
    # DeepSpeed counts 18 bytes, ours 20: 16-bit gradients stay while the 32-bit ones are made at stage 3 too.
    assert states(stage=3) == pytest.approx(third - layer + 2 * n / devices, rel=1e-6)
    _, second = zero1.estimate_zero2_model_states_mem_needs(n, devices, 1, cpu_offload=True)
    assert states(stage=2, offload_optimizer=True) == pytest.approx(second, rel=1e-6)
    assert states(stage=3, offload_optimizer=True, offload_parameters=True) == 0


def test_every_alternative_saves_memory() -> None:
    shape = big()
    for plan in (Plan(devices=8), Plan(devices=8, stage=2, bucket=2e9), Plan(devices=1, lora=True)):
        for flag, change in alternatives(plan):
            less, now = estimate(shape, replace(plan, **change)), estimate(shape, plan)
            assert sum(less.training.values()) < sum(now.training.values()), flag


def test_ways_to_fit_do_fit_with_as_few_flags_as_possible() -> None:
    shape, plan = big(), Plan(devices=8, stage=3, prompt=700, visual=512, completion=1024, rows=8, branches=8)
    now = estimate(shape, plan).peak
    ways = ways_to_fit(shape, plan, now - GIB)
    assert ways
    assert all(" and " not in way for way in ways)
    options = dict(alternatives(plan))
    flags = [way.rpartition(" (")[0] for way in ways]
    assert all(estimate(shape, replace(plan, **options[flag])).peak <= now - GIB for flag in flags)
    assert ways_to_fit(shape, plan, 0.5 * GIB) == []


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_deepspeed_files_are_understood(root: Path, name: str) -> None:
    found = zero_settings(str(root / "local_scripts" / f"{name}.json"))
    assert found["stage"] == (2 if name == "zero2" else 3)
    assert found["offload_optimizer"] is (name == "zero3_offload")
    assert found["bucket"] == (2e9 if name == "zero2" else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--gradient_checkpointing", "true"),
        ("--use_peft", "true"),
    ],
    ids=["full", "checkpointing", "lora"],
)
def test_the_estimate_against_the_peak_of_a_real_run(
    root: Path, rows: Path, tmp_path: Path, flags: tuple
) -> None:
    """Two steps on a CPU; over nine settings estimate / measured was 0.83 to 0.97 when the formulas were
    made."""
    model = tiny.build(
        tmp_path / "m", "qwen2_vl", hidden_size=384, layers=6, heads=6, vision_depth=4, vision_size=256
    )
    command = [sys.executable, str(root / "tests" / "peak_of_run.py"), "--model_name_or_path", str(model)]
    command += ["--dataset_name", str(rows), "--output_dir", str(tmp_path), "--max_pixels", "100352"]
    command += [
        "--max_completion_length",
        "192",
        "--max_steps",
        "2",
        "--save_strategy",
        "no",
        "--use_cpu",
        "true",
    ]
    command += ["--report_to", "none", "--disable_tqdm", "true", "--num_generations", "8", *flags]
    # Give memory back to the system at once, so that its peak is the tensors' peak.
    given_back = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run(command, env=os.environ | given_back, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "peak.json").read_text())
    assert result["estimated"] == pytest.approx(result["measured"], rel=0.25), result
