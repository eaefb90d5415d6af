"""GRPO's settings: TRL's, with Visual-RFT's defaults and its count of the batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from virft.errors import UserError
from virft.shared_prefix_config import SharedPrefixConfig
from virft.training_config import TrainingConfig, check_values

logger = logging.getLogger(__name__)

CHOICES: Mapping[str, tuple] = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
}
"""Flag -> what TRL knows of it."""

FEW_GENERATIONS = 4
"""Below this many completions a group's mean and deviation are mostly noise."""


@dataclass
class VisualRFTConfig(TrainingConfig, SharedPrefixConfig):
    """TRL's GRPO configuration with Visual-RFT's defaults and its count of the batch.

    ``per_device_train_batch_size`` counts prompts; the configuration converts it to TRL's count,
    completions, and keeps the prompts in ``prompts_per_device``. Everything else is TRL's.
    """

    per_device_train_batch_size: int = field(
        default=1,
        metadata={"help": "PROMPTS a device takes at once; each becomes --num_generations completions."},
    )
    per_device_eval_batch_size: int = field(
        default=8,
        metadata={"help": "Held-out prompts that a device answers at once (one greedy reply each)."},
    )
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={"help": "How many batches of --per_device_train_batch_size prompts make one step."},
    )
    completions_per_forward: int | None = field(
        default=None,
        metadata={
            "help": "Send a device's completions through the policy in pieces of this many; same gradient."
        },
    )
    beta: float = field(default=0.04, metadata={"help": "Weight of the KL term; 0 loads no reference model."})
    loss_type: str = field(
        default="grpo",
        metadata={
            "help": "grpo (mean over a reply's tokens, then over replies), or any of TRL's loss types."
        },
    )
    max_completion_length: int | None = field(default=1024, metadata={"help": "Longest reply, in tokens."})
    num_generations_eval: int | None = field(default=1, metadata={"help": "Replies to a held-out prompt."})
    logging_steps: float = field(default=1, metadata={"help": "Log every so many steps."})
    log_multimodal: bool = field(
        default=False,
        metadata={"help": "Gather every rank's images at each generation, for --log_completions' tables."},
    )
    inject_solution: bool = field(
        default=False,
        metadata={
            "help": "Replace one reply of every group by the row's solution, weighted by its probability."
        },
    )
    prompts_per_device: int | None = field(
        default=None, metadata={"help": "Set by the configuration itself; leave it alone."}
    )

    def __post_init__(self) -> None:
        check_values(self)
        self._check_choices()
        self._check_group()
        if self.prompts_per_device is None:  # else a copy of a configuration would be converted twice
            self._count_completions()
        elif self.steps_per_generation is not None:
            self.generation_batch_size = None  # TRL derives it, and refuses to be told both
        if self.sync_ref_model and self.beta == 0:
            raise UserError("--sync_ref_model needs a reference model, and --beta 0 loads none; drop one")
        if self.inject_solution and self.use_vllm:
            raise UserError("--inject_solution and --use_vllm exclude each other; drop one")
        if self.use_transformers_continuous_batching:
            raise UserError("--use_transformers_continuous_batching shows no images; use --use_vllm true")
        super().__post_init__()

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                shown = ", ".join(choice for choice in choices if isinstance(choice, str))
                raise UserError(f"--{name} {value} is none of {shown}")

    def _check_group(self) -> None:
        group = self.num_generations or 0
        if group < 2:
            raise UserError(
                f"--num_generations {group}: a group needs at least 2 replies to be compared; use 8"
            )
        if group < FEW_GENERATIONS:
            logger.warning(
                "--num_generations %d: advantages of groups below %d are mostly noise", group, FEW_GENERATIONS
            )

    def _count_completions(self) -> None:
        self.prompts_per_device = self.per_device_train_batch_size
        completions = self.prompts_per_device * self.num_generations
        piece = self.completions_per_forward or completions
        if piece < 1 or completions % piece:
            raise UserError(
                f"--completions_per_forward {piece} does not divide the {completions} completions of a "
                f"device ({self.prompts_per_device} prompts x {self.num_generations}); give a divisor"
            )
        # Pieces become micro-batches: TRL accumulates their gradients, and a reply's share of the sum is the
        # same.
        pieces = completions // piece
        self.per_device_train_batch_size = piece
        self.gradient_accumulation_steps *= pieces
        if self.steps_per_generation is not None:
            self.steps_per_generation *= pieces

    @property
    def completions_per_step(self) -> int:
        """Completions that one optimizer step learns from, on all devices together."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def prompts_per_step(self) -> int:
        """Prompts that one optimizer step learns from, on all devices together."""
        return self.completions_per_step // self.num_generations

    @property
    def prompts_per_generation(self) -> int:
        """Prompts whose completions are sampled together; rows that do not fill a last one are left out."""
        return self.generation_batch_size // self.num_generations

    def steps_per_epoch(self, rows: int) -> int:
        """Optimizer steps of one pass over ``rows`` rows (num_iterations visits each generation so often)."""
        batches = rows // self.prompts_per_generation * self.steps_per_generation * self.num_iterations
        return -(-batches // self.gradient_accumulation_steps)
