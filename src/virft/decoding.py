"""Answering many questions with few forward tokens: prefill what questions share once, decode in one batch.

Questions about one image begin with the same tokens: the chat header, the image, the first words of the
prompt. That prefix goes through the vision tower and the language model once; its keys and values are then
copied to a row for each question, and only the differing suffixes are prefilled. Rows that end leave the
batch and waiting questions take their places. Every step is the model's own public forward with explicit
positions and mask, so a reply is the one that ``generate`` would give to the question alone (up to the
rounding of differently shaped matrix products).

Positions: a prefix has the family's three-dimensional rotary positions; the text after it continues on all
three axes from the prefix's greatest position + 1. Padding stands on the left of the prefix and between
prefix and suffix, and is masked; it never takes a position.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (rows, heads, columns, head dimension) or the same without rows."""


FREE_COLUMNS = 128
"""Room made at once for further tokens: growing copies, and spare columns only take memory."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix that went through the model.

    Attributes:
        layers: its keys and values without padding, (heads, tokens, head dimension) each.
        length: number of tokens.
        next_position: the rotary position of the token after it.
    """

    layers: Layers
    length: int
    next_position: int


@dataclass(slots=True)
class Batch:
    """Rows that are being decoded; row i belongs to ``questions[i]``.

    Attributes:
        cache: keys and values, (rows, heads, columns, head dimension) in each layer.
        mask: (rows, columns), 1 where a column holds a token of the row.
        positions: (rows,), the rotary position of each row's next token.
        logits: (rows, vocabulary), of each row's next token.
        questions: what the caller gave for each row.
    """

    cache: Cache
    mask: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor
    questions: list

    def __len__(self) -> int:
        return len(self.questions)


class RoomyLayer(DynamicLayer):
    """Keys and values with free columns behind them, so that a new token is written and nothing is copied.

    A dynamic cache copies itself for every token, which costs more than the token's whole forward pass where
    batches are large and models small.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys, values
        self._buffers = (keys, values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; gives all columns, as views that stay valid until the next update."""
        used, needed = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if needed > self._buffers[0].shape[2]:
            self._buffers = tuple(_with_room(old, needed + FREE_COLUMNS) for old in (self.keys, self.values))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, used:needed] = new
        self.keys, self.values = (buffer[:, :, :needed] for buffer in self._buffers)
        return self.keys, self.values


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all token lists share and that leaves each at least one token."""
    shared = len(os.path.commonprefix([list(p) for p in prompts]))
    return min(shared, min(len(p) for p in prompts) - 1)


@torch.inference_mode()
def prefill(
    model: PreTrainedModel,
    prefixes: Sequence[Sequence[int]],
    pixel_values: torch.Tensor | None,
    image_grid_thw: torch.Tensor | None,
) -> list[Prefix]:
    """Put prefixes through vision tower and language model, as one left-padded batch.

    Args:
        model: a Qwen2-VL or Qwen2.5-VL for conditional generation.
        prefixes: token ids, image placeholders expanded; none may be empty.
        pixel_values, image_grid_thw: of all their images, in order; None without images.
    """
    device = model.device
    ids, mask = _left_padded(prefixes, device)
    is_image = (ids == model.config.image_token_id) & mask.bool()
    positions, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=is_image.int(),
        image_grid_thw=image_grid_thw,
        attention_mask=mask,
    )
    cache = DynamicCache(config=model.config.get_text_config())
    # The hidden states of a prefix are not needed: the body without the head.
    model.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        use_cache=True,
    )
    following = (positions.amax(0) * mask).amax(1) + 1
    lengths = mask.sum(1)
    return [
        Prefix(
            # A copy, so that one kept prefix does not keep the whole batch in memory.
            [(k[row, :, -n:].clone(), v[row, :, -n:].clone()) for k, v in _layers(cache)],
            n,
            int(following[row]),
        )
        for row, n in enumerate(lengths.tolist())
    ]


@torch.inference_mode()
def extend(
    model: PreTrainedModel,
    prefixes: Sequence[Prefix],
    suffixes: Sequence[Sequence[int]],
    questions: Sequence,
) -> Batch:
    """A batch of rows, each a prefilled prefix (they may repeat) and a suffix of at least one token."""
    device = model.device
    width = max(p.length for p in prefixes)
    layers = [
        tuple(
            torch.stack([_pad_left(p.layers[index][kv], width - p.length) for p in prefixes]) for kv in (0, 1)
        )
        for index in range(len(prefixes[0].layers))
    ]
    lengths = torch.tensor([p.length for p in prefixes], device=device)
    prefix_mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    ids, suffix_mask = _left_padded(suffixes, device)
    start = torch.tensor([p.next_position for p in prefixes], device=device)
    batch = Batch(_cache(layers), prefix_mask, start, torch.empty(0), list(questions))
    return _forward(model, batch, ids, suffix_mask)


@torch.inference_mode()
def step(model: PreTrainedModel, batch: Batch, tokens: torch.Tensor) -> Batch:
    """The batch after one more token in each row, of shape (rows,); the batch given is used up."""
    return _forward(model, batch, tokens[:, None], torch.ones_like(tokens[:, None]))


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch with these rows only."""
    index = torch.tensor(rows, device=batch.mask.device)
    return Batch(
        _cache((k.index_select(0, index), v.index_select(0, index)) for k, v in _layers(batch.cache)),
        batch.mask[index],
        batch.positions[index],
        batch.logits[index],
        [batch.questions[row] for row in rows],
    )


