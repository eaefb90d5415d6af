"""A model that answers samples in batches.

The engine knows no task: it gets :class:`~virft.types.Sample` and gives :class:`~virft.types.Prediction`.
What it needs beside the weights (coordinate space, pixel limits, system prompt) comes from the checkpoint's
manifest, else from the model family and the processor; arguments override both.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from virft import decoding
from virft.checkpoint import resolve_space
from virft.errors import UserError
from virft.images import open_rgb
from virft.inference_model import (
    chat_text,
    check_decoding,
    end_tokens,
    load_model,
    load_processor,
    pick_device,
    pick_dtype,
    resolve_system,
)
from virft.types import Prediction, Sample

READERS = 2
READ_AHEAD = 16
"""How many threads decode images, and for how many images ahead of the model."""

OnUnreadable = Callable[[Sample, "UnreadableImage"], None]


class UnreadableImage(UserError):
    """An image of a sample is missing or cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Group:
    """Samples about the same images, and these images as the model takes them.

    Attributes:
        samples: the questions.
        prompts: their token ids, image placeholders expanded.
        shared: how many tokens all prompts of the group begin with in common.
        pixel_values, grids: what the image processor made of the images; None without images.
        image_size, model_size: (width, height) of the first image, original and as resized.
    """

    samples: tuple[Sample, ...]
    prompts: tuple[tuple[int, ...], ...]
    shared: int
    pixel_values: torch.Tensor | None
    grids: torch.Tensor | None
    image_size: tuple[int, int] | None
    model_size: tuple[int, int] | None

    @property
    def key(self) -> str:
        """The first sample's id, which is in no other group."""
        return self.samples[0].id


@dataclass(slots=True)
class _Question:
    group: Group
    index: int
    draw: random.Random
    tokens: list[int]
    logprobs: list[float]

    @property
    def sample(self) -> Sample:
        return self.group.samples[self.index]


