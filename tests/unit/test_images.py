"""Image files: what is read, what is refused and why: pytest tests/unit/test_images.py"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from unifusion_core.errors import ShapeError
from unifusion_core.images import read_image_file, readable_formats, to_tensor


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_every_format_of_pillow_that_is_listed_is_read(tmp_path: Path, kind: str) -> None:
    if kind not in readable_formats():
        pytest.skip(f"this Pillow has no {kind}")
    Image.new("RGB", (24, 16), (250, 0, 0)).save(tmp_path / "picture", kind)
    read = read_image_file(tmp_path / "picture")
    assert read.shape == (3, 16, 24)
    assert read[0].mean() > 0.9
    assert read[1].mean() < 0.1


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_read_and_that_is_said(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "frames", kind, save_all=True, append_images=frames[1:])
    assert read_image_file(tmp_path / "frames")[0].mean() > 0.9
    assert "has several frames: the first one is used" in caplog.text


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7 ...", "a PDF"),
        (b"<svg xmlns=''>", "an SVG drawing"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"8BPS\x00\x01", "a Photoshop file"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "a HEIC image"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00mp42", "a video"),
        (b"", "it is empty"),
        (b"hello", "it is text"),
    ],
)
def test_a_refusal_names_the_kind(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ShapeError, match=kind):
        read_image_file(tmp_path / "a.png")


@pytest.mark.parametrize(
    "address", ["https://example.org/a.png", "file:///a.png", "data:image/png;base64,AAAA", "s3://a/b"]
)
def test_an_address_is_told_as_one(address: str) -> None:
    with pytest.raises(ShapeError, match="is an address and nothing is downloaded"):
        to_tensor(address)


def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path) -> None:
    Image.new("1", (12_000, 9_000)).save(tmp_path / "huge.png")
    whole = (tmp_path / "huge.png").read_bytes()
    # without its pixels the file is refused for its size all the same
    (tmp_path / "huge.png").write_bytes(whole[:100])
    with pytest.raises(ShapeError, match="12000x9000, more than 64 megapixels"):
        read_image_file(tmp_path / "huge.png")


def test_paths_of_windows_folders_and_devices_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="write / between folders"):
        read_image_file(Path("pictures\\a.png"))
    with pytest.raises(ShapeError, match="cannot be read"):
        read_image_file(tmp_path)
    with pytest.raises(ShapeError, match="is no file"):
        read_image_file(Path("/dev/zero"))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"]
)
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    read = to_tensor(Image.new(mode, (4, 3)))
    assert read.shape == (3, 3, 4)
    assert 0 <= read.min() <= read.max() <= 1
