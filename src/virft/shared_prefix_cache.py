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
    """One layer of N prompts with G replies each, K key/value heads of size D.

    ``prefix_keys``, ``prefix_values`` are (N, K, P, D); the replies' own states are written in place into
    ``keys``, ``values`` (N, K, G, room, D), of which the first ``filled`` tokens count.
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
        self.keys, self.values = (self._buffer(self.room_step) for _ in range(2))

    def _buffer(self, room: int) -> torch.Tensor:
        prompts, heads, _, size = self.prefix_keys.shape
        return self.prefix_keys.new_empty(prompts, heads, self.replies, room, size)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the prompt's part is given at construction."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (N * G, K, T, D) states; returned as they came, for the attention reads the layer itself."""
        stop = self.filled + key_states.shape[2]
        if stop > self.keys.shape[3]:
            more = max(self.room_step, stop - self.keys.shape[3])
            self.keys = torch.cat([self.keys, self._buffer(more)], 3)
            self.values = torch.cat([self.values, self._buffer(more)], 3)
        by_prompt = (self.prefix_keys.shape[0], self.replies)
        self.keys[:, :, :, self.filled : stop] = key_states.unflatten(0, by_prompt).transpose(1, 2)
        self.values[:, :, :, self.filled : stop] = value_states.unflatten(0, by_prompt).transpose(1, 2)
        self.filled = stop
        return key_states, value_states

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
        super().__init__(
            layers=[
                SharedPrefixLayer(x.keys.contiguous(), x.values.contiguous(), replies) for x in prefix.layers
            ]
        )
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
    query: torch.Tensor, layer: SharedPrefixLayer, padding: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention of one new token per reply over its prompt and its own tokens, the new one included.

    Args:
        query: (N * G, H, 1, D); heads that share a key/value head stand next to one another.
        layer: the prompts' and the replies' keys and values.
        padding: (N, 1, 1, P) true where the prompt is padding, or None.
        scaling: factor of the scores.

    Returns:
        (N * G, 1, H, D).
    """
    prompts, kv_heads, length, size = layer.prefix_keys.shape
    heads, replies, filled = query.shape[1], layer.replies, layer.filled
    shared = heads // kv_heads
    groups = prompts * kv_heads
    # Replies of a prompt and heads of a key/value head are the rows of one product with the prompt's keys.
    queries = (query * scaling).view(prompts, replies, kv_heads, shared, size).transpose(1, 2)
    queries = queries.reshape(groups, replies * shared, size)
    own_keys, own_values = (x.flatten(0, 2)[:, :filled] for x in (layer.keys, layer.values))
    prefix_scores = torch.bmm(queries, layer.prefix_keys.view(groups, length, size).transpose(1, 2))
    if padding is not None:
        prefix_scores.unflatten(0, (prompts, kv_heads)).masked_fill_(padding, float("-inf"))
    own_scores = torch.bmm(queries.view(groups * replies, shared, size), own_keys.transpose(1, 2))
    scores = torch.cat([prefix_scores, own_scores.view(groups, replies * shared, filled)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    own_weights = weights[..., length:].reshape(groups * replies, shared, filled)
    output = torch.bmm(own_weights, own_values).view(groups, replies * shared, size)
    output = torch.baddbmm(output, weights[..., :length], layer.prefix_values.view(groups, length, size))
    return output.view(prompts, kv_heads, replies, shared, size).transpose(1, 2).reshape(-1, 1, heads, size)
