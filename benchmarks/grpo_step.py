"""Whole GRPO optimizer steps through the real trainers: stock TRL against the shared prefix, phase by phase.

    python benchmarks/grpo_step.py --preset cpu-2b --generations 8 --output benchmarks/results/cpu-2b-g8.json

Both trainers run the same model, rows and seeds, alternating in one process; peak memory is measured in
processes of their own. Weights are random and nothing is downloaded. The presets ``cpu-2b`` and ``cpu-7b``
are scaled models with the real ones' ratio of vision to language cost and with real token counts (504 visual
+ 157 text + 192 reply); ``2b`` and ``7b-lora`` have the real sizes and want a GPU with 80 GB.

Ratios are stock / shared (how many times faster), ``ratio.memory`` is shared / stock. Timings are the
fastest of the timed steps, by phase, as other work on the machine only ever adds to them.
``ratio.policy`` and ``ratio.reference`` are of passes over replies of 126 .. 192 tokens, ``policy_in_step``
and ``reference_in_step`` those within the whole steps, where every reply has 192. On a CPU, TRL's
language-model head scores every position, on a GPU the labelled ones only: here stock TRL does the latter
everywhere, so that the head's share does not flatter us.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep: user-CPU seconds are work done
os.environ.setdefault("DS_ACCELERATOR", "cpu" if not Path("/dev/nvidiactl").exists() else "cuda")

import numpy as np
import torch
import trl.trainer.utils
from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image
from transformers import (
    AutoProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from virft import tiny
from virft.files import check_file, replacing
from virft.programs import run_program
from virft.shared_prefix_config import SharedPrefixConfig
from virft.shared_prefix_trainer import SharedPrefixGRPOTrainer
from virft.shared_prefix_vision import RowImages

VISUAL_TOKENS, TEXT_TOKENS, REPLY_TOKENS = 504, 157, 192
RESIZED = (784, 504)  # pixels that make 504 visual tokens
SHORTEST_REPLY = 126  # in the passes over replies of different lengths
STOCK, SHARED = "stock", "shared"
TRAINERS = {STOCK: (GRPOTrainer, GRPOConfig), SHARED: (SharedPrefixGRPOTrainer, SharedPrefixConfig)}


@dataclass(frozen=True)
class Preset:
    """Sizes of a model, and how it is trained."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    vision_size: int
    vision_depth: int
    vision_heads: int
    tied: bool = False
    gpu: bool = False
    lora: bool = False


PRESETS = {
    "cpu-2b": Preset(256, 1024, 4, 4, 2, 2816, 192, 2, 4),
    "cpu-7b": Preset(384, 2048, 6, 6, 2, 2816, 128, 2, 2),
    "2b": Preset(1536, 8960, 28, 12, 2, 151936, 1280, 32, 16, tied=True, gpu=True),
    "7b-lora": Preset(3584, 18944, 28, 28, 4, 152064, 1280, 32, 16, gpu=True, lora=True),
}


def build_model(preset: Preset, folder: Path) -> None:
    """Save a model of the preset's sizes with random weights, and its processor."""
    tiny.build(folder)  # for the processor, its tokenizer and the special tokens
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": RESIZED[0] * RESIZED[1] + 64}
    base = Qwen2VLConfig.from_pretrained(folder)
    half = preset.hidden // preset.heads // 2
    text = base.text_config.to_dict() | {
        "vocab_size": preset.vocabulary,
        "hidden_size": preset.hidden,
        "intermediate_size": preset.intermediate,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "num_key_value_heads": preset.key_value_heads,
        "layer_types": None,
        "max_window_layers": preset.layers,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8],
        },
    }
    vision = base.vision_config.to_dict() | {
        "depth": preset.vision_depth,
        "embed_dim": preset.vision_size,
        "hidden_size": preset.hidden,
        "num_heads": preset.vision_heads,
        "mlp_ratio": 4,
    }
    special = {name: getattr(base, name) for name in base.to_dict() if name.endswith("_token_id")}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=preset.tied, **special)
    torch.manual_seed(0)
    with torch.device("cuda" if preset.gpu else "cpu"):
        model = Qwen2VLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16 if preset.gpu else torch.float32
        )
    model.generation_config.eos_token_id = base.text_config.eos_token_id
    model.generation_config.pad_token_id = base.text_config.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def prompt_text(processor: Any) -> str:
    """Text that makes a prompt of TEXT_TOKENS tokens besides the image, the chat template included."""
    empty = conversation("", None)
    words = "0123456789"

    def length(text: str) -> int:
        empty[0]["content"][1]["text"] = text
        rendered = processor.apply_chat_template(empty, add_generation_prompt=True, tokenize=False)
        return len(processor.tokenizer(rendered)["input_ids"]) - 1  # one token stands for the image

    missing = TEXT_TOKENS - length("")
    text = "".join(words[i % 10] for i in range(missing))
    assert length(text) == TEXT_TOKENS, f"{length(text)} text tokens"
    return text


