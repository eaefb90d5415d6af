"""The engine: batched replies equal single ones, which equal transformers' own ``generate``."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from virft import decoding, prompts
from virft.boxes import resized
from virft.checkpoint import Manifest, read_manifest, write_manifest
from virft.engine import Engine, UnreadableImage, by_images
from virft.errors import UserError
from virft.inference_model import chat_text, end_tokens, pick_dtype
from virft.model_files import check_weights, model_config
from virft.types import Sample

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
NEW_TOKENS = 20


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Path:
    """The tiny model of each family."""
    return request.getfixturevalue(f"tiny_{request.param}")


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Coloured noise."""
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3))


def mixed() -> list[Sample]:
    """Several questions about images of different sizes, one about two images, three about none."""
    pictures = [picture(w, h, i) for i, (w, h) in enumerate([(84, 84), (112, 84), (60, 200), (300, 100)])]
    samples = [
        Sample(f"{i}/{name}", (image,), prompts.detection(name), meta={"i": i})
        for i, image in enumerate(pictures)
        for name in ("cat", "dog", "hot dog", "a much longer category name")
    ]
    samples.append(Sample("one word", (pictures[2],), "cat"))
    samples.append(Sample("two images", (pictures[0], pictures[3]), "Compare them."))
    samples += [Sample(f"text {i}", (), "Say it." * i) for i in (1, 2, 9)]
    samples.append(Sample("system", (pictures[1],), "Say it.", system="Be brief."))
    return samples


def stock(model: Path, samples: list[Sample], new_tokens: int = NEW_TOKENS) -> Iterator[str]:
    """Each sample alone through the processor and ``generate``."""
    processor = AutoProcessor.from_pretrained(model)
    network = AutoModelForImageTextToText.from_pretrained(model).eval()
    for sample in samples:
        inputs = processor(
            images=list(sample.images) or None, text=[chat_text(processor, sample, None)], return_tensors="pt"
        )
        made = network.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
        yield processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_replies_are_those_of_generate_one_by_one(model: Path, batch_size: int) -> None:
    samples = mixed()
    engine = Engine(str(model), device="cpu", batch_size=batch_size, max_new_tokens=NEW_TOKENS)
    predictions = engine.generate(samples)
    assert [p.id for p in predictions] == [s.id for s in samples]
    assert [p.reply for p in predictions] == list(stock(model, samples))
    assert len({p.reply for p in predictions}) > len(samples) // 2  # the questions do tell


def test_batched_equals_one_by_one(model: Path) -> None:
    samples = mixed()
    engine = Engine(str(model), device="cpu", batch_size=5, max_new_tokens=NEW_TOKENS)
    assert engine.generate(samples) == [engine.generate([s])[0] for s in samples]


