"""Sizes in pixels: which can be drawn, which one suits an input picture, which were trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from .errors import ShapeError
from .models.autoencoder import DOWNSCALE

logger = logging.getLogger(__name__)

MAX_SIDE = 4096  # pixels: far beyond any trained size, and beyond most memories


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) if pictures of it can be drawn; ShapeError naming the nearest sizes if not."""
    near = [(max(1, side // DOWNSCALE) * DOWNSCALE, -(-side // DOWNSCALE) * DOWNSCALE) for side in size]
    if min(size) < 1 or max(size) > MAX_SIDE:
        raise ShapeError(
            f"A picture of {_by(size)} cannot be drawn: give sides of {DOWNSCALE} to {MAX_SIDE} pixels."
        )
    if any(side % DOWNSCALE for side in size):
        choices = sorted({_by((w, h)) for w in near[0] for h in near[1]})
        raise ShapeError(
            f"A picture of {_by(size)} cannot be drawn: sides must be multiples of {DOWNSCALE}; "
            f"near are {' and '.join(choices)}."
        )
    return size


def size_of_picture(picture: Float[Tensor, "C H W"], max_pixels: float | None = None) -> tuple[int, int]:
    """(width, height) for a drawing in place of this picture: its own, to the nearest multiple of 8; larger pictures are
    made to fit into `max_pixels`, their shape kept. ShapeError for a picture that is too large to be drawn."""
    height, width = picture.shape[1:]
    scale = 1.0 if max_pixels is None else min(1.0, (max_pixels / (width * height)) ** 0.5)
    # rounding up would exceed `max_pixels`; the hundredth keeps a side that is whole but for float rounding
    whole = round if scale == 1.0 else lambda cells: math.floor(cells + 0.01)
    size = [max(1, whole(side * scale / DOWNSCALE)) * DOWNSCALE for side in (width, height)]
    return check_size((size[0], size[1]))


def edited_size(pictures: Sequence[Float[Tensor, "C H W"]]) -> tuple[int, int] | None:
    """The size in which a single picture would be drawn anew; None for several pictures, none, or one too large."""
    if len(pictures) != 1 or max(pictures[0].shape[1:]) > MAX_SIDE:
        return None
    return size_of_picture(pictures[0])


def warn_of_untrained_size(size: tuple[int, int], trained: Sequence[tuple[int, int]]) -> None:
    """A warning, because other sizes often work, only worse."""
    if trained and size not in trained:
        logger.warning(
            "%s is none of the sizes this model was trained on (%s): expect a worse picture.",
            _by(size),
            ", ".join(map(_by, trained)),
        )


def warn_of_other_size(size: tuple[int, int], edited: tuple[int, int]) -> None:
    """A warning for an edit that is drawn in another shape than its picture's, or larger; smaller ones of its shape, but for the
    rounding to multiples of 8, keep everything in its place."""
    (width, height), (own_width, own_height) = size, edited
    smaller = width < own_width and height < own_height
    same_shape = abs(width * own_height - height * own_width) <= DOWNSCALE * max(edited)
    if size != edited and not (smaller and same_shape):
        logger.warning(
            "%s is drawn, and the picture that is edited is %s: what should stay as it is will shift. Draw in the picture's own "
            "size to keep it in its place.",
            _by(size),
            _by(edited),
        )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
