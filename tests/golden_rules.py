"""Where our rule gives a reply another value than the reference's reader does, and why.

The rows are those of the folder of real cases that stands beside the project. The tests hold every row that
is not listed here to the reference's value, and every row that is listed to the value given here.
"""

from __future__ import annotations

WHY = {
    "B1": "the answer reads as a list although words, brackets or a literal backslash-n follow it",
    "B2": "a right 'No Objects' earns 1",
    "B3": "the answer may stand on its own lines",
    "B4": "'...' at the end of the list is dropped",
    "B5": "a single object is a list of one; a truncated list keeps its complete boxes",
    "B6": "a confidence may be a string; a missing one costs the confidence reward, not the IoU",
    "B7": "the last complete answer after the thinking counts",
    "B8": "a confidence outside of [0, 1] makes its box unreadable",
    "B10": "one bad box is dropped, the others count",
    "B12": "white space around the reply is no matter of format",
    "fence": "a code fence around the list is dropped, with or without answer tags",
    "key": "the keys position, confidence ... are read in any case",
    "nan": "a box with a coordinate that is not finite is unreadable, hence no unmatched prediction either",
    "object": "a single object is a list of one (tagged B5 elsewhere)",
    "C1": "an empty answer is unreadable",
    "C2": "a name inside of another name is not that name",
    "C3": "the answer counts, not what is said in the thinking",
    "equal": "names are equal or not; containment is the paper's lenient rule",
    "symbolic": "no symbolic comparison of class names",
    "tags": "tags are lower-case; an untagged answer is the whole text, which is no class",
    "L1": "corners must be ordered",
}


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """IoU by counting unit cells: slow, and independent of the library's formula."""
    columns = len(set(range(a[0], a[2])) & set(range(b[0], b[2])))
    rows = len(set(range(a[1], a[3])) & set(range(b[1], b[3])))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - columns * rows
    return columns * rows / union


NEAR = overlap((254, 304, 291, 365), (254, 303, 291, 365))
FIRST_OF_TWO = overlap((100, 121, 300, 420), (100, 120, 300, 420))
VEST = overlap((14, 135, 136, 470), (15, 134, 122, 470))
CATCHER = overlap((0, 218, 143, 392), (1, 211, 142, 379))
TABLE = overlap((0, 134, 644, 415), (1, 109, 640, 423))
SCREEN = overlap((0, 1, 153, 78), (0, 1, 150, 80))
SOUP = overlap((117, 29, 289, 169), (114, 29, 286, 115))

# The row's id -> why, then the values of accuracy_iou, accuracy_confidence and format.
DETECTION: dict[str, tuple[str, float, float, float]] = {
    "answer-in-think": ("B7", NEAR, 0.9, 1),
    "conf-inf": ("B8", 0, 0, 1),
    "conf-lowercase": ("key", NEAR, 0.9, 1),
    "conf-missing": ("B6", NEAR, 0, 1),
    "conf-percent": ("B8", 0, 0, 1),
    "conf-string-two": ("B6", (FIRST_OF_TWO + 1) / 2, 0.85, 1),
    "ellipsis": ("B4", NEAR, 0.9, 1),
    "fence-in-answer-1line": ("fence", NEAR, 0.9, 1),
    # The truth is (254.0, 303.02, 291.62, 365.57): the prediction lies inside of it.
    "gt-position-lowercase": ("key", 37 * 61 / (37.62 * 62.55), 0.9, 1),
    "hf-no-objects-right": ("B2", 1, 1, 1),
    "leading-space": ("B12", NEAR, 0.9, 1),
    "multiline-answer": ("B3", NEAR, 0.9, 1),
    "no-list": ("B5", NEAR, 0.9, 1),
    "pos-nan": ("nan", 0, 0, 1),
    "pos-three-plus-good": ("B10", FIRST_OF_TWO / 2, 0.9, 1),
    "position-lowercase": ("key", NEAR, 0.9, 1),
    "trailing-newline": ("B12", NEAR, 0.9, 1),
    "truncated-mid-box": ("B5", FIRST_OF_TWO / 2, 0.9, 0),
    "vlmr1-fence-0": ("fence", VEST, 0, 0),
    "vlmr1-fence-0-d": ("fence", VEST, 0.9, 0),
    "vlmr1-fence-1-d": ("fence", CATCHER, 0.9, 0),
    "vlmr1-fence-2-d": ("fence", TABLE, 0.9, 0),
    "vlmr1-fence_multi-0-d": ("fence", 0, 0.1, 0),
    "vlmr1-fence_multi-1-d": ("fence", 0, 0.1, 0),
    "vlmr1-fence_multi-2-d": ("fence", 0, 0.1, 0),
    "vlmr1-literal_backslash_n-0-d": ("B1", SCREEN, 0, 1),
    "vlmr1-literal_backslash_n-1": ("B1", SOUP, 0, 1),
    "vlmr1-literal_backslash_n-1-d": ("B1", SOUP, 0, 1),
    "vlmr1-multi_in_answer-2": ("B1", overlap((0, 38, 241, 145), (1, 38, 239, 141)) / 2, 0, 1),
    "vlmr1-multiline-0": ("B3", overlap((1036, 498, 1300, 1065), (1043, 479, 1284, 1041)), 0, 1),
    "vlmr1-multiline-1": ("B3", overlap((1234, 526, 1320, 743), (1233, 518, 1310, 733)), 0, 1),
    "vlmr1-wellformed-0-d": ("object", VEST, 0.9, 1),
    "vlmr1-wellformed-1-d": ("object", CATCHER, 0.9, 1),
    "vlmr1-wellformed-2-d": ("object", TABLE, 0.9, 1),
    "vrft29-prompt-echo": ("B7", NEAR, 0.9, 0),
}

GROUNDING: dict[str, tuple[str, float]] = {
    "two-answers": ("B7", 2),
    "prompt-echo": ("B7", 2),
    "swapped-exact": ("L1", 0),
    "swapped-full-small-gt": ("L1", 0),
}

CLASSIFICATION: dict[str, tuple[str, float]] = {
    "cub-Heermann_Gull_0141_45391-2": ("equal", 0),
    "cub-Frigatebird_0001_43101-0": ("equal", 0),
    "cub-Gray_Catbird_0090_21464-2": ("equal", 0),
    "plural": ("equal", 0),
    "cased-tags": ("tags", 0),
    "latex": ("symbolic", 0),
    "answer-in-think": ("B7", 0),
    "empty-answer-hack": ("C1", 0),
    "underscore-only": ("C1", 0),
    "multiline-wrong-but-in-think": ("C3", 0),
    "one-letter": ("C2", 0),
    "aircraft-family": ("C2", 0),
    "a-or-b-or-c": ("C2", 0),
    "petunia": ("C2", 0),
    "answer-in-class": ("C2", 0),
}

FORMAT_TRAILING_NEWLINE = "trailing-newline"
"""The one row of classification.jsonl whose format differs (B12)."""
