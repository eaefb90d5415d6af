"""Sampling from one prefill per prompt gives the tokens of plain ``generate`` on repeated rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shared_prefix_cases import GROUP, case, load
from transformers import GenerationConfig

from virft.shared_prefix_attention import enable
from virft.shared_prefix_cache import SharedPrefixLayer
from virft.shared_prefix_generation import CACHES, generate
from virft.shared_prefix_vision import SharedVision, encode


@pytest.fixture(params=["tiny_qwen2_vl", "tiny_qwen2_5_vl"])
def folder(request: pytest.FixtureRequest) -> Any:
    """Both families."""
    return request.getfixturevalue(request.param)


def settings(model: Any, sample: bool, tokens: int = 24) -> GenerationConfig:
    """As TRL sets them."""
    ways = {"do_sample": True, "temperature": 0.9, "top_k": 0} if sample else {"do_sample": False}
    return GenerationConfig(
        max_new_tokens=tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
        suppress_tokens=[model.config.image_token_id],
        disable_compile=True,
        **ways,
    )


class Counter:
    """Rows and tokens that enter the decoder, patches that enter the vision tower."""

    def __init__(self, model: Any) -> None:
        self.prefilled = self.patches = 0
        model.model.language_model.register_forward_pre_hook(self.language, with_kwargs=True)
        model.model.visual.register_forward_pre_hook(self.vision, with_kwargs=True)

    def language(self, module: Any, args: tuple, kwargs: dict) -> None:
        rows, tokens, _ = kwargs["inputs_embeds"].shape
        self.prefilled += rows * tokens if tokens > 1 else 0

    def vision(self, module: Any, args: tuple, kwargs: dict) -> None:
        self.patches += (args[0] if args else kwargs["hidden_states"]).shape[0]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", ["one image each", "two, one, none", "none"])
def test_tokens_are_those_of_plain_generate(folder: Any, kind: str, cache: str) -> None:
    model, example = load(folder).eval(), case(folder, kind)
    enable(model)
    for sample in (False, True):
        config = settings(model, sample)
        torch.manual_seed(0)
        expected = model.generate(**example.rows, generation_config=config)
        torch.manual_seed(0)
        found = generate(model, GROUP, config, **example.prompts, cache=cache)
        assert found.tolist() == expected.tolist()


def test_each_image_is_encoded_and_each_prompt_prefilled_once(tiny_qwen2_vl: Any) -> None:
    model, example = load(tiny_qwen2_vl).eval(), case(tiny_qwen2_vl)
    enable(model)
    counter = Counter(model)
    generate(model, GROUP, settings(model, True), **example.prompts)
    rows, tokens = example.prompts["input_ids"].shape
    assert counter.prefilled == rows * (tokens - 1)
    assert counter.patches == len(example.prompts["pixel_values"])


def test_given_features_stand_for_the_vision_tower(folder: Any) -> None:
    model, example = load(folder).eval(), case(folder)
    enable(model)
    SharedVision.install(model.model)
    config = settings(model, False)
    expected = generate(model, GROUP, config, **example.prompts)
    features = encode(model.model, example.prompts["pixel_values"], example.prompts["image_grid_thw"])
    counter = Counter(model)
    given = example.prompts | {"pixel_values": torch.cat(features), "image_features_given": True}
    assert generate(model, GROUP, config, **given).tolist() == expected.tolist()
    assert counter.patches == 0


def test_buffers_grow_beyond_their_first_room(tiny_qwen2_vl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedPrefixLayer, "room_step", 5)
    model, example = load(tiny_qwen2_vl).eval(), case(tiny_qwen2_vl)
    enable(model)
    config = settings(model, False)
    expected = model.generate(**example.rows, generation_config=config)
    assert generate(model, GROUP, config, **example.prompts).tolist() == expected.tolist()


def test_logits_agree_over_many_steps(folder: Any) -> None:
    model, example = load(folder).eval(), case(folder)
    enable(model)
    config = settings(model, False, tokens=12)
    config.output_logits = config.return_dict_in_generate = True
    expected = model.generate(**example.rows, generation_config=config).logits
    found = generate(model, GROUP, config, **example.prompts).logits
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-5


def test_an_unknown_cache_is_named(tiny_qwen2_vl: Any) -> None:
    model, example = load(tiny_qwen2_vl), case(tiny_qwen2_vl)
    with pytest.raises(ValueError, match="cache must be one of shared, expanded, static, got 'paged'"):
        generate(model, GROUP, settings(model, False), **example.prompts, cache="paged")


def test_a_shared_cache_needs_the_attention_that_reads_it(tiny_qwen2_vl: Any) -> None:
    model, example = load(tiny_qwen2_vl), case(tiny_qwen2_vl)
    with pytest.raises(ValueError, match="needs virft.shared_prefix_attention.enable"):
        generate(model, GROUP, settings(model, False), **example.prompts)