def test_an_image_goes_through_the_model_once_for_its_questions(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    engine = Engine(str(model), device="cpu", batch_size=2, max_new_tokens=2)
    encode = engine.model.model.get_image_features

    def counted(pixels: torch.Tensor, grids: torch.Tensor, **kwargs: object) -> object:
        seen.append(len(grids))
        return encode(pixels, grids, **kwargs)

    monkeypatch.setattr(engine.model.model, "get_image_features", counted)
    image = picture(84, 84, 0)
    engine.generate([Sample(str(i), (image,), f"Question {i}.") for i in range(7)])
    assert seen == [1]


def test_rows_that_end_make_room(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies of different lengths: places are refilled, and no reply changes."""
    samples = mixed()
    engine = Engine(str(model), device="cpu", batch_size=4, max_new_tokens=NEW_TOKENS)
    whole = engine.generate(samples)
    tokenizer = engine.processor.tokenizer
    written = [tokenizer(p.reply, add_special_tokens=False)["input_ids"] for p in whole]
    # Tokens that random weights write now and then serve as ends.
    common = [t for ids in written for t in ids]
    engine.stop_tokens = frozenset(t for t in set(common) if 1 <= common.count(t) <= 3)
    joined: list[int] = []
    join = decoding.join

    def counted(first: decoding.Batch, second: decoding.Batch) -> decoding.Batch:
        joined.append(len(second))
        return join(first, second)

    monkeypatch.setattr(decoding, "join", counted)
    batched = engine.generate(samples)
    assert joined
    assert len({p.tokens for p in batched}) > 3
    assert batched == [engine.generate([s])[0] for s in samples]
    assert not all(p.truncated for p in batched)


def test_the_cache_grows(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FREE_COLUMNS", 3)
    samples = mixed()[:6]
    engine = Engine(str(model), device="cpu", batch_size=4, max_new_tokens=NEW_TOKENS)
    assert [p.reply for p in engine.generate(samples)] == list(stock(model, samples))


def test_sampling_depends_on_seed_and_id_alone(model: Path) -> None:
    samples = mixed()
    settings = {"device": "cpu", "max_new_tokens": 12, "temperature": 1.0}
    first = Engine(str(model), batch_size=7, **settings).generate(samples)
    again = Engine(str(model), batch_size=3, **settings).generate(samples[::-1])[::-1]
    assert first == again
    other = Engine(str(model), batch_size=7, seed=1, **settings).generate(samples)
    greedy = Engine(str(model), device="cpu", max_new_tokens=12).generate(samples)
    assert sum(a.reply != b.reply for a, b in zip(first, other, strict=True)) > 10
    assert sum(a.reply != b.reply for a, b in zip(first, greedy, strict=True)) > 10


def stock_logprobs(model: Path, engine: Engine, sample: Sample, reply_ids: list[int]) -> list[float]:
    """Log-probabilities of a reply's tokens from one plain forward over prompt and reply."""
    processor = AutoProcessor.from_pretrained(model)
    network = AutoModelForImageTextToText.from_pretrained(model).eval()
    text = chat_text(processor, sample, None)
    inputs = processor(images=list(sample.images) or None, text=[text], return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    added = torch.tensor([reply_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], added], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(added)], 1)
    with torch.no_grad():
        logits = network(**inputs).logits[0, start - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, added[0][:, None])[:, 0].tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_are_the_models_own_and_change_no_reply(model: Path, temperature: float) -> None:
    samples = mixed()[::3]
    how = {"device": "cpu", "max_new_tokens": NEW_TOKENS, "temperature": temperature}
    plain = Engine(str(model), batch_size=4, **how).generate(samples)
    engine = Engine(str(model), batch_size=4, logprobs=True, **how)
    generated: dict[str, list[int]] = {}
    made = engine._prediction
    engine._prediction = lambda q, truncated: (generated.update({q.sample.id: q.tokens}), made(q, truncated))[
        1
    ]
    predictions = engine.generate(samples)
    assert [dataclasses.replace(p, logprobs=None, token_ends=None) for p in predictions] == plain
    for sample, p in zip(samples, predictions, strict=True):
        assert len(p.logprobs) == len(p.token_ends) == p.tokens
        assert list(p.token_ends) == sorted(p.token_ends)
        assert p.token_ends[-1] == len(p.reply)
        own = stock_logprobs(model, engine, sample, generated[sample.id])
        assert p.logprobs == pytest.approx(own, abs=2e-4)
    alone = [engine.generate([s])[0] for s in samples]
    for one, many in zip(alone, predictions, strict=True):
        assert one.token_ends == many.token_ends
        assert one.logprobs == pytest.approx(many.logprobs, abs=2e-5)


def test_a_token_ends_where_its_last_whole_character_does(model: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(model).tokenizer
    text = "<answer>[{'Position': [254, 3.5]}] \u20ac and \U0001f600 na\u00efve \ufffd!</answer>"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    ends = decoding.token_ends(tokenizer, ids, text)
    assert ends[-1] == ends[-2] == len(text)
    for place, end in enumerate(ends):
        so_far = tokenizer.decode(ids[: place + 1], skip_special_tokens=True)
        assert text.startswith(so_far[:end])
        assert end == len(os.path.commonprefix([so_far, text]))
    euro = text.index("\u20ac")
    assert ends.count(euro) > 1  # the parts of a character add nothing until it is whole
    # Bytes that are no text at all: what agrees with the whole reply counts, and the last token ends it.
    rng = random.Random(0)
    for _ in range(50):
        odd = [rng.randrange(256) for _ in range(40)]
        reply = tokenizer.decode(odd, skip_special_tokens=True)
        ends = decoding.token_ends(tokenizer, odd, reply)
        assert ends[-1] == len(reply)
        assert ends == sorted(ends)


def test_token_ends_take_linear_time(model: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(model).tokenizer
    decoded: list[int] = []

    class Counting:
        def decode(self, tokens: list[int], **how: object) -> str:
            decoded.append(len(tokens))
            return tokenizer.decode(tokens, **how)

    text = "[{'Position': [1, 2, 3, 4]}, \u20ac] " * 40
    ids = tokenizer(text)["input_ids"]
    assert decoding.token_ends(Counting(), ids, text)[-1] == len(text)
    assert sum(decoded) < 3 * len(ids)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.0, 0.25]])).expand(4000, 4)
    draws = [random.Random(f"0:{i}") for i in range(4000)]
    shares = torch.bincount(decoding.choose(logits, 1.0, draws), minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.25, 0.0, 0.25], abs=0.03)
    sharper = torch.bincount(decoding.choose(logits, 0.5, draws), minlength=4) / 4000
    assert sharper.tolist() == pytest.approx([4 / 6, 1 / 6, 0.0, 1 / 6], abs=0.03)


