"""Peak memory of a GRPO run on one device, from the model's configuration and the flags alone.

The terms, in bytes, and where each comes from. N parameters of which T are trained, W devices, w bytes a
weight, a bytes an activation (2 under bf16), n tokens of a forward, h hidden size, m MLP size, q and k the
widths of all query and all key heads:

**States.** Without DeepSpeed: weights wN, gradients wT (twice over several devices: DDP's buckets), Adam 2wT.
DeepSpeed, from its own ``estimate_zero2_model_states_mem_needs`` and
``estimate_zero3_model_states_mem_needs`` (runtime/zero/stage_1_and_2.py, stage3.py; the ZeRO paper, arXiv
1910.02054): stage 1 2N + 2T + 16T/W, stage 2 2N + 18T/W, stage 3 2N/W + 16T/W and the gathered layers; an
offloaded optimizer takes the 16T/W (18T/W) away. Bucket sizes stand in the DeepSpeed file. The reference
model is another wN (wN/W at stage 3), with LoRA none.

**Activations** kept for the backward pass, counted from the tensors that autograd saves in transformers'
modules (``tests/test_doctor.py`` measures them; the method of arXiv 2205.05198, section 4, with
attention that saves no scores): a decoder layer a(4m + 2h + 2q + 2k) + 2(4 + a)h a token; a vision block of
Qwen2-VL a(11e + 3m), of Qwen2.5-VL a(4m + 9e) + 2(4 + a)e a patch, four patches a visual token. Frozen
layers under LoRA keep a(3m + 2q + 2k) + 8h and their adapters' inputs after dropout, (a + mask)(5h + q +
m). With gradient checkpointing a layer keeps its input, ah, and one layer at a time is recomputed in full.
The head is computed in tiles by TRL: its logits are never whole.

**Tokens.** A micro-batch of R completions, f of one group in a packed row: R/f (P + fC) with the shared
prefix, else R (P + C), and R/f images either way when vision is shared.

**Sampling.** The cache, 2kaL a token; under ZeRO-3 the whole weights, gathered.

What is not in it: the CUDA context and the allocator's slack, added as :data:`OVERHEAD` and :data:`SLACK`.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch

from virft.memory import PARTS
from virft.memory_plan import Plan, alternatives
from virft.model_files import without_weights

GIB = 2**30
OVERHEAD = 0.8 * GIB
"""CUDA context, cuBLAS workspaces and kernels, of one process."""
SLACK = 0.08
"""Share that the caching allocator holds beyond what is in use."""
PATCHES = 4
"""Patches of a visual token: the families merge 2 x 2."""
HEAD_TILE = (4096, 32768)
"""Tokens and vocabulary entries of the tile in which TRL's fused head computes logits (trl/kernels)."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, from its configuration; no weight is loaded.

    Attributes:
        family: ``config.model_type``.
        parameters, vision: number of all parameters, and of the vision tower's.
        widest: parameters of the largest single module, which ZeRO-3 gathers whole.
        adapter: parameters of the LoRA adapter that the flags ask for, 0 without.
        hidden, mlp, query, key, layers, heads, vocabulary: of the language model.
        patch_hidden, patch_mlp, blocks: of the vision tower.
    """

    family: str
    parameters: int
    vision: int
    widest: int
    adapter: int
    hidden: int
    mlp: int
    query: int
    key: int
    layers: int
    heads: int
    vocabulary: int
    patch_hidden: int
    patch_mlp: int
    blocks: int


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, by part, in the two phases of a step that can be the peak."""

    training: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def used(self) -> float:
        """Bytes in tensors at the peak."""
        return max(sum(self.training.values()), sum(self.sampling.values()))

    @property
    def peak(self) -> float:
        """Bytes at the peak on a CUDA device: tensors, context and slack."""
        return self.used * (1 + SLACK) + OVERHEAD


def shape_of(config: Any, lora_targets: Any = None, lora_rank: int = 0) -> Shape:
    """The sizes of a model, counted on the meta device.

    Args:
        config: of a supported family.
        lora_targets: names, or a regular expression, of the modules that LoRA is put on.
        lora_rank: of the adapter.
    """
    model = without_weights(config)
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for name, p in model.named_parameters() if PARTS["vision"] in name)
    widest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules())
    adapter = 0
    for name, module in model.named_modules():
        if lora_rank and isinstance(module, torch.nn.Linear) and _is_target(name, lora_targets):
            adapter += lora_rank * (module.in_features + module.out_features)
    text, tower = config.get_text_config(), config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    first = config.model_type == "qwen2_vl"
    e = tower.embed_dim if first else tower.hidden_size
    return Shape(
        family=config.model_type,
        parameters=total,
        vision=vision,
        widest=widest,
        adapter=adapter,
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        query=text.num_attention_heads * head,
        key=text.num_key_value_heads * head,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        vocabulary=text.vocab_size,
        patch_hidden=e,
        patch_mlp=round(e * tower.mlp_ratio) if first else tower.intermediate_size,
        blocks=tower.depth,
    )


