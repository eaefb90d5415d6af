"""The flags that every evaluation program has. Loads nothing, so that ``--help`` and scoring stay quick."""

from __future__ import annotations

from dataclasses import dataclass, field

ENGINES = ("transformers", "vllm")
SPEED_ONLY = frozenset({"device", "batch_size", "processes", "skip_bad_images", "overwrite"})
"""Settings that may differ between a run and its continuation."""


@dataclass
class InferenceSettings:
    """How a model is asked; every evaluation program has these flags."""

    model_path: str = field(
        default="Qwen/Qwen2-VL-2B-Instruct",
        metadata={"help": "Checkpoint folder, LoRA adapter folder or Hub id."},
    )
    output: str = field(
        default="predictions.jsonl",
        metadata={"help": "Where the raw replies go; <output>.meta.json beside it states the protocol."},
    )
    engine: str = field(default="transformers", metadata={"help": "transformers or vllm."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1, mps."})
    processes: int | None = field(
        default=None, metadata={"help": "Processes; default one per visible GPU, one on a CPU."}
    )
    dtype: str = field(default="auto", metadata={"help": "auto (bfloat16 on a GPU, float32 else) or a name."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2."})
    min_pixels: int | None = field(
        default=None, metadata={"help": "Least area of a resized image; default: the checkpoint's."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Greatest area of a resized image; default: the checkpoint's."}
    )
    coordinates: str = field(
        default="auto",
        metadata={"help": "norm1000 or abs_resized; auto takes the checkpoint's, else its family's."},
    )
    system: str | None = field(
        default=None, metadata={"help": 'System prompt; default: the checkpoint\'s; "" for none.'}
    )
    batch_size: int = field(default=8, metadata={"help": "Questions decoded together on one device."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Limit of a reply."})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy."})
    seed: int = field(default=0, metadata={"help": "Of the sampling, where the temperature is above 0."})
    logprobs: bool = field(
        default=False,
        metadata={
            "help": "Also record how probable each token was to the model. Replies stay the same; detection "
            "scores then show, beside AP by the confidence that the model wrote, AP with the boxes ranked by "
            "the likelihood of their coordinates. Files grow several times."
        },
    )
    skip_bad_images: bool = field(
        default=False,
        metadata={"help": "Leave out and count images that cannot be read, instead of stopping."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Throw away what stands at --output."})
