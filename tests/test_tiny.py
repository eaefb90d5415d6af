"""The tiny models: real classes, short prompts, deterministic weights, and that they can learn at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from virft import prompts, tiny
from virft.data.digits import NAMES, THOUGHTS, Scenes, draw, write
from virft.data.training import load_rows, target_text


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(
        tmp_path_factory.mktemp("tiny") / "learner",
        words=NAMES,
        thoughts=[THOUGHTS["detection"]],
        texts=["a corpus of one's own"],
        **tiny.LEARNER,
    )


def test_the_learner_is_small_and_its_words_are_single_tokens(learner: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(learner)
    tokenizer = AutoProcessor.from_pretrained(learner).tokenizer
    assert 1.0e6 < sum(p.numel() for p in model.parameters()) < 1.5e6
    for name in (*NAMES, *"0123456789", prompts.NO_OBJECTS):
        text = f"<answer>{name}</answer>" if name == prompts.NO_OBJECTS else name
        assert len(tokenizer(text)["input_ids"]) <= (3 if name == prompts.NO_OBJECTS else 1)
    assert len(tokenizer(prompts.detection("seven"))["input_ids"]) < 40
    assert len(tokenizer("a corpus of one's own")["input_ids"]) <= 5  # "one" is a token of its own


@pytest.mark.parametrize(
    "text", [prompts.detection("two"), "<answer>[{'Position': [1, 2, 3, 4]}]</answer>", "é ∑"]
)
def test_the_tokenizer_gives_back_every_text(learner: Path, text: str) -> None:
    tokenizer = AutoProcessor.from_pretrained(learner).tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_that_begin_alike_or_hold_signs_are_whole(tmp_path: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(
        tiny.build(tmp_path / "m", words=("cat", "catfish", "c++"))
    ).tokenizer
    for word in ("cat", "catfish", "c++"):
        assert len(tokenizer(word)["input_ids"]) == 1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_weights_follow_the_seed(tmp_path: Path, family: str) -> None:
    states = [
        AutoModelForImageTextToText.from_pretrained(tiny.build(tmp_path / str(n), family, seed)).state_dict()
        for n, seed in enumerate((1, 1, 2))
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="qwen2_vl, qwen2_5_vl"):
        tiny.build(tmp_path / "m", family="qwen9")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generation_ends_at_the_end_of_turn_and_sees_the_image(tmp_path: Path, family: str) -> None:
    folder = tiny.build(tmp_path / "m", family)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert model.config.model_type == family
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    scenes = Scenes(2, "train")
    logits = []
    for index in range(2):
        inputs = processor(text=[text], images=[draw(scenes, index).image], return_tensors="pt")
        # 84 pixels are 3 merged patches of 28 a side.
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == 9
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    assert not torch.allclose(*logits)


@pytest.mark.slow
def test_the_learner_learns_boxes_and_no_objects_by_heart(learner: Path, tmp_path: Path) -> None:
    """Six scenes, one of them without the digit asked for: the greedy replies become the rows' own."""
    torch.manual_seed(0)
    folder = write(tmp_path / "digits", {"train": Scenes(6, "train", seed=2, absent=0.3)})
    rows = load_rows(str(folder / "train.jsonl"))
    taught = [target_text(row) for row in rows]
    assert 0 < sum(prompts.NO_OBJECTS in text for text in taught) < len(taught)
    processor = AutoProcessor.from_pretrained(learner, padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(learner)
    images = [Image.open(row["images"][0]["path"]) for row in rows]
    messages = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": problem}]}]
        for problem in rows["problem"]
    ]
    asked = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = [f"{question}{text}<|im_end|>" for question, text in zip(asked, taught, strict=True)]
    batch = processor(text=whole, images=images, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(120):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    questions = processor(text=asked, images=images, padding=True, return_tensors="pt")
    replied = model.eval().generate(**questions, max_new_tokens=48, do_sample=False)
    replies = processor.batch_decode(replied[:, questions["input_ids"].shape[1] :], skip_special_tokens=True)
    assert replies == taught