def by_images(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples in groups that share images and system prompt, in order of first appearance."""
    groups: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        key = tuple(str(i) if isinstance(i, str | Path) else id(i) for i in sample.images)
        groups.setdefault((key, sample.system) if key else sample.id, []).append(sample)
    return list(groups.values())


class Engine:
    """Answers samples with a Qwen2-VL or Qwen2.5-VL through transformers.

    Args:
        model_path: a checkpoint folder, a LoRA adapter folder or a Hub id.
        device: a torch device; None or "auto" takes the first GPU, else the CPU.
        dtype: one of :data:`virft.inference_model.DTYPES`.
        attn_implementation: one of :data:`virft.inference_model.ATTENTION`.
        min_pixels, max_pixels: area limits of the resized image; None takes the checkpoint's.
        coordinates: "auto" or a space; see :func:`virft.checkpoint.resolve_space`.
        batch_size: how many questions are decoded together.
        max_new_tokens: limit of a reply.
        temperature: 0 is greedy; above it sampling from the whole distribution.
        seed: of the sampling; a reply depends on it, the sample's id and nothing else.
        system: system prompt of samples that have none; None takes the checkpoint's, "" none.
        logprobs: whether predictions hold how probable each token was; changes no reply.

    Raises:
        UserError: a setting out of range, or no model at ``model_path``.
    """

    def __init__(
        self,
        model_path: str,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        coordinates: str = "auto",
        batch_size: int = 8,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
        system: str | None = None,
        logprobs: bool = False,
    ) -> None:
        check_decoding(batch_size, max_new_tokens, temperature)
        self.model_path = str(model_path)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.space = resolve_space(self.model_path, coordinates)
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.seed = seed
        self.system = resolve_system(self.model_path, system)
        self.logprobs = logprobs
        self.processor = load_processor(self.model_path, min_pixels, max_pixels)
        size = self.processor.image_processor.size
        self.min_pixels, self.max_pixels = size["shortest_edge"], size["longest_edge"]
        self.model = load_model(self.model_path, self.dtype, attn_implementation).to(self.device)
        self.stop_tokens = end_tokens(self.model.generation_config, self.processor.tokenizer)

    def generate(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Answer all samples; the predictions stand in the samples' order.

        Raises:
            UnreadableImage: an image is missing or broken.
            UserError: two samples have one id.
        """
        if len({s.id for s in samples}) < len(samples):
            raise UserError("two samples have the same id; ids must be unique within a run")
        answered = {p.id: p for p in self.stream(samples)}
        return [answered[s.id] for s in samples]

    def stream(
        self, samples: Iterable[Sample], on_unreadable: OnUnreadable | None = None
    ) -> Iterator[Prediction]:
        """Answer samples and give each prediction as soon as its reply ends, in no promised order.

        Args:
            samples: what to answer. Samples about the same images are prefilled together.
            on_unreadable: called with each sample whose image cannot be read and the error; the sample is
                then left out. Without it the error is raised.
        """
        waiting = self._questions(samples, on_unreadable)
        prefixes: dict[str, decoding.Prefix] = {}
        batch: decoding.Batch | None = None
        while True:
            # New rows come when half the places are free: prefilling a few at a time wastes a GPU,
            # waiting for the last row wastes the places.
            if batch is None or len(batch) <= self.batch_size // 2:
                taken = _take(waiting, self.batch_size - (len(batch) if batch else 0))
                if taken:
                    fresh = self._prefill(taken, prefixes)
                    batch = fresh if batch is None else decoding.join(batch, fresh)
            if batch is None:
                return
            batch, ended = self._step(batch)
            yield from ended

    def _step(self, batch: decoding.Batch) -> tuple[decoding.Batch | None, list[Prediction]]:
        """Choose a token in every row; give back the rows that go on, after it, and what ended."""
        tokens = decoding.choose(batch.logits, self.temperature, [q.draw for q in batch.questions])
        logprobs = decoding.log_probabilities(batch.logits, tokens).tolist() if self.logprobs else None
        ended, rest = [], []
        for row, token in enumerate(tokens.tolist()):
            question = batch.questions[row]
            question.tokens.append(token)
            if logprobs is not None:
                question.logprobs.append(logprobs[row])
            stopped = token in self.stop_tokens
            if stopped or len(question.tokens) >= self.max_new_tokens:
                ended.append(self._prediction(question, truncated=not stopped))
            else:
                rest.append(row)
        if not rest:
            return None, ended
        if ended:
            batch, tokens = decoding.select(batch, rest), tokens[rest]
        return decoding.step(self.model, batch, tokens.to(self.device)), ended

    def _prefill(self, questions: list[_Question], prefixes: dict[str, decoding.Prefix]) -> decoding.Batch:
        """A batch of these questions. ``prefixes`` keeps the last group's, which may have more questions."""
        groups = {q.group.key: q.group for q in questions}
        new = [g for key, g in groups.items() if key not in prefixes]
        if new:
            grids = [g.grids for g in new if g.grids is not None]
            pixels = [g.pixel_values for g in new if g.pixel_values is not None]
            made = decoding.prefill(
                self.model,
                [g.prompts[0][: g.shared] for g in new],
                torch.cat(pixels).to(self.device, self.dtype) if pixels else None,
                torch.cat(grids).to(self.device) if grids else None,
            )
            prefixes.update({g.key: prefix for g, prefix in zip(new, made, strict=True)})
        batch = decoding.extend(
            self.model,
            [prefixes[q.group.key] for q in questions],
            [q.group.prompts[q.index][q.group.shared :] for q in questions],
            questions,
        )
        last = questions[-1].group.key
        for key in list(prefixes):
            if key != last:
                del prefixes[key]
        return batch

    def _questions(
        self, samples: Iterable[Sample], on_unreadable: OnUnreadable | None
    ) -> Iterator[_Question]:
        """Questions group by group; images are decoded in threads ahead of the model."""
        groups = iter(sorted(by_images(samples), key=self._size, reverse=True))
        ahead: deque[tuple[list[Sample], Future[Group]]] = deque()
        pool = ThreadPoolExecutor(max_workers=READERS)
        try:
            while True:
                for members in islice(groups, READ_AHEAD - len(ahead)):
                    ahead.append((members, pool.submit(self.prepare, members)))
                if not ahead:
                    return
                asked, future = ahead.popleft()
                try:
                    group = future.result()
                except UnreadableImage as error:
                    if on_unreadable is None:
                        raise
                    for sample in asked:
                        on_unreadable(sample, error)
                    continue
                for index, sample in enumerate(group.samples):
                    yield _Question(group, index, random.Random(f"{self.seed}:{sample.id}"), [], [])
        finally:
            pool.shutdown(cancel_futures=True)

    def _size(self, members: Sequence[Sample]) -> tuple[int, int]:
        """What groups are sorted by, so that neighbours need little padding: pixels, then characters."""
        pixels = 0
        for image in members[0].images:
            try:
                width, height = image.size if isinstance(image, Image.Image) else _header(image)
            except (OSError, Image.DecompressionBombError):
                return (1 << 62, 0)  # first, so that a run that must stop for it stops at once
            pixels += min(max(width * height, self.min_pixels), self.max_pixels)
        return pixels, max(len(s.prompt) for s in members)

    def prepare(self, members: Sequence[Sample]) -> Group:
        """Decode and resize a group's images once and tokenize its prompts.

        Raises:
            UnreadableImage: naming the sample and the path.
        """
        first = members[0]
        try:
            images = [open_rgb(image) for image in first.images]
        except UserError as error:
            raise UnreadableImage(f"sample {first.id!r}: {error}") from error
        pixel_values = grids = model_size = None
        counts: list[int] = []
        if images:
            try:
                made = self.processor.image_processor(images=images, return_tensors="pt")
            except ValueError as error:  # an aspect ratio above 200
                raise UnreadableImage(f"sample {first.id!r}: an image cannot be used: {error}") from error
            pixel_values, grids = made["pixel_values"], made["image_grid_thw"]
            merge = self.processor.image_processor.merge_size**2
            counts = [int(grid.prod()) // merge for grid in grids]
            patch = self.processor.image_processor.patch_size
            model_size = (int(grids[0, 2]) * patch, int(grids[0, 1]) * patch)
        prompts = tuple(self._tokenize(sample, counts) for sample in members)
        return Group(
            samples=tuple(members),
            prompts=prompts,
            shared=decoding.common_prefix(prompts),
            pixel_values=pixel_values,
            grids=grids,
            image_size=images[0].size if images else None,
            model_size=model_size,
        )

    def _tokenize(self, sample: Sample, image_tokens: Sequence[int]) -> tuple[int, ...]:
        """Token ids of a sample with each image placeholder repeated as the processor would repeat it."""
        text = chat_text(self.processor, sample, self.system)
        placeholder = self.processor.image_token
        pieces = text.split(placeholder)
        if len(pieces) != len(image_tokens) + 1:
            raise UserError(
                f"sample {sample.id!r}: the prompt must not contain the image placeholder {placeholder}"
            )
        text = pieces[0]
        for count, piece in zip(image_tokens, pieces[1:], strict=True):
            text += placeholder * count + piece
        return tuple(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prediction(self, question: _Question, truncated: bool) -> Prediction:
        tokenizer = self.processor.tokenizer
        reply = tokenizer.decode(question.tokens, skip_special_tokens=True)
        kept = likelihoods(tokenizer, question.tokens, question.logprobs, reply) if self.logprobs else {}
        return Prediction(
            id=question.sample.id,
            reply=reply,
            space=self.space,
            image_size=question.group.image_size,
            model_size=question.group.model_size,
            tokens=len(question.tokens),
            truncated=truncated,
            meta=question.sample.meta,
            **kept,
        )


def likelihoods(
    tokenizer: Any, tokens: Sequence[int], logprobs: Sequence[float], reply: str
) -> dict[str, tuple[float, ...] | tuple[int, ...]]:
    """The fields of a prediction that say how probable each token was and which characters it wrote."""
    return {
        # Nine digits hold a float32 exactly, in half the characters of its double.
        "logprobs": tuple(float(f"{value:.9g}") for value in logprobs),
        "token_ends": tuple(decoding.token_ends(tokenizer, tokens, reply)),
    }


def _take(questions: Iterator[_Question], count: int) -> list[_Question]:
    taken = []
    for question in questions:
        taken.append(question)
        if len(taken) == count:
            break
    return taken


def _header(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
