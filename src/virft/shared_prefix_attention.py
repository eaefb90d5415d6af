"""Attention for packed rows and for decoding with a shared prompt, in the form that transformers dispatches
to.

:func:`enable` gives a model's language part this attention; the vision tower keeps its own. Without a plan
and without a shared cache the function is transformers' own sdpa, so everything else that runs the model is
unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from virft.shared_prefix import Group, Plan
from virft.shared_prefix_cache import active_cache, decode_attention

NAME = "virft_shared_prefix"
# split: prompt and branches apart, any device. dense: one masked attention over the row, slow, to check the
# others. varlen: FlashAttention over paths of the tree, on CUDA in half precision.
BACKENDS = ("split", "dense", "varlen")


def enable(model: PreTrainedModel) -> None:
    """Let the language part of ``model`` run packed rows and shared decoding.

    The name does not reach ``config.json`` of a saved checkpoint. A plain string would reach the vision
    tower as well.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    model.set_attn_implementation({"text_config": NAME})


def mask(*args, **kwargs) -> torch.Tensor | None:
    """The sdpa mask, except while a shared cache decodes: that attention knows what is padding."""
    return None if active_cache() is not None else sdpa_mask(*args, **kwargs)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_prefix: Plan | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention function of transformers' interface: (B, heads, T, D) in, (B, T, heads, D) out.

    ``shared_prefix`` is the plan of a packed row, given to the model as a keyword and handed through to here.
    """
    if shared_prefix is not None:
        return PACKED[shared_prefix.backend](query, key, value, shared_prefix, scaling, dropout), None
    cache = active_cache()
    if cache is not None:
        return decode_attention(query, cache.layers[module.layer_idx], cache.padding, scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def split_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Plan,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention within each prompt, then of each branch over its prompt and itself. Shapes as in
    `attention`.
    """
    shared = query.shape[1] // key.shape[1]
    outputs = []
    for index, group in enumerate(plan.groups):
        prefix = slice(group.start, group.fork)
        keys, values = key[:, :, prefix], value[:, :, prefix]
        if group.fork > group.start:
            output = F.scaled_dot_product_attention(
                query[:, :, prefix],
                keys,
                values,
                is_causal=True,
                scale=scaling,
                dropout_p=dropout,
                enable_gqa=shared > 1,
            )
            outputs.append(output.transpose(1, 2))
        if group.stop > group.fork:
            outputs.append(_branches(query, key, value, keys, values, plan, index, scaling, dropout))
    return torch.cat(outputs, 1)


