"""Warnings about parts of a prompt that the VLM cannot understand, said before anything is drawn."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from ..contracts import Request

logger = logging.getLogger(__name__)

# A tokenizer of fewer entries was made for a fixed set of words, each of which is one token. Those of large VLMs have 150,000.
FIXED_VOCABULARY = 5000
# what other text encoders read as commands; a first group are words all the same
_SYNTAX = {
    "weights such as (word:1.5)": re.compile(r"\(([^()]*):\s*-?\d*\.?\d+\s*\)"),
    "embedding:name": re.compile(r"\bembedding:\S+", re.IGNORECASE),
    "<lora:name:1>": re.compile(r"<(?:lora|lyco|hypernet):[^>]*>", re.IGNORECASE),
    "BREAK": re.compile(r"\bBREAK\b"),
}
# a token of a chat template, which stock nodes write into prompts
_SPECIAL = re.compile(r"<\|[^|<>]*\|>")
_BRACKETS = re.compile(r"[()\[\]{}]")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_NEGATION = re.compile(r"\b(?:no|not|never|without|except|nothing|none|neither)\b|n't\b", re.IGNORECASE)
# "a shape with five points" and "four equal sides" describe one object
_COUNT = re.compile(
    r"\b(?:four|five|six|seven|eight|nine|ten|eleven|twelve|many|several|[4-9]|[1-9]\d+)\b(?!\s*(?:equal|sides?|points?)\b)",
    re.IGNORECASE,
)


def foreign_syntax(prompt: str) -> list[str]:
    """A sentence if the prompt has commands of other text encoders, which are plain text to every VLM."""
    commands = [name for name, pattern in _SYNTAX.items() if pattern.search(prompt)]
    if not commands:
        return []
    return [
        f"{', '.join(commands)} in the prompt: read as plain text. Say it in words, and load LoRAs with their own node or option."
    ]


def unread_parts(tokenizer: PreTrainedTokenizerFast, request: Request) -> list[str]:
    """One sentence for each kind of thing in the prompt that the VLM reads otherwise than it was meant.

    Commands of other text encoders are plain text to every VLM. A VLM with a fixed vocabulary knows no other words, counts to
    three, and understands negation in an instruction about an image alone ("the same without the star").
    """
    prompt = _SPECIAL.sub(" ", request.prompt)
    sentences = foreign_syntax(prompt)
    commands = bool(sentences)
    if len(tokenizer) >= FIXED_VOCABULARY:
        return sentences
    bare = prompt
    for pattern in _SYNTAX.values():
        bare = pattern.sub(lambda found: "".join(found.groups()), bare)
    if not commands and _BRACKETS.search(bare):
        sentences.append("Brackets in the prompt are read as plain text: leave them out.")
    if unknown := unknown_words(tokenizer, bare):
        sentences.append(
            f"The VLM does not know {'the word' if len(unknown) == 1 else 'the words'} {', '.join(unknown)}, and guesses: use "
            "English words of its scenes (colours, shapes, sizes, places, backgrounds)."
        )
    if not request.images and (found := _NEGATION.search(bare)):
        sentences.append(
            f'"{found[0]}" is not understood: the model draws what is named. Say what the image should show.'
        )
    if found := _COUNT.search(bare):
        sentences.append(f'"{found[0]}": this model draws one to three objects. Ask for three or fewer.')
    return sentences


def unknown_words(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[str]:
    """The words that a tokenizer with a fixed vocabulary splits, in order, each once."""
    words = dict.fromkeys(word.lower() for word in _WORD.findall(prompt))
    # letters alone are counted as known: "a", and what remains of "5th"
    return [
        word
        for word in words
        if len(word) > 1
        and not _NEGATION.search(word)
        and len(tokenizer(f" {word}", add_special_tokens=False).input_ids) > 1
    ]


def warn_of_unread_parts(tokenizer: PreTrainedTokenizerFast, requests: Sequence[Request]) -> None:
    """Logs the sentences of `unread_parts`, each once."""
    sentences = (sentence for request in requests for sentence in unread_parts(tokenizer, request))
    for sentence in dict.fromkeys(sentences):
        logger.warning("%s", sentence)
