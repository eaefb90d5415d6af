"""The GRPO trainer on tiny models: settings, gradients, mixed rows, LoRA, injection, saving, resuming."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from training_setup import log_without_times, write_rows
from transformers import AutoModelForImageTextToText, GenerationConfig

from virft import tiny
from virft.checkpoint import (
    Manifest,
    file_sizes,
    is_whole,
    last_checkpoint,
    read_manifest,
    rotate,
    write_manifest,
)
from virft.data.training import load_rows, target_text, to_prompts
from virft.errors import UserError
from virft.memory import out_of_memory_advice
from virft.merge import merge
from virft.model_setup import load_processor
from virft.probe import ENOUGH, SpaceProbe
from virft.rewards.outcome import Outcome
from virft.rewards.reward import Reward
from virft.settings import LANGUAGE_LINEARS, VISION_LINEARS
from virft.shared_prefix_vision import SharedVision
from virft.symmetric import VisionAlways, make_forwards_alike
from virft.trainer import VisualRFTConfig, VisualRFTTrainer


def letters(completions: Any, images: Any, **columns: Any) -> list[float]:
    """Differs within a group of a random model's replies, and between rows of different images."""
    return [len(set(c[0]["content"])) / 50 + len(i) for c, i in zip(completions, images, strict=True)]


