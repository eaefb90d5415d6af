"""Where the answer of a reply stands: the tags under :mod:`virft.parsing`.

Tags are ``<think>``, ``</think>``, ``<answer>``, ``</answer>``, exactly so (case matters; HTML-escaped ones
are text). Thinking ends at the last ``</think>`` that closes a ``<think>``, or at the first one where the
opening tag stood in the prompt. The answer is the last complete ``<answer>...</answer>`` after the
thinking; a ``<think>`` that is never closed hides no complete answer. Without a complete one: the last
``<answer>`` that was opened is read as a truncated answer (boxes only: half a class name or half an
abstention is no answer), and a reply that uses no answer tags is read where it is the bare answer (see each
function of the parser).
"""

from __future__ import annotations

import re

_TAG = re.compile(r"</?think>")
SPECIAL_TOKEN = re.compile(r"<\|[^<>|]{1,64}\|>")
_THINK_THEN_ANSWER = re.compile(r"</think>\s*<answer>")
_OPEN, _CLOSE = "<answer>", "</answer>"
COMPLETE, UNCLOSED, BARE = "complete", "unclosed", "bare"
"""States of an answer: between its tags, behind one that was never closed, without tags."""


def answer_text(reply: str) -> tuple[str, str]:
    """(text, state) of the answer; the state is complete, unclosed, bare (no tags), or a reason code."""
    begin, end, state = answer_span(reply)
    text = reply[begin:end]
    return (SPECIAL_TOKEN.sub(" ", text).strip() if state == BARE else text), state


def answer_span(reply: str) -> tuple[int, int, str]:
    """(begin, end, state) of the answer, as :func:`answer_text` has them; a bare one with all around it."""
    start, opened, seen = 0, -1, False
    for tag in _TAG.finditer(reply):
        if tag[0] == "<think>":
            opened, seen = (tag.start() if opened < 0 else opened), True
        elif opened >= 0 or not seen:
            start, opened, seen = tag.end(), -1, True
    last_close = reply.rfind(_CLOSE, start)
    begin = reply.rfind(_OPEN, start, last_close) if last_close >= 0 else -1
    if begin >= 0:
        return begin + len(_OPEN), reply.find(_CLOSE, begin), COMPLETE
    begin = reply.rfind(_OPEN, start)
    if begin >= 0:
        return begin + len(_OPEN), len(reply), UNCLOSED
    end = opened if opened >= 0 else len(reply)
    if not SPECIAL_TOKEN.sub(" ", reply[start:end]).isspace() and start < end:
        return start, end, BARE
    if not reply or reply.isspace():
        return 0, 0, "empty_reply"
    if _OPEN in reply[:start]:
        return 0, 0, "answer_in_thinking"
    return 0, 0, "unclosed_thinking" if opened >= 0 else "no_answer"


def has_format(reply: str) -> bool:
    """Whether the whole reply, white space around it aside, is ``<think>...</think> <answer>...</answer>``.

    The reference's rule, the expression ``<think>.*?</think>\\s*<answer>.*?</answer>`` over the whole text
    with a dot that matches newlines, decided in one pass. Anything before or after, special tokens
    included, fails it.
    """
    text = reply.strip()
    if not (text.startswith("<think>") and text.endswith(_CLOSE)):
        return False
    middle = _THINK_THEN_ANSWER.search(text, len("<think>"))
    return middle is not None and middle.end() <= len(text) - len(_CLOSE)
