"""Completions in TRL's forms, and the reply that one holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from virft.errors import UserError, shown

Completion = str | Sequence[Mapping[str, Any]]
"""A reply as text, or as messages of ``role`` and ``content``."""


def text_of(completion: Completion) -> str:
    """What the model said: a str, or the contents of TRL's conversational messages, joined.

    Messages of tools and other roles are not the model's words; one that only calls a tool has none.

    Raises:
        UserError: anything else.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Mapping):
        completion = [completion]
    texts: list[str] = []
    for message in completion if isinstance(completion, list | tuple) else [None]:
        said = message if isinstance(message, Mapping) else {}
        content = said.get("content")
        if said.get("role", "assistant") != "assistant" or (content is None and said.get("tool_calls")):
            continue
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content):
            texts += [part["text"] for part in content if isinstance(part.get("text"), str)]
        else:
            raise UserError(
                f"a completion must be text or a list of messages with 'content', got {shown(completion)}"
            )
    return "".join(texts)
