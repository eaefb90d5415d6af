"""Classification: every source of images, strict accuracy beside the paper's rule, tables, refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import suite_cases as cases

from virft import prompts
from virft.data import classification as data
from virft.errors import UserError
from virft.evaluate import classification as suite
from virft.evaluate import protocol
from virft.metrics import classification as metrics
from virft.types import Prediction

LISTS = {"flowers102": 102, "pets37": 37, "cars196": 196, "aircraft100": 100}


def reply(answer: str) -> str:
    return f"<think>I look.</think><answer>{answer}</answer>"


def prediction(identity: str, text: str, label: str, aliases: tuple[str, ...] = ()) -> Prediction:
    return Prediction(
        id=identity, reply=text, space="norm1000", meta={"label": label, "aliases": list(aliases)}
    )


# ------------------------------------------------------------------------------------------- numbers

REPLIES = [
    ("1", reply("Boeing_717"), "Boeing 717"),  # right: spelling aside it is the name
    ("2", reply("717"), "Boeing 717"),  # the paper's rule alone
    ("3", reply("DC-3"), "Boeing 717"),
    ("4", reply(""), "DC-3"),  # unreadable; the paper's rule counts it as right
    ("5", "<think>DC-3, I think", "DC-3"),  # likewise
    ("6", reply("dc3"), "DC-3"),  # right; the paper's rule keeps the hyphen
    ("7", reply("a zeppelin"), "DC-3"),  # no class at all
    ("8", reply("DC-3"), "Boeing 717"),
]


def test_numbers_worked_out_by_hand():
    found = metrics.score([prediction(*row) for row in REPLIES], ["DC-3", "Boeing 717", "C-47"])
    assert found.accuracy == pytest.approx(2 / 8)
    assert found.accuracy_paper_rule == pytest.approx(4 / 8)
    assert found.mean_class_accuracy == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert found.reasons == {"ok": 6, "empty_answer": 1, "unclosed_thinking": 1}
    assert found.off_list == 2  # "717" and "a zeppelin"
    assert [(c.name, c.images, c.right, c.right_paper_rule, c.unreadable) for c in found.classes] == [
        ("DC-3", 4, 1, 2, 2),
        ("Boeing 717", 4, 1, 2, 0),
    ]
    assert found.confusions[0] == metrics.Confusion("Boeing 717", "DC-3", 2)
    assert metrics.Confusion("DC-3", "(empty_answer)", 1) in found.confusions


def test_an_alias_is_right():
    rows = [prediction("1", reply("dakota"), "C-47", ("Dakota",)), prediction("2", reply("dakota"), "DC-3")]
    assert [row.right for row in metrics.score(rows).rows] == [True, False]


def test_spellings_of_one_class_are_one_class():
    labels = ["Red rose", "red_rose", "red rose", "tulip"]
    rows = [prediction(str(n), reply("RED ROSE"), label) for n, label in enumerate(labels)]
    assert [(c.name, c.images, c.right) for c in metrics.score(rows).classes] == [
        ("Red rose", 3, 3),
        ("tulip", 1, 0),
    ]
    assert [c.name for c in metrics.score(rows, ["Tulip", "Red Rose"]).classes] == ["Tulip", "Red Rose"]


def test_an_alias_that_is_another_class_takes_nothing_from_it():
    rows = [prediction("1", reply("b"), "a", ("b",)), prediction("2", reply("b"), "b")]
    assert [(c.name, c.images, c.right) for c in metrics.score(rows).classes] == [("a", 1, 1), ("b", 1, 1)]


def test_the_paper_rule_is_the_reference_s(shared_data):
    for line in (shared_data / "classification.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        # The reference compares with the whole solution where it has no tags.
        assert metrics.paper_rule(row["completion"], row["solution"]) == row["ref_accuracy_nosym"], row["id"]


def test_shared_answers_that_the_paper_rule_lets_through_are_wrong_here(shared_data):
    for line in (shared_data / "classification.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        label = row["solution"].removeprefix("<answer>").removesuffix("</answer>")
        (judged,) = metrics.score([prediction(row["id"], row["completion"], label)]).rows
        assert judged.right <= judged.right_paper_rule, row["id"]
        if "C1" in row["bug"] or "C2" in row["bug"]:
            assert not judged.right, row["id"]


def test_the_paper_rule_takes_linear_time():
    assert not metrics.paper_rule("<answer>" * 200_000, "DC-3")


@pytest.mark.parametrize(
    ("predictions", "sentence"),
    [([], "no prediction"), ([Prediction(id="x", reply="", space="norm1000")], "'x' has no class label")],
)
def test_nothing_to_score_is_refused(predictions, sentence):
    with pytest.raises(UserError, match=sentence):
        metrics.score(predictions)


# ------------------------------------------------------------------------------------------- sources


def test_a_folder_of_classes(tmp_path):
    images = data.load_folder(cases.class_folder(tmp_path))
    assert images.classes == ("dark blue", "red")
    samples = data.classification_samples(images, *prompts.SUBJECTS["car"], root=tmp_path)
    assert [s.id for s in samples] == ["dark_blue/0.png", "dark_blue/1.png", "red/0.png", "red/1.png"]
    assert samples[0].prompt == prompts.classification("a car", "model of the car")
    assert samples[0].meta == {"label": "dark blue", "aliases": []}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "\ufeffimage,label\nred/0.png,red\ndark_blue/1.png,dark blue\n"),
        (
            "rows.json",
            '[{"image": "red/0.png", "label": "red"}, {"image": "dark_blue/1.png", "label": "dark blue"}]',
        ),
        ("decimals.csv", "image,label\nred/0.png,1.0\ndark_blue/1.png,0.\n"),
        ("rows.jsonl", '{"image": "red/0.png", "label": 1}\n\n{"image": "dark_blue/1.png", "label": "0"}\n'),
    ],
)
def test_lists(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    images = data.load_list(tmp_path / name, classes=["dark blue", "red"])
    assert images.items == (
        (str(tmp_path / "red/0.png"), "red"),
        (str(tmp_path / "dark_blue/1.png"), "dark blue"),
    )


@pytest.mark.parametrize(
    ("name", "content", "classes", "sentence"),
    [
        ("rows.csv", "image,label\na.png,\n", None, "row 0: needs the fields"),
        ("rows.csv", "path,label\na.png,x\n", None, "row 0: needs the fields"),
        ("rows.csv", "image,label\na.png,3\n", None, "give the class names with --classes"),
        ("rows.csv", "image,label\na.png,3\n", ["x", "y"], "row 0: label 3, but there are 2 classes"),
        ("rows.csv", "image,label\na.png,-1\n", ["x", "y"], "row 0: label -1, but there are 2 classes"),
        ("rows.csv", "image,label\na.png,1.0\n", None, "give the class names with --classes"),
        ("rows.csv", "image,label\na.png,x\na.png,y\n", None, "listed as 'x' and as 'y'"),
        ("rows.csv", "image,label\n", None, "holds no image"),
        ("rows.jsonl", '{"image": "a", "label": "x"}\n{', None, "line 2: not valid JSON"),
        ("rows.json", "{}", None, "row 0: needs the fields"),
        ("rows.txt", "", None, "must end in .csv"),
    ],
)
def test_broken_lists_are_named(tmp_path, name, content, classes, sentence):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        data.load_list(tmp_path / name, classes=classes)


def test_coop_split_file(tmp_path):
    content = {
        "train": [["b.jpg", 1, "rose"]],
        "val": [],
        "test": [["a.jpg", 0, "tulip"], ["c.jpg", 1, "rose"]],
    }
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    images = data.load_coop_split(path, tmp_path / "jpg")
    assert images.classes == ("tulip", "rose")
    assert images.items == ((str(tmp_path / "jpg/a.jpg"), "tulip"), (str(tmp_path / "jpg/c.jpg"), "rose"))
    with pytest.raises(UserError, match='no such split|list named "dev"'):
        data.load_coop_split(path, tmp_path, "dev")


def test_the_size_of_coops_flowers_is_held(tmp_path):
    rows = [[f"{number}.jpg", number, f"class {number}"] for number in range(102)]
    path = tmp_path / "split_zhou_OxfordFlowers.json"
    path.write_text(json.dumps({"train": [], "val": [], "test": rows}))
    with pytest.raises(UserError, match="has 102 images, the published set 2463"):
        data.load_coop_split(path, tmp_path)
    assert len(data.load_coop_split(path, tmp_path, partial=True).items) == 102


def fake_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    lines = ["american_bulldog_2 2 2 1", "Abyssinian_1 1 1 1"]
    (base / "annotations" / "test.txt").write_text("\n".join(lines) + "\n")
    for line in lines:
        cases.image(base / "images" / f"{line.split()[0]}.jpg")


def fake_aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    cases.image(base / "images" / "0000001.jpg")
    (base / "variants.txt").write_text("707-320\nF-16A/B\n")
    (base / "images_variant_test.txt").write_text("0000001 F-16A/B\n")


def fake_cars(root: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    base = root / "stanford_cars"
    cases.image(base / "cars_test" / "00001.jpg")
    cases.image(base / "cars_test" / "00002.jpg")
    (base / "devkit").mkdir()
    rows = np.array([("00001.jpg", 2), ("00002.jpg", 1)], dtype=[("fname", "O"), ("class", "O")])
    savemat(base / "cars_test_annos_withlabels.mat", {"annotations": rows})
    names = np.array(["Acura RL Sedan 2012", "Audi TT Hatchback 2011"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})


def fake_flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the set, with the checksums of these files in place of the real ones."""
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    base = root / "flowers-102"
    for number in (1, 2):
        cases.image(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": [77, 1]})
    savemat(base / "setid.mat", {"trnid": [1], "valid": [1], "tstid": [1, 2]})
    sums = {f: hashlib.md5((base / f).read_bytes()).hexdigest() for f in ("imagelabels.mat", "setid.mat")}
    files = {**Flowers102._file_dict, "label": ("imagelabels.mat", sums["imagelabels.mat"])}
    monkeypatch.setattr(Flowers102, "_file_dict", {**files, "setid": ("setid.mat", sums["setid.mat"])})


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("pets37", ["American Bulldog", "Abyssinian"]),
        ("aircraft100", ["F-16A/B"]),
        ("cars196", ["Audi TT Hatchback 2011", "Acura RL Sedan 2012"]),
        ("flowers102", ["passion flower", "pink primrose"]),
    ],
)
def test_known_sets_through_torchvision(tmp_path, monkeypatch, name, labels):
    if name == "flowers102":
        fake_flowers(tmp_path, monkeypatch)
    else:
        {"pets37": fake_pets, "aircraft100": fake_aircraft, "cars196": fake_cars}[name](tmp_path)
    images = data.load_known(name, tmp_path, partial=True)
    assert [label for _, label in images.items] == labels
    assert all(Path(path).is_file() for path, _ in images.items)
    with pytest.raises(UserError, match=rf"has {len(labels)} images, the published set [\d]+"):
        data.load_known(name, tmp_path)


