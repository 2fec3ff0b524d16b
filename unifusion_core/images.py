"""Images: files and other people's types to tensors and back, and the sizes in which they can be drawn."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from .errors import ConfigError, ShapeError
from .files import write_whole
from .models.autoencoder import DOWNSCALE
from .vlm.tiling import check_image, flatten_alpha

logger = logging.getLogger(__name__)

# pixels: far beyond any trained size, and beyond most memories
MAX_SIDE = 4096
# of an input image: decoded, it takes about 15 bytes per pixel
MAX_INPUT_PIXELS = 64_000_000
# what is read, as far as the installed Pillow can; HEIF once pillow-heif is registered with it
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")
# what is written, by the ending of the file's name
WRITTEN_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
JPEG_QUALITY = 95
# one entry of JSON; "prompt" and "workflow" would be taken for ComfyUI's own
PNG_KEY = "unifusion"
# EXIF's entry for a description, which holds the same JSON in JPEG and WebP
EXIF_DESCRIPTION = 0x010E
# an EXIF block of JPEG holds 64 KB
MAX_EXIF_TEXT = 65_000
# first bytes of files that are often given in place of an image
_OTHER_KINDS = {
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"<svg": "an SVG drawing",
    b"<?xm": "an SVG drawing or another XML file",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"PK\x03\x04": "a ZIP archive",
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL image",
    b"GGUF": "a GGUF model",
    b"\x1aE\xdf\xa3": "a video",
}
# the brand of a file in ISO's media container, which follows "ftyp"
_BRANDS = {
    b"heic": "a HEIC image",
    b"heix": "a HEIC image",
    b"mif1": "a HEIC image",
    b"avif": "an AVIF image",
}

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
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    # a photo's fourth channel would cost a third more memory
    pixels = np.array(image.convert("RGBA" if transparent else "RGB"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)
    return flatten_alpha(tensor) if transparent else tensor


def to_pixels(images: Float[Tensor, "B 3 H W"]) -> list[Pixels]:
    """Decoded images as bytes; what lies outside 0..1 is cut off."""
    whole = images.float().clamp(0, 1).mul(255).round().byte()
    return list(whole.permute(0, 2, 3, 1).cpu().numpy())


def tile_images(images: Sequence[Pixels]) -> Pixels:
    """Images of one size in rows, as near to a square as their number allows; empty places are white."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width = images[0].shape[:2]
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = image
    return sheet


# Files ---------------------------------------------------------------------------------------------


def read_image_file(path: Path) -> Float[Tensor, "3 H W"]:
    """An image file (`IMAGE_FORMATS`) as RGB in 0..1, upright, transparency laid on white; of several frames the first.

    Raises ShapeError for a file that is missing, of another kind, damaged or too large, and for an address.
    """
    if re.match(r"(?!.:)[A-Za-z][A-Za-z0-9+.-]*:/|data:", str(path)):
        raise ShapeError(
            f"{path} is an address and nothing is downloaded: save the picture, and give its file name."
        )
    try:
        # a device never ends
        if path.exists() and not (path.is_file() or path.is_fifo() or path.is_dir()):
            raise ShapeError(f"{path} is no file: give a picture file.")
        with path.open("rb") as file:
            return _decode(io.BytesIO(file.read()) if path.is_fifo() else file, str(path))
    except FileNotFoundError as error:
        hint = "; write / between folders" if "\\" in str(path) else ""
        raise ShapeError(f"There is no picture {path}: check its name{hint}.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ShapeError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ShapeError(f"{path} cannot be read ({reason}): give a picture file.") from error


def decode_image(data: bytes, name: str) -> Float[Tensor, "3 H W"]:
    """The bytes of an image file (`IMAGE_FORMATS`) as RGB in 0..1, upright, transparency laid on white; of several frames the
    first. `name`: for error messages.

    Raises ShapeError for files of another kind, damaged ones and those of more than `MAX_INPUT_PIXELS`.
    """
    return _decode(io.BytesIO(data), name)


def readable_formats() -> list[str]:
    """Those of `IMAGE_FORMATS` that the installed Pillow reads."""
    Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _decode(file: IO[bytes], name: str) -> Float[Tensor, "3 H W"]:
    head = file.read(32)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            # of Pillow's own bound, which is higher
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(file, formats=readable_formats())
        with opened:
            width, height = opened.size
            if width * height > MAX_INPUT_PIXELS:
                raise ShapeError(
                    f"{name} is {width}x{height}, more than {MAX_INPUT_PIXELS // 1_000_000} megapixels: scale it down first."
                )
            # a phone's MPO holds a smaller preview beside the photo
            if getattr(opened, "is_animated", False) and opened.format != "MPO":
                logger.warning("%s has several frames: the first one is used.", name)
            return _from_pil(opened)
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        IndexError,
        OverflowError,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, ShapeError):
            raise
        raise ShapeError(
            f"{name} cannot be read as a picture ({_reason(error, head)}): give a whole {', '.join(readable_formats())} file."
        ) from error


