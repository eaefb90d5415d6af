"""LVIS: federated AP worked out by hand, the shared cases to 1e-9, and replies turned into numbers."""

from __future__ import annotations

import json

import pytest

from virft.data import coco
from virft.errors import UserError
from virft.metrics import detection, lvis
from virft.types import Prediction

SQUARE, ELSEWHERE = [0, 0, 10, 10], [50, 50, 10, 10]


def annotations() -> dict:
    """Two images of 100 x 100: one holds the rare category and lacks the frequent one, one holds the
    latter."""
    return {
        "categories": [
            {"id": 7, "name": "egg_roll", "frequency": "r"},
            {"id": 9, "name": "cup", "frequency": "f"},
        ],
        "images": [
            {
                "id": 1,
                "width": 100,
                "height": 100,
                "neg_category_ids": [9],
                "not_exhaustive_category_ids": [],
            },
            {
                "id": 2,
                "width": 100,
                "height": 100,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [9],
            },
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": SQUARE, "area": 100},
            {"id": 2, "image_id": 2, "category_id": 9, "bbox": SQUARE, "area": 100},
        ],
    }


def entry(image_id: int, category_id: int, bbox: list[int], score: float) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


BOXES = [
    entry(1, 7, SQUARE, 0.9),  # right: the rare category has AP 1
    entry(1, 9, SQUARE, 0.95),  # the image is known to lack cups: wrong, and before the right one
    entry(2, 9, SQUARE, 0.9),  # right: precision 1/2 at every recall, so AP 0.5
    entry(2, 9, ELSEWHERE, 0.99),  # unmatched, but cups are not exhaustively annotated here: left out
    entry(2, 7, SQUARE, 0.99),  # nobody knows whether the image holds an egg roll: left out
]


def score(boxes: list[dict], truth: detection.Truth, **options: int) -> dict:
    return lvis.average_precision(detection.from_coco_results(boxes, truth), truth, **options)


def test_federated_ap_worked_out_by_hand():
    found = score(BOXES, detection.make_truth(annotations()))
    expected = {"AP": 0.75, "AP50": 0.75, "AP75": 0.75, "APs": 0.75, "APr": 1.0, "APf": 0.5, "AR@300": 1.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["APc"] == found["APl"] == found["ARl@300"] == -1.0
    assert found["per_category"]["cup"] == pytest.approx(
        {"AP": 0.5, "AP50": 0.5, "AR@300": 1.0, "frequency": "f", "objects": 1, "boxes": 3}
    )
    assert tuple(found) == (*lvis.LVIS_NUMBERS, "per_category")


def test_a_chosen_category_alone_scores_as_among_all():
    rare = [c for c in annotations()["categories"] if c["name"] == "egg_roll"]
    found = score(BOXES, detection.make_truth(annotations(), rare))
    assert (found["AP"], found["APr"], found["APf"]) == (pytest.approx(1.0), pytest.approx(1.0), -1.0)


def test_no_box_at_all_is_zero_not_an_error():
    found = lvis.average_precision(detection.Results(), detection.make_truth(annotations()))
    assert (found["AP"], found["AR@300"]) == (0.0, 0.0)


def test_an_image_keeps_its_most_confident_boxes_over_all_categories():
    crowd = [entry(1, 9, ELSEWHERE, 0.5)] * 300
    kept = lvis.limit_boxes([entry(1, 7, SQUARE, 0.4), *crowd, entry(2, 9, SQUARE, 0.1)])
    assert len(kept) == 301
    truth = detection.make_truth(annotations())
    assert score([entry(1, 7, SQUARE, 0.4), *crowd], truth)["per_category"]["egg_roll"]["AP"] == 0.0
    assert score([entry(1, 7, SQUARE, 0.6), *crowd], truth)["per_category"]["egg_roll"][
        "AP"
    ] == pytest.approx(1)


def test_ids_of_categories_may_be_text_in_every_list():
    text = annotations()
    for category in text["categories"]:
        category["id"] = str(category["id"])
    for image in text["images"]:
        for name in lvis.FEDERATED:
            image[name] = [str(c) for c in image[name]]
    plain = score(BOXES, detection.make_truth(annotations()))
    assert score(BOXES, detection.make_truth(text)) == plain


@pytest.mark.parametrize("name", lvis.FEDERATED)
def test_images_that_do_not_say_what_they_lack_are_refused(name):
    stripped = annotations()
    del stripped["images"][1][name]
    with pytest.raises(UserError, match=f"image 2 has no list '{name}'"):
        score(BOXES, detection.make_truth(stripped))


def test_coco_annotations_are_refused():
    plain = annotations()
    for category in plain["categories"]:
        del category["frequency"]
    with pytest.raises(UserError, match="'egg_roll' has no frequency"):
        score(BOXES, detection.make_truth(plain))


def test_replies_to_numbers():
    truth = detection.make_truth(annotations())
    box = "{'Position': [0, 0, 100, 100], 'Confidence': %s}"
    replies = [
        ("1/7", f"<think>.</think><answer>[{box % 0.9}]</answer>", {"image_id": 1, "category_id": 7}),
        ("1/9", "<think>.</think><answer>No Objects</answer>", {"image_id": 1, "category_id": 9}),
        ("2/9", "<think>I see a cup", {"image_id": 2, "category_id": 9}),
    ]
    predictions = [
        Prediction(id=i, reply=r, space="norm1000", image_size=(100, 100), meta=m) for i, r, m in replies
    ]
    results = detection.from_replies(predictions, truth)
    found = lvis.average_precision(results, truth)
    assert (found["APr"], found["APf"], found["AP"]) == pytest.approx((1.0, 0.0, 0.5))
    assert results.reasons == {"unclosed_thinking": 1}


@pytest.mark.parametrize("pairs_per_block", [lvis.PAIRS_PER_BLOCK, 5000])
def test_shared_case(shared_data, pairs_per_block):
    folder = shared_data / "lvis"
    truth = detection.make_truth(coco.load_annotations(folder / "lvis_val_100.json"))
    expected = json.loads((folder / "expected.json").read_text())
    noisy = json.loads((folder / "lvis_dets_noisy_seed20261120.json").read_text())
    found = score(noisy, truth, pairs_per_block=pairs_per_block)
    assert {k: found[k] for k in expected["noisy"]["results"]} == pytest.approx(
        expected["noisy"]["results"], abs=1e-9
    )
    per_category = expected["noisy"]["per_class_AP_area_all"]
    assert {k: found["per_category"][k]["AP"] for k in per_category} == pytest.approx(per_category, abs=1e-9)


def test_shared_truth_against_itself(shared_data):
    annotations = coco.load_annotations(shared_data / "lvis" / "lvis_val_100.json")
    truth = detection.make_truth(annotations)
    found = score([{**a, "score": 1.0} for a in annotations["annotations"]], truth)
    expected = json.loads((shared_data / "lvis" / "expected.json").read_text())["perfect"]["results"]
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-9)