def _is_target(name: str, targets: Any) -> bool:
    """Whether LoRA is put on a module, as PEFT decides: a regular expression of the whole name, or its
    end."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets or ())


def layer_bytes(shape: Shape, activation: float) -> float:
    """Bytes that a decoder layer keeps for its backward pass, a token, where its weights are trained."""
    a, h = activation, shape.hidden
    return (
        a * (4 * shape.mlp + 2 * h + 2 * shape.query + 2 * shape.key) + 2 * (4 + a) * h + 4 * shape.heads + 8
    )


def adapted_layer_bytes(shape: Shape, activation: float, mask: float) -> float:
    """The same where the weights are frozen and every linear layer has a LoRA adapter.

    Args:
        shape: of the model.
        activation: bytes a number.
        mask: bytes a number of a dropout mask, 0 without dropout.
    """
    a, h, m, q = activation, shape.hidden, shape.mlp, shape.query
    frozen = a * (3 * m + 2 * q + 2 * shape.key) + 2 * 4 * h + 4 * shape.heads + 8
    # Each adapter drops out its own copy of its input; without dropout adapters share their inputs.
    return frozen + ((a + mask) * (5 * h + q + m) if mask else a * (2 * h + m))


def block_bytes(shape: Shape, activation: float) -> float:
    """Bytes that a vision block keeps for its backward pass, a patch."""
    a, e, m = activation, shape.patch_hidden, shape.patch_mlp
    if shape.family == "qwen2_vl":
        return a * (11 * e + 3 * m)
    return a * (4 * m + 9 * e) + 2 * (4 + a) * e


def estimate(shape: Shape, plan: Plan) -> Estimate:
    """The parts of the peak, by phase; the formulas stand at the head of this module."""
    states = _states(shape, plan)
    rows, samples = plan.rows, plan.sampled
    packed = plan.branches > 1
    tokens = rows / plan.branches * (plan.prompt + plan.branches * plan.completion)
    if not packed:
        tokens = rows * (plan.prompt + plan.completion)
    a = plan.activation
    layer = adapted_layer_bytes(shape, a, plan.mask) if plan.lora else layer_bytes(shape, a)
    kept = layer if not plan.checkpointing else a * shape.hidden
    language = tokens * (shape.layers * kept + (layer if plan.checkpointing else 0) + (4 + a) * shape.hidden)
    training = {**states, "activations, language": language, "head": _head(shape, plan, tokens)}
    training["activations, vision"] = _vision(shape, plan)
    if plan.autocast:
        # Autocast keeps a bfloat16 copy of each weight from forward to backward.
        training["bfloat16 copies"] = 2.0 * shape.parameters
    cache = (plan.prefills * plan.prompt + samples * plan.completion) * 2 * shape.key * shape.layers * a
    # Gradients exist from the first backward pass on; Adam's states from the first step on.
    sampling = {**states, "cache": cache, "logits": 4 * samples * shape.vocabulary}
    sampling["activations, prefill"] = plan.prefills * plan.prompt * a * (4 * shape.hidden + 3 * shape.mlp)
    if plan.stage == 3:
        sampling["gathered for sampling"] = plan.weight * shape.parameters
        gathered = min(plan.live, shape.parameters)
        training["gathered layers"] = plan.weight * max(gathered, shape.widest)
    return Estimate(training, sampling)


def _states(shape: Shape, plan: Plan) -> dict[str, float]:
    n, devices = shape.parameters, plan.devices
    trained = shape.adapter if plan.lora else n - (shape.vision if plan.freeze_vision else 0)
    split = devices if plan.stage == 3 else 1
    weights = plan.weight * n / split + (plan.weight * shape.adapter if plan.lora else 0)
    states = {"weights": 0.0 if plan.offload_parameters else weights}
    if plan.reference and not plan.lora:
        states["reference"] = 0.0 if plan.offload_parameters else plan.weight * n / split
    if plan.stage == 0:
        states["gradients"] = plan.weight * trained * (2 if devices > 1 else 1)
        states["optimizer"] = plan.optimizer * trained
        return states
    states["gradients"] = 2.0 * trained / (devices if plan.stage >= 2 else 1)
    # float32 gradients, masters and the two moments.
    states["optimizer"] = 16.0 * trained / devices
    if plan.offload_optimizer:
        states["gradients"] = states["optimizer"] = 0.0
    states["buckets"] = plan.bucket if trained else 0.0
    return states


def _head(shape: Shape, plan: Plan, tokens: float) -> float:
    """TRL's fused head: a tile of logits, the hidden states' gradient and the weight's, both in float32."""
    tile = min(tokens, HEAD_TILE[0]) * min(shape.vocabulary, HEAD_TILE[1]) * plan.activation
    weight = 0.0 if plan.lora else (4 + plan.weight) * shape.vocabulary * shape.hidden
    return tile + 4 * shape.hidden * tokens + weight


def _vision(shape: Shape, plan: Plan) -> float:
    """Activations of the vision tower; next to nothing is kept where it is not trained."""
    a, e = plan.activation, shape.patch_hidden
    patches = PATCHES * plan.visual * plan.rows / plan.per_image
    block = block_bytes(shape, a)
    if plan.freeze_vision or (plan.lora and not plan.lora_vision):
        return patches * block
    if plan.checkpointing:
        return patches * (shape.blocks * a * e + block)
    # Patch embedding of 3 x 2 x 14 x 14 numbers, and the merger.
    return patches * (shape.blocks * block + a * (1176 + 5 * e))


def ways_to_fit(shape: Shape, plan: Plan, limit: float, most: int = 3) -> list[str]:
    """Ways to bring the peak below ``limit`` bytes with as few flags as possible, the least saving first.

    Args:
        shape, plan: as :func:`estimate` takes them.
        limit: bytes of a device.
        most: how many ways to name.
    """
    for size in (1, 2, 3):
        fitting: list[tuple[float, str]] = []
        for options in combinations(alternatives(plan), size):
            changes = [change for _, change in options]
            fields = [name for change in changes for name in change]
            if len(set(fields)) < len(fields):
                continue  # two of them set the same thing
            peak = estimate(shape, replace(plan, **dict(ChainMap(*changes)))).peak
            if peak <= limit:
                fitting.append((peak, " and ".join(flag for flag, _ in options)))
        if fitting:
            return [f"{way} ({peak / GIB:.1f} GiB)" for peak, way in sorted(fitting, reverse=True)[:most]]
    return []
