"""Decoding with one copy of the prompt: a key/value cache that holds each prompt once for all of its replies.

An expanded ``DynamicCache`` keeps G copies of the prompt's keys and values, reads all of them for every
token and copies all of them when a token is appended. Here the prompt's part is stored and read once per
prompt, and the replies' own part lives in a buffer that is written in place. The attention is the exact
softmax over both parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

_active: ContextVar[SharedPrefixCache | None] = ContextVar("shared_prefix_cache", default=None)


class SharedPrefixLayer(CacheLayerMixin):
    """One layer: ``prefix_keys``/``prefix_values`` (N, heads, P, D) and the replies' buffers (N * G, heads,
    room, D).
    """

    is_sliding = False
    room_step = 256  # the buffers grow by this many tokens, so that short replies do not pay for long limits

    def __init__(self, prefix_keys: torch.Tensor, prefix_values: torch.Tensor, replies: int):
        super().__init__()
        self.prefix_keys, self.prefix_values = prefix_keys, prefix_values
        self.replies = replies
        self.filled = 0
        self.dtype, self.device = prefix_keys.dtype, prefix_keys.device
        self.is_initialized = True
        self.keys, self.values = (self._buffer(x, self.room_step) for x in (prefix_keys, prefix_values))

    def _buffer(self, prefix: torch.Tensor, room: int) -> torch.Tensor:
        prompts, heads, _, size = prefix.shape
        return prefix.new_empty(prompts * self.replies, heads, room, size)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the prompt's part is given at construction."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (N * G, heads, T, D) states; return the replies' own part only (see
        :func:`decode_attention`).
        """
        stop = self.filled + key_states.shape[2]
        room = self.keys.shape[2]
        if stop > room:
            more = max(self.room_step, stop - room)
            self.keys = torch.cat([self.keys, self._buffer(self.prefix_keys, more)], 2)
            self.values = torch.cat([self.values, self._buffer(self.prefix_values, more)], 2)
        self.keys[:, :, self.filled : stop] = key_states
        self.values[:, :, self.filled : stop] = value_states
        self.filled = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        """Tokens in the cache, prompt included."""
        return self.prefix_keys.shape[2] + self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys seen by the next ``query_length`` tokens, and their offset."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class SharedPrefixCache(Cache):
    """The prompts' part of a filled ``DynamicCache``, shared by ``replies`` branches of each prompt.

    Args:
        prefix: cache of N left-padded prompts.
        prompt_mask: (N, P) 1 for real tokens of what ``prefix`` holds.
        replies: branches per prompt.
    """

    def __init__(self, prefix: DynamicCache, prompt_mask: torch.Tensor, replies: int):
        super().__init__(layers=[SharedPrefixLayer(x.keys, x.values, replies) for x in prefix.layers])
        self.replies = replies
        self.padding = None if bool(prompt_mask.all()) else ~prompt_mask.bool()[:, None, None]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let :func:`virft.shared_prefix_attention.attention` decode with this cache."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)


def active_cache() -> SharedPrefixCache | None:
    """The cache that the running ``generate`` decodes with, when it is a shared one."""
    return _active.get()


def decode_attention(
    query: torch.Tensor,
    own_keys: torch.Tensor,
    own_values: torch.Tensor,
    layer: SharedPrefixLayer,
    padding: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Attention of one new token per reply over its prompt and its own tokens.

    Args:
        query: (N * G, H, 1, D); heads that share a key/value head stand next to one another.
        own_keys, own_values: (N * G, K, T, D), the reply's own tokens, the new one included.
        layer: holds the prompts' keys and values (N, K, P, D).
        padding: (N, 1, 1, P) true where the prompt is padding, or None.
        scaling: factor of the scores.

    Returns:
        (N * G, 1, H, D).
    """
    prompts, kv_heads, length, size = layer.prefix_keys.shape
    rows, heads = query.shape[:2]
    shared = heads // kv_heads
    per_prompt = rows // prompts
    grouped = query.reshape(rows, kv_heads, shared, size) * scaling
    # All replies of a prompt, and all heads of a key/value head, are rows of one product with the prompt's
    # keys.
    together = grouped.view(prompts, per_prompt, kv_heads, shared, size).transpose(1, 2)
    together = together.reshape(prompts, kv_heads, per_prompt * shared, size)
    prefix_scores = together @ layer.prefix_keys.transpose(-1, -2)
    if padding is not None:
        prefix_scores = prefix_scores.masked_fill(padding, float("-inf"))
    prefix_scores = prefix_scores.view(prompts, kv_heads, per_prompt, shared, length).transpose(1, 2)
    prefix_scores = prefix_scores.reshape(rows, kv_heads, shared, length)
    own_scores = grouped @ own_keys.transpose(-1, -2)
    weights = torch.cat([prefix_scores, own_scores], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    prefix_weights = weights[..., :length].view(prompts, per_prompt, kv_heads, shared, length).transpose(1, 2)
    output = prefix_weights.reshape(prompts, kv_heads, per_prompt * shared, length) @ layer.prefix_values
    output = output.view(prompts, kv_heads, per_prompt, shared, size).transpose(1, 2)
    output = output.reshape(rows, kv_heads, shared, size) + weights[..., length:] @ own_values
    return output.reshape(rows, 1, heads, size)