def join(first: Batch, second: Batch) -> Batch:
    """The rows of both, padded on the left to one width; columns that no row uses are dropped."""
    first, second = _trimmed(first), _trimmed(second)
    width = max(first.mask.shape[1], second.mask.shape[1])

    def both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([_pad_left(a, width - a.shape[2]), _pad_left(b, width - b.shape[2])])

    masks = [torch.nn.functional.pad(b.mask, (width - b.mask.shape[1], 0)) for b in (first, second)]
    return Batch(
        _cache(
            (both(k1, k2), both(v1, v2))
            for (k1, v1), (k2, v2) in zip(_layers(first.cache), _layers(second.cache), strict=True)
        ),
        torch.cat(masks),
        torch.cat([first.positions, second.positions]),
        torch.cat([first.logits, second.logits]),
        first.questions + second.questions,
    )


def choose(logits: torch.Tensor, temperature: float, draws: Sequence[random.Random]) -> torch.Tensor:
    """The next token of each row.

    Greedy at temperature 0. Above it one number is drawn from each row's own generator and the distribution
    inverted, so that a row's reply does not depend on which rows stand beside it.

    Args:
        logits: (rows, vocabulary).
        temperature: 0 or above.
        draws: one random generator a row; unused at temperature 0.
    """
    if temperature == 0:
        return logits.argmax(-1)
    if logits.device.type == "mps":
        logits = logits.cpu()  # it has no double precision
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    points = torch.tensor([d.random() for d in draws], dtype=torch.float64, device=logits.device)
    points = points * cumulative[:, -1]
    chosen = torch.searchsorted(cumulative, points[:, None], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1)


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The logarithm of the probability of each row's token at temperature 1, shape (rows,), on the CPU.

    Args:
        logits: (rows, vocabulary), raw, in float32.
        tokens: (rows,), what was chosen.
    """
    chosen = tokens.to(logits.device)[:, None]
    return logits.log_softmax(-1).gather(-1, chosen)[:, 0].cpu()


def token_ends(tokenizer: Any, tokens: Sequence[int], reply: str) -> list[int]:
    """How many characters of a reply stand once each of its tokens does.

    A token may hold a part of a character, which decodes to a replacement mark until the rest is there: only
    what agrees with the whole reply counts. Takes time linear in the number of tokens.

    Args:
        tokenizer: a byte-level one, whose texts of two lists of tokens make up the text of both.
        tokens: all that were generated, special ones included.
        reply: their text without the special ones.
    """
    ends: list[int] = []
    first = settled = end = 0
    for place in range(len(tokens)):
        text = tokenizer.decode(tokens[first : place + 1], skip_special_tokens=True)
        rest = reply[settled : settled + len(text)]
        end = max(end, settled + len(os.path.commonprefix([text, rest])))
        ends.append(end)
        if text == rest and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            first, settled = place + 1, end
    return ends


def _forward(model: PreTrainedModel, batch: Batch, ids: torch.Tensor, mask: torch.Tensor) -> Batch:
    """Append columns to the batch; ``ids`` and ``mask`` (rows, columns) are padded on the left."""
    offsets = (mask.cumsum(1) - 1).clamp(min=0)
    positions = batch.positions[:, None] + offsets
    whole = torch.cat([batch.mask, mask], 1)
    logits = model(
        input_ids=ids,
        attention_mask=whole,
        position_ids=positions[None].expand(3, -1, -1),
        past_key_values=batch.cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return Batch(batch.cache, whole, positions[:, -1] + 1, logits.float(), batch.questions)


def _layers(cache: Cache) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache(layers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Cache:
    return Cache(layers=[RoomyLayer(keys, values) for keys, values in layers])


def _with_room(states: torch.Tensor, columns: int) -> torch.Tensor:
    roomy = states.new_zeros((*states.shape[:2], columns, states.shape[3]))
    roomy[:, :, : states.shape[2]] = states
    return roomy


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _pad_left(states: torch.Tensor, columns: int) -> torch.Tensor:
    """Zero columns before keys or values; the mask hides them."""
    return torch.nn.functional.pad(states, (0, 0, columns, 0)) if columns else states


def _trimmed(batch: Batch) -> Batch:
    empty = int(batch.mask.any(0).int().argmax())
    if not empty:
        return batch
    cache = _cache((k[:, :, empty:], v[:, :, empty:]) for k, v in _layers(batch.cache))
    return Batch(cache, batch.mask[:, empty:], batch.positions, batch.logits, batch.questions)
