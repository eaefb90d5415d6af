"""The first step's check: do packed log-probs equal TRL's?"""

from __future__ import annotations

import math
from typing import Any

import torch

# Largest difference per token that the first-step check lets pass in float32, and largest mean in half
# precision, where single tokens differ by rounding alone (measured on a tiny model: mean 4e-3, largest
# 1.6e-2).
LARGEST_FLOAT32 = 1e-3
LARGEST_MEAN_HALF = 5e-2


def compare(
    packed: torch.Tensor, stock: torch.Tensor, mask: torch.Tensor, rounded: bool, accelerator: Any, first: int
) -> dict[str, float]:
    """How far log-probs (replies, tokens) of one group differ, over all ranks: ``largest`` and ``mean``.

    Args:
        packed, stock: by the packed row and by TRL's rows.
        mask: 1 on tokens of replies.
        rounded: whether the model computes in half precision, or with quantised weights.
        accelerator: of the trainer.
        first: the number of the first reply within the batch, for the message.

    Raises:
        RuntimeError: on every rank when any rank's differ by more than rounding explains.
    """
    difference = ((packed - stock).abs() * mask).nan_to_num(nan=math.inf)
    limit = LARGEST_MEAN_HALF if rounded else LARGEST_FLOAT32
    largest, mean = difference.max(), difference.sum() / mask.sum().clamp(min=1)
    everywhere = accelerator.gather(torch.stack([largest, mean])[None])
    found = {"largest": float(everywhere[:, 0].max()), "mean": float(everywhere[:, 1].max())}
    if found["mean" if rounded else "largest"] > limit:
        reply, token = divmod(int(difference.argmax()), difference.shape[1])
        where = f"rank {accelerator.process_index}, reply {first + reply}, token {token}"
        raise RuntimeError(
            "shared prefix: the packed log-probs of one group differ from TRL's by up to "
            f"{found['largest']:.3g} (mean {found['mean']:.3g}; the limit is {limit:g} on the "
            f"{'mean' if rounded else 'largest'}); {where}: {float(packed[reply, token]):.6f} packed, "
            f"{float(stock[reply, token]):.6f} by TRL. Train with --shared_prefix false and report this"
        )
    return found
