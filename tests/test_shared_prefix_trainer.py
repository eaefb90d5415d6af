"""A run with the shared prefix is the run that TRL's trainer makes, step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from peft import IA3Config, LoraConfig
from shared_prefix_runs import DEFAULTS, build, run, sharpened
from transformers import GenerationMixin, Qwen2VLConfig
from trl import GRPOConfig

from virft.errors import UserError
from virft.shared_prefix_config import SharedPrefixConfig, Units, decide
from virft.shared_prefix_trainer import SharedPrefixGRPOTrainer


@pytest.fixture(scope="module")
def models(
    tiny_qwen2_vl: Path, tiny_qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Folders of both families' models, with weights that matter."""
    folder = tmp_path_factory.mktemp("sharpened")
    return {
        "2": sharpened(tiny_qwen2_vl, folder / "qwen2_vl"),
        "2.5": sharpened(tiny_qwen2_5_vl, folder / "qwen2_5_vl"),
    }


def assert_same(stock: dict[str, Any], shared: dict[str, Any]) -> None:
    """The same replies, logs and weights; losses near zero are compared absolutely."""
    assert shared["seen"] == stock["seen"]
    assert len(shared["log"]) == len(stock["log"])
    for found, expected in zip(shared["log"], stock["log"], strict=True):
        assert found == pytest.approx(expected, rel=5e-5, abs=1e-6)
    assert shared["weights"].keys() == stock["weights"].keys()
    for name, weight in stock["weights"].items():
        # Adam's first steps have the learning rate's size for any gradient: rounding shows where it is 0.
        assert float((shared["weights"][name] - weight).abs().mean()) < 5e-5, name


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one micro-batch": {"steps_per_generation": 1, "gradient_accumulation_steps": 1},
    "dapo": {"loss_type": "dapo"},
    "LoRA": {"adapter": ["q_proj", "v_proj", "qkv"]},
    "a merger of its own": {
        "adapter": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["merger"]),
    },
    "no LoRA, in the vision tower alone": {
        "adapter": IA3Config(target_modules=["qkv"], feedforward_modules=[])
    },
    "LoRA, frozen vision, checkpointing": {"adapter": ["q_proj", "v_proj"], "gradient_checkpointing": True},
    "frozen vision": {"freeze_vision": True},
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "two iterations": {"num_iterations": 2, "max_steps": 3},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8},
    "evaluation of single replies": {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "num_generations_eval": 1,
        "per_device_eval_batch_size": 2,
    },
    "sub-groups": {
        "per_device_train_batch_size": 2,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 4,
    },
    "micro-batches that cut groups": {"per_device_train_batch_size": 6},
    "no reference": {"beta": 0.0},
    "one or two images": {"counts": (1, 2)},
    "text alone": {"counts": (0,)},
    "no longest reply": {"max_completion_length": None},
    "expanded cache": {"shared_prefix_cache": "expanded"},
    "dense mask": {"shared_prefix_attention": "dense"},
    "TRL samples": {"generation_kwargs": {"use_cache": True}},
    "eager attention": {"model_init_kwargs": {"attn_implementation": "eager"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_run_is_that_of_trl(models: dict[str, str], tmp_path: Path, name: str) -> None:
    settings = RUNS[name]
    ours = {k: v for k, v in settings.items() if k.startswith("shared_prefix")}
    theirs = {k: v for k, v in settings.items() if k not in ours}
    family = "2.5" if "checkpointing" in name else "2"
    stock = run("stock", models[family], tmp_path, **theirs)
    shared = run("shared", models[family], tmp_path, **theirs, **ours)
    assert_same(stock, shared)
    if shared["trainer"].sharing.logps == "packed":
        assert shared["trainer"].self_check["largest"] < 1e-5


@pytest.mark.slow
def test_generate_of_the_user_s_own_samples(models: dict[str, str], tmp_path: Path) -> None:
    """One that stands in the place of the model's, or of its class's, is asked as TRL asks it."""
    reply = torch.tensor([list(range(40, 52))])

    def same(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids, reply.repeat(len(input_ids), 1)], 1)

    for place in ("model", "class"):
        trainer, seen = build("shared", models["2"], tmp_path, max_steps=1)
        owner = trainer.model if place == "model" else GenerationMixin
        with mock.patch.object(owner, "generate", side_effect=same) as generate:
            trainer.train()
            assert generate.call_count == 1
        assert seen == [reply.tolist() * 16]
    assert "generate" not in vars(trainer.model)


@pytest.mark.slow
def test_both_families_and_off(models: dict[str, str], tmp_path: Path) -> None:
    stock = run("stock", models["2.5"], tmp_path)
    assert_same(stock, run("shared", models["2.5"], tmp_path))
    off = run("shared", models["2.5"], tmp_path, shared_prefix=False)
    assert_same(stock, off)
    assert off["trainer"].sharing.describe() == "shared prefix: off (--shared_prefix false)"
    assert not hasattr(type(off["trainer"].processing_class.image_processor), "_virft_memo")


@pytest.mark.slow
def test_rows_with_and_without_images_mix(models: dict[str, str], tmp_path: Path) -> None:
    """TRL itself cannot: its second call of the processor refuses None among the images."""
    found = run("shared", models["2"], tmp_path, counts=(1, 0, 2, 0))
    assert found["trainer"].self_check["largest"] < 1e-5
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in found["log"])