def test_a_models_own_generation_config_changes_nothing(model: Path, tmp_path: Path) -> None:
    samples = mixed()[:6]
    plain = Engine(str(model), device="cpu", max_new_tokens=NEW_TOKENS).generate(samples)
    changed = shutil.copytree(model, tmp_path / "changed")
    config = GenerationConfig.from_pretrained(changed)
    config.update(do_sample=True, temperature=5.0, top_k=50, repetition_penalty=3.0, max_length=3)
    config.save_pretrained(changed)
    assert Engine(str(changed), device="cpu", max_new_tokens=NEW_TOKENS).generate(samples) == plain


def test_sizes_limits_and_space_are_stated(model: Path) -> None:
    image = picture(300, 100, 0)
    engine = Engine(str(model), device="cpu", max_new_tokens=1, min_pixels=28 * 28, max_pixels=84 * 84)
    assert (engine.min_pixels, engine.max_pixels) == (28 * 28, 84 * 84)
    (prediction,) = engine.generate([Sample("a", (image,), "Say it.", meta={"k": 1})])
    assert prediction.image_size == (300, 100)
    assert prediction.model_size == resized((300, 100), 28 * 28, 84 * 84)
    assert (
        prediction.space
        == {"qwen2_vl": "norm1000", "qwen2_5_vl": "abs_resized"}[engine.model.config.model_type]
    )
    assert prediction.meta == {"k": 1}
    assert prediction.truncated
    assert Engine(str(model), device="cpu", coordinates="norm1000").space == "norm1000"


def test_the_manifest_decides_space_pixels_and_system_prompt(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "trained")
    write_manifest(folder, Manifest("norm1000", 28 * 28, 56 * 56, system_prompt="Be brief."))
    engine = Engine(str(folder), device="cpu", max_new_tokens=8)
    assert (engine.space, engine.min_pixels, engine.max_pixels) == ("norm1000", 28 * 28, 56 * 56)
    sample = Sample("a", (picture(84, 84, 0),), "Say it.")
    said = Sample("a", sample.images, sample.prompt, system="Be brief.")
    plain = Engine(str(folder), device="cpu", max_new_tokens=8, system="")
    assert engine.generate([sample])[0].reply == plain.generate([said])[0].reply
    assert engine.prepare([sample]).prompts == plain.prepare([said]).prompts
    assert engine.prepare([sample]).prompts != plain.prepare([sample]).prompts
    assert Engine(str(folder), device="cpu", max_pixels=84 * 84).max_pixels == 84 * 84


def test_tokens_are_those_of_the_processor(model: Path) -> None:
    engine = Engine(str(model), device="cpu")
    sample = mixed()[-5]
    assert sample.id == "two images"
    group = engine.prepare([sample])
    made = engine.processor(
        images=list(sample.images), text=[chat_text(engine.processor, sample, None)], return_tensors="pt"
    )
    assert list(group.prompts[0]) == made["input_ids"][0].tolist()
    assert torch.equal(group.pixel_values, made["pixel_values"])


