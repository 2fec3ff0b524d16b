"""The description in a VLM's answer: without thoughts, greetings, Markdown and offers, none of which an image should show."""

from __future__ import annotations

import re

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
# what remains where the template opened the thoughts
_END_OF_THOUGHTS = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_POLITE = r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|alright|got it|no problem|happy to help)"
_THING = (
    r"(?:description|image|picture|scene|prompt|caption|rewrite|version|rewritten|result|translation|answer)"
)
# "Sure!", then perhaps "Here is the description of the image:"
_GREETING = re.compile(rf"\A\s*{_POLITE}\s*[!.,:]+\s*", re.IGNORECASE)
_ANNOUNCEMENT = re.compile(
    rf"\A\s*(?:here(?:'s|\u2019s| is| are)|this is|below is|the following is|i(?:'ve| have) (?:written|rewritten))\b"
    rf"[^\n.!?:]{{0,80}}\b{_THING}s?\b[^\n.!?:]{{0,80}}:\s*",
    re.IGNORECASE,
)
# what a greeting leaves of "Sure, here is a cat."
_HERE = re.compile(r"\A\s*here(?:'s|\u2019s| is| are)\s+(?=(?:an?|the|one|two|three|some)\b)", re.IGNORECASE)
# a label before a description, such as that of a list of properties
_LABEL = re.compile(
    rf"\A\s*(?:(?:the|final|rewritten|new|target|image|detailed)\s+)*{_THING}\s*:\s+", re.IGNORECASE
)
_OFFER = re.compile(
    r"(?:\A|\s)(?:let me know\b|feel free\b|i hope (?:this|that)\b|hope this helps\b|would you like\b|if you(?:'d| would) like\b"
    r"|please let me\b)[^\n]*\Z",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+", re.MULTILINE)
_RULE = re.compile(r"^\s*(?:-{3,}|\*{3,}|_{3,})\s*$", re.MULTILINE)
_BULLET = re.compile(r"^\s*(?:[-*+\u2022]|\d{1,2}[.)])\s+", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*\*|\*\*|\*|___|__|`)(?=\S)(.+?)(?<=\S)\1")
_QUOTED = re.compile(r'\A["\u201c](.+)["\u201d]\Z', re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f][\"'\u201d\u2019)]*(?=\s|\Z)")


def description_in(answer: str) -> str:
    """The description alone, on one line if it was a list. Empty if the answer held nothing else."""
    text = _THOUGHTS.sub(" ", answer)
    text = _END_OF_THOUGHTS.sub("", text)
    text = _RULE.sub("", _HEADING.sub("", _FENCE.sub("", text)))
    listed = bool(_BULLET.search(text))
    text = _EMPHASIS.sub(r"\2", _BULLET.sub("", text)).strip()
    before = None
    while before != text:
        before = text
        for pattern in (_GREETING, _ANNOUNCEMENT, _HERE, _LABEL):
            text = pattern.sub("", text).strip()
        text = _OFFER.sub("", text).strip()
    if found := _QUOTED.match(text):
        text = found[1].strip()
    if not listed:
        return text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # items of a list are clauses of one description
    return " ".join(line if line[-1] in ".,;:!?" else f"{line}," for line in lines).rstrip(",")


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if none ends."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""