@pytest.mark.parametrize("name", data.KNOWN)
def test_an_absent_set_says_how_to_get_it(tmp_path, name):
    with pytest.raises(
        UserError, match=f"{data.KNOWN[name].loader} under .*give its root, or allow --download"
    ):
        data.load_known(name, tmp_path)


def test_cars_cannot_be_fetched_any_more(tmp_path):
    (tmp_path / "stanford_cars" / "devkit").mkdir(parents=True)
    with pytest.raises(UserError, match="URL is broken"):
        data.load_known("cars196", tmp_path, download=True)


def test_unknown_set_and_split(tmp_path):
    with pytest.raises(UserError, match="'birds' is unknown"):
        data.load_known("birds", tmp_path)
    with pytest.raises(UserError, match="pets37 has no split 'dev'"):
        data.load_known("pets37", tmp_path, "dev")


@pytest.mark.parametrize("name", data.KNOWN)
def test_sizes_of_the_real_sets(root, name):
    """Where the sets stand under data/, they have the published sizes and the classes of our lists."""
    try:
        images = data.load_known(name, root / "data")
    except UserError as error:
        pytest.skip(str(error))
    names, aliases = data.read_classes(root / "classification" / f"{name}.txt")
    assert len(data.with_classes(images, names, aliases).items) == data.KNOWN[name].sizes["test"]