def conversation(text: str, image: Any) -> list[dict[str, Any]]:
    """One user's message with an image and a text."""
    shown = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [{"role": "user", "content": [shown, {"type": "text", "text": text}]}]


def rows(processor: Any, count: int) -> Dataset:
    """Rows as a user has them: JPEG bytes, each image another."""
    random = np.random.default_rng(0)
    text = prompt_text(processor)
    examples = []
    for _ in range(count):
        width, height = (size * 10 // 7 for size in RESIZED)
        coarse = random.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(data, "JPEG", quality=90)
        examples.append(
            {"prompt": conversation(text, None), "image": {"bytes": data.getvalue(), "path": None}}
        )
    return Dataset.from_list(examples).cast_column("image", ImageColumn())


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Something that differs between replies."""
    return [float(sum(ids) % 7) for ids in completion_ids]


class Clock:
    """Wall and user-CPU seconds by phase of the step that is running."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.steps: list[dict[str, list[float]]] = []
        self.phases: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def now(self) -> tuple[float, float]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            for i, (a, b) in enumerate(zip(start, self.now(), strict=True)):
                self.phases[phase][i] += b - a

    def wrap(self, owner: Any, name: str, phase: Callable[..., str]) -> None:
        """Let ``owner.name`` be measured as the phase that ``phase`` makes of its arguments."""
        own = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(phase(*args, **kwargs)):
                return own(*args, **kwargs)

        setattr(owner, name, measured)


class StepTimes(TrainerCallback):
    """Cuts a :class:`Clock` into optimizer steps, reading of rows included."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.last = clock, None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = self.clock.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = self.clock.now()
        step = {"step": [b - a for a, b in zip(self.last, now, strict=True)]}
        self.clock.steps.append(step | {name: list(seconds) for name, seconds in self.clock.phases.items()})
        self.clock.phases.clear()
        self.last = now


def trainer(name: str, preset: Preset, folder: Path, generations: int, steps: int, dataset: Dataset) -> Any:
    """One of the two trainers on the preset's model, one group per step."""
    trainer_class, config_class = TRAINERS[name]
    adapter = None
    if preset.lora:
        from peft import LoraConfig

        adapter = LoraConfig(r=64, lora_alpha=64, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    args = config_class(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=generations,
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        num_generations=generations,
        max_completion_length=REPLY_TOKENS,
        generation_kwargs={"min_new_tokens": REPLY_TOKENS},
        max_steps=steps,
        beta=0.04,
        loss_type="grpo",
        learning_rate=1e-4,
        seed=3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not preset.gpu,
        bf16=preset.gpu,
        gradient_checkpointing=preset.gpu,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_pin_memory=False,
        model_init_kwargs={"dtype": "bfloat16" if preset.gpu else "float32"},
    )
    with redirect_stdout(io.StringIO()):
        made = trainer_class(
            model=str(folder),
            reward_funcs=[reward],
            args=args,
            train_dataset=dataset,
            processing_class=AutoProcessor.from_pretrained(folder, padding_side="left"),
            peft_config=adapter,
        )
    made.model.train()  # as in a run: checkpointing, and the groups of training rather than of evaluation
    return made


def base_model(made: Any) -> Any:
    """The Hugging Face model in a trainer."""
    model = made.accelerator.unwrap_model(made.model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def train(name: str, made: Any, device: str) -> tuple[list[dict], list[dict]]:
    """Run a trainer; seconds by phase of each step but the first (it warms up and checks), and its log."""
    clock = Clock(device)
    made.add_callback(StepTimes(clock))
    core = base_model(made).model
    generating = []
    clock.wrap(made, "_tokenize_prompts", lambda *_, **__: "preprocess")
    clock.wrap(made, "_generate_single_turn", lambda *_, **__: "generate")
    clock.wrap(made, "_prepare_inputs", lambda *_, **__: "prepare")
    clock.wrap(made, "training_step", lambda *_, **__: "training_step")
    clock.wrap(
        made,
        "_get_per_token_logps_and_entropies",
        lambda model, *_, **__: "policy forward" if torch.is_grad_enabled() else "reference",
    )
    clock.wrap(made.processing_class.image_processor, "preprocess", lambda *_, **__: "image processor")
    own_turn = made._generate_single_turn

    def turn(*args: Any, **kwargs: Any) -> Any:
        generating.append(0)
        try:
            return own_turn(*args, **kwargs)
        finally:
            generating.clear()

    made._generate_single_turn = turn
    own_visual, own_language = core.visual.forward, core.language_model.forward

    def visual(*args: Any, **kwargs: Any) -> Any:
        with clock.measure("vision in generate" if generating else "vision in log-probs"):
            return own_visual(*args, **kwargs)

    def language(*args: Any, **kwargs: Any) -> Any:
        if not generating:
            return own_language(*args, **kwargs)
        tokens = kwargs["inputs_embeds"].shape[1]
        with clock.measure("prefill" if tokens > 1 else "decode forward"):
            return own_language(*args, **kwargs)

    core.visual.forward, core.language_model.forward = visual, language
    with redirect_stdout(io.StringIO()):
        made.train()
    for step in clock.steps:
        step["policy"] = [a - b for a, b in zip(step["training_step"], step["prepare"], strict=True)]
        step["decode"] = [
            g - v - p
            for g, v, p in zip(step["generate"], step["vision in generate"], step["prefill"], strict=True)
        ]
    log = [{k: row[k] for k in ("loss", "grad_norm")} for row in made.state.log_history if "loss" in row]
    return clock.steps[1:], log


def group_inputs(made: Any, processor: Any, image: Image.Image, generations: int) -> dict[str, Any]:
    """What TRL gives the log-prob passes for a group with SHORTEST_REPLY .. REPLY_TOKENS tokens a reply."""
    device = made.accelerator.device
    rendered = processor.apply_chat_template(
        conversation(prompt_text(processor), None), add_generation_prompt=True, tokenize=False
    )
    prompt = processor(images=[[image]] * generations, text=[rendered] * generations, return_tensors="pt").to(
        device
    )
    random = torch.Generator().manual_seed(0)
    replies = torch.randint(
        7, base_model(made).config.text_config.vocab_size, (generations, REPLY_TOKENS), generator=random
    )
    replies[replies == base_model(made).config.image_token_id] = 7
    lengths = torch.linspace(SHORTEST_REPLY, REPLY_TOKENS, generations).long()
    mask = (torch.arange(REPLY_TOKENS) < lengths[:, None]).long().to(device)
    replies = replies.to(device).masked_fill(mask == 0, processor.tokenizer.pad_token_id)
    prompt_tokens = prompt["input_ids"].shape[1]
    assert prompt_tokens == VISUAL_TOKENS + TEXT_TOKENS, f"{prompt_tokens} prompt tokens"
    kinds = prompt["mm_token_type_ids"]
    return {
        "input_ids": torch.cat([prompt["input_ids"], replies], 1),
        "attention_mask": torch.cat([prompt["attention_mask"], mask], 1),
        "logits_to_keep": REPLY_TOKENS,
        "pixel_values": prompt["pixel_values"],
        "image_grid_thw": prompt["image_grid_thw"],
        "num_images": [1] * generations,
        "mm_token_type_ids": torch.cat([kinds, kinds.new_zeros(replies.shape)], 1),
    }


def passes(made: Any, inputs: dict[str, Any]) -> dict[str, Callable[[], torch.Tensor]]:
    """Reference pass, and policy forward with backward, of a trainer on one group."""
    prompt = inputs["input_ids"].shape[1] - inputs["logits_to_keep"]
    mask = inputs["attention_mask"][:, prompt:]

    def reference() -> torch.Tensor:
        with torch.no_grad():
            return made._get_per_token_logps_and_entropies(made.ref_model or made.model, **inputs)[0]

    def policy() -> torch.Tensor:
        made.model.zero_grad(set_to_none=True)
        logps = made._get_per_token_logps_and_entropies(made.model, compute_entropy=True, **inputs)[0]
        (logps * mask).sum().backward()
        return logps.detach()

    return {"reference": reference, "policy": policy}


def time_passes(
    trainers: dict[str, Any], inputs: dict[str, Any], device: str, repeats: int
) -> dict[str, Any]:
    """Seconds of the log-prob passes, the trainers alternating, and the largest difference of a log-prob."""
    runs = {name: passes(made, inputs) for name, made in trainers.items()}
    prompt = inputs["input_ids"].shape[1] - inputs["logits_to_keep"]
    mask = inputs["attention_mask"][:, prompt:]
    seconds: dict[str, dict[str, list]] = {}
    difference = 0.0
    for phase in ("reference", "policy"):
        seconds[phase] = {name: [] for name in runs}
        for repeat in range(repeats + 1):
            results = {}
            for name, run in runs.items():
                clock = Clock(device)
                with clock.measure(phase):
                    results[name] = run[phase]()
                if repeat:
                    seconds[phase][name].append(clock.phases[phase])
            gap = (results[STOCK].float() - results[SHARED].float()).abs() * mask
            difference = max(difference, float(gap.max()))
    return {"seconds": seconds, "max_logp_difference": difference}


def peak_memory(name: str, preset: Preset, folder: Path, generations: int) -> float:
    """MiB that one policy forward and backward takes above what stood before it; in a process of its own."""
    score_labelled_only()
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    made = trainer(name, preset, folder, generations, 1, rows(processor, 1))
    image = rows(processor, 1)[0]["image"]
    inputs = group_inputs(made, processor, image, generations)
    if name == SHARED:  # as in training, where the batch holds each image once
        patches = inputs["pixel_values"].shape[0] // generations
        inputs["pixel_values"] = RowImages.of_batch(
            inputs["pixel_values"][:patches].clone(),
            inputs.pop("image_grid_thw"),
            inputs.pop("num_images"),
            [0] * generations,
        )
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    mask = inputs["attention_mask"][:, -REPLY_TOKENS:]
    gc.collect()
    if preset.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    logps = made._get_per_token_logps_and_entropies(made.model, compute_entropy=True, **inputs)[0]
    (logps * mask).sum().backward()
    if preset.gpu:
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return _status("VmHWM") - before


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def score_labelled_only() -> None:
    """Stock TRL's head on a CPU does what it does on a GPU: score the labelled positions only."""
    trl.trainer.utils._use_triton = lambda device: True


def machine(device: str) -> dict[str, Any]:
    """Where the figures come from."""
    model = next(
        (
            x.split(":", 1)[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in x
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load_average": os.getloadavg()[0],
    }


def fastest(steps: list[dict], phase: str, kind: int) -> float:
    """Least seconds of a phase, wall (0) or user-CPU (1)."""
    return min(step.get(phase, [0.0, 0.0])[kind] for step in steps)


def measure(preset_name: str, generations: int, steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """All figures of a preset."""
    preset = PRESETS[preset_name]
    device = "cuda" if preset.gpu else "cpu"
    build_model(preset, folder)
    score_labelled_only()
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    dataset = rows(processor, 16)
    taken: dict[str, list[dict]] = {STOCK: [], SHARED: []}
    logs: dict[str, list] = {}
    for _ in range(repeats):
        for name in TRAINERS:
            made = trainer(name, preset, folder, generations, steps + 1, dataset)
            timed, logs[name] = train(name, made, device)
            taken[name] += timed
            del made
            gc.collect()
    made = {name: trainer(name, preset, folder, generations, 1, dataset) for name in TRAINERS}
    inputs = group_inputs(made[STOCK], processor, dataset[0]["image"], generations)
    single = time_passes(made, inputs, device, max(3, repeats))
    del made
    gc.collect()
    memory = {name: memory_in_process(name, preset_name, generations, folder) for name in TRAINERS}
    names = ("step", "preprocess", "image processor", "generate", "vision in generate", "prefill", "decode")
    names += ("reference", "policy")

    def ratios(kind: int) -> dict[str, float]:
        whole = {
            n: fastest(taken[STOCK], n, kind) / max(fastest(taken[SHARED], n, kind), 1e-9) for n in names
        }
        alone = {
            phase: min(x[kind] for x in by[STOCK]) / min(x[kind] for x in by[SHARED])
            for phase, by in single["seconds"].items()
        }
        return {
            "step": whole["step"],
            "policy": alone["policy"],
            "reference": alone["reference"],
            "generate": whole["generate"],
            "memory": memory[SHARED] / memory[STOCK],
            "policy_in_step": whole["policy"],
            "reference_in_step": whole["reference"],
            "vision": whole["vision in generate"],
            "prefill": whole["prefill"],
            "decode": whole["decode"],
            "preprocess": whole["image processor"],
        }

    return {
        "preset": preset_name,
        "generations": generations,
        "tokens": {"visual": VISUAL_TOKENS, "text": TEXT_TOKENS, "reply": REPLY_TOKENS},
        "ratio": ratios(0),
        "ratio_user_cpu": ratios(1),
        "seconds": {
            name: {n: {"wall": fastest(t, n, 0), "user_cpu": fastest(t, n, 1)} for n in names}
            for name, t in taken.items()
        },
        "seconds_alone": single["seconds"],
        "memory_mib": memory,
        "max_logp_difference": single["max_logp_difference"],
        "log": logs,
        "machine": machine(device),
        "versions": {n: version(n) for n in ("torch", "transformers", "trl", "accelerate", "peft")}
        | {"python": platform.python_version()},
    }


def memory_in_process(name: str, preset: str, generations: int, folder: Path) -> float:
    """Peak memory of one trainer's policy pass, in a fresh process."""
    command = [sys.executable, __file__, "--preset", preset, "--generations", str(generations)]
    # Large blocks go back to the system at once, so that the peak is that of live tensors.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [*command, "--memory_of", name, "--model", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu-2b")
    parser.add_argument("--generations", type=int, default=8, help="replies to a prompt")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--steps", type=int, default=2, help="timed optimizer steps of each run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each trainer")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--memory_of", choices=list(TRAINERS), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generations < 2:
        parser.error("--generations must be at least 2: advantages compare the replies to one prompt")
    for name in ("steps", "repeats", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if arguments.output:
        check_file("--output", arguments.output)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    preset = PRESETS[arguments.preset]
    if preset.gpu and not torch.cuda.is_available():
        parser.error(f"--preset {arguments.preset} needs a CUDA device; use cpu-2b or cpu-7b")
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, preset, arguments.model, arguments.generations))
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            arguments.preset, arguments.generations, arguments.steps, arguments.repeats, Path(folder)
        )
    figures["minutes"] = (time.perf_counter() - start) / 60
    if arguments.output:
        with replacing(arguments.output) as path:
            path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, value in figures["ratio"].items():
        print(f"ratio.{name:<18} {value:6.2f}   user-CPU {figures['ratio_user_cpu'][name]:6.2f}")
    print(f"max_logp_difference      {figures['max_logp_difference']:.1e}")


if __name__ == "__main__":
    run_program(main)