def config(output: Path, **options: Any) -> VisualRFTConfig:
    settings = {
        "per_device_train_batch_size": 2,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 8,
        "max_pixels": 12544,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
    }
    return VisualRFTConfig(output_dir=str(output), **(settings | options))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Rows with one image, two and none."""
    return to_prompts(load_rows(str(write_rows(tmp_path_factory.mktemp("rows"), kinds=(1, 2, 0, 1)))))


def trainer(model: Path, rows: Any, output: Path, **options: Any) -> VisualRFTTrainer:
    own = {k: options.pop(k) for k in ("peft_config", "target", "metric", "eval_dataset") if k in options}
    return VisualRFTTrainer(str(model), [letters], config(output, **options), rows, **own)


# --- settings


def test_defaults_are_the_reference_s(tmp_path: Path) -> None:
    args = VisualRFTConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (args.beta, args.loss_type, args.scale_rewards) == (0.04, "grpo", "group")
    assert (args.num_generations, args.temperature, args.top_p, args.top_k) == (8, 1.0, 1.0, 0)
    assert (args.learning_rate, args.max_completion_length) == (1e-6, 1024)
    assert args.lr_scheduler_type == "linear" and args.reward_weights is None
    assert args.gradient_checkpointing is False and args.bf16 is False
    assert args.save_only_model is False


def test_the_batch_counts_prompts(tmp_path: Path) -> None:
    args = config(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2, num_generations=8)
    assert (args.per_device_train_batch_size, args.prompts_per_step, args.completions_per_step) == (8, 2, 16)
    assert args.steps_per_epoch(7) == 3
    again = dataclasses.replace(args, learning_rate=1.0)
    assert (again.per_device_train_batch_size, again.prompts_per_step) == (8, 2)
    pieces = config(tmp_path, per_device_train_batch_size=1, num_generations=8, completions_per_forward=2)
    assert (pieces.per_device_train_batch_size, pieces.gradient_accumulation_steps) == (2, 4)
    assert (pieces.prompts_per_step, pieces.completions_per_step) == (1, 8)
    repeated = config(tmp_path, per_device_train_batch_size=1, num_iterations=3)
    assert repeated.steps_per_epoch(8) == 24


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_generations": 1}, "--num_generations 1"),
        ({"completions_per_forward": 3}, "does not divide the 8 completions"),
        ({"inject_solution": True, "use_vllm": True}, "exclude each other"),
        ({"skip_long_prompts": True}, "needs --max_prompt_length"),
        ({"generation_batch_size": 7}, "divisible"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        config(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_few_generations_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config(tmp_path, num_generations=4)
    assert "--num_generations" not in caplog.text
    config(tmp_path, num_generations=2)
    assert "--num_generations 2" in caplog.text


def test_too_few_rows_are_refused_before_weights_load(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(UserError, match="8 rows are fewer than the 16 prompts"):
        VisualRFTTrainer(
            "no-such-model",
            [letters],
            config(tmp_path, per_device_train_batch_size=16, coordinates="norm1000"),
            rows,
            processing_class=object(),
        )


def test_advice_names_flags_not_in_use(tmp_path: Path) -> None:
    text = out_of_memory_advice(config(tmp_path), lora=False)
    order = [
        text.index(flag) for flag in ("--use_peft", "--gradient_checkpointing", "--completions_per_forward 4")
    ]
    assert order == sorted(order)
    used = out_of_memory_advice(config(tmp_path, gradient_checkpointing=True, beta=0.0), lora=True)
    assert not any(flag in used for flag in ("--use_peft", "--gradient_checkpointing", "--beta"))


def test_the_probe_knows_the_space_from_the_replies() -> None:
    row = {
        "solution": "<answer>[{'Position': [100, 100, 400, 400], 'Confidence': 1}]</answer>",
        "image_sizes": [[560, 560]],
    }
    right, shrunk, none = (
        SpaceProbe("norm1000", 3136, 401408),
        SpaceProbe("norm1000", 3136, 401408),
        "nothing",
    )
    for _ in range(ENOUGH):
        right.look([row], ["<answer>[{'Position': [110, 100, 400, 400], 'Confidence': 1}]</answer>"])
        shrunk.look([row], ["<answer>[{'Position': [56, 56, 224, 224], 'Confidence': 1}]</answer>"])
        right.look([row], [none])
    assert right.done and right.verdict() is None
    assert "abs_resized" in shrunk.verdict() and "--coordinates" in shrunk.verdict()
    outside = SpaceProbe("norm1000", 3136, 401408)
    outside.look(
        [row] * ENOUGH, ["<answer>[{'Position': [5000, 100, 9000, 400], 'Confidence': 1}]</answer>"] * ENOUGH
    )
    assert "outside of the image" in outside.verdict()


# --- checkpoints on disk


def test_half_written_and_deleted_checkpoints_are_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("trainer_state.json", "optimizer.pt"):
            (folder / name).write_text("{}")
        write_manifest(folder, Manifest("norm1000", 3136, 12544, step=step))
    (tmp_path / "checkpoint-10" / "virft.json").unlink()
    found, passed = last_checkpoint(tmp_path)
    assert found.name == "checkpoint-3" and [p.name for p in passed] == ["checkpoint-10"]
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()  # --save_only_model
    assert last_checkpoint(tmp_path)[0].name == "checkpoint-2"
    (tmp_path / "checkpoint-2" / "virft.json").write_text("")  # a machine without power
    assert last_checkpoint(tmp_path)[0].name == "checkpoint-1"
    deleted = rotate(tmp_path, 2, keep=[tmp_path / "checkpoint-1"])
    assert [p.name for p in deleted] == ["checkpoint-2", "checkpoint-3"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-10"]
    assert rotate(tmp_path, None, keep=[]) == []


# --- training


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tiny_qwen2_vl", "tiny_qwen2_5_vl"])
def test_everything_learns_and_the_checkpoint_answers_the_same(
    family: str, rows: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    run = trainer(model, rows, tmp_path, save_strategy="steps", save_steps=2)
    before = {n: p.detach().clone() for n, p in run.base_model().named_parameters()}
    run.train()
    changed = {n: not torch.equal(p, before[n]) for n, p in run.base_model().named_parameters()}
    # TRL's own tests leave the vision tower out; two steps move almost all of it here.
    assert all(c for n, c in changed.items() if "visual" not in n)
    assert sum(c for n, c in changed.items() if "visual" in n) > 20
    first = run.state.log_history[0]
    assert {"kl", "completions/unique_ratio", "frac_reward_zero_std", "rewards/letters/mean"} <= set(first)
    folder = tmp_path / "checkpoint-2"
    assert is_whole(folder)
    assert set(read_manifest(folder).files) == set(file_sizes(folder))
    for damage in (lambda content: content[:-1], lambda content: b""):
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(damage(content))
            assert not is_whole(folder), name
            (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    assert (
        manifest.max_pixels == 12544
        and manifest.step == 2
        and manifest.model_type in family.replace("tiny_", "")
    )
    assert manifest.space == {"tiny_qwen2_vl": "norm1000", "tiny_qwen2_5_vl": "abs_resized"}[family]
    assert json.loads((folder / "config.json").read_text()).get("use_cache") is not False
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    for (name, one), two in zip(
        run.base_model().state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    replies = run.answers(rows)
    assert replies == VisualRFTTrainer(str(folder), [letters], config(tmp_path / "x"), rows).answers(rows)


class Catch(torch.optim.SGD):
    """Keeps the gradients of a step instead of taking it."""

    def step(self, closure: Any = None) -> None:
        self.caught = [p.grad.clone() for group in self.param_groups for p in group["params"]]


@pytest.mark.slow
def test_pieces_give_the_same_gradient(tiny_qwen2_vl: Path, rows: Any, tmp_path: Path) -> None:
    grads = []
    for piece in (None, 4, 2):
        run = trainer(tiny_qwen2_vl, rows, tmp_path, completions_per_forward=piece, max_steps=1, beta=0.04)
        run.optimizer = Catch(run.model.parameters(), lr=0.0)
        run.args.max_grad_norm = 0.0
        run.train()
        grads.append(run.optimizer.optimizer.caught)
    assert any(g.abs().max() > 1e-3 for g in grads[0])
    for other in grads[1:]:
        for one, two in zip(grads[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared_prefix", "stock"])
@pytest.mark.parametrize("family", ["tiny_qwen2_vl", "tiny_qwen2_5_vl"])
def test_a_batch_of_two_images_equals_two_batches_of_one(
    family: str, shared: bool, rows: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The reference pairs wrong images and grids when a device takes more than one prompt."""
    chosen = rows.select([0, 3])
    assert chosen[0]["image_sizes"] != chosen[1]["image_sizes"]
    run = trainer(request.getfixturevalue(family), chosen, tmp_path, shared_prefix=shared)
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    batch = run._generate_and_score_completions([chosen[i] for i in (0, 0, 0, 0, 1, 1, 1, 1)])
    run.compute_loss(run.model, batch).backward()
    together = [p.grad.clone() for p in run.model.parameters()]
    run.model.zero_grad()
    for start in (0, 4):
        half = {k: v for k, v in batch.items() if v is not None}
        for key, value in half.items():
            if key in ("pixel_values", "image_grid_thw", "num_images"):
                continue
            if isinstance(value, torch.Tensor) and value.ndim:
                half[key] = value[start : start + 4]
        if shared:
            half["pixel_values"] = batch["pixel_values"].take(range(start, start + 4))
        else:
            counts = batch["image_grid_thw"].prod(-1).tolist()
            first, last = sum(counts[:start]), sum(counts[: start + 4])
            half["pixel_values"] = batch["pixel_values"][first:last]
            half["image_grid_thw"] = batch["image_grid_thw"][start : start + 4]
            half["num_images"] = batch["num_images"][start : start + 4]
        (run.compute_loss(run.model, half) / 2).backward()
    assert max(float(g.abs().max()) for g in together) > 1e-4
    for one, p in zip(together, run.model.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        *({"loss_type": name} for name in ("bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")),
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"importance_sampling_level": "sequence", "num_iterations": 2, "epsilon_high": 0.3},
        {"scale_rewards": "batch", "beta": 0.0},
        {"sync_ref_model": True, "ref_model_sync_steps": 1, "gradient_checkpointing": True},
    ],
    ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()),
)
def test_algorithm_flags_train(options: dict, tiny_qwen2_vl: Path, rows: Any, tmp_path: Path) -> None:
    run = trainer(tiny_qwen2_vl, rows, tmp_path, **options)
    before = run.base_model().lm_head.weight.detach().clone()
    run.train()
    assert torch.isfinite(torch.tensor(run.state.log_history[0]["loss"]))
    assert not torch.equal(before, run.base_model().lm_head.weight)
    assert (run.ref_model is None) == (options.get("beta") == 0.0)