# ---------------------------------------------------------------------------------------- class lists


@pytest.mark.parametrize("name", LISTS)
def test_our_class_lists(root, name):
    names, _ = data.read_classes(root / "classification" / f"{name}.txt")
    assert len(set(names)) == LISTS[name] == data.KNOWN[name].classes


def test_the_flowers_list_is_torchvisions(root):
    from torchvision.datasets import Flowers102

    assert data.read_classes(root / "classification" / "flowers102.txt")[0] == tuple(Flowers102.classes)


def test_a_class_list_with_aliases_renames_a_set(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# colours\nDark-Blue | navy | ultramarine\n\nRed\n")
    images = data.with_classes(
        data.load_folder(cases.class_folder(tmp_path / "set")), *data.read_classes(path)
    )
    assert [label for _, label in images.items] == ["Dark-Blue", "Dark-Blue", "Red", "Red"]
    assert images.aliases == {"Dark-Blue": ("navy", "ultramarine")}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("# nothing\n", "holds no class name"),
        ("a b\nA-B\n", "reads the same as 'a b'"),
        ("a | \n", "is empty"),
    ],
)
def test_broken_class_lists_are_named(tmp_path, content, sentence):
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(UserError, match=sentence):
        data.read_classes(tmp_path / "classes.txt")


