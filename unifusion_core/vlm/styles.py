"""Styles: text prepended to the prompt, which changes how the VLM rewrites it (flexible inference; paper, section on VERIFI).

Imports no torch, because nodes and command line list the names.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import PromptError

if TYPE_CHECKING:
    # imports torch
    from ..contracts import Request

# by name. The first is empty = as in training. Any other text is a style too, whether training had it or not
STYLES = {
    "caption": "",
    "terse": "be brief.",
    "detailed": "write full sentences.",
    "keep everything else": "keep everything else.",
    "translate to English": "translate to english.",
}
# styles that need an image
STYLES_FOR_PICTURES = ("keep everything else",)


def check_style(style: str) -> None:
    """Raises PromptError for a single word that is nearly the name of a style: as a text of its own it would have no effect."""
    found = difflib.get_close_matches(style.strip().lower(), STYLES, n=1, cutoff=0.75)
    if found and style not in STYLES and " " not in style.strip():
        raise PromptError(
            f'there is no style "{style}", did you mean "{found[0]}"? Choose one of {", ".join(STYLES)}, or tell the VLM in a '
            "sentence how to rewrite"
        )


def with_style(request: Request, style: str) -> Request:
    """The request with a style: a name of `STYLES`, or any text.

    Raises PromptError for a style that needs an image if the request has none, and for a misspelt name.
    """
    check_style(style)
    if style in STYLES_FOR_PICTURES and not request.images:
        raise PromptError(
            f'The style "{style}" needs a picture and none was given: add a picture, or choose another style.'
        )
    return replace(request, style=STYLES.get(style, style).strip())