def _reason(error: Exception, head: bytes) -> str:
    if not isinstance(error, Image.UnidentifiedImageError):
        return str(error)
    if not head:
        return "it is empty"
    kind = _BRANDS.get(head[8:12], "a video") if head[4:8] == b"ftyp" else None
    kind = kind or next(
        (name for start, name in _OTHER_KINDS.items() if head.lstrip().startswith(start)), None
    )
    kind = kind or ("text" if head.isascii() and b"\0" not in head else None)
    return f"it is {kind}" if kind else "of another kind or damaged"


def written_format(path: Path) -> str:
    """The format in which an image is written under this name: PNG, JPEG or WebP by its ending, and PNG for a name without one.

    Raises ConfigError for the ending of another format.
    """
    Image.init()
    ending = path.suffix.lower()
    if ending not in WRITTEN_FORMATS and ending in Image.registered_extensions():
        raise ConfigError(
            f'{path} ends in "{path.suffix}" and pictures are written as PNG, JPEG or WebP: choose a name that ends in .png, '
            ".jpg or .webp"
        )
    return WRITTEN_FORMATS.get(ending, "PNG")


def encode_image(pixels: Pixels, record: dict[str, Any], file_format: str = "PNG") -> bytes:
    """An image file that carries how it was made (prompt, seed, settings) as JSON: in PNG's text entry "unifusion", or in the
    EXIF description of JPEG and WebP.

    Raises ConfigError for a record that is too long for a JPEG.
    """
    image, data = Image.fromarray(pixels), io.BytesIO()
    if file_format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(PNG_KEY, json.dumps(record, ensure_ascii=False))
        image.save(data, "PNG", pnginfo=info)
        return data.getvalue()
    text = json.dumps(record)
    if len(text) > MAX_EXIF_TEXT and file_format == "JPEG":
        raise ConfigError("the prompt is too long to be recorded in a JPEG file: write a PNG or WebP file")
    exif = Image.Exif()
    exif[EXIF_DESCRIPTION] = text
    how = {"quality": JPEG_QUALITY, "subsampling": 0} if file_format == "JPEG" else {"lossless": True}
    image.save(data, file_format, exif=exif, **how)
    return data.getvalue()


def write_image_file(path: Path, pixels: Pixels, record: dict[str, Any], *, replace: bool = True) -> bool:
    """Writes an image with its record, whole or not at all, in the format of the name's ending (`written_format`,
    `encode_image`). With `replace` False an existing file is kept. Returns whether the file was written.

    Raises ConfigError for a file that cannot be written.
    """
    return write_whole(path, encode_image(pixels, record, written_format(path)), replace=replace)


def read_record(path: Path) -> dict[str, Any]:
    """How an image file was made, as `write_image_file` recorded it. Raises ConfigError for a file without such a record."""
    try:
        with Image.open(path, formats=tuple(set(WRITTEN_FORMATS.values()))) as image:
            # a PNG's text may follow its pixels
            image.load()
            text = image.info.get(PNG_KEY) or image.getexif().get(EXIF_DESCRIPTION)
        record = json.loads(text) if isinstance(text, str) else None
    except FileNotFoundError as error:
        raise ConfigError(f"there is no picture {path}: check its name") from error
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"{path} holds no readable record ({error}): give a picture that unifusion generate wrote"
        ) from error
    if not isinstance(record, dict) or not {"prompt", "seed", "settings"} <= set(record):
        raise ConfigError(
            f"{path} holds no record of how it was made: give a picture that unifusion generate wrote"
        )
    return record


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


def size_to_draw(image: Float[Tensor, "C H W"], max_pixels: float) -> tuple[int, int]:
    """(width, height) for a drawing in place of this image if the user does not choose: `size_for_image`, with a warning if the
    image is larger than the model draws."""
    size = size_for_image(image, max_pixels)
    height, width = image.shape[1:]
    if width * height > max_pixels and size != (width, height):
        logger.warning(
            "The picture is %dx%d, larger than this model draws well: %s is drawn. Give a size to draw another.",
            width,
            height,
            _by(size),
        )
    return size


def edited_size(images: Sequence[Float[Tensor, "C H W"]]) -> tuple[int, int] | None:
    """The size in which a single image would be drawn anew; None for several images, none, or one too large."""
    if len(images) != 1 or max(images[0].shape[1:]) > MAX_SIDE:
        return None
    return size_for_image(images[0])


def untrained_size(size: tuple[int, int], trained: Sequence[tuple[int, int]]) -> str | None:
    """The warning about a size that the model was not trained on: it often works, only worse. None for a trained one."""
    if not trained or size in trained:
        return None
    return f"{_by(size)} is none of the sizes this model was trained on ({', '.join(map(_by, trained))}): expect a worse picture."


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