def _branches(query, key, value, prefix_keys, prefix_values, plan, index, scaling, dropout) -> torch.Tensor:
    group = plan.groups[index]
    count, width = len(group.lengths), group.width
    heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
    shared = heads // kv_heads
    gather, scatter, seen = _branch_layout(plan, index, shared, query.device)

    def padded(states: torch.Tensor) -> torch.Tensor:  # (1, heads, L, D) -> (count, width, heads, D)
        own = states[0, :, group.fork : group.stop].transpose(0, 1)
        return (own if gather is None else own.index_select(0, gather)).view(count, width, -1, size)

    def path(prefix: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return torch.cat([prefix.expand(count, -1, -1, -1), padded(states).transpose(1, 2)], 2)

    # Query heads that share a key/value head become further query positions: no kernel need repeat keys or
    # values.
    queries = padded(query).view(count, width, kv_heads, shared, size).permute(0, 2, 3, 1, 4)
    output = F.scaled_dot_product_attention(
        queries.reshape(count, kv_heads, shared * width, size),
        path(prefix_keys, key),
        path(prefix_values, value),
        attn_mask=seen,
        scale=scaling,
        dropout_p=dropout,
    )
    output = output.view(count, kv_heads, shared, width, size).permute(0, 3, 1, 2, 4)
    output = output.reshape(count * width, heads, size)
    return (output if scatter is None else output.index_select(0, scatter))[None]


def _branch_layout(
    plan: Plan, index: int, shared: int, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """Token of each place in the padded branches, place of each token (None when no branch is shorter than
    the others), and what a branch sees: (shared * width, P + width).
    """
    key = f"branches {index}"
    if key not in plan.cached:
        group = plan.groups[index]
        lengths = torch.tensor(group.lengths, device=device)
        steps = torch.arange(group.width, device=device)
        gather = scatter = None
        if min(group.lengths) < group.width:
            own = steps < lengths[:, None]
            scatter = own.flatten().nonzero()[:, 0]
            starts = lengths.cumsum(0) - lengths
            gather = (starts[:, None] + steps).masked_fill(~own, 0).flatten()
        seen = torch.ones(
            group.width, group.fork - group.start + group.width, dtype=torch.bool, device=device
        )
        plan.cached[key] = (gather, scatter, seen.tril(group.fork - group.start).repeat(shared, 1))
    return plan.cached[key]


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Plan,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """The same by one attention over the whole row with an (L, L) mask: quadratic in L, kept to check the
    others.
    """
    if "dense" not in plan.cached:
        plan.cached["dense"] = tree_mask(plan.groups, query.device)
    shared = query.shape[1] // key.shape[1]
    output = F.scaled_dot_product_attention(
        query,
        repeat_kv(key, shared),
        repeat_kv(value, shared),
        attn_mask=plan.cached["dense"],
        scale=scaling,
        dropout_p=dropout,
    )
    return output.transpose(1, 2)


def tree_mask(groups: list[Group], device: torch.device | str) -> torch.Tensor:
    """(L, L) true where the token of the row may see the token of the column."""
    total = groups[-1].stop
    seen = torch.zeros(total, total, dtype=torch.bool, device=device)
    for group in groups:
        start = group.fork
        seen[group.start : start, group.start : start] = True
        for length in group.lengths:
            seen[start : start + length, group.start : group.fork] = True
            seen[start : start + length, start : start + length] = True
            start += length
    return seen.tril()


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Plan,
    scaling: float | None,
    dropout: float = 0.0,
    kernel: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """FlashAttention over segments: a prompt sees itself, a branch sees its prompt and itself, causally.

    The keys and values of each segment's path are gathered end to end. ``kernel`` stands for
    :func:`torch_varlen` where there is no GPU.

    Raises:
        ValueError: attention dropout is on; the kernel has none.
    """
    if dropout:
        raise ValueError("the varlen back end has no attention dropout: use --shared_prefix_attention split")
    if "varlen" not in plan.cached:
        plan.cached["varlen"] = _segments(plan.groups, query.device)
    path, query_bounds, path_bounds, longest_query, longest_path = plan.cached["varlen"]
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]
    output = (kernel or torch_varlen)(
        rows[0],
        rows[1].index_select(0, path),
        rows[2].index_select(0, path),
        query_bounds,
        path_bounds,
        longest_query,
        longest_path,
        scaling,
    )
    return output[None]


def _segments(groups: list[Group], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Row positions of every segment's path, cumulative lengths of segments and paths, and the longest of
    each.
    """
    segments = []  # (start, stop, start of the prompt, end of the prompt)
    for group in groups:
        bounds = [group.fork]
        for length in group.lengths:
            bounds.append(bounds[-1] + length)
        segments.append((group.start, group.fork, group.start, group.start))
        segments += [(a, b, group.start, group.fork) for a, b in zip(bounds, bounds[1:], strict=False)]
    segments = [x for x in segments if x[1] > x[0]]
    own = [b - a for a, b, _, _ in segments]
    paths = [b - a + d - c for a, b, c, d in segments]
    path = torch.cat([torch.cat([torch.arange(c, d), torch.arange(a, b)]) for a, b, c, d in segments])
    bounds = [torch.tensor([0, *x], dtype=torch.int32).cumsum(0, dtype=torch.int32) for x in (own, paths)]
    return path.to(device), bounds[0].to(device), bounds[1].to(device), max(own), max(paths)


def torch_varlen(query, key, value, query_bounds, path_bounds, longest_query, longest_path, scaling):
    """PyTorch's own FlashAttention for variable lengths: (T, heads, D), causal from the lower right corner.

    Keyword names differ between PyTorch 2.11 and 2.15, so they are looked up.
    """
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    shared = query.shape[1] // key.shape[1]
    options = {"scale": scaling}
    options |= {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    if shared > 1 and "enable_gqa" in names:
        options["enable_gqa"] = True
    elif shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    return varlen_attn(query, key, value, query_bounds, path_bounds, longest_query, longest_path, **options)


PACKED = {"split": split_attention, "dense": dense_attention, "varlen": varlen_attention}
