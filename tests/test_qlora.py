"""LoRA beside quantised weights, by bitsandbytes on a CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_setup import flags, log_without_times, write_rows
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from virft import grpo, sft
from virft.errors import UserError
from virft.lora_modules import keep_trainable

pytest.importorskip("bitsandbytes")
QLORA = {
    "use_peft": "true",
    "load_in_4bit": "true",
    "bnb_4bit_quant_type": "nf4",
    "per_device_train_batch_size": 4,
    "bf16": "false",
    "use_cpu": "true",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), kinds=(1, 0, 2))


def log_of(folder: Path) -> list[dict]:
    return log_without_times(json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text()))


@pytest.mark.slow
def test_evaluation_leaves_quantised_layers_trainable(tiny_qwen2_vl: Path) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl, quantization_config=config)
    keep_trainable(model)
    layer = model.model.language_model.layers[0].self_attn.o_proj
    entered = torch.ones(2, layer.in_features)
    with torch.no_grad():
        before = layer.eval()(entered)
    after = layer.train()(entered.requires_grad_())
    assert torch.equal(before, after)
    after.sum().backward()
    assert entered.grad.abs().sum() > 0


@pytest.mark.slow
def test_qlora_trains_as_trl_does_and_goes_on_where_it_was(
    tiny_qwen2_vl: Path, rows: Path, tmp_path: Path
) -> None:
    """Evaluation between the steps included; dropout would draw other masks for a packed row."""
    options = QLORA | {"lora_dropout": 0, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"eval_dataset_name": rows, "save_total_limit": 10, "resume_from_checkpoint": "auto"}
    for shared in ("true", "false"):
        grpo.main(flags(tiny_qwen2_vl, rows, tmp_path / shared, shared_prefix=shared, **options))
    ours, stock = log_of(tmp_path / "true"), log_of(tmp_path / "false")
    for one, other in zip(ours, stock, strict=True):
        for name in one.keys() & {"loss", "grad_norm", "reward", "eval_map"}:
            # The adapters are bfloat16.
            assert one[name] == pytest.approx(other[name], rel=0.02, abs=1e-5), name
    shutil.copytree(tmp_path / "true" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    grpo.main(flags(tiny_qwen2_vl, rows, tmp_path / "cut", **options))
    assert log_of(tmp_path / "cut") == ours
    whole, cut = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("true", "cut"))
    assert {weight.dtype for weight in cut.values()} == {torch.bfloat16}
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert any(weight.abs().sum() for name, weight in whole.items() if "lora_B" in name)


@pytest.mark.slow
def test_sft_with_qlora_learns_after_an_evaluation(tiny_qwen2_vl: Path, rows: Path, tmp_path: Path) -> None:
    options = QLORA | {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset_name": rows}
    options |= {"reward_funcs": None, "num_generations": None, "learning_rate": 1e-2}
    sft.main(flags(tiny_qwen2_vl, rows, tmp_path, **options))
    losses = [line["loss"] for line in log_of(tmp_path) if "loss" in line]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]


def test_without_bitsandbytes_the_error_says_what_to_install(
    tiny_qwen2_vl: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virft.model_setup._installed", lambda module: module != "bitsandbytes")
    with pytest.raises(UserError, match="need bitsandbytes; install it .bash setup.sh --qlora"):
        grpo.main(flags(tiny_qwen2_vl, rows, tmp_path / "out", **QLORA))
