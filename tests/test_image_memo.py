"""Images are preprocessed once by content, rows read once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shared_prefix_cases import image
from transformers import AutoProcessor

from virft.image_memo import ImageMemo, RowMemo, content_key


@pytest.fixture
def processors(tiny_qwen2_vl: Path) -> tuple[Any, Any, ImageMemo]:
    """An image processor, the same with a memo, and the memo."""
    plain, remembering = (AutoProcessor.from_pretrained(tiny_qwen2_vl).image_processor for _ in range(2))
    return plain, remembering, ImageMemo.install(remembering)


def test_the_result_is_the_processors_own(processors: tuple) -> None:
    plain, remembering, memo = processors
    first, second = image(112, 84, 0), image(56, 140, 1)
    nested = [[first, second], [first], [first.copy()]]
    expected = plain(images=nested, return_tensors="pt")
    for _ in range(2):
        found = remembering(images=nested, return_tensors="pt")
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
        assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])
    assert (memo.calls, memo.misses) == (8, 2)
    assert memo.numbers == [0, 1, 0, 0]


def test_distinct_images_come_once(processors: tuple) -> None:
    _, remembering, memo = processors
    images = [image(112, 84, 0), image(56, 140, 1), image(112, 84, 0)]
    whole = remembering(images=images)["pixel_values"]
    with memo.distinct():
        found = remembering(images=images)
    sizes = found["image_grid_thw"].prod(-1).tolist()
    assert found["image_grid_thw"].shape == (3, 3)
    assert torch.equal(found["pixel_values"], whole[: sum(sizes[:2])])
    assert len(remembering(images=images)["pixel_values"]) == sum(sizes)


def test_settings_are_part_of_the_key(processors: tuple) -> None:
    plain, remembering, memo = processors
    shown = image(112, 112, 0)
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
    small = remembering(images=[shown], size=size)["pixel_values"]
    assert torch.equal(small, plain(images=[shown], size=size, return_tensors="pt")["pixel_values"])
    assert len(remembering(images=[shown])["pixel_values"]) > len(small)
    remembering.size = size
    assert len(remembering(images=[shown])["pixel_values"]) == len(small)
    assert memo.misses <= 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_modes_of_the_same_bytes_differ(processors: tuple, mode: str) -> None:
    plain, remembering, _ = processors
    shown = image(112, 84, 0).convert(mode)
    found = remembering(images=[shown])["pixel_values"]
    assert torch.equal(found, plain(images=[shown], return_tensors="pt")["pixel_values"])


def test_palettes_are_content() -> None:
    one = image(56, 56, 0).convert("P")
    other = one.copy()
    other.putpalette(one.getpalette()[::-1])
    assert one.tobytes() == other.tobytes()
    assert content_key(one) != content_key(other)


def test_arrays_and_tensors_have_keys() -> None:
    array = np.zeros((4, 4, 3), dtype=np.uint8)
    assert content_key(array) == content_key(torch.from_numpy(array))
    assert content_key(array) != content_key(array.astype(np.int16))
    with pytest.raises(TypeError, match="not str"):
        content_key("image.png")


def test_the_memo_is_bounded(processors: tuple) -> None:
    _, remembering, memo = processors
    size = remembering(images=[image(112, 112, 0)])["pixel_values"].nbytes
    memo.limit = 2 * size
    for seed in range(1, 5):
        remembering(images=[image(112, 112, seed)])
        assert memo.size <= memo.limit
    before = memo.misses
    remembering(images=[image(112, 112, 4)])
    assert memo.misses == before
    remembering(images=[image(112, 112, 0)])
    assert memo.misses == before + 1
    memo.limit = 0  # even then a call preprocesses each of its images once
    remembering(images=[image(112, 112, 9)] * 3)
    assert memo.misses == before + 2
    assert memo.size == 0


def test_a_saved_processor_names_its_own_class(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_qwen2_vl)
    memo = ImageMemo.install(processor.image_processor)
    assert ImageMemo.install(processor.image_processor) is memo
    processor.save_pretrained(tmp_path)
    texts = [p.read_text() for p in tmp_path.glob("*config.json")]
    assert any("Qwen2VLImageProcessor" in text for text in texts)
    assert not any("_virft" in text for text in texts)
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.size == processor.image_processor.size


class Rows:
    """A data set that counts what is read of it."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"index": index, "image": Image.new("RGB", (2, 2))}


def test_rows_are_read_once_per_generation() -> None:
    rows = Rows()
    memo = RowMemo(rows)
    first = memo.__getitems__([3, 3, 1, 1])
    again = memo.__getitems__([3, 3, 1, 1])
    assert rows.read == [3, 1]
    assert [row["index"] for row in again] == [3, 3, 1, 1]
    assert first[0] is not first[1] and first[0]["image"] is first[1]["image"]
    memo.__getitems__([1, 5])
    assert rows.read == [3, 1, 5]
    assert memo[3]["index"] == 3 and rows.read == [3, 1, 5, 3]
    assert len(memo) == 10
