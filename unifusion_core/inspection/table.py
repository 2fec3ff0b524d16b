"""A `LayerReading` as text: one line per text token and one per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Features, TokenRole
from .reading import LayerReading

# every other role is "template"
PARTS = {TokenRole.IMAGE: "image", TokenRole.PROMPT: "prompt", TokenRole.REWRITE: "rewrite"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One text token, or all tokens of one image.

    name     the token's text, or the number of the image
    part     of the chat: image, prompt, rewrite or template
    tokens   indices on the features' token axis
    """

    name: str
    part: str
    tokens: tuple[int, ...]

    def mean(self, values: Float[Tensor, "T L"]) -> Float[Tensor, " L"]:
        """The mean of `values` over the line's tokens."""
        return values[torch.tensor(self.tokens)].mean(0)


def lines_of(features: Features, texts: Sequence[str]) -> list[Line]:
    """The lines of one chat: images first, as in every chat, then text tokens in order; padding has none.

    `texts`: the text of each token. Raises PromptError if the features have no `tokens`.
    """
    lines: list[Line] = []
    images: dict[int, list[int]] = {}
    roles, numbers = features.token_info.roles[0].tolist(), features.positions[0, :, 0].int().tolist()
    for place, (role, number) in enumerate(zip(roles, numbers, strict=True)):
        if role == TokenRole.IMAGE:
            images.setdefault(number, []).append(place)
        elif role != TokenRole.PADDING:
            part = PARTS.get(TokenRole(role), "template")
            lines.append(Line(name=visible_text(texts[place]), part=part, tokens=(place,)))
    of_images = [
        Line(name=f"image {number}: mean of {len(places)} tokens", part="image", tokens=tuple(places))
        for number, places in images.items()
    ]
    return of_images + lines


def visible_text(text: str) -> str:
    """A token's text without spaces around it; unprintable characters are escaped, and an empty text is "(space)"."""
    visible = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text.strip(" "))
    return visible or "(space)"


def write_table(reading: LayerReading, lines: Sequence[Line], taps: Sequence[int]) -> str:
    """The share of each layer in every line, in per cent, as aligned columns under a title line."""
    head = ["token", "part", *(f"layer {tap}" for tap in taps), "most from"]
    rows = [head, ["pooling weight", "", *(f"{weight:+.3f}" for weight in reading.weights.tolist()), ""]]
    for line in lines:
        shares = line.mean(reading.shares)
        most = f"layer {taps[int(shares.argmax())]}"
        rows.append([line.name, line.part, *(f"{100 * share:.0f}" for share in shares.tolist()), most])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    # columns of words are aligned at their start, columns of numbers at their end
    words = {0, 1, len(head) - 1}

    def aligned(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    title = "Share of each VLM layer in every pooled token, in per cent (a negative share opposes the sum)."
    return "\n".join([title, "", *map(aligned, rows)])
