"""The program grpo.py: the reference's command, bad input before weights, a run from flags to model,
vLLM's seam."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.generation.vllm_generation
from training_setup import ROOT, flags, torchrun, write_rows

from virft import grpo
from virft.checkpoint import read_manifest
from virft.data.training import load_rows, to_prompts
from virft.errors import UserError
from virft.programs import run_program
from virft.settings import ModelArguments, RowArguments, parse_flags
from virft.trainer import VisualRFTConfig, VisualRFTTrainer

CLASSES = (RowArguments, grpo.RewardArguments, ModelArguments, VisualRFTConfig)
REFERENCE = (
    "--output_dir out --model_name_or_path Qwen/Qwen2-VL-2B-Instruct --dataset_name "
    "laolao77/ViRFT_COCO_base65 "
    "--max_prompt_length 1024 --per_device_train_batch_size 1 --gradient_accumulation_steps 2 "
    "--logging_steps 1 "
    "--bf16 --report_to wandb --gradient_checkpointing false --attn_implementation flash_attention_2 "
    "--max_pixels 401408 --num_train_epochs 1 --run_name Qwen2-VL-2B_GRPO --save_steps 100 "
    "--save_only_model true --num_generations 8"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def test_the_reference_s_command_means_the_same(tmp_path: Path) -> None:
    command = REFERENCE.replace("--output_dir out", f"--output_dir {tmp_path}").split()
    _, rewards, model, args = parse_flags(CLASSES, [*command, "--use_cpu", "true"])
    assert (args.prompts_per_step, args.completions_per_step) == (2, 16)  # on its eight devices: 16 and 128
    assert args.bf16 is True and args.save_only_model is True and args.gradient_checkpointing is False
    assert args.max_pixels == 401408 and args.max_prompt_length == 1024 and args.num_train_epochs == 1
    assert model.attn_implementation == "flash_attention_2"
    assert rewards.task == ["detection"] and rewards.reward_funcs is None
    assert args.report_to == ["wandb"] and args.run_name == "Qwen2-VL-2B_GRPO"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset_name": None}, "--dataset_name is missing"),
        ({"dataset_name": "absent.json"}, "absent.json: no such file"),
        ({"model_name_or_path": None}, "--model_name_or_path is missing"),
        ({"model_name_or_path": "absent-model"}, "model absent-model: no configuration"),
        ({"reward_funcs": "accuracy_iu"}, "unknown reward 'accuracy_iu'; known: accuracy_iou"),
        ({"reward_funcs": None, "task": "detektion"}, "--task 'detektion' is unknown"),
        ({"reward_funcs": None, "task": "classification grounding"}, "column 'task' must be one of"),
        ({"reward_weights": "1 2"}, "--reward_weights has 2 numbers for 1 rewards"),
        ({"num_generations": 1}, "--num_generations 1"),
        ({"completions_per_forward": 3}, "does not divide"),
        ({"per_device_train_batch_size": 100}, "8 rows are fewer than the 100 prompts"),
        ({"max_prompt_length": 5}, "row.*above --max_prompt_length 5"),
        ({"min_pixels": 20000}, "--min_pixels 20000"),
        ({"attn_implementation": "flash_attention_2"}, "needs the package flash-attn"),
        ({"load_in_4bit": "true"}, "add --use_peft"),
        ({"use_peft": "true", "lora_vision": "true", "freeze_vision": "true"}, "exclude each other"),
        ({"use_peft": "true", "lora_vision": "true", "lora_target_modules": "q_proj"}, "exclude each other"),
        ({"resume_from_checkpoint": "absent"}, "no whole checkpoint"),
        ({"num_generation": 4}, "ambiguous option"),
        ({"max_pixel": 4, "max_pixels": None, "min_pixel": 1, "nosuch": 1}, "unknown flag --nosuch"),
        ({"temprature": 1}, "unknown flag --temprature; did you mean --temperature"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0 must be at least 1"),
        ({"per_device_eval_batch_size": -1}, "must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "must be at least 1"),
        ({"max_completion_length": 0}, "must be at least 1"),
        ({"beta": -0.1}, "--beta -0.1 must be at least 0"),
        ({"temperature": 0}, "--temperature 0 must be positive"),
        ({"top_p": 2}, "positive and at most 1"),
        ({"loss_type": "gpro"}, "--loss_type gpro is none of grpo"),
        ({"max_pixels": "many"}, "invalid int value: 'many'"),
        ({"generation_kwargs": "{top_k: 5}"}, "--generation_kwargs is not valid JSON"),
        ({"deepspeed": "absent.json"}, "--deepspeed absent.json: no such file"),
        ({"config": "absent.yaml"}, "--config absent.yaml: no such file"),
        ({"report_to": "wandbb"}, "--report_to wandbb is unknown or not installed"),
        ({"dtype": "float61"}, "--dtype float61 is no type"),
        ({"attn_implementation": "spda"}, "--attn_implementation spda is none of"),
        ({"use_peft": "true", "lora_r": 0}, "--lora_r 0"),
        ({"use_peft": "true", "lora_alpha": 0}, "--lora_alpha 0 must be at least 1"),
        ({"use_peft": "true", "lora_dropout": 2}, "--lora_dropout 2 must be at least 0 and below 1"),
        ({"use_peft": "true", "lora_task_type": "NOPE"}, "Invalid task type: 'NOPE'"),
        ({"use_peft": "true", "lora_target_modules": "q_prj"}, "q_prj is no layer .*did you mean q_proj"),
        ({"use_peft": "true", "lora_target_modules": "self_attn"}, "self_attn is no layer .*there are .*qkv"),
        ({"use_peft": "true", "lora_target_modules": ".*nothing"}, "'.*nothing' matches no module"),
        ({"use_peft": "true", "lora_target_modules": ".*attn"}, "which is no layer that LoRA stands beside"),
        ({"use_peft": "true", "lora_target_modules": "(q"}, "is no regular expression"),
        ({"use_peft": "true", "lora_modules_to_save": "lm_hed"}, "lm_hed is no layer .*did you mean lm_head"),
        ({"lora_r": 8}, "--lora_r without --use_peft true changes nothing"),
        ({"eval_dataset_name": "x.json"}, "--eval_dataset_name without --eval_strategy changes nothing"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
        ({"num_train_epochs": 0}, "--num_train_epochs 0 must be positive"),
        ({"save_total_limit": -1}, "--save_total_limit -1 must be at least 0"),
        ({"repetition_penalty": 0}, "--repetition_penalty 0 must be positive"),
        ({"sync_ref_model": "true", "beta": 0}, "--sync_ref_model needs a reference model"),
        ({"use_transformers_continuous_batching": "true"}, "shows no images; use --use_vllm"),
        ({"fsdp": "full_shard"}, "--fsdp shards over several processes"),
        ({"fsdp": "full_shard", "use_peft": "true", "load_in_4bit": "true"}, "with quantised weights; drop"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "--eval_strategy needs --eval_dataset_name"),
        ({"load_best_model_at_end": "true"}, "--load_best_model_at_end needs held-out rows"),
        ({"shared_prefix_cache": "none"}, "--shared_prefix_cache none"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_one_sentence_before_any_weights(
    options: dict,
    words: str,
    rows: Path,
    tiny_qwen2_vl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen2_vl, model)
    # A file of no weights at all: loading it would be another error.
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    argv = flags(model, rows, tmp_path / "out", **options)
    if " " in str(options.get("task", options.get("reward_weights", ""))):
        argv = [part for argument in argv for part in argument.split(" ")]
    with pytest.raises(UserError, match=words) as caught:
        grpo.main([*argv, "--use_cpu", "true"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_whole_are_refused_before_they_load(
    rows: Path, tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen2_vl, model)
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors has .* bytes; copy or download it again"):
        grpo.main([*flags(model, rows, tmp_path / "out"), "--use_cpu", "true"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_is_refused(
    place: str, rows: Path, tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    argv = [*flags(tiny_qwen2_vl, rows, tmp_path / place), "--use_cpu", "true"]
    with pytest.raises(UserError, match="--output_dir .*name a"):
        grpo.main(argv)


@pytest.mark.slow
def test_on_several_processes_an_error_is_said_once(rows: Path, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    done = torchrun(flags(tiny_qwen2_vl, rows, tmp_path, reward_funcs="accuracy_iu"))
    assert done.stderr.count("error: unknown reward 'accuracy_iu'") == 1
    assert "exitcode  : 2" in done.stderr and "UserError" not in done.stderr


def test_an_error_is_a_line_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: grpo.main(["--output_dir", "x", "--use_cpu", "true"]))
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: --model_name_or_path is missing")


def test_solutions_must_be_worth_the_maximum(rows: Path, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    bad = json.loads(rows.read_text())
    bad[3]["solution"] = "<answer>[{'Position': [300, 200, 100, 400]}]</answer>"
    bad[5]["solution"] = "<answer>nothing</answer>"
    copy = rows.parent / "bad.json"
    copy.write_text(json.dumps(bad), encoding="utf-8")
    argv = [*flags(tiny_qwen2_vl, copy, tmp_path, reward_funcs=None), "--use_cpu", "true"]
    with pytest.raises(UserError, match="rows 3 .*5 "):
        grpo.main(argv)


@pytest.mark.slow
def test_from_flags_to_model(rows: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    """By path, as the reference starts it; with Qwen2.5-VL's coordinates, LoRA, held-out rows, a
    start-up print."""
    options = {"reward_funcs": None, "coordinates": "auto", "use_peft": "true", "system_prompt": "be brief"}
    held_out = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset_name": rows}
    argv = flags(tiny_qwen2_5_vl, rows, tmp_path, max_steps=2, num_generations=4, **options, **held_out)
    done = subprocess.run(
        [sys.executable, str(ROOT / "src/virft/grpo.py"), *argv, "--use_cpu", "true"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for line in (
        "prompts/step      2",
        "completions/step  8",
        "steps/epoch       4",
        "coordinates       abs_resized",
    ):
        assert line in done.stdout
    assert "vision                   0 of" in done.stdout and "top_k 0" in done.stdout
    assert "eval_map" in done.stdout
    noise = [line for line in done.stderr.splitlines() if "Warning" in line or "WARNING" in line]
    assert not noise
    manifest = read_manifest(tmp_path)
    assert manifest.space == "abs_resized" and manifest.task == ("detection",)
    assert manifest.system_prompt == "be brief" and manifest.data["rows"] == 8
    assert manifest.config["per_device_train_batch_size"] == 8 and manifest.seed == 42
    assert (tmp_path / "adapter_config.json").is_file()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_metric"] is not None


def test_help_lists_the_flags() -> None:
    for program in ("grpo.py", "sft.py"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "src/virft" / program), "--help"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0 and "--max_pixels" in done.stdout and "--dataset_name" in done.stdout


class ClientStandIn:
    """Speaks for TRL's vLLM client; replies are random tokens."""

    made: list[ClientStandIn] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.asked, self.shown, self.weights = options, [], [], 0
        ClientStandIn.made.append(self)

    def init_communicator(self, device: Any) -> None:
        pass

    def get_server_info(self) -> dict:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def image_features(self, images: list) -> list:
        self.shown.append(images)
        return [row and {"mm_placeholders": {"image": [{}] * len(row)}} for row in images]

    def generate(self, prompts: list, features: Any, n: int, max_tokens: int, **options: Any) -> dict:
        self.asked.append((prompts, features, options))
        ids = [torch.randint(20, 200, (max_tokens,)).tolist() for _ in range(n * len(prompts))]
        logps = [[[-5.0]] * max_tokens for _ in ids]
        return {"prompt_ids": prompts, "completion_ids": ids, "logprobs": logps}

    def update_named_params(self, metadata: list, parameters: Any) -> None:
        self.weights += len(list(parameters))

    def reset_prefix_cache(self) -> None:
        pass


