"""What TRL's own GRPOTrainer takes, ours takes: forms of rows, of rewards and of the model, and its options.

Each case is a way of calling that TRL documents and tests; here it trains a step or two on the tiny model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    Qwen2Config,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_vl_chat_template

from virft.errors import UserError
from virft.trainer import VisualRFTConfig, VisualRFTTrainer

pytestmark = pytest.mark.slow


def words(completions: Any, **columns: Any) -> list[float]:
    return [float(len(set(str(completion)))) for completion in completions]


def other(completions: Any, **columns: Any) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


async def waited(completions: Any, **columns: Any) -> list[float]:
    return words(completions)


def some(completions: Any, **columns: Any) -> list[float | None]:
    return [None if i % 2 else value for i, value in enumerate(words(completions))]


def never(completions: Any, **columns: Any) -> list[None]:
    return [None] * len(completions)


def dataset(column: str | None = "image", prompt: str = "text", count: int = 6) -> datasets.Dataset:
    """Rows in TRL's forms: ``image`` or ``images`` as pictures, prompts plain or with placeholders."""
    rows: dict[str, list] = {"prompt": []}
    for i in range(count):
        parts = [{"type": "image"}, {"type": "text", "text": f"What is it? {i}"}]
        forms = {"text": f"What is it? {i}", "parts": parts if column else parts[1:]}
        rows["prompt"].append(
            [{"role": "user", "content": forms[prompt]}] if prompt != "plain" else f"It {i}"
        )
        if column:
            picture = Image.effect_noise((56 + 28 * (i % 2), 56), 90).convert("RGB")
            rows.setdefault(column, []).append(picture if column == "image" else [picture])
    made = datasets.Dataset.from_dict(rows)
    if column:
        kind = datasets.Image() if column == "image" else datasets.List(datasets.Image())
        made = made.cast_column(column, kind)
    return made


def settings(output: Path, **options: Any) -> VisualRFTConfig:
    usual = {"per_device_train_batch_size": 1, "num_generations": 2, "max_completion_length": 6}
    usual |= {"max_steps": 2, "learning_rate": 0.1, "use_cpu": True, "report_to": [], "save_strategy": "no"}
    return VisualRFTConfig(output_dir=str(output), disable_tqdm=True, **(usual | options))


