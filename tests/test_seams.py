"""The places in TRL and transformers that the shared prefix holds on to, each by name.

When a new version moves one, its test fails and says which of our modules to look at. The tests of the
shared prefix say whether the result is still right; these say why not.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from typing import Any

import pytest
import torch
import trl.trainer.utils
from transformers import DynamicCache, Qwen2VLImageProcessor, StaticCache, Trainer
from transformers.cache_utils import CacheLayerMixin
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from trl import GRPOTrainer

from virft.trainer import VisualRFTTrainer

FAMILIES = {
    modeling_qwen2_vl: ("Qwen2VLModel", "Qwen2VLTextModel", "Qwen2VLAttention"),
    modeling_qwen2_5_vl: ("Qwen2_5_VLModel", "Qwen2_5_VLTextModel", "Qwen2_5_VLAttention"),
}


def source(thing: Any) -> str:
    """A function's code without its docstring, comments and layout."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))))
    function = tree.body[0]
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    function.decorator_list = []
    return ast.unparse(tree)


def parameters(thing: Any) -> list[str]:
    """Names of a function's parameters."""
    return list(inspect.signature(inspect.unwrap(thing)).parameters)


SIGNATURES = [
    (
        GRPOTrainer._get_per_token_logps_and_entropies,
        "self model input_ids attention_mask logits_to_keep batch_size compute_entropy compute_aux_loss "
        "pixel_values image_grid_thw num_images pixel_attention_mask spatial_shapes num_tiles image_sizes "
        "token_type_ids mm_token_type_ids image_position_ids",
    ),
    (
        GRPOTrainer._generate_single_turn,
        "self prompt_ids images multimodal_fields num_generations has_tool_images",
    ),
    (GRPOTrainer._tokenize_prompts, "self prompts"),
    (GRPOTrainer._generate_and_score_completions, "self inputs"),
    (GRPOTrainer._prepare_inputs, "self generation_batch"),
    (
        Trainer._get_dataloader,
        "self dataset description batch_size sampler_fn is_training dataloader_key",
    ),
]


@pytest.mark.parametrize(("function", "expected"), SIGNATURES, ids=lambda x: getattr(x, "__qualname__", ""))
def test_an_overridden_method_has_its_parameters(function: Any, expected: str) -> None:
    found = parameters(function)
    assert found == expected.split(), (
        f"seam moved: {function.__qualname__} now takes {found}; see virft.shared_prefix_trainer"
    )


def test_our_overrides_take_every_parameter_by_name() -> None:
    """TRL may call a method anywhere with any of its parameters as a keyword."""
    checked = 0
    for kind in VisualRFTTrainer.__mro__[: VisualRFTTrainer.__mro__.index(GRPOTrainer)]:
        for name, method in vars(kind).items():
            overridden = getattr(GRPOTrainer, name, None)
            if not inspect.isfunction(method) or overridden is None or name == "__init__":
                continue
            found = inspect.signature(inspect.unwrap(method)).parameters.values()
            named = {p.name for p in found} if not any(p.kind is p.VAR_KEYWORD for p in found) else None
            missing = [p for p in parameters(overridden) if named is not None and p not in named]
            assert not missing, f"{kind.__name__}.{name} does not take {missing} by name"
            checked += 1
    assert checked > 10


CONTAINED = [
    # our override of the buffer restates this method, with another way of shuffling
    (GRPOTrainer._prepare_inputs, "shuffle_sequence_dict(generation_batch)"),
    (GRPOTrainer._prepare_inputs, "self._buffered_inputs[self._step % self.args.steps_per_generation]"),
    # generate is replaced on the model while TRL calls it
    (
        GRPOTrainer._generate_single_turn,
        "unwrapped_model.generate(**generate_inputs, generation_config=self.generation_config)",
    ),
    (GRPOTrainer._generate, "self._tokenize_prompts(prompts)"),
    (
        GRPOTrainer._generate,
        "self._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)",
    ),
    # the second run of the processor, in which the memo gives each distinct image once
    (
        GRPOTrainer._generate_and_score_completions,
        "self.processing_class(images=images, text=prompts_text, padding=True, return_tensors='pt')",
    ),
    (GRPOTrainer._generate_and_score_completions, "output['num_images'] = num_images"),
    (GRPOTrainer._generate_and_score_completions, "forward_kwargs['pixel_values'].ndim == 4"),
    # a run whose last step is done starts no further epoch, see virft.checkpointing
    (Trainer._inner_training_loop, "self._run_epoch("),
    # the images of a micro-batch travel through here unread
    (GRPOTrainer._compute_loss, "pixel_values=inputs.get('pixel_values')"),
    (GRPOTrainer._compute_loss, "self._get_per_token_logps_and_entropies(model, input_ids, attention_mask"),
    # the head takes shifted labels of any positions of the backbone's output
    (trl.trainer.utils.add_fused_lm_head, "hidden_states = backbone_outputs.last_hidden_state\n"),
    (trl.trainer.utils.add_fused_lm_head, "labels = shift_labels"),
    (trl.trainer.utils.add_fused_lm_head, "backbone_attr = 'base_model'"),
]


