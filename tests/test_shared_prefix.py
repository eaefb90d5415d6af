"""Packed rows score replies as TRL's own rows do, and the test would see it if they did not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shared_prefix_cases import GROUP, LENGTHS, Case, case, load, relative, stock_logps
from transformers import AutoModelForImageTextToText

from virft import shared_prefix_attention
from virft.shared_prefix import PackedRow, keep_labelled, model_inputs, pack, prompt_positions, unpack
from virft.shared_prefix_attention import enable, varlen_attention
from virft.shared_prefix_batches import check_units

LOGPS, GRADIENTS = 1e-5, 1e-4  # the promise, in float32


@pytest.fixture(params=["tiny_qwen2_vl", "tiny_qwen2_5_vl"])
def folder(request: pytest.FixtureRequest) -> Any:
    """Both families."""
    return request.getfixturevalue(request.param)


def packed(model: Any, case: Case, backend: str = "split") -> tuple[PackedRow, dict[str, torch.Tensor]]:
    """The case's packed row and its images."""
    prompts = case.prompts
    images = {k: prompts[k] for k in ("pixel_values", "image_grid_thw") if k in prompts}
    positions, _ = prompt_positions(
        model.model,
        prompts["input_ids"],
        prompts["attention_mask"],
        images.get("image_grid_thw"),
        prompts.get("mm_token_type_ids"),
    )
    row = pack(
        prompts["input_ids"], prompts["attention_mask"], positions, case.replies, case.mask, backend=backend
    )
    return row, images


def score(model: Any, row: PackedRow, images: dict, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of a packed row, through TRL's head."""
    output = model(**model_inputs(row), **images, fused_lm_head=True)
    return unpack(output.log_probs, mask), unpack(output.entropy, mask)


def prepared(folder: Any, **options: Any) -> Any:
    """A model that can do both."""
    model = load(folder, **options)
    enable(model)
    model.model.register_forward_hook(keep_labelled, with_kwargs=True)
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter's gradient, taken away from the model."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def compare(model: Any, case: Case, backend: str = "split") -> None:
    """Log-probs, entropies and all gradients of both ways."""
    expected, expected_entropy = stock_logps(model, case)
    (expected * case.weights).sum().backward()
    expected_gradients = gradients(model)
    row, images = packed(model, case, backend)
    found, entropy = score(model, row, images, case.mask)
    (found * case.weights).sum().backward()
    found_gradients = gradients(model)
    assert ((found - expected) * case.mask).abs().max() <= LOGPS
    assert ((entropy - expected_entropy) * case.mask).abs().max() <= LOGPS
    assert found_gradients.keys() == expected_gradients.keys()
    worst = {n: relative(found_gradients[n], expected_gradients[n]) for n in expected_gradients}
    assert max(worst.values()) <= GRADIENTS, max(worst, key=worst.get)


@pytest.mark.parametrize("backend", ["split", "dense"])
@pytest.mark.parametrize("kind", ["one image each", "two, one, none", "none"])
def test_scores_and_every_gradient_are_those_of_trl(folder: Any, kind: str, backend: str) -> None:
    compare(prepared(folder).train(), case(folder, kind), backend)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(folder: Any, reentrant: bool) -> None:
    model = prepared(folder).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    compare(model, case(folder))


def test_the_row_holds_no_padding(folder: Any) -> None:
    model, example = prepared(folder), case(folder)
    row, _ = packed(model, example)
    prompts = int(example.prompts["attention_mask"].sum())
    assert row.input_ids.shape == (1, prompts - 3 + sum(LENGTHS))
    assert row.labels.shape == (1, sum(LENGTHS))
    stock = example.rows["input_ids"].shape[1] * 12 + example.mask.numel()
    assert row.input_ids.shape[1] * 3 < stock


def emulated_kernel(query, key, value, query_bounds, path_bounds, longest_query, longest_path, scaling):
    """What FlashAttention's variable-length kernel computes: causal attention aligned at the lower right."""
    outputs = []
    shared = query.shape[1] // key.shape[1]
    for i in range(len(query_bounds) - 1):
        q = query[query_bounds[i] : query_bounds[i + 1]].transpose(0, 1)
        k, v = (x[path_bounds[i] : path_bounds[i + 1]].transpose(0, 1) for x in (key, value))
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        assert q.shape[1] <= longest_query and k.shape[1] <= longest_path
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling).transpose(0, 1))
    return torch.cat(outputs)


