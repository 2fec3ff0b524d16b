"""Commands of other text encoders in a prompt, which are plain text to every VLM, told before anything is drawn.

What a generator does not draw of the words themselves, its spec says (`GeneratorSpec.outside`).
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..contracts import Request

# what other text encoders read as commands; a first group are words all the same
_SYNTAX = {
    "weights such as (word:1.5)": re.compile(r"\(([^()]*):\s*-?\d*\.?\d+\s*\)"),
    "embedding:name": re.compile(r"\bembedding:\S+", re.IGNORECASE),
    "<lora:name:1>": re.compile(r"<(?:lora|lyco|hypernet):[^>]*>", re.IGNORECASE),
    "BREAK": re.compile(r"\bBREAK\b"),
}
# a token of a chat template, which stock nodes write into prompts
_SPECIAL = re.compile(r"<\|[^|<>]*\|>")


def foreign_syntax(prompt: str) -> list[str]:
    """A sentence if the prompt has commands of other text encoders."""
    commands = [name for name, pattern in _SYNTAX.items() if pattern.search(prompt)]
    if not commands:
        return []
    return [
        f"{', '.join(commands)} in the prompt: read as plain text. Say it in words, and load LoRAs with their own node or option."
    ]


def words_of(request: Request) -> Request:
    """The request with the words of its prompt and rewrite alone: without such commands, and without tokens of chat templates."""
    rewrite = request.rewrite
    return replace(
        request, prompt=_words(request.prompt), rewrite=None if rewrite is None else _words(rewrite)
    )


def _words(text: str) -> str:
    text = _SPECIAL.sub(" ", text)
    for pattern in _SYNTAX.values():
        text = pattern.sub(lambda found: "".join(found.groups()), text)
    return text