def test_a_class_that_the_list_lacks_is_named(tmp_path):
    images = data.load_folder(cases.class_folder(tmp_path))
    with pytest.raises(UserError, match="1 classes are not in the class list, e.g. 'red'"):
        data.with_classes(images, ["dark blue"], {})


# --------------------------------------------------------------------------------------------- suite


def test_stored_replies_to_numbers(tmp_path, capsys):
    lines = [prediction(*row).to_json() for row in REPLIES]
    path = cases.write_predictions(tmp_path / "p.jsonl", lines)
    output = tmp_path / "scores.json"
    numbers = suite.score(suite.ScoreSettings(str(path), str(output)))
    assert (numbers["accuracy"], numbers["accuracy_paper_rule"]) == (2 / 8, 4 / 8)
    assert json.loads(output.read_text()) == numbers
    shown = capsys.readouterr().out
    assert "25.00" in shown and "50.00" in shown and "2 (" in shown
    (tmp_path / "classes.txt").write_text("Boeing 717 | 717\nDC 3\n")
    again = suite.score(suite.ScoreSettings(str(path), classes=str(tmp_path / "classes.txt")))
    assert again["accuracy"] == 3 / 8
    assert again["protocol"]["classes"] == str(tmp_path / "classes.txt")
    assert again["protocol"]["classes_sha256"] == protocol.sha256(tmp_path / "classes.txt")
    assert [c["name"] for c in again["classes"]] == ["Boeing 717", "DC 3"]
    (tmp_path / "classes.txt").write_text("Boeing 717\n")
    with pytest.raises(UserError, match="the class list lacks 'DC-3'"):
        suite.score(suite.ScoreSettings(str(path), classes=str(tmp_path / "classes.txt")))


def test_questions_spread_over_a_sorted_set(tmp_path):
    folder = str(cases.class_folder(tmp_path))
    samples, stated = suite.questions(suite.Settings(dataset=folder, subject="car", max_images=2))
    assert [s.meta["label"] for s in samples] == ["dark blue", "red"]
    assert stated["classes"] == ["dark blue", "red"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "pass --subject"),
        ({"subject": "bird"}, "--subject 'bird' is unknown"),
        ({"contains": "a bird"}, "go together"),
        ({"subject": "car", "dataset": "nothing"}, "--dataset 'nothing' is none of"),
        ({"subject": "car", "max_images": 0}, "--max_images must be at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, changes, sentence):
    folder = str(cases.class_folder(tmp_path))
    with pytest.raises(UserError, match=sentence):
        suite.questions(suite.Settings(**{"dataset": folder, **changes}))


def test_missing_images_are_named_before_a_model_loads(tmp_path):
    (tmp_path / "rows.csv").write_text("image,label\ngone.png,red\n")
    settings = suite.Settings(dataset=str(tmp_path / "rows.csv"), subject="car")
    with pytest.raises(UserError, match=r"1 of 1 images are missing, the first is .*gone.png"):
        suite.questions(settings)
    settings.skip_bad_images = True
    assert len(suite.questions(settings)[0]) == 1
