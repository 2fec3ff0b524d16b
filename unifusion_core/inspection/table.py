"""A reading of layers as text: a line for every word token, and one for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Features, TokenRole
from .reading import LayerReading

PARTS = {
    TokenRole.IMAGE: "picture",
    TokenRole.PROMPT: "prompt",
    TokenRole.REWRITE: "rewrite",
}  # everything else is the template's


@dataclass(frozen=True, kw_only=True)
class Line:
    """One token, or all tokens of one picture, with what is to be shown of them."""

    name: str
    part: str  # of the chat
    tokens: tuple[int, ...]  # their places in the features

    def mean(self, values: Float[Tensor, "T L"]) -> Float[Tensor, " L"]:
        """One row of a reading, averaged over a picture's tokens."""
        return values[torch.tensor(self.tokens)].mean(0)


def lines_of(features: Features, texts: Sequence[str]) -> list[Line]:
    """The lines of one chat, in its order; `texts` has each token's own text."""
    lines: list[Line] = []
    images: dict[int, list[int]] = {}
    roles, numbers = features.token_info.roles[0].tolist(), features.positions[0, :, 0].int().tolist()
    for place, (role, number) in enumerate(zip(roles, numbers, strict=True)):
        if role == TokenRole.IMAGE:
            images.setdefault(number, []).append(place)
        elif role != TokenRole.PADDING:
            part = PARTS.get(TokenRole(role), "template")
            lines.append(Line(name=shown(texts[place]), part=part, tokens=(place,)))
    of_pictures = [
        Line(name=f"picture {number}: mean of {len(places)} tokens", part="picture", tokens=tuple(places))
        for number, places in images.items()
    ]
    return of_pictures + lines  # pictures stand first in every chat


def shown(text: str) -> str:
    """A token's text with what cannot be seen made visible."""
    visible = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text.strip(" "))
    return visible or "(space)"


def write_table(reading: LayerReading, lines: Sequence[Line], taps: Sequence[int]) -> str:
    """Each layer's share in every token in per cent, as aligned columns that people can read."""
    head = ["token", "part", *(f"layer {tap}" for tap in taps), "most from"]
    rows = [head, ["pooling weight", "", *(f"{weight:+.3f}" for weight in reading.weights.tolist()), ""]]
    for line in lines:
        shares = line.mean(reading.shares)
        most = f"layer {taps[int(shares.argmax())]}"
        rows.append([line.name, line.part, *(f"{100 * share:.0f}" for share in shares.tolist()), most])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    words = {0, 1, len(head) - 1}  # numbers end together, words begin together

    def written(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    says = "Share of each VLM layer in every pooled token, in per cent (negative: against what the token becomes)."
    return "\n".join([says, "", *map(written, rows)])
