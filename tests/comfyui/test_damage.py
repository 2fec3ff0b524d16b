"""Damaged files and hostile images are refused with a sentence; nothing is executed or written outside the server's folders.

pytest tests/comfyui/test_damage.py -m slow
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from unifusion_core import errors
from unifusion_core.zoo.tiny import BUILT_IN

if TYPE_CHECKING:
    from conftest import Comfy, Graph

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

GENERATOR = BUILT_IN.generator.read_bytes()
HEADER = 8 + struct.unpack("<Q", GENERATOR[:8])[0]
CUTS = (0, 4, 8, 9, HEADER // 2, HEADER - 1, HEADER, HEADER + 1, len(GENERATOR) // 2, len(GENERATOR) - 1)
# in the header; a flipped weight is a valid number
FLIPS = (0, 7, 8, 20, HEADER // 3, HEADER // 2, HEADER - 2)


def with_metadata(change: Callable[[dict[str, str]], None]) -> bytes:
    """The generator's file with other metadata, which takes precedence over the tensor with the same content."""
    header = json.loads(GENERATOR[8:HEADER])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + GENERATOR[HEADER:]


def config_as(text: str) -> bytes:
    return with_metadata(lambda metadata: metadata.update(unifusion_config=text))


class Touch:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


DAMAGED = {
    **{f"cut_at_{place}": GENERATOR[:place] for place in CUTS},
    **{
        f"flipped_{place}": GENERATOR[:place] + bytes([GENERATOR[place] ^ 0xFF]) + GENERATOR[place + 1 :]
        for place in FLIPS
    },
    "config_no_json": config_as("{"),
    "config_list": config_as("[]"),
    "config_of_the_future": config_as('{"format": 99, "config": {}}'),
    "config_empty": config_as('{"format": 1, "config": {}}'),
    "config_huge": config_as('{"format": 1, "config": ' + "[" * 5000 + "]" * 5000 + "}"),
    "header_of_exabytes": struct.pack("<Q", 2**62) + GENERATOR[8:],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_generators_are_refused(comfy: Comfy, graph: Graph, name: str) -> None:
    folder = comfy.models_dir / "diffusion_models"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(DAMAGED[name])
    model = graph.load_model(f"{name}.safetensors")
    graph.add("PreviewAny", source=model)
    sentence = refusal(comfy, graph, model[0])
    assert f"{name}.safetensors" in sentence or "configuration" in sentence, sentence


def test_a_renamed_pickle_is_not_run(comfy: Comfy, graph: Graph, tmp_path: Path) -> None:
    folder, sign = comfy.models_dir / "diffusion_models", tmp_path / "executed"
    folder.mkdir(exist_ok=True)
    (folder / "renamed.safetensors").write_bytes(pickle.dumps(Touch(sign)))
    model = graph.load_model("renamed.safetensors")
    graph.add("PreviewAny", source=model)
    assert "pickle" in refusal(comfy, graph, model[0])
    assert not sign.exists()


def test_a_folder_that_brings_code_is_not_run(comfy: Comfy, graph: Graph, tmp_path: Path) -> None:
    folder, sign = comfy.models_dir / "vlm" / "with-code", tmp_path / "executed"
    folder.mkdir(parents=True)
    for path in BUILT_IN.vlm.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Model"}}))
    (folder / "code.py").write_text(f"import pathlib; pathlib.Path({str(sign)!r}).touch()")
    clip = graph.load_clip(graph.load_model(), "with-code")
    graph.add("PreviewAny", source=clip)
    assert "auto_map" in refusal(comfy, graph, clip[0])
    assert not sign.exists()


def test_a_decompression_bomb_as_picture(comfy: Comfy, graph: Graph) -> None:
    """A small PNG of 60000 x 60000 pixels is refused by the stock loader or by us, and the server survives."""
    (comfy.input_dir / "bomb.png").write_bytes(png_of_one_color(60_000, 60_000))
    picture = graph.add("LoadImage", image="bomb.png")
    clip = graph.load_clip(graph.load_model())
    encoded = graph.add(
        "UniFusionImageEncode", clip=clip, prompt="", max_tiles=1, pictures__picture_1=picture
    )
    graph.add("PreviewAny", source=encoded)
    result = comfy.run(graph)
    assert result.status in ("error", "refused")
    assert "decompression bomb" in json.dumps(result.error).lower()


@pytest.fixture(autouse=True)
def the_server_still_draws(comfy: Comfy, new_graph: Callable[[], Graph]) -> Iterator[None]:
    yield
    after = new_graph()
    model = after.load_model()
    text = after.add("CLIPTextEncode", text="red circle", clip=after.load_clip(model))
    after.save_picture(after.sample(model, text, text, steps=1, cfg=1.0))
    comfy.successful(after)


def refusal(comfy: Comfy, graph: Graph, node: str) -> str:
    """The error sentence of a node."""
    result = comfy.run(graph)
    assert result.status == "error", result.error
    assert result.error["node_id"] == node
    assert hasattr(errors, result.error["exception_type"]), result.error["exception_type"]
    return result.error["exception_message"]


def png_of_one_color(width: int, height: int) -> bytes:
    """A PNG with one bit per pixel, a few kilobytes large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