def changed(trainer: VisualRFTTrainer) -> int:
    """Train; how many parameters differ afterwards."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] is not None
    return sum(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


@pytest.mark.parametrize("shared", [True, False], ids=["shared_prefix", "stock"])
@pytest.mark.parametrize(
    ("column", "prompt"),
    [
        ("image", "text"),
        ("image", "parts"),
        ("images", "text"),
        ("images", "parts"),
        (None, "text"),
        (None, "plain"),
    ],
)
def test_rows(column: str | None, prompt: str, shared: bool, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def look(completions: Any, **columns: Any) -> list[float]:
        seen.append(columns)
        return words(completions)

    args = settings(tmp_path, shared_prefix=shared)
    trainer = VisualRFTTrainer(str(tiny_qwen2_vl), look, args, dataset(column, prompt))
    visual = {n: p.detach().clone() for n, p in trainer.base_model().model.visual.named_parameters()}
    assert changed(trainer) > 20
    moved = [not torch.equal(p, visual[n]) for n, p in trainer.base_model().model.visual.named_parameters()]
    assert any(moved) == (column is not None)  # the pictures reached the model
    if column:
        assert column in seen[0]


@pytest.mark.parametrize(
    ("rewards", "options"),
    [
        (words, {}),
        ([words, other], {}),
        ([words, other], {"reward_weights": [0.7, 0.3]}),
        ([words, other], {"multi_objective_aggregation": "normalize_then_sum"}),
        (waited, {}),
        ([words, waited, some], {}),
        ([words, some], {}),
        ([words, never], {}),
    ],
    ids=["one", "two", "weights", "normalized", "async", "async_and_sync", "some_none", "all_none"],
)
def test_rewards(rewards: Any, options: dict, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    trainer = VisualRFTTrainer(str(tiny_qwen2_vl), rewards, settings(tmp_path, **options), dataset())
    assert changed(trainer)
    for reward in rewards if isinstance(rewards, list) else [rewards]:
        assert f"rewards/{reward.__name__}/mean" in trainer.state.log_history[0]


def reward_model(processor_folder: Path) -> Any:
    config = Qwen2Config(
        vocab_size=2000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_labels=1,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(processor_folder)
    config.vocab_size = len(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    return AutoModelForSequenceClassification.from_config(config), tokenizer


@pytest.mark.parametrize("form", ["model", "folder", "mixed"])
def test_reward_models(form: str, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    model, tokenizer = reward_model(tiny_qwen2_vl)
    if form == "folder":
        model.save_pretrained(tmp_path / "reward")
        tokenizer.save_pretrained(tmp_path / "reward")
        options: dict[str, Any] = {"reward_funcs": str(tmp_path / "reward")}
    elif form == "model":
        options = {"reward_funcs": model, "reward_processing_classes": tokenizer}
    else:
        options = {"reward_funcs": [model, words], "reward_processing_classes": [tokenizer, None]}
    trainer = VisualRFTTrainer(
        str(tiny_qwen2_vl), args=settings(tmp_path), train_dataset=dataset(None), **options
    )
    assert changed(trainer)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.1},
        {"beta": 0.0},
        {"num_iterations": 2},
        {"steps_per_generation": 2},
        {"per_device_train_batch_size": 2, "steps_per_generation": 1, "gradient_accumulation_steps": 2},
        {"mask_truncated_completions": True},
        {"log_completions": True, "log_multimodal": True},
        {"log_completions": True, "num_completions_to_print": 1},
        {"scale_rewards": "none"},
        {"scale_rewards": False},
        {"top_entropy_quantile": 0.2},
        {"delta": 2.0},
        {"importance_sampling_level": "sequence"},
        {"disable_dropout": True},
        {"cache_implementation": "dynamic", "generation_kwargs": {"top_k": 5}},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 10, "min_p": 0.01, "repetition_penalty": 1.1},
        {"shuffle_dataset": False},
        {"use_bias_correction_kl": True},
        *({"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")),
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_options(options: dict, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    trainer = VisualRFTTrainer(str(tiny_qwen2_vl), words, settings(tmp_path, **options), dataset())
    moved = changed(trainer)
    assert moved or options.get("mask_truncated_completions")  # there every reply may be cut off


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("form", ["config", "model"])
def test_peft(form: str, checkpointing: bool, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj", "v_proj"])
    model, options = str(tiny_qwen2_vl), {"peft_config": lora}
    if form == "model":
        model = get_peft_model(AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl), lora)
        options = {}
    args = settings(tmp_path, gradient_checkpointing=checkpointing)
    trainer = VisualRFTTrainer(model, words, args, dataset(), **options)
    base = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora" not in n}
    assert changed(trainer)
    assert all(torch.equal(p, base[n]) for n, p in trainer.model.named_parameters() if n in base)


def test_a_loaded_model_callbacks_and_optimizers(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.steps += 1

    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl)
    count, optimizer = Count(), torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = VisualRFTTrainer(
        model, words, settings(tmp_path), dataset(), callbacks=[count], optimizers=(optimizer, None)
    )
    assert changed(trainer) and count.steps == 2


def test_a_model_may_be_trained_again(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    """By another trainer, ours or TRL's; it computes what its saved weights compute."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl)
    assert changed(VisualRFTTrainer(model, words, settings(tmp_path), dataset()))
    again = VisualRFTTrainer(model, words, settings(tmp_path, temperature=0.5), dataset())
    assert changed(again)
    assert again.self_check["largest"] < 1e-4
    plain = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, num_generations=2, max_steps=1,
        max_completion_length=4, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
    )  # fmt: skip
    GRPOTrainer(model, words, plain, dataset()).train()
    model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, saved(input_ids=ids).logits)


