"""The same questions through vLLM, where it is installed: continuous batching and prefix caching are its own.

Replies equal the transformers engine's up to the rounding of other kernels. vLLM wants a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import GenerationConfig

from virft.boxes import resized
from virft.checkpoint import resolve_space
from virft.engine import OnUnreadable, UnreadableImage, by_images, likelihoods
from virft.errors import UserError
from virft.images import open_rgb
from virft.inference_model import chat_text, check_decoding, end_tokens, load_processor, resolve_system
from virft.types import Prediction, Sample

BATCHES_AT_ONCE = 16
"""Batches handed to vLLM together: enough to keep it busy, few enough that a kill loses little."""


def check_vllm(model_path: str | Path) -> None:
    """Refuse vLLM where it is not installed, or for a LoRA adapter. Raises UserError with the mend."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "--engine vllm needs the package vllm, which is not installed; "
            "install it (bash setup.sh --vllm) or use --engine transformers"
        )
    if (Path(model_path) / "adapter_config.json").is_file():
        raise UserError(f"--engine vllm: {model_path} is a LoRA adapter; merge it first (virft.merge)")


class VLLMEngine:
    """Answers samples with vLLM; the arguments are those of :class:`virft.engine.Engine`.

    Raises:
        UserError: vLLM is not installed, a setting is out of range, or the model is an unmerged adapter.
    """

    def __init__(
        self,
        model_path: str,
        dtype: str = "auto",
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
        check_vllm(model_path)
        self.model_path = str(model_path)
        self.dtype = dtype
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
        self.stop_tokens = self._stop_tokens()
        self._llm: Any = None

    def generate(self, samples: Iterable[Sample]) -> list[Prediction]:
        """Answer all samples, in their order; see :meth:`virft.engine.Engine.generate`."""
        samples = list(samples)
        answered = {p.id: p for p in self.stream(samples)}
        return [answered[s.id] for s in samples]

    def stream(
        self, samples: Iterable[Sample], on_unreadable: OnUnreadable | None = None
    ) -> Iterator[Prediction]:
        """Answer samples portion by portion; see :meth:`virft.engine.Engine.stream`."""
        groups = by_images(samples)
        self._load(max((len(group[0].images) for group in groups), default=0))
        portion: list[tuple[Sample, list[Image.Image]]] = []
        for group in groups:
            try:
                images = [open_rgb(image) for image in group[0].images]
                for image in images:
                    resized(image.size, self.min_pixels, self.max_pixels)  # refuses what vLLM would
            except ValueError as error:
                unreadable = UnreadableImage(f"sample {group[0].id!r}: {error}")
                if on_unreadable is None:
                    raise unreadable from error
                for sample in group:
                    on_unreadable(sample, unreadable)
                continue
            portion += [(sample, images) for sample in group]
            if len(portion) >= BATCHES_AT_ONCE * self.batch_size:
                yield from self._answer(portion)
                portion = []
        if portion:
            yield from self._answer(portion)

    def _load(self, images_per_prompt: int) -> None:
        if self._llm is not None:
            return
        from vllm import LLM

        self._llm = LLM(
            model=self.model_path,
            dtype=self.dtype,
            max_num_seqs=self.batch_size,
            limit_mm_per_prompt={"image": max(1, images_per_prompt)},
            mm_processor_kwargs={"min_pixels": self.min_pixels, "max_pixels": self.max_pixels},
            enable_prefix_caching=True,
            # The checkpoint's generation config must not change the decoding that was asked for.
            generation_config="vllm",
            # Of the model's own distribution, before temperature.
            logprobs_mode="raw_logprobs",
        )

    def _answer(self, portion: list[tuple[Sample, list[Image.Image]]]) -> Iterator[Prediction]:
        from vllm import SamplingParams

        prompts, decoding = [], []
        for sample, images in portion:
            prompt: dict[str, Any] = {"prompt": chat_text(self.processor, sample, self.system)}
            if images:
                prompt["multi_modal_data"] = {"image": images}
            prompts.append(prompt)
            own_seed = int.from_bytes(sha256(f"{self.seed}:{sample.id}".encode()).digest()[:4], "big")
            decoding.append(
                SamplingParams(
                    temperature=self.temperature,
                    top_p=1.0,
                    repetition_penalty=1.0,
                    max_tokens=self.max_new_tokens,
                    stop_token_ids=sorted(self.stop_tokens),
                    seed=own_seed if self.temperature else None,
                    # 0 others: the chosen token's alone.
                    logprobs=0 if self.logprobs else None,
                )
            )
        outputs = self._llm.generate(prompts, decoding, use_tqdm=False)
        for (sample, images), output in zip(portion, outputs, strict=True):
            completion = output.outputs[0]
            size = images[0].size if images else None
            kept = self._likelihoods(completion) if self.logprobs else {}
            yield Prediction(
                id=sample.id,
                reply=completion.text,
                space=self.space,
                image_size=size,
                model_size=resized(size, self.min_pixels, self.max_pixels) if size else None,
                tokens=len(completion.token_ids),
                truncated=completion.finish_reason == "length",
                meta=sample.meta,
                **kept,
            )

    def _likelihoods(self, completion: Any) -> dict[str, Any]:
        tokens = list(completion.token_ids)
        chosen = [known[token].logprob for known, token in zip(completion.logprobs, tokens, strict=True)]
        return likelihoods(self.processor.tokenizer, tokens, chosen, completion.text)

    def _stop_tokens(self) -> frozenset[int]:
        try:
            config = GenerationConfig.from_pretrained(self.model_path)
        except OSError:  # a checkpoint may have none; the tokenizer knows its end token
            config = GenerationConfig()
        return end_tokens(config, self.processor.tokenizer)
