"""The contests that this project makes itself, on scans of handwritten digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from contest import Method
from miniature import EXAMINATION_SEED, WarmUp

from virft.data.digits import NAMES, Scenes


def sft(*rates: str, remember: bool = True, labels: str = "given") -> Method:
    """Supervised fine-tuning with rates that the validation rows choose from.

    Args:
        rates: learning rates.
        remember: keep the rows' pixels in memory, for small sets.
        labels: see :class:`contest.Method`.
    """
    flags = ("--remember_rows", "1000") if remember else ()
    name, title = ("sft", "SFT") if labels == "given" else ("sft-self", "SFT, own confidences")
    return Method(name, title, "sft.py", rates, ("--warmup_steps", "2", *flags), labels)


def rft(*rates: str, flags: tuple[str, ...] = ()) -> Method:
    """GRPO with the rewards of its task, 8 replies a prompt, no KL term."""
    group = ("--num_generations", "8", "--beta", "0", "--warmup_steps", "2")
    return Method("rft", "RFT", "grpo.py", rates, (*group, *flags))


@dataclass(frozen=True)
class Preset:
    """A miniature and its contest.

    Attributes:
        about: one sentence: what is compared.
        task: detection or classification.
        warmup_scenes: what the base model was warmed up on: arguments of
            :class:`virft.data.digits.Scenes`.
        warmup: how.
        scenes: what training, validation and held-out scenes are like.
        heldout_scenes: what is different in the held-out ones.
        shots: scenes a class in the row sets; one contest for each.
        validation, heldout: scenes.
        methods: who competes.
        steps, every, rows_per_step, tokens: see :class:`contest.Rules`. Ten rows a step: one a class,
            and every set is a multiple: GRPO's sampler leaves out what does not fill a step.
    """

    about: str
    task: str
    warmup: WarmUp
    methods: tuple[Method, ...]
    shots: tuple[int, ...]
    warmup_scenes: Mapping[str, Any] = field(default_factory=dict)
    scenes: Mapping[str, Any] = field(default_factory=dict)
    heldout_scenes: Mapping[str, Any] = field(default_factory=dict)
    warmup_count: int = 4000
    validation: int = 200
    heldout: int = 600
    steps: int = 120
    every: int = 10
    rows_per_step: int = 10
    tokens: int = 48

    def splits(self, seed: int) -> dict[str, Scenes]:
        """Name of a split -> its scenes, for one seed. The set of k shots is called ``k-shot``."""
        warm, own = dict(self.warmup_scenes), {"task": self.task, **self.scenes}
        clear = {name: value for name, value in warm.items() if name not in ("confidence", "faded")}
        classes = len(own.get("classes", NAMES))
        return {
            "warmup": Scenes(self.warmup_count, "warmup", seed, task=self.task, **warm),
            "warmup_validation": Scenes(
                self.validation, "validation", EXAMINATION_SEED, task=self.task, **clear
            ),
            # Other scenes than the warm-up was stopped by, even where both are of one kind.
            "validation": Scenes(self.validation, "validation", EXAMINATION_SEED + 1, **own),
            "heldout": Scenes(self.heldout, "heldout", EXAMINATION_SEED, **{**own, **self.heldout_scenes}),
            **{f"{k}-shot": Scenes(k * classes, "train", seed, **own) for k in self.shots},
        }

    def short(self) -> Preset:
        """Touches every stage; the numbers that come out mean nothing."""
        return replace(
            self,
            warmup=replace(self.warmup, batch=16, rise=2, first=4, every=4, most=8),
            warmup_count=64,
            validation=8,
            heldout=20,
            shots=self.shots[:1],
            methods=tuple(replace(method, rates=method.rates[:1]) for method in self.methods),
            steps=4,
            every=2,
            rows_per_step=4,
        )


EASY_TO_NAME = {
    "sides": (700, 1000),
    "contrast": (0.7, 1.0),
    "noise": 0.03,
    "ramp": 0.0,
    "canvas": 56,
}
"""Scenes in which a tiny model learns to tell digits apart within minutes."""

CLASSIFIER = WarmUp(first=100, most=500, usual=200, metric="accuracy", enough=0.5)
FEW_SHOTS = (1, 2, 4, 8, 16)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "detection": Preset(
            about="finding a digit, 1 to 16 labelled scenes a class; the labels hold the whole answer",
            task="detection",
            warmup=WarmUp(),
            warmup_scenes={"confidence": (0.1, 0.9)},
            shots=FEW_SHOTS,
            methods=(sft("3e-6", "1e-5", "3e-5"), rft("1e-5", "3e-5")),
            steps=100,
            every=20,
        ),
        "classification": Preset(
            about="naming a digit, 1 to 16 labelled scenes a class",
            task="classification",
            warmup=CLASSIFIER,
            warmup_scenes=EASY_TO_NAME,
            scenes=EASY_TO_NAME,
            shots=FEW_SHOTS,
            methods=(sft("1e-5", "3e-5", "1e-4"), rft("1e-5", "3e-5", "1e-4")),
            tokens=32,
        ),
        "transfer": Preset(
            about="naming digits: the rows show the classes zero to four, the examination five to nine",
            task="classification",
            warmup=CLASSIFIER,
            warmup_scenes=EASY_TO_NAME,
            scenes={**EASY_TO_NAME, "classes": (0, 1, 2, 3, 4)},
            heldout_scenes={"classes": (5, 6, 7, 8, 9)},
            shots=(16,),
            methods=(
                sft("1e-5", "3e-5", "1e-4"),
                # The reference's weight of the KL term: it holds on to what no row shows.
                rft("1e-5", "3e-5", "1e-4", flags=("--beta", "0.04")),
            ),
            tokens=32,
        ),
        "confidence": Preset(
            about="finding a digit where half of them are nearly invisible, which no label says",
            task="detection",
            # A model that has met invisible digits knows when it guesses; nothing has asked it to say so.
            warmup=WarmUp(most=900, usual=475),
            warmup_scenes={"confidence": (0.1, 0.9), "faded": 0.3},
            scenes={"faded": 0.5},
            shots=(16,),
            methods=(
                sft("3e-6", "1e-5", "3e-5"),
                sft("3e-5", "1e-4", labels="self"),
                rft("3e-5", "5e-5", flags=("--reward_funcs", "accuracy_iou", "brier_confidence", "format")),
            ),
            steps=200,
            rows_per_step=16,
        ),
    }
)
