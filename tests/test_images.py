"""Opening images: the right way up, and never with grey levels cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from virft.data.training import load_rows
from virft.errors import UserError
from virft.image_header import ORIENTATION
from virft.images import open_rgb
from virft.symmetric import has_text_only


@pytest.fixture
def sideways(tmp_path: Path) -> Path:
    """A JPEG of 40 x 20 stored pixels, left half white, that a camera held sideways (EXIF 6) has taken."""
    stored = Image.new("RGB", (40, 20), "black")
    stored.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored.save(tmp_path / "sideways.jpg", exif=exif, quality=95)
    return tmp_path / "sideways.jpg"


def test_a_picture_is_turned_the_right_way_up(sideways: Path) -> None:
    seen = open_rgb(sideways)
    assert seen.size == (20, 40)
    # Turned by a quarter to the right, what was stored on the left is on top.
    assert min(seen.getpixel((10, 5))) > 200 and max(seen.getpixel((10, 35))) < 50


def test_rows_measure_the_picture_that_the_model_sees(sideways: Path) -> None:
    rows = sideways.with_name("rows.jsonl")
    rows.write_text(json.dumps({"image": sideways.name, "problem": "p", "solution": "s"}) + "\n")
    row = load_rows(str(rows))[0]
    assert row["image_sizes"] == [[20, 40]] == [list(open_rgb(row["images"][0]).size)]


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(path)
    with pytest.raises(UserError, match=r"deep\.png.*more than 8 bits"):
        open_rgb(path)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"image": path.name, "problem": "p", "solution": "s"}) + "\n"
    )
    with pytest.raises(UserError, match=r"row 0.*more than 8 bits"):
        load_rows(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"path": "nowhere.png"}, "nowhere.png is unreadable"),
        ([[0]], "path or .* a list"),
        (3, "a int"),
    ],
)
def test_what_is_no_image_is_named(source: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_rgb(source)


@pytest.mark.parametrize("column", ["image", "images", "image_sizes"])
def test_rows_without_an_image_are_found_in_any_form(column: str) -> None:
    picture = {
        "image": Image.new("RGB", (8, 8)),
        "images": [Image.new("RGB", (8, 8))],
        "image_sizes": [[8, 8]],
    }
    nothing = {"image": [None], "images": [None, []], "image_sizes": [[]]}[column]
    kinds = {"image": datasets.Image(), "images": datasets.List(datasets.Image())}
    rows = datasets.Dataset.from_dict({column: [picture[column], *nothing, picture[column]]})
    rows = rows.cast_column(column, kinds[column]) if column in kinds else rows
    last = len(nothing) + 1
    assert has_text_only(rows) and not has_text_only(rows.select([0, last]))
    assert all(has_text_only(rows.select([0, i])) for i in range(1, last))
    assert has_text_only(datasets.Dataset.from_dict({"problem": ["p"]}))
