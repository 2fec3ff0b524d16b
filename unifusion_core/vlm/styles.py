"""Styles: what the VLM is told before the prompt, so that it rewrites otherwise than it was trained to (flexible inference, in
the paper's section on VERIFI). Light to import: nodes and command line list the names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import PromptError

if TYPE_CHECKING:  # torch comes with it
    from ..contracts import Request

STYLES = {
    "caption": "",
    "terse": "be brief.",
    "detailed": "write full sentences.",
    "keep everything else": "keep everything else.",
    "translate to English": "translate to english.",
}
"""Named styles: what the VLM is told before the instruction. The first is training's own. Any other text is a style, too: words
that no training held change how the VLM rewrites, and with it the picture (flexible inference)."""
STYLES_FOR_PICTURES = ("keep everything else",)


def with_style(request: Request, style: str) -> Request:
    """The request in a style: one of `STYLES` by name, or any text.

    Raises PromptError if the style is about pictures and the request has none.
    """
    if style in STYLES_FOR_PICTURES and not request.images:
        raise PromptError(
            f'The style "{style}" is for pictures and none is given: add a picture, or choose another style.'
        )
    return replace(request, style=STYLES.get(style, style).strip())