@pytest.mark.slow
def test_lora_leaves_the_base_alone_and_merges_exactly(
    tiny_qwen2_vl: Path, rows: Any, tmp_path: Path
) -> None:
    lora = LoraConfig(r=4, target_modules=f"({LANGUAGE_LINEARS}|{VISION_LINEARS})", task_type="CAUSAL_LM")
    run = trainer(tiny_qwen2_vl, rows, tmp_path, peft_config=lora, learning_rate=0.05)
    assert run.ref_model is None
    assert any("visual" in n for n, p in run.model.named_parameters() if p.requires_grad)
    assert not any("visual" in n for n in _targets(LANGUAGE_LINEARS, run.base_model()))
    run.train()
    base = load_file(tiny_qwen2_vl / "model.safetensors")
    for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"):
        module = run.base_model().model.language_model.get_submodule(name)
        assert torch.equal(module.base_layer.weight, base[f"model.{name}.weight"])
    run.save_model(str(tmp_path / "adapter"))
    merged = merge(tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    with pytest.raises(UserError, match="holds a model already"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert read_manifest(merged).program == "merge"
    run.model.merge_adapter()
    saved = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).state_dict()
    differs = 0
    for name, weight in run.base_model().state_dict().items():
        if "lora_" in name:
            continue
        name = name.replace(".base_layer", "")
        torch.testing.assert_close(weight, saved[name], rtol=0, atol=1e-6)
        differs += name.endswith("q_proj.weight") and not torch.equal(
            saved[name], base[name.replace("language_model.", "")]
        )
    assert differs == 2
    with pytest.raises(UserError, match="no adapter_config.json"):
        merge(tiny_qwen2_vl, tmp_path / "other")
    other = tiny.build(tmp_path / "other_base", intermediate_size=128)
    with pytest.raises(UserError, match="does not fit its base model .*other_base"):
        merge(tmp_path / "adapter", tmp_path / "other", base=str(other))
    for content, words in (
        ("{", "not the configuration of an adapter"),
        ("{}", "no 'base_model_name_or_path' in it"),
        ('{"base_model_name_or_path": null}', "base_model_name_or_path is None"),
    ):
        (tmp_path / "adapter" / "adapter_config.json").write_text(content)
        with pytest.raises(UserError, match=words):
            merge(tmp_path / "adapter", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def _targets(pattern: str, model: torch.nn.Module) -> list[str]:
    import re

    return [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]


@pytest.mark.slow
def test_frozen_vision_stays_as_it_was(tiny_qwen2_5_vl: Path, rows: Any, tmp_path: Path) -> None:
    run = trainer(tiny_qwen2_5_vl, rows, tmp_path, freeze_vision=True)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    assert "vision                   0 of" in run.describe()
    run.train()
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("visual" in name), name


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared_prefix", "stock"])
def test_injection_by_hand(shared: bool, tiny_qwen2_vl: Path, rows: Any, tmp_path: Path) -> None:
    """The injected reply is real tokens; its gradient is A x grad of each token's probability."""
    rows = rows.select([0, 3])
    run = trainer(
        tiny_qwen2_vl, rows, tmp_path, inject_solution=True, target=target_text, beta=0.0,
        shared_prefix=shared, max_completion_length=64,
    )  # fmt: skip
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    batch = run._generate_and_score_completions([rows[i] for i in (0, 0, 0, 0, 1, 1, 1, 1)])
    tokens = [*run._tokenizer(target_text(rows[0]))["input_ids"], run._tokenizer.eos_token_id]
    for place in (3, 7):
        assert batch["completion_ids"][place, : len(tokens)].tolist() == tokens
        assert batch["completion_mask"][place].sum() == len(tokens)
        assert batch["old_per_token_logps"][place].eq(0).all()
    assert batch["old_per_token_logps"][[0, 1, 2]].lt(0).any()
    assert run._metrics["train"]["injected_ratio"] == [0.25]

    # Only the injected reply, with a positive advantage: the loss is -A x mean of its tokens' probabilities.
    batch["advantages"] = torch.tensor([0, 0, 0, 2.0, 0, 0, 0, 0])
    run.compute_loss(run.model, batch).backward()
    head = run.base_model().lm_head.weight
    got = head.grad.clone()
    run.model.zero_grad()
    plain = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl, dtype=torch.float32)
    processor = run.processing_class
    from virft.images import open_rgb

    content = [{"type": "image"}, {"type": "text", "text": rows[0]["problem"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[open_rgb(rows[0]["images"][0])], return_tensors="pt")
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    kinds = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, len(tokens))], 1)
    logits = plain(**inputs).logits[0, prompt - 1 : -1]
    chance = logits.softmax(-1).gather(1, torch.tensor(tokens)[:, None])
    loss = -2.0 * chance.mean() / 8  # eight replies in the mean
    loss.backward()
    torch.testing.assert_close(got, plain.lm_head.weight.grad, rtol=1e-3, atol=1e-7)

    # With a negative advantage it is clipped: an unlikely reply is not pushed down further.
    batch["advantages"] = -batch["advantages"]
    run.compute_loss(run.model, batch).backward()
    assert head.grad.abs().max() < 1e-9


