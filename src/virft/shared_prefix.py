"""One image and one prompt, several replies: the layout of a packed row, as pure functions over tensors.

A GRPO step scores G replies to one prompt. Stock code forwards ``G x (prompt + reply)`` tokens, the vision
tower G times. Here the prompt is forwarded once, followed by the replies as branches that see the prompt
and themselves only::

    [ prompt[:-1] | last, a_0 .. a_{n-2} | last, b_0 .. b_{m-2} | ... ]     one group; others follow
      no labels     a_0, a_1 .. a_{n-1}    b_0, b_1 .. b_{m-1}              what each position predicts

Every branch forwards the last prompt token again, so each position has exactly one next-token label, which
is what a fused LM head wants (``shift_labels``), and the last token of a reply, which predicts nothing, is
never forwarded. M-RoPE positions are those of the unpacked rows: the prompt's own, and each branch restarts
behind the prompt. No position is padding, whatever the lengths of prompts and replies. The trick of forking
one token early is that of TRL's ``TreeRow``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Group:
    """Where one prompt and its branches stand in the packed row. Ints count tokens of the row.

    ``start .. fork`` is the prompt without its last token, ``fork .. stop`` the branches end to end, of
    ``lengths``.
    """

    start: int
    fork: int
    lengths: list[int]

    @property
    def stop(self) -> int:
        """End of the last branch."""
        return self.fork + sum(self.lengths)

    @property
    def width(self) -> int:
        """Tokens of the longest branch."""
        return max(self.lengths)


@dataclass
class Plan:
    """What attention must know of a packed row; built on the row's device, and read by every layer.

    Not frozen: FSDP rebuilds dataclass arguments field by field. ``backend`` is a name of
    :data:`virft.shared_prefix_attention.BACKENDS`; ``cached`` holds what a back end derives from the groups
    once.
    """

    groups: list[Group]
    labelled: torch.Tensor
    backend: str = "split"
    cached: dict[str, object] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return self.groups[-1].stop


@dataclass
class PackedRow:
    """Inputs of one forward: ``input_ids`` (1, L), ``position_ids`` (3, 1, L), ``labels`` (1, M), and the
    plan.

    ``labels`` are those of the M positions named by ``plan.labelled`` (M,), in the order of the reply tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    plan: Plan


def pack(
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    positions: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    backend: str = "split",
) -> PackedRow:
    """Pack N prompts and their G replies each into one row without padding.

    Args:
        prompt_ids: (N, P) one row per distinct prompt, padded on the left.
        prompt_mask: (N, P) 1 for real tokens.
        positions: (3, N, P) M-RoPE positions of the prompts (see :func:`prompt_positions`).
        completion_ids: (N * G, C) replies, those of a prompt next to one another, padded on the right.
        completion_mask: (N * G, C) 1 for real tokens; a reply with none is left out and scores nothing.
        backend: which attention runs the row.

    Raises:
        ValueError: the number of replies is no multiple of the number of prompts.
    """
    prompts, replies = prompt_ids.shape[0], completion_ids.shape[0]
    if replies == 0 or replies % prompts:
        raise ValueError(f"{replies} replies cannot be shared out among {prompts} prompts")
    share = replies // prompts
    real, scored = prompt_mask.bool(), completion_mask.bool()
    counts = torch.cat([real.sum(1), scored.sum(1)]).tolist()  # one synchronisation with the device
    prompt_lengths, reply_lengths = counts[:prompts], counts[prompts:]

    last = prompt_ids[:, -1:].repeat_interleave(share, 0)
    branch_ids = torch.cat([last, completion_ids[:, :-1]], 1)
    steps = torch.arange(completion_ids.shape[1], device=completion_ids.device)
    branch_positions = positions[:, :, -1:].repeat_interleave(share, 1) + steps

    ids: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    groups: list[Group] = []
    labelled: list[torch.Tensor] = []
    start = 0
    for n in range(prompts):
        rows = slice(n * share, (n + 1) * share)
        group = Group(start, start + prompt_lengths[n] - 1, reply_lengths[rows])
        ids += [prompt_ids[n][real[n]][:-1], branch_ids[rows][scored[rows]]]
        places += [positions[:, n][:, real[n]][:, :-1], branch_positions[:, rows][:, scored[rows]]]
        labelled.append(torch.arange(group.fork, group.stop, device=prompt_ids.device))
        groups.append(group)
        start = group.stop
    return PackedRow(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(places, 1)[:, None],
        labels=completion_ids[scored][None],
        plan=Plan(groups, torch.cat(labelled), backend),
    )


def unpack(values: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """Put (1, M) values of the labelled positions back to (N * G, C), zero where ``completion_mask`` is 0."""
    return values.new_zeros(completion_mask.shape).masked_scatter(completion_mask.bool(), values)


def prompt_positions(
    core: torch.nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    image_grid_thw: torch.Tensor | None,
    mm_token_type_ids: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """M-RoPE positions (3, N, P) of left-padded prompts and the offset (N, 1) of what follows them.

    ``core`` is the model that has ``get_rope_index`` (``Qwen2VLModel``, ``Qwen2_5_VLModel``). Prompts
    without any image have plain positions. ``position = index in the padded row + offset`` holds behind the
    prompt (``rope_deltas``).
    """
    if image_grid_thw is not None:
        return core.get_rope_index(
            prompt_ids,
            image_grid_thw=image_grid_thw,
            attention_mask=prompt_mask,
            mm_token_type_ids=mm_token_type_ids,
        )
    return text_positions(prompt_mask)[None].expand(3, -1, -1), torch.zeros_like(prompt_ids[:, :1])


def text_positions(prompt_mask: torch.Tensor) -> torch.Tensor:
    """Index (N, P) of each real token among the real tokens of its row; 0 on padding."""
    return (prompt_mask.long().cumsum(-1) - 1).clamp(min=0)


def keep_labelled(module: torch.nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any) -> Any:
    """Forward hook of the backbone: of a packed row only the labelled positions go on to the language-model
    head.

    TRL's head leaves out unlabelled positions itself on a GPU, but scores every position on a CPU.
    """
    plan = kwargs.get("shared_prefix")
    if plan is not None:
        output.last_hidden_state = output.last_hidden_state.index_select(1, plan.labelled)
    return output


def model_inputs(row: PackedRow) -> dict[str, Any]:
    """A packed row as keyword arguments of the model's forward."""
    # The dictionary tells the model that the mask is made: with None it would build one from the positions.
    return {
        "input_ids": row.input_ids,
        "position_ids": row.position_ids,
        "attention_mask": {"full_attention": None},
        "shift_labels": row.labels,
        "shared_prefix": row.plan,
    }