@pytest.mark.slow
def test_vllm_gets_prompts_images_within_the_limits_and_weights(
    tiny_qwen2_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl.generation.vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(trl.generation.vllm_generation, "VLLMClient", ClientStandIn, raising=False)
    rows = to_prompts(load_rows(str(write_rows(tmp_path / "rows", kinds=(1, 0, 2, 1)))))
    args = VisualRFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_steps=2,
        max_completion_length=6,
        learning_rate=1e-3,
        min_pixels=784,
        max_pixels=3136,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_host="10.0.0.7",
        use_cpu=True,
        save_strategy="no",
        report_to=[],
    )

    def reward(completions: Any, **columns: Any) -> list[float]:
        return [len(set(c[0]["content"])) / 50 for c in completions]

    run = VisualRFTTrainer(str(tiny_qwen2_vl), [reward], args, rows)
    run.train()
    (client,) = ClientStandIn.made
    assert client.options["base_url"] == "http://10.0.0.7:8000"
    prompts, features, options = client.asked[0]
    assert len(prompts) == 4 and options["temperature"] == 1.0 and options["top_k"] == 0
    # Images stand at their final size, so that vLLM's own limits leave them alone.
    sizes = [image.size for images in client.shown for row in images for image in row or ()]
    assert sizes and all(w % 28 == 0 and h % 28 == 0 and w * h <= 3136 for w, h in sizes)
    assert sorted(len(row or ()) for images in client.shown for row in images) == [0, 0, 1, 1, 1, 1, 2, 2]
    assert client.weights > 0
    assert "sampling/importance_sampling_ratio/mean" in run.state.log_history[0]