@pytest.mark.slow
def test_sampling_ignores_the_model_s_own_greedy_settings(
    tiny_qwen2_vl: Path, rows: Any, tmp_path: Path
) -> None:
    model = tmp_path / "greedy"
    shutil.copytree(tiny_qwen2_vl, model)
    own = GenerationConfig(
        do_sample=True, top_k=1, top_p=0.001, temperature=0.1, repetition_penalty=1.5, eos_token_id=2
    )
    own.save_pretrained(model)
    run = trainer(model, rows, tmp_path, max_steps=1)
    run.train()
    assert run.state.log_history[0]["completions/unique_ratio"] > 0.9
    run.save_model(str(tmp_path / "saved"))
    assert GenerationConfig.from_pretrained(tmp_path / "saved").top_k == 1  # not replaced by training's
    run.generation_config.top_k = None  # then the model's would be taken
    with pytest.raises(UserError, match="sampling would use top_k 1"):
        run._check_sampling()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_iterations": 2},
        {"steps_per_generation": 2},
        {"gradient_accumulation_steps": 2, "logging_steps": 2},
    ],
    ids=["plain", "iterations", "generation", "accumulation"],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    options: dict, tiny_qwen2_vl: Path, rows: Any, tmp_path: Path
) -> None:
    """From a checkpoint within a generation and from one in the first of two epochs."""
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9, "max_steps": 5} | options
    whole = trainer(tiny_qwen2_vl, rows, tmp_path / "whole", **options)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    cut = trainer(tiny_qwen2_vl, rows, tmp_path / "cut", **options)
    cut.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")[0]))
    for (name, one), two in zip(
        whole.model.state_dict().items(), cut.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    assert log_without_times(whole.state) == log_without_times(cut.state)
    if not options.keys() & {"num_iterations", "steps_per_generation"}:
        # Cut after its last checkpoint, within an epoch: nothing is left to train.
        again = trainer(tiny_qwen2_vl, rows, tmp_path / "cut", **options)
        again.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")[0]))
        assert again.state.global_step == 5
        assert torch.equal(again.model.lm_head.weight, cut.model.lm_head.weight)


@pytest.mark.slow
def test_held_out_rows_are_answered_greedily_and_the_best_is_kept(
    tiny_qwen2_vl: Path, rows: Any, tmp_path: Path
) -> None:
    seen = []

    def metric(held_out: Any, replies: Any) -> dict[str, float]:
        assert [row["problem"] for row in held_out] == rows["problem"][:5] and len(replies) == 5
        seen.append(list(replies))
        return {"score": [0.5, 0.9, 0.1, 0.2][len(seen) - 1]}

    run = trainer(
        tiny_qwen2_vl, rows, tmp_path, metric=metric, eval_dataset=rows.select(range(5)), max_steps=4,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=2,
        metric_for_best_model="score", greater_is_better=True, per_device_eval_batch_size=2,
    )  # fmt: skip
    run.train()
    assert [line["eval_score"] for line in run.state.log_history if "eval_score" in line] == [
        0.5,
        0.9,
        0.1,
        0.2,
    ]
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    assert run.answers(rows.select(range(5))) == seen[-1]


@pytest.mark.slow
def test_shares_of_reasons_are_of_all_generations_of_a_line(
    tiny_qwen2_vl: Path, rows: Any, tmp_path: Path
) -> None:
    """A code that a generation does not meet counts as 0 in it, before the first time and after."""
    calls = []

    def score(completions: Any, columns: Any) -> list[Outcome]:
        calls.append(len(completions))
        code = {1: "first", 2: "second"}.get(len(calls), "later")
        return [Outcome(float(i), code) for i in range(len(completions))]

    reward = Reward("coded", lambda *_: Outcome(None), batch=score)
    args = config(tmp_path, max_steps=6, logging_steps=2)
    run = VisualRFTTrainer(str(tiny_qwen2_vl), [reward], args, rows)
    run.train()
    lines = [
        {name.rpartition("/")[2]: share for name, share in line.items() if name.startswith("reasons/coded/")}
        for line in run.state.log_history
        if "loss" in line
    ]
    assert lines[0] == {"first": 0.5, "second": 0.5}
    assert lines[1] == lines[2] == {"first": 0.0, "second": 0.0, "later": 1.0}


@pytest.mark.slow
def test_rollouts_are_written_by_rank(
    tiny_qwen2_vl: Path, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBUG_MODE", "true")
    monkeypatch.delenv("LOG_PATH", raising=False)
    trainer(tiny_qwen2_vl, rows, tmp_path, max_steps=1).train()
    text = (tmp_path / "rollouts.rank0.txt").read_text()
    assert text.count("letters ") == 8 and "solution: <answer>" in text
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "logs" / "debug.txt"))
    trainer(tiny_qwen2_vl, rows, tmp_path, max_steps=1).train()
    assert (tmp_path / "logs" / "debug.rank0.txt").is_file()


