"""What is shared under a configuration: the settings, and the decision that every rank makes alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from virft.errors import UserError
from virft.shared_prefix_attention import BACKENDS, NAME
from virft.shared_prefix_generation import CACHES

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
# Ways of decoding that start from something else than one cache row per reply.
OTHER_DECODING = (
    "num_beams",
    "num_return_sequences",
    "cache_implementation",
    "prefill_chunk_size",
    "use_cache",
    "penalty_alpha",
    "dola_layers",
    "assistant_model",
    "prompt_lookup_num_tokens",
    "custom_generate",
)


@dataclass
class SharedPrefixConfig(GRPOConfig):
    """GRPO's configuration and what is shared."""

    shared_prefix: bool = field(
        default=True, metadata={"help": "Encode image and prompt once per group; false: TRL's own path."}
    )
    shared_prefix_attention: str = field(
        default="split",
        metadata={"help": "split, dense (slow, to check the others) or varlen (FlashAttention on CUDA)."},
    )
    shared_prefix_cache: str = field(
        default="shared",
        metadata={
            "help": "Cache while sampling: shared (one copy of a prompt), expanded, or static (compiled)."
        },
    )

    def __post_init__(self) -> None:
        if self.shared_prefix_attention not in BACKENDS:
            raise UserError(
                f"--shared_prefix_attention {self.shared_prefix_attention} is none of {', '.join(BACKENDS)}"
            )
        if self.shared_prefix_cache not in CACHES:
            raise UserError(
                f"--shared_prefix_cache {self.shared_prefix_cache} is none of {', '.join(CACHES)}"
            )
        super().__post_init__()


@dataclass(frozen=True)
class Units:
    """Rows that share a prompt: ``forward`` in a micro-batch (a packed row's branches), ``generation`` in
    sampling.
    """

    forward: int
    generation: int


@dataclass(frozen=True)
class Sharing:
    """What is shared, decided from the configuration.

    ``logps``: ``packed`` (one row per group), ``vision`` (TRL's rows, each image encoded once) or ``off``.
    ``generation``: a name of ``virft.shared_prefix_generation.CACHES``, or ``trl``. ``notes`` say why not
    more.
    """

    logps: str
    generation: str
    train: Units
    evaluation: Units
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for the start of a run."""
        if self.logps == "off":
            return f"shared prefix: off ({'; '.join(self.notes)})"
        how = {
            "packed": f"one packed row per {self.train.forward} replies",
            "vision": "TRL's log-prob rows, each image encoded once",
        }
        line = f"shared prefix: {how[self.logps]}, "
        line += "sampling by TRL" if self.generation == "trl" else "sampling from one prefill per prompt"
        return line + (f" ({'; '.join(self.notes)})" if self.notes else "")


def decide(
    args: GRPOConfig,
    model_config: Any,
    *,
    foreign_rollouts: str | None = None,
    aux_loss: bool = False,
    prompt_learning: bool = False,
) -> Sharing:
    """What can be shared exactly under a configuration; the same on every rank, whatever the data.

    The sampler repeats each row G times in a row and every device takes slices of
    ``per_device_train_batch_size`` rows, so an aligned run of gcd(batch, G) rows lies within one group. The
    last, smaller evaluation batch is a multiple of that too.

    Args:
        args: the configuration, complete (after ``__post_init__``).
        model_config: the policy's configuration.
        foreign_rollouts: what makes rows of a group differ or grow images in their replies (tools, ...), if
            anything.
        aux_loss: a mixture-of-experts loss is part of the objective.
        prompt_learning: a prompt-learning adapter stands before the prompt.
    """
    group, evaluated = args.num_generations, args.num_generations_eval or args.num_generations
    batch, held_out = args.per_device_train_batch_size, args.per_device_eval_batch_size
    train = Units(math.gcd(batch, group), math.gcd(batch * args.steps_per_generation, group))
    evaluation = Units(math.gcd(held_out, evaluated), math.gcd(held_out, evaluated))
    if reason := _other_path(args, model_config, foreign_rollouts, prompt_learning):
        return Sharing("off", "trl", train, evaluation, (reason,))

    text = model_config.get_text_config()
    notes, logps, generation = [], "packed", getattr(args, "shared_prefix_cache", "shared")
    if reasons := _no_packed_rows(text, aux_loss):
        logps, generation = "vision", "expanded"
        notes += reasons
    if logps == "packed" and train.forward == 1:
        notes.append(f"nothing to share in micro-batches of {batch} with {group} replies a prompt")
    if generation == "static" and not args.max_completion_length:
        generation = "expanded"
        notes.append("a static cache needs --max_completion_length")
    reason = _other_generation(args, train)
    if reason:
        generation = "trl"
        notes.append(reason)
    return Sharing(logps, generation, train, evaluation, tuple(notes))


def _other_path(
    args: GRPOConfig, model_config: Any, foreign_rollouts: str | None, prompt_learning: bool
) -> str | None:
    """Why nothing is shared, if nothing is."""
    if not getattr(args, "shared_prefix", True):
        return "--shared_prefix false"
    if model_config.model_type not in FAMILIES:
        return f"{model_config.model_type} is no {' or '.join(FAMILIES)}"
    if foreign_rollouts:
        return f"{foreign_rollouts} may change a prompt from row to row"
    return "a prompt-learning adapter changes the prompt" if prompt_learning else None


def _no_packed_rows(text: Any, aux_loss: bool) -> list[str]:
    """Why the language model (``text`` is its configuration) cannot run packed rows; empty where it can."""
    reasons = []
    attention = text._attn_implementation
    if attention not in ("sdpa", NAME) and "flash" not in attention:
        reasons.append(f"attention {attention} cannot run packed rows")
    if "sliding_attention" in (text.layer_types or ()):
        reasons.append("sliding-window layers cannot run packed rows")
    if aux_loss:
        reasons.append("a packed row would change the mixture-of-experts loss")
    return reasons


def _other_generation(args: GRPOConfig, train: Units) -> str | None:
    """Why sampling stays TRL's, if it does."""
    if args.use_vllm:
        return "vLLM samples"
    if args.cache_implementation not in (None, "dynamic"):
        return f"cache_implementation {args.cache_implementation}"
    if args.fsdp:
        return "FSDP"
    other = [name for name in args.generation_kwargs or {} if name in OTHER_DECODING]
    if other:
        return f"generation_kwargs {', '.join(other)}"
    if train.generation == 1:
        return "a device samples one reply per prompt"
    return None