def test_an_adapter_folder_is_merged_into_its_base(model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(model)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    AutoProcessor.from_pretrained(model).save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoProcessor.from_pretrained(model).save_pretrained(tmp_path / "merged")
    samples = mixed()[:4]
    replies = [
        [p.reply for p in Engine(str(path), device="cpu", max_new_tokens=8).generate(samples)]
        for path in (tmp_path / "adapter", tmp_path / "merged", model)
    ]
    assert replies[0] == replies[1]
    assert replies[0] != replies[2]


def test_an_image_that_cannot_be_read_is_named_or_left_out(model: Path, tmp_path: Path) -> None:
    good, broken, gone = tmp_path / "good.png", tmp_path / "broken.png", tmp_path / "gone.png"
    picture(84, 84, 0).save(good)
    broken.write_bytes(good.read_bytes()[:300])
    samples = [
        Sample("a", (str(good),), "Say it."),
        Sample("b", (str(broken),), "Say it."),
        Sample("c", (str(gone),), "Say it."),
        Sample("d", (picture(300, 1, 0),), "Say it."),
    ]
    engine = Engine(str(model), device="cpu", max_new_tokens=2)
    for sample, path in zip(samples[1:3], (broken, gone), strict=True):
        with pytest.raises(UnreadableImage, match=f"sample '{sample.id}'.*{path.name}"):
            engine.generate([samples[0], sample])
    with pytest.raises(UnreadableImage, match="sample 'd'"):
        engine.generate([samples[3]])
    left_out: list[str] = []
    answered = list(engine.stream(samples, lambda sample, error: left_out.append(sample.id)))
    assert [p.id for p in answered] == ["a"]
    assert sorted(left_out) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"max_new_tokens": 0}, "--max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "--temperature must be 0"),
        ({"temperature": float("nan")}, "--temperature must be 0"),
        ({"dtype": "float8"}, "--dtype 'float8' is unknown"),
        ({"coordinates": "yards"}, "--coordinates 'yards' is unknown"),
        ({"min_pixels": 5000, "max_pixels": 4000}, "must be positive and not above --max_pixels"),
        ({"attn_implementation": "flash_attention_2"}, "flash-attn, which is not installed"),
    ],
)
def test_settings_out_of_range_are_refused(
    changed: dict[str, object], sentence: str, tiny_qwen2_vl: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        Engine(str(tiny_qwen2_vl), **({"device": "cpu"} | changed))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_cuda_device_that_is_not_there_is_refused(tiny_qwen2_vl: Path) -> None:
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        Engine(str(tiny_qwen2_vl), device="cuda")


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no configuration can be loaded"):
        Engine(str(tmp_path), device="cpu")


def test_doubled_ids_and_placeholders_in_the_prompt_are_refused(tiny_qwen2_vl: Path) -> None:
    engine = Engine(str(tiny_qwen2_vl), device="cpu", max_new_tokens=1)
    with pytest.raises(UserError, match="same id"):
        engine.generate([Sample("a", (), "x"), Sample("a", (), "y")])
    with pytest.raises(UserError, match="sample 'a'.*placeholder"):
        engine.generate([Sample("a", (), "look: <|image_pad|>")])


def test_groups_keep_images_and_system_apart() -> None:
    image = picture(28, 28, 0)
    samples = [
        Sample("a", ("x.png",), "1"),
        Sample("b", (image,), "1"),
        Sample("c", ("x.png",), "2"),
        Sample("d", ("x.png",), "2", system="s"),
        Sample("e", (image,), "2"),
        Sample("f", (), "1"),
        Sample("g", (), "2"),
    ]
    assert [[s.id for s in g] for g in by_images(samples)] == [["a", "c"], ["b", "e"], ["d"], ["f"], ["g"]]


def test_prefix_leaves_every_prompt_a_token() -> None:
    assert decoding.common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert decoding.common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert decoding.common_prefix([[1, 2], [1, 2, 3]]) == 1
    assert decoding.common_prefix([[5], [6]]) == 0


def test_end_tokens_and_dtype(tiny_qwen2_vl: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(tiny_qwen2_vl).tokenizer
    assert end_tokens(GenerationConfig(eos_token_id=[3, 4]), tokenizer) == {3, 4, tokenizer.eos_token_id}
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end token"):
        end_tokens(GenerationConfig(), tokenizer)


def test_half_precision_answers_every_question(model: Path) -> None:
    predictions = Engine(str(model), device="cpu", dtype="bfloat16", max_new_tokens=8).generate(mixed())
    assert all(p.tokens >= 1 for p in predictions)
    assert AutoConfig.from_pretrained(model).model_type in FAMILIES


def test_predictions_survive_json(model: Path) -> None:
    engine = Engine(str(model), device="cpu", max_new_tokens=4)
    (prediction,) = engine.generate(mixed()[:1])
    assert type(prediction).from_json(json.loads(json.dumps(prediction.to_json()))) == prediction


def test_weights_that_are_not_whole_are_named_before_they_load(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen2_vl, model)
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    check_weights(model)
    check_weights("owner/name")  # a Hub id is left to its download
    weights.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors has .* bytes; copy or download it again"):
        Engine(str(model), device="cpu")
    weights.write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors is no file of weights"):
        check_weights(model)
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    with pytest.raises(UserError, match=r"part-1\.safetensors is missing"):
        check_weights(model)
    index.unlink()
    weights.unlink()
    with pytest.raises(UserError, match="no weights in it"):
        check_weights(model)


def test_weights_of_another_shape_and_a_manifest_of_no_space_are_refused(
    tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen2_vl, model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not the shapes that its config.json says"):
        Engine(str(model), device="cpu")
    (model / "virft.json").write_text(json.dumps({"space": "moon", "min_pixels": 1, "max_pixels": 2}))
    with pytest.raises(UserError, match="its space 'moon' is none of norm1000"):
        read_manifest(model)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="no 'base_model_name_or_path' in it"):
        model_config(tmp_path / "adapter")