@pytest.mark.parametrize("family", ["tiny_qwen2_vl", "tiny_qwen2_5_vl"])
def test_a_text_only_forward_runs_the_vision_tower_and_changes_nothing(
    family: str, request: pytest.FixtureRequest
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(request.getfixturevalue(family))
    ids = torch.arange(10, 20)[None]
    before = model(input_ids=ids, use_cache=False).logits
    always = VisionAlways(model.model)
    after = model(input_ids=ids, use_cache=False).logits
    assert always.runs == 1 and torch.equal(before, after)
    with SharedVision.install(model.model).repeating([]):  # as the first step's check scores such rows
        assert torch.equal(before, model(input_ids=ids, use_cache=False).logits)
    assert always.runs == 2
    after.sum().backward()
    assert all(p.grad is not None and p.grad.eq(0).all() for p in model.model.visual.parameters())
    told = model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
    assert always.runs == 2
    always.in_generation = True
    assert torch.equal(told, model.generate(input_ids=ids, max_new_tokens=2, do_sample=False))
    assert always.runs == 3  # in the prefill alone


def several_ranks(model: Any, **settings: Any) -> SimpleNamespace:
    """A trainer of two ranks, as far as the question goes of what they run in every forward."""
    args = SimpleNamespace(world_size=2, ds3_gather_for_generation=True)
    found = SimpleNamespace(args=args, is_fsdp_enabled=False, eval_dataset=None, model=model)
    found.train_dataset = Dataset.from_dict({"images": [["a.png"]]})
    found.accelerator = SimpleNamespace(unwrap_model=lambda model: model)
    for name, value in settings.items():
        setattr(args if hasattr(args, name) else found, name, value)
    return found


def test_what_several_ranks_cannot_do_together_is_refused(
    tiny_qwen2_vl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl)
    with pytest.raises(UserError, match="--fsdp would train the output layer with one rank's gradients"):
        make_forwards_alike(several_ranks(model, is_fsdp_enabled=True), sampled=True)
    model.requires_grad_(False)
    text = Dataset.from_dict({"images": [["a.png"], []]})
    make_forwards_alike(several_ranks(model, is_fsdp_enabled=True), sampled=True)
    make_forwards_alike(several_ranks(model, is_fsdp_enabled=True, train_dataset=text), sampled=False)
    for unfit in ({"train_dataset": text}, {"eval_dataset": text}, {"eval_dataset": {"a": text}}):
        with pytest.raises(UserError, match="text-only rows cannot be answered under FSDP; use DeepSpeed"):
            make_forwards_alike(several_ranks(model, is_fsdp_enabled=True, **unfit), sampled=True)
    monkeypatch.setattr("virft.symmetric.is_deepspeed_zero3_enabled", lambda: True)
    unfit = {"train_dataset": text, "ds3_gather_for_generation": False}
    make_forwards_alike(several_ranks(model, **unfit), sampled=False)
    with pytest.raises(UserError, match="--ds3_gather_for_generation false with text-only rows"):
        make_forwards_alike(several_ranks(model, **unfit), sampled=True)


def test_pixel_limits_that_contradict_each_other_are_refused(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    args = VisualRFTConfig(output_dir=str(tmp_path), min_pixels=10**7, max_pixels=10**6, use_cpu=True)
    with pytest.raises(UserError, match="--min_pixels 10000000 must be positive and not above --max_pixels"):
        load_processor(str(tiny_qwen2_vl), args)