@pytest.mark.parametrize("several", [False, True], ids=["one_set", "several_sets"])
def test_evaluation_without_a_metric_is_trl_s(several: bool, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    held_out = {"a": dataset(count=2), "b": dataset(count=3)} if several else dataset(count=3)
    args = settings(tmp_path, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2)
    trainer = VisualRFTTrainer(str(tiny_qwen2_vl), words, args, dataset(), held_out)
    trainer.train()
    logged = {key for line in trainer.state.log_history for key in line}
    assert {"eval_reward"} | ({"eval_a_loss", "eval_b_loss"} if several else {"eval_loss"}) <= logged


def test_a_rollout_function(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    def same(prompts: list, trainer: VisualRFTTrainer) -> dict[str, list]:
        end = trainer.processing_class.tokenizer.eos_token_id
        replies = [[*range(40, 45 + 5 * i), end] for i in range(len(prompts))]
        logps = [[0.0] * len(reply) for reply in replies]
        return {"prompt_ids": [[5, 6, 7]] * len(prompts), "completion_ids": replies, "logprobs": logps}

    rows = dataset(None)
    trainer = VisualRFTTrainer(str(tiny_qwen2_vl), words, settings(tmp_path), rows, rollout_func=same)
    assert changed(trainer)
    assert trainer.sharing.logps == "off"


@pytest.mark.parametrize("shared", [True, False], ids=["shared_prefix", "stock"])
@pytest.mark.parametrize("column", ["images", None])
@pytest.mark.parametrize("shown", [False, True], ids=["words", "picture"])
def test_tools(shown: bool, column: str | None, shared: bool, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    """The model calls a tool, reads its answer, which may be a picture, and ends its reply."""

    def look(side: int) -> Any:
        """Looks closely.

        Args:
            side: Pixels.
        """
        picture = {"type": "image", "image": Image.new("RGB", (side, side))}
        return [picture, {"type": "text", "text": "this"}] if shown else f"{side} pixels"

    processor = AutoProcessor.from_pretrained(tiny_qwen2_vl, padding_side="left")
    processor.chat_template = processor.tokenizer.chat_template = qwen3_vl_chat_template
    call = '<tool_call>\n{"name": "look", "arguments": {"side": 56}}\n</tool_call>'
    end = processor.tokenizer.eos_token_id
    said = [processor.tokenizer(text)["input_ids"] + [end] for text in (call, "Done!")]
    turns = 0

    def speak(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        nonlocal turns
        turns += 1
        return torch.cat([input_ids, torch.tensor([said[(turns - 1) % 2]] * len(input_ids))], 1)

    seen: list[Any] = []

    def listen(completions: Any, **columns: Any) -> list[float]:
        seen.extend(completions)
        return [float(i) for i in range(len(completions))]

    args = settings(tmp_path, max_completion_length=200, max_steps=1, shared_prefix=shared)
    trainer = VisualRFTTrainer(
        str(tiny_qwen2_vl), listen, args, dataset(column), processing_class=processor, tools=[look]
    )
    with mock.patch.object(trainer.model, "generate", side_effect=speak):
        trainer.train()
    assert turns == 2
    assert [message["role"] for message in seen[0]] == ["assistant", "tool", "assistant"]
    assert trainer.state.log_history[0]["tools/call_frequency"] == 1


def test_arguments_may_be_left_out(tiny_qwen2_vl: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    trainer = VisualRFTTrainer(str(tiny_qwen2_vl), words, train_dataset=dataset(count=9))
    assert trainer.args.prompts_per_device == 1


@pytest.mark.parametrize(
    "options",
    [{"min_pixels": -5}, {"max_pixels": 0}, {"top_entropy_quantile": 2}, {"ref_model_mixup_alpha": 5}],
    ids=lambda options: next(iter(options)),
)
def test_numbers_out_of_range_are_refused(options: dict, tmp_path: Path) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(UserError, match=f"--{name} {value} must be at least"):
        settings(tmp_path, **options)


def test_a_stream_is_refused(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="streamed"):
        VisualRFTTrainer(str(tiny_qwen2_vl), words, settings(tmp_path), dataset().to_iterable_dataset())


@pytest.mark.parametrize("solution", [3, ["a", "b"], {"x": 1}, None])
def test_solutions_of_any_kind(solution: Any, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    """A column of that name belongs to the user's own reward; nothing else may stumble over it."""
    seen: list[Any] = []

    def look(completions: Any, solution: list, **columns: Any) -> list[float]:
        seen.extend(solution)
        return words(completions)

    rows = dataset().add_column("solution", [solution] * 6)
    rows = rows.add_column("image_sizes", [[[56, 56]]] * 6)
    trainer = VisualRFTTrainer(str(tiny_qwen2_vl), look, settings(tmp_path), rows)
    assert changed(trainer)
    assert seen == [solution] * 4


@pytest.mark.parametrize("column", ["image", "images", None])
def test_evaluation_with_a_metric_takes_the_rows_of_training(
    column: str | None, tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    """Rows in any form, prompted by the same chat template and the same settings of it."""
    rows = dataset(column, count=3).add_column("number", [0, 1, 2])
    args = settings(tmp_path, chat_template_kwargs={"mood": "kindly"})
    trainer = VisualRFTTrainer(
        str(tiny_qwen2_vl), words, args, rows, rows,
        metric=lambda found, replies: {"sum": sum(row["number"] for row in found), "replies": len(replies)},
    )  # fmt: skip
    processor = trainer.processing_class
    processor.chat_template = processor.chat_template.replace("assistant\n", "assistant {{ mood }}\n")
    held_out = trainer._text([{"role": "user", "content": "Look."}], [])
    assert held_out.endswith("<|im_start|>assistant kindly\n")
    assert trainer.evaluate() == {"eval_sum": 3.0, "eval_replies": 3.0}


def test_replies_of_any_length(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    args = settings(tmp_path, max_completion_length=None, inject_solution=True, max_steps=1)
    trainer = VisualRFTTrainer(
        str(tiny_qwen2_vl), words, args, dataset(), target=lambda row: "a long one " * 9
    )
    assert changed(trainer)
    assert trainer.state.log_history[0]["injected_ratio"] == 0.5


@pytest.mark.parametrize(
    ("options", "others", "said"),
    [
        ({}, {"train_dataset": None}, "train_dataset is missing"),
        ({"inject_solution": True}, {}, "inject_solution needs target"),
        ({"shared_prefix_attention": "varlen"}, {}, "varlen needs a CUDA GPU .* use split"),
        ({"top_k": None}, {}, r"sampling would use top_k 50, asked for is None .* --top_k 0"),
        ({}, {"processing_class": "tokenizer"}, "must be the processor of .* got a TokenizersBackend"),
    ],
)
def test_what_cannot_run_is_refused(
    options: dict, others: dict, said: str, tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    if "processing_class" in others:
        others = {"processing_class": AutoTokenizer.from_pretrained(tiny_qwen2_vl)}
    others = {"train_dataset": dataset()} | others
    with pytest.raises(UserError, match=said):
        VisualRFTTrainer(str(tiny_qwen2_vl), words, settings(tmp_path, **options), **others)