@pytest.mark.slow
def test_every_image_is_read_and_preprocessed_once(models: dict[str, str], tmp_path: Path) -> None:
    trainer, _ = build("shared", models["2"], tmp_path, max_steps=1, num_iterations=1)
    trainer.train()
    prompts = 8 * 2 // 4
    assert trainer._memo.misses == prompts
    assert trainer._memo.calls < 2 * 8 * 2  # TRL preprocesses each row's image twice


@pytest.mark.slow
def test_frozen_vision_is_encoded_once_for_all_passes(models: dict[str, str], tmp_path: Path) -> None:
    patches = {}
    for frozen in (False, True):
        trainer, _ = build(
            "shared", models["2"], tmp_path, max_steps=1, num_iterations=2, freeze_vision=frozen
        )
        trainer._checked = True
        counted = []
        for model in (trainer.model, trainer.ref_model):
            model.model.visual.register_forward_pre_hook(
                lambda module, args, kwargs, counted=counted: counted.append(
                    (args[0] if args else kwargs["hidden_states"]).shape[0]
                ),
                with_kwargs=True,
            )
        trainer.train()
        patches[frozen] = sum(counted)
    # Otherwise: sampling, old, reference and (in one step of two micro-batches) policy.
    assert patches[False] == 4 * patches[True]


