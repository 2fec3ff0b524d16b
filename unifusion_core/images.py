"""Images: files and other people's types to tensors and back, and the sizes in which they can be drawn."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from .errors import ShapeError
from .models.autoencoder import DOWNSCALE
from .vlm.tiling import check_image, flatten_alpha

logger = logging.getLogger(__name__)

# pixels: far beyond any trained size, and beyond most memories
MAX_SIDE = 4096
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
# one entry of JSON; "prompt" and "workflow" would be taken for ComfyUI's own
PNG_KEY = "unifusion"

Pixels = UInt8[np.ndarray, "H W 3"]
ImageLike = Image.Image | np.ndarray | Tensor | str | Path


# Types ---------------------------------------------------------------------------------------------


def to_tensor(image: ImageLike) -> Float[Tensor, "3 H W"]:
    """RGB in 0..1 from a PIL image, the path of an image file, an array (H W C: bytes, or floats in 0..1) or a tensor (C H W,
    0..1). Transparency is laid on white.

    Raises ShapeError for anything that is not an image.
    """
    if isinstance(image, str | Path):
        return read_image_file(Path(image))
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, -1)
        if image.ndim != 3:
            raise ShapeError(
                f"An array of shape {image.shape} was given; give an image as height x width x channels."
            )
        if image.dtype == np.uint8:
            image = image.astype(np.float32) / 255
        elif not np.issubdtype(image.dtype, np.floating):
            raise ShapeError(f"An array of {image.dtype} was given; give bytes (0..255) or floats in 0..1.")
        return check_image(torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1))
    if isinstance(image, Tensor):
        if not image.is_floating_point():
            raise ShapeError(f"A tensor of {image.dtype} was given; give floats in 0..1.")
        return check_image(image)
    raise ShapeError(
        f"An image of type {type(image).__name__} was given; give a PIL image, a path, an array or a tensor."
    )


def _from_pil(image: Image.Image) -> Float[Tensor, "3 H W"]:
    """Upright; 16-bit gray is scaled, which `convert` alone would cut off at 255."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    pixels = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1).float() / 255
    return flatten_alpha(pixels)


def to_pixels(images: Float[Tensor, "B 3 H W"]) -> list[Pixels]:
    """Decoded images as bytes; what lies outside 0..1 is cut off."""
    whole = images.float().clamp(0, 1).mul(255).round().byte()
    return list(whole.permute(0, 2, 3, 1).cpu().numpy())


# Files ---------------------------------------------------------------------------------------------


def read_image_file(path: Path) -> Float[Tensor, "3 H W"]:
    """A PNG, JPEG or WebP file as RGB in 0..1, upright, transparency laid on white. Raises ShapeError."""
    try:
        return decode_image(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise ShapeError(f"There is no picture {path}: check its name.") from error
    except OSError as error:
        raise ShapeError(f"{path} cannot be read ({error.strerror}): give a picture file.") from error


def decode_image(data: bytes, name: str) -> Float[Tensor, "3 H W"]:
    """The bytes of a PNG, JPEG or WebP file as RGB in 0..1, upright, transparency laid on white. `name`: for error messages.

    Raises ShapeError for other files and for damaged ones.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
            return _from_pil(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = (
            "of another kind or damaged" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        )
        raise ShapeError(
            f"{name} cannot be read as a picture ({reason}): give a whole {', '.join(IMAGE_FORMATS)} file."
        ) from error


def write_image_file(path: Path, pixels: Pixels, record: dict[str, Any]) -> None:
    """A PNG that carries how it was made (prompt, seed, settings) as JSON in its text entry "unifusion"."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, json.dumps(record, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG", pnginfo=info)


# Sizes ---------------------------------------------------------------------------------------------


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


def size_for_image(image: Float[Tensor, "C H W"], max_pixels: float | None = None) -> tuple[int, int]:
    """(width, height) for a drawing in place of this image: its own, to the nearest multiple of 8. A larger image is made to fit
    into `max_pixels` with its aspect ratio kept. Raises ShapeError for an image that is too large to be drawn."""
    height, width = image.shape[1:]
    scale = 1.0 if max_pixels is None else min(1.0, (max_pixels / (width * height)) ** 0.5)
    # rounding up would exceed `max_pixels`; the hundredth keeps a side that is whole but for float rounding
    whole = round if scale == 1.0 else lambda cells: math.floor(cells + 0.01)
    size = [max(1, whole(side * scale / DOWNSCALE)) * DOWNSCALE for side in (width, height)]
    return check_size((size[0], size[1]))


def edited_size(images: Sequence[Float[Tensor, "C H W"]]) -> tuple[int, int] | None:
    """The size in which a single image would be drawn anew; None for several images, none, or one too large."""
    if len(images) != 1 or max(images[0].shape[1:]) > MAX_SIDE:
        return None
    return size_for_image(images[0])


def warn_of_untrained_size(size: tuple[int, int], trained: Sequence[tuple[int, int]]) -> None:
    """Warns of a size that the model was not trained on: it often works, only worse."""
    if trained and size not in trained:
        logger.warning(
            "%s is none of the sizes this model was trained on (%s): expect a worse picture.",
            _by(size),
            ", ".join(map(_by, trained)),
        )


def warn_of_other_size(size: tuple[int, int], edited: tuple[int, int]) -> None:
    """Warns of an edit that is drawn in another aspect ratio than its image's, or larger.

    A smaller size of the same aspect ratio, but for rounding to multiples of 8, keeps everything in its place."""
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