def test_varlen_segments_give_the_same(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU kernel is emulated; which tokens it is given is ours."""

    def with_emulation(*args: Any) -> torch.Tensor:
        return varlen_attention(*args, kernel=emulated_kernel)

    monkeypatch.setitem(shared_prefix_attention.PACKED, "varlen", with_emulation)
    compare(prepared(folder).train(), case(folder), "varlen")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_varlen_kernel_agrees_with_split_attention() -> None:
    torch.manual_seed(0)
    groups = [shared_prefix_attention.Group(0, 50, [7, 0, 20]), shared_prefix_attention.Group(77, 100, [5])]
    query = torch.randn(1, 12, 105, 64, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, 105, 64, device="cuda", dtype=torch.bfloat16)
    plan = shared_prefix_attention.Plan(groups, torch.arange(3, device="cuda"))
    expected = shared_prefix_attention.split_attention(query, key, value, plan, 0.125)
    assert torch.allclose(varlen_attention(query, key, value, plan, 0.125), expected, atol=2e-2)


def test_half_precision_is_as_near_to_the_truth_as_trl_is(folder: Any) -> None:
    example = case(folder)
    half = prepared(folder, dtype=torch.bfloat16)
    truth_model = load(folder)
    truth_model.load_state_dict({n: p.float() for n, p in half.state_dict().items()})
    with torch.no_grad():
        truth = stock_logps(truth_model, example)[0]
        stock = stock_logps(half, example)[0].float()
        row, images = packed(half, example)
        found = score(half, row, images, example.mask)[0].float()
    stock_error, error = (float(((x - truth) * example.mask).abs().mean()) for x in (stock, found))
    assert error <= 1.5 * stock_error + 1e-3


# --- negative controls: each known mistake moves the log-probs far beyond the bound above


def positions_continue(row: PackedRow, case: Case) -> None:
    for group in row.plan.groups:
        last = row.position_ids[:, :, group.fork - 1 : group.fork]
        steps = torch.arange(1, group.stop - group.fork + 1)
        row.position_ids[:, :, group.fork : group.stop] = last + steps


def positions_one_dimensional(row: PackedRow, case: Case) -> None:
    for group in row.plan.groups:
        prompt = group.fork - group.start
        row.position_ids[:, :, group.start : group.fork] = torch.arange(prompt)
        start = group.fork
        for length in group.lengths:
            row.position_ids[:, :, start : start + length] = prompt + torch.arange(length)
            start += length


def positions_off_by_one(row: PackedRow, case: Case) -> None:
    row.position_ids[:, :, row.plan.labelled] += 1


def branches_leak(row: PackedRow, case: Case) -> None:
    row.plan.backend = "dense"
    seen = torch.zeros(row.plan.length, row.plan.length, dtype=torch.bool)
    for group in row.plan.groups:
        seen[group.start : group.stop, group.start : group.stop] = True
    row.plan.cached["dense"] = seen.tril()


def branches_blind(row: PackedRow, case: Case) -> None:
    row.plan.backend = "dense"
    seen = shared_prefix_attention.tree_mask(row.plan.groups, "cpu")
    seen[row.plan.groups[0].fork :, row.plan.groups[0].start] = False
    row.plan.cached["dense"] = seen


@pytest.mark.parametrize(
    "mistake",
    [positions_continue, positions_one_dimensional, positions_off_by_one, branches_leak, branches_blind],
)
def test_a_wrong_row_is_seen(folder: Any, mistake: Callable[[PackedRow, Case], None]) -> None:
    model, example = prepared(folder), case(folder)
    with torch.no_grad():
        expected = stock_logps(model, example)[0]
        row, images = packed(model, example)
        mistake(row, example)
        found = score(model, row, images, example.mask)[0]
    assert ((found - expected) * example.mask).abs().max() > 100 * LOGPS


def test_a_wrong_image_is_seen(folder: Any) -> None:
    model, example = prepared(folder), case(folder)
    with torch.no_grad():
        expected = stock_logps(model, example)[0]
        row, images = packed(model, example)
        images["pixel_values"] = images["pixel_values"].flip(0)
        found = score(model, row, images, example.mask)[0]
    assert ((found - expected) * example.mask).abs().max() > 100 * LOGPS


def test_without_a_plan_the_attention_is_sdpa(folder: Any) -> None:
    plain, model, example = load(folder), prepared(folder), case(folder)
    with torch.no_grad():
        assert torch.equal(stock_logps(plain, example)[0], stock_logps(model, example)[0])


def test_a_row_without_any_label_gives_zero_gradients(tiny_qwen2_vl: Any) -> None:
    model, example = prepared(tiny_qwen2_vl).train(), case(tiny_qwen2_vl)
    example.mask.zero_()
    row, images = packed(model, example)
    logps, _ = score(model, row, images, example.mask)
    logps.sum().backward()
    assert logps.shape == (3 * GROUP, example.mask.shape[1])
    assert all(not g.any() for g in gradients(model).values())


def test_replies_must_be_shared_out_evenly() -> None:
    ones = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="3 replies cannot be shared out among 2 prompts"):
        pack(ones, ones, torch.zeros(3, 2, 3), torch.ones(3, 4), torch.ones(3, 4))


def test_rows_of_a_unit_that_differ_are_named() -> None:
    prompts = torch.tensor([[1, 2]] * 3 + [[3, 4]] * 3)
    check_units(prompts, 3)
    prompts[5, 1] = 5
    with pytest.raises(RuntimeError, match="rows 3 and 5 of"):
        check_units(prompts, 3)
    with pytest.raises(RuntimeError, match="a batch of 6 rows is no multiple of 4"):
        check_units(prompts, 4)


def test_the_name_does_not_reach_a_saved_checkpoint(tiny_qwen2_vl: Any, tmp_path: Any) -> None:
    prepared(tiny_qwen2_vl).save_pretrained(tmp_path)
    assert shared_prefix_attention.NAME not in (tmp_path / "config.json").read_text()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.get_text_config()._attn_implementation == "sdpa"
    assert again.config.vision_config._attn_implementation == "sdpa"