@pytest.mark.slow
def test_the_first_step_checks_and_stops(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from virft import shared_prefix_trainer

    own = shared_prefix_trainer.pack

    def wrong(*args: Any, **kwargs: Any) -> Any:
        row = own(*args, **kwargs)
        row.position_ids[:, :, row.plan.labelled] += 1
        return row

    monkeypatch.setattr(shared_prefix_trainer, "pack", wrong)
    trainer, _ = build("shared", models["2"], tmp_path)
    with pytest.raises(RuntimeError, match=r"differ from TRL's by up to .* packed, .* by TRL"):
        trainer.train()


@pytest.mark.slow
def test_rows_of_a_group_must_show_one_prompt(models: dict[str, str], tmp_path: Path) -> None:
    trainer, _ = build("shared", models["2"], tmp_path)
    batch = [trainer.train_dataset[i] for i in (0, 0, 0, 1) * 4]
    trainer.model.train()
    with pytest.raises(RuntimeError, match="rows 0 and 3 .* should show the same prompt"):
        trainer._prepare_inputs(batch)


@pytest.mark.slow
def test_the_buffer_is_plain_and_resumes(models: dict[str, str], tmp_path: Path) -> None:
    """A checkpoint within a generation stores the buffer; it must load without trusting code."""
    trainer, _ = build("shared", models["2"], tmp_path, max_steps=1)
    trainer.train()
    torch.save(trainer._buffered_inputs, tmp_path / "buffer.pt")
    batch = torch.load(tmp_path / "buffer.pt", weights_only=True)[0]
    trainer.model.train()
    with torch.no_grad():
        assert torch.isfinite(trainer.compute_loss(trainer.model, batch))


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_half_precision_trains(models: dict[str, str], tmp_path: Path, frozen: bool) -> None:
    found = run("shared", models["2"], tmp_path, bf16=True, freeze_vision=frozen)
    assert 0 < found["trainer"].self_check["mean"] < 2e-2
    # Reference and policy are scored alike: before the first update there is no KL at all.
    assert found["trainer"].state.log_history[0]["kl"] == 0


class EngineInPlace:
    """Stands for vLLM, which needs a GPU: replies and log-probs that depend on the prompts alone."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def sync_weights(self) -> None:
        """The weights do not matter."""

    def generate(self, prompts: list, images: list, num_generations: int, profiler: Any) -> tuple:
        """As ``trl.generation.vllm_generation.VLLMGeneration.generate``; every row shows its image."""
        assert len(images) == len(prompts) and all(len(row) == 1 for row in images)
        self.prompts += prompts
        generator = torch.Generator().manual_seed(sum(map(sum, prompts)))
        lengths = torch.randint(3, 12, (len(prompts),), generator=generator).tolist()
        replies = [torch.randint(7, 90, (n,), generator=generator).tolist() for n in lengths]
        logprobs = [[[-5.0]] * n for n in lengths]
        return None, replies, logprobs, None


@pytest.mark.slow
def test_log_probs_are_shared_where_vllm_samples(models: dict[str, str], tmp_path: Path) -> None:
    logs, prompts = {}, {}
    for which in ("stock", "shared"):
        trainer, _ = build(which, models["2"], tmp_path)
        trainer.use_vllm, trainer._last_loaded_step, trainer.vllm_generation = True, -1, EngineInPlace()
        if which == "shared":
            args = SimpleNamespace(**(vars(trainer.args) | {"use_vllm": True}))
            trainer.sharing = decide(args, trainer.model.config)
            assert (trainer.sharing.logps, trainer.sharing.generation) == ("packed", "trl")
        trainer.train()
        logs[which] = [
            {k: v for k, v in row.items() if "sampling" in k or k in ("loss", "grad_norm")}
            for row in trainer.state.log_history
            if "loss" in row
        ]
        prompts[which] = trainer.vllm_generation.prompts
    assert prompts["shared"] == prompts["stock"]
    assert len(logs["stock"][0]) > 4
    for found, expected in zip(logs["shared"], logs["stock"], strict=True):
        assert found == pytest.approx(expected, rel=5e-5, abs=1e-6)


# --- the decision


def settings(**changes: Any) -> GRPOConfig:
    """A complete configuration."""
    values = {k: v for k, v in DEFAULTS.items() if k != "steps_per_generation"}
    return SharedPrefixConfig(**(values | {"use_cpu": True, "output_dir": "unused"} | changes))


def model_config(attention: str = "sdpa", **text: Any) -> Qwen2VLConfig:
    """A Qwen2-VL configuration."""
    config = Qwen2VLConfig(text_config={"num_hidden_layers": 2, **text})
    config.get_text_config()._attn_implementation = attention
    return config


@pytest.mark.parametrize(
    ("changes", "logps", "generation", "train"),
    [
        ({}, "packed", "shared", Units(4, 4)),
        ({"per_device_train_batch_size": 2}, "packed", "shared", Units(2, 4)),
        ({"per_device_train_batch_size": 6}, "packed", "shared", Units(2, 4)),
        ({"per_device_train_batch_size": 4, "num_generations": 8}, "packed", "shared", Units(4, 8)),
        ({"shared_prefix_cache": "static"}, "packed", "static", Units(4, 4)),
        ({"shared_prefix": False}, "off", "trl", Units(4, 4)),
        ({"shared_prefix_cache": "static", "max_completion_length": None}, "packed", "expanded", Units(4, 4)),
        ({"use_vllm": True}, "packed", "trl", Units(4, 4)),
        ({"cache_implementation": "static"}, "packed", "trl", Units(4, 4)),
        ({"generation_kwargs": {"num_beams": 2}}, "packed", "trl", Units(4, 4)),
    ],
)
def test_decision(changes: dict, logps: str, generation: str, train: Units) -> None:
    found = decide(settings(**changes), model_config())
    assert (found.logps, found.generation, found.train) == (logps, generation, train)
    assert found.describe().count("\n") == 0


def test_decision_by_model() -> None:
    args = settings()
    assert decide(args, model_config("flash_attention_2")).logps == "packed"
    assert decide(args, model_config("eager")).logps == "vision"
    sliding = model_config(use_sliding_window=True, max_window_layers=0)
    assert decide(args, sliding).notes == ("sliding-window layers cannot run packed rows",)
    assert decide(args, model_config(), aux_loss=True).logps == "vision"
    assert decide(args, model_config(), foreign_rollouts="tools").logps == "off"
    assert decide(args, model_config(), prompt_learning=True).logps == "off"
    other = SimpleNamespace(model_type="llama", get_text_config=lambda: None)
    assert decide(args, other).notes == ("llama is no qwen2_vl or qwen2_5_vl",)


def test_a_batch_with_nothing_to_share_says_so() -> None:
    found = decide(settings(per_device_train_batch_size=1, gradient_accumulation_steps=4), model_config())
    assert "nothing to share in micro-batches of 1 with 4 replies a prompt" in found.describe()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="--shared_prefix_attention flex is none of split, dense, varlen"):
        settings(shared_prefix_attention="flex")
    with pytest.raises(UserError, match="--shared_prefix_cache paged is none of shared, expanded, static"):
        settings(shared_prefix_cache="paged")


def test_alignment_of_the_units_holds_for_every_rank_and_batch() -> None:
    """What the decision promises of TRL's sampler: aligned runs of ``forward`` rows lie within one group."""
    from trl.trainer.utils import RepeatSampler

    for batch, steps, group, ranks in [(8, 2, 4, 2), (6, 2, 4, 2), (2, 4, 8, 1), (2, 1, 8, 4), (3, 2, 6, 3)]:
        args = settings()  # then changed past its checks, which know one rank only
        args.per_device_train_batch_size, args.steps_per_generation = batch, steps
        args.num_generations = group
        units = decide(args, model_config()).train
        local = batch * steps
        sampler = RepeatSampler(
            range(50), mini_repeat_count=group, batch_size=local * ranks // group, repeat_count=steps, seed=0
        )
        order = list(sampler)
        for start in range(
            0, len(order) - local + 1, local
        ):  # what a rank gets, accelerate deals them in turn
            rows = order[start : start + local]
            for unit in (units.forward, units.generation):
                assert all(len(set(rows[i : i + unit])) == 1 for i in range(0, local, unit))


# --- several ranks


ZERO3 = {
    "zero_optimization": {"stage": 3},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "zero_allow_untested_optimizer": True,
}
RANKED: dict[str, dict[str, Any]] = {
    "DDP": {"ddp_backend": "gloo", "eval_strategy": "steps", "eval_steps": 1},
    "ZeRO-3": {"deepspeed": ZERO3, "num_iterations": 2},
    "ZeRO-3, not gathered, frozen vision": {
        "deepspeed": ZERO3,
        "ds3_gather_for_generation": False,
        "freeze_vision": True,
        "per_device_train_batch_size": 2,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
}


def two_ranks(*arguments: str) -> None:
    """Run ``shared_prefix_runs.py`` under torchrun, one thread a rank; a failure shows what it wrote last."""
    tests = Path(__file__).parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*launch, str(tests / "cpu_torchrun.py"), str(tests / "shared_prefix_runs.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKED)
def test_two_ranks(models: dict[str, str], tmp_path: Path, name: str) -> None:
    for which in ("stock", "shared"):
        two_ranks(which, str(tmp_path / which), json.dumps(RANKED[name] | {"model": models["2"]}))
    for rank in range(2):
        stock, shared = (torch.load(tmp_path / f"{w}.{rank}", weights_only=True) for w in ("stock", "shared"))
        assert_same(stock, shared)


@pytest.mark.parametrize(
    ("batch", "group", "rows", "ranks"), [(8, 4, 3, 2), (6, 4, 5, 1), (2, 8, 3, 4), (3, 3, 4, 2)]
)
def test_alignment_holds_for_the_last_evaluation_batch(batch: int, group: int, rows: int, ranks: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler
    from trl.trainer.utils import RepeatSampler

    args = settings()
    args.per_device_eval_batch_size, args.num_generations_eval = batch, group
    unit = decide(args, model_config()).evaluation.forward
    for rank in range(ranks):
        batches = BatchSampler(RepeatSampler(range(rows), group, seed=0), batch, drop_last=False)
        for found in BatchSamplerShard(batches, ranks, rank):
            assert len(found) % unit == 0
            assert all(len(set(found[i : i + unit])) == 1 for i in range(0, len(found), unit))


def test_the_trainer_is_trls() -> None:
    from trl import GRPOTrainer

    assert issubclass(SharedPrefixGRPOTrainer, GRPOTrainer)
