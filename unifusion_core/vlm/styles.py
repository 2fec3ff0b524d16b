"""Styles: text prepended to the prompt, which changes how the VLM rewrites it (flexible inference; paper, section on VERIFI).

Imports no torch, because nodes and command line list the names.
"""

from __future__ import annotations

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


def with_style(request: Request, style: str) -> Request:
    """The request with a style: a name of `STYLES`, or any text.

    Raises PromptError for a style that needs an image if the request has none.
    """
    if style in STYLES_FOR_PICTURES and not request.images:
        raise PromptError(
            f'The style "{style}" needs a picture and none was given: add a picture, or choose another style.'
        )
    return replace(request, style=STYLES.get(style, style).strip())