@pytest.mark.parametrize(("function", "words"), CONTAINED, ids=lambda x: getattr(x, "__name__", str(x))[:50])
def test_trl_still_does_what_an_override_builds_on(function: Any, words: str) -> None:
    assert words in source(function), (
        f"seam moved: {function.__qualname__} lost {words.strip()!r}; see virft.shared_prefix_trainer"
    )


def test_the_restated_method_is_unchanged() -> None:
    """``_prepare_inputs`` is the one method whose body we restate: any change in it wants to be read."""
    digest = hashlib.sha256(source(GRPOTrainer._prepare_inputs).encode()).hexdigest()[:16]
    assert digest == "6de74aaff4c9f444", (
        f"seam moved: GRPOTrainer._prepare_inputs changed (digest {digest}); compare it with "
        "SharedPrefixGRPOTrainer._prepare_inputs, then update this test"
    )


@pytest.mark.parametrize("module", FAMILIES, ids=lambda m: m.__name__.rsplit(".", 1)[-1])
def test_keywords_reach_vision_and_attention(module: Any) -> None:
    model, text, attention = (getattr(module, name) for name in FAMILIES[module])
    forward, message = source(model.forward), "seam moved: {}; see virft.shared_prefix_attention"
    assert "self.get_image_features(pixel_values, image_grid_thw" in forward, message.format("image features")
    assert "image_grid_thw, return_dict=True, **kwargs" in forward or "image_grid_thw, **kwargs" in forward
    assert ".pooler_output" in forward, message.format("form of the image features")
    assert "isinstance((causal_mask_mapping := attention_mask), dict)" in source(text.forward).replace(
        "isinstance(causal_mask_mapping := attention_mask, dict)",
        "isinstance((causal_mask_mapping := attention_mask), dict)",
    ), message.format("a dictionary as attention mask")
    assert "position_ids=position_ids, **kwargs" in source(attention.forward), message.format("keywords")
    assert "get_rope_index" in dir(model) and "rope_deltas" in source(model.__init__)
    names = parameters(model.get_rope_index)
    assert {"input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask"} <= set(names)


def test_a_cache_layer_needs_what_ours_has() -> None:
    from virft.shared_prefix_cache import SharedPrefixLayer

    assert not SharedPrefixLayer.__abstractmethods__, "seam moved: CacheLayerMixin wants more methods"
    assert CacheLayerMixin.__abstractmethods__ == {
        "lazy_initialization",
        "update",
        "get_mask_sizes",
        "get_seq_length",
        "get_max_length",
    }, "seam moved: CacheLayerMixin; see virft.shared_prefix_cache"


def test_caches_can_be_taken_apart_and_repeated(tiny_qwen2_vl: Any) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_qwen2_vl).get_text_config()
    cache, states = DynamicCache(config=config), torch.ones(2, 2, 3, 16)
    cache.update(states, states, 0)
    assert torch.equal(cache.layers[0].keys, states), "seam moved: DynamicCache.layers"
    cache.batch_repeat_interleave(2)
    assert cache.layers[0].keys.shape[0] == 4, "seam moved: DynamicCache.batch_repeat_interleave"
    static = StaticCache(config=config, max_cache_len=8)
    static.update(states, states, 0)
    assert int(static.get_seq_length()) == 3, "seam moved: StaticCache.update"


def test_the_image_processor_is_asked_through_preprocess() -> None:
    assert "self.preprocess(images, *args, **kwargs)" in source(Qwen2VLImageProcessor.__call__), (
        "seam moved: image processors; see virft.image_memo"
    )
    names = Qwen2VLImageProcessor.valid_kwargs.__annotations__
    assert {"size", "resample", "patch_size", "do_resize", "image_mean"} <= set(names)


def test_what_the_trainer_reads_of_trl_is_there(tiny_qwen2_vl: Any, tmp_path: Any) -> None:
    from shared_prefix_runs import build

    trainer, _ = build("stock", str(tiny_qwen2_vl), tmp_path)
    names = (
        "_buffered_inputs _step num_iterations num_generations_eval aux_loss_enabled tools rollout_func "
        "environment_factories use_vllm generation_config ref_model processing_class"
    )
    missing = [name for name in names.split() if not hasattr(trainer, name)]
    assert not missing, (
        f"seam moved: GRPOTrainer has no {', '.join(missing)}; see virft.shared_prefix_trainer"
    )


def test_where_transformers_keeps_the_zero_configuration() -> None:
    """``virft.model_files.without_weights`` takes it away while it counts a model's shapes."""
    from transformers.integrations import deepspeed

    assert "_hf_deepspeed_config_weak_ref" in source(deepspeed.is_deepspeed_zero3_enabled)
    assert hasattr(deepspeed, "_hf_deepspeed_config_weak_ref")
