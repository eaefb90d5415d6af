"""Evaluation, questions per second: the reference's way against this project's engine.

    python benchmarks/evaluation.py --preset cpu-2b --output benchmarks/results/evaluation-cpu-2b.json

Three ways to answer the same questions with the same model, alternating in one process:

reference   one question at a time: the image is opened, resized, encoded and prefilled for each
batched     the questions about an image as one padded batch of ``generate``: the image once for each row
engine      virft.engine: an image opened, encoded and prefilled once for its questions, rows refilled

Weights are random, nothing is downloaded. Replies are greedy and all have the same length, and the ways must
give the same tokens in float32 (in bfloat16, on a GPU, the share that agrees is only stated). The presets are
those of grpo_step.py. The prompt has the detection prompt's lengths with the real tokenizer: 9 tokens before
the category, and the rest, which no two categories share, after it. Timings are the fastest round of each
way, as other work on the machine only ever adds to them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from grpo_step import PRESETS, RESIZED, VISUAL_TOKENS, build_model
from PIL import Image

from virft.engine import Engine
from virft.files import check_file, replacing
from virft.inference_model import chat_text
from virft.programs import run_program
from virft.types import Sample

TEXT_TOKENS = 270
BEFORE_CATEGORY = 9


def make_images(folder: Path, count: int) -> list[Path]:
    """JPEG files, larger than the model sees them."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        width, height = (side * 10 // 7 for side in RESIZED)
        coarse = random.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(paths[-1], quality=90)
    return paths


def make_prompt(processor: Any, question: int) -> str:
    """A prompt of TEXT_TOKENS tokens, chat template included; it differs after BEFORE_CATEGORY of them."""

    def length(text: str) -> int:
        sample = Sample("x", ("image",), text)
        return len(processor.tokenizer(chat_text(processor, sample, None))["input_ids"]) - 1

    # In the tiny tokenizer each digit is a token of its own.
    before = "7" * BEFORE_CATEGORY + str(question % 10)
    text = before + "".join(str(i * i % 10) for i in range(TEXT_TOKENS - length(before)))
    assert length(text) == TEXT_TOKENS, f"{length(text)} text tokens"
    return text


def ways(
    engine: Engine, samples: list[Sample], questions: int, reply: int
) -> dict[str, Callable[[], list[list[int]]]]:
    """Way -> a function that answers all samples and gives the tokens of each reply."""
    processor, model = engine.processor, engine.model
    greedy = {"do_sample": False, "max_new_tokens": reply, "use_cache": True}
    model.generation_config.eos_token_id = None  # every reply has its full length
    engine.stop_tokens = frozenset()
    replies: dict[str, list[int]] = {}
    decode = processor.tokenizer.decode

    def ask(asked: list[Sample]) -> list[list[int]]:
        inputs = processor(
            images=[[Image.open(s.images[0]).convert("RGB")] for s in asked],
            text=[chat_text(processor, s, None) for s in asked],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(engine.device)
        with torch.inference_mode():
            made = model.generate(**inputs, **greedy)
        return made[:, inputs["input_ids"].shape[1] :].tolist()

    def reference() -> list[list[int]]:
        return [ask([s])[0] for s in samples]

    def batched() -> list[list[int]]:
        return [t for i in range(0, len(samples), questions) for t in ask(samples[i : i + questions])]

    def own() -> list[list[int]]:
        def keep(tokens: list[int], **kwargs: Any) -> str:
            replies[str(len(replies))] = list(tokens)
            return decode(tokens, **kwargs)

        replies.clear()
        processor.tokenizer.decode = keep
        order = [p.id for p in engine.stream(samples)]
        processor.tokenizer.decode = decode
        by_id = dict(zip(order, replies.values(), strict=True))
        return [by_id[s.id] for s in samples]

    return {"reference": reference, "batched": batched, "engine": own}


def agreement(first: list[list[int]], second: list[list[int]]) -> float:
    """Share of replies that are equal token by token."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all ways in turns; the figures."""
    preset = PRESETS[arguments.preset]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_model(preset, folder / "model")
        engine = Engine(
            str(folder / "model"),
            device="cuda" if preset.gpu else "cpu",
            batch_size=arguments.batch_size,
            max_new_tokens=arguments.reply,
        )
        prompts = [make_prompt(engine.processor, q) for q in range(arguments.questions)]
        paths = make_images(folder, arguments.images)
        samples = [
            Sample(f"{path.stem}/{q}", (str(path),), prompt)
            for path in paths
            for q, prompt in enumerate(prompts)
        ]
        visual = int(engine.prepare(samples[:1]).grids.prod()) // 4
        assert visual == VISUAL_TOKENS, f"{visual} visual tokens"
        run = ways(engine, samples, arguments.questions, arguments.reply)
        seconds: dict[str, list[float]] = {name: [] for name in run}
        tokens: dict[str, list[list[int]]] = {}
        for number in range(arguments.rounds + 1):
            for name, answer in run.items():
                start = time.perf_counter()
                tokens[name] = answer()
                taken = time.perf_counter() - start
                if number:  # the first round warms up
                    seconds[name].append(taken)
                print(f"round {number}  {name:10s}{len(samples) / taken:8.2f} questions/s", flush=True)
    per_second = {name: len(samples) / min(taken) for name, taken in seconds.items()}
    return {
        "preset": arguments.preset,
        "tokens": {"visual": visual, "text": TEXT_TOKENS, "reply": arguments.reply},
        "images": arguments.images,
        "questions_an_image": arguments.questions,
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if preset.gpu else platform.processor() or platform.machine(),
        "questions_per_second": per_second,
        "ratio": {name: per_second[name] / per_second["reference"] for name in per_second},
        "equal_replies": {n: agreement(tokens[n], tokens["reference"]) for n in ("batched", "engine")},
        "seconds": seconds,
        "versions": {p: version(p) for p in ("torch", "transformers")},
    }


def main() -> None:
    """Measure and print; write ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="cpu-2b", choices=[p for p in PRESETS if p != "7b-lora"])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--questions", type=int, default=5, help="questions an image, at most 10")
    parser.add_argument("--reply", type=int, default=128, help="tokens of every reply")
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    if not 1 <= arguments.questions <= 10:
        parser.error("--questions must be 1 to 10")
    for name in ("images", "reply", "batch_size", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if arguments.output:
        check_file("--output", arguments.output)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    for name, ratio in figures["ratio"].items():
        equal = figures["equal_replies"].get(name)
        said = "" if equal is None else f"  {100 * equal:.0f} % of the replies equal"
        print(f"{name:10s}{figures['questions_per_second'][name]:8.2f} questions/s {ratio:6.2f}x{said}")
    if arguments.output:
        with replacing(arguments.output) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
