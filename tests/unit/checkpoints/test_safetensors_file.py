"""Headers of safetensors files, sound and damaged: pytest tests/unit/checkpoints/test_safetensors_file.py"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unifusion_core.checkpoints.safetensors_file import DTYPES, SafetensorsFile, read_tensors
from unifusion_core.errors import CheckpointError

Entry = dict[str, Any]


def entry(dtype: str, shape: list[int], start: int, end: int) -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SOUND = {"a": entry("F16", [2, 3], 0, 12), "b": entry("U8", [4], 12, 16)}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(header: dict[str, Any] | str, size: int = 16) -> Path:
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(size)))
        return path

    return write


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_every_type_is_read_as_it_was_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = {"matrix": torch.arange(6).reshape(2, 3).to(dtype), "empty": torch.zeros(0, 4).to(dtype)}
    save_file(saved, tmp_path / "model.safetensors", {"who": "a test"})

    tensors, metadata = read_tensors(tmp_path / "model.safetensors")

    assert metadata == {"who": "a test"}
    assert tensors.keys() == saved.keys()
    for name, value in saved.items():
        assert (tensors[name].dtype, tensors[name].shape) == (value.dtype, value.shape)
        assert torch.equal(tensors[name].double(), value.double())


def test_the_layout_has_values_of_byte_vectors_alone(write: Callable[..., Path]) -> None:
    file = SafetensorsFile(write(SOUND))

    assert file.names == ["a", "b"]
    assert file.layout["a"].is_meta
    assert (file.layout["a"].dtype, file.layout["a"].shape) == (torch.float16, (2, 3))
    assert file.layout["b"].tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize("name", ["F4", "F6_E2M3", "C64", "U64"])
def test_numbers_of_another_type_are_refused_by_their_name(write: Callable[..., Path], name: str) -> None:
    path = write({"layer.weight": entry("BF16", [4], 0, 8), "layer.scale": entry(name, [8], 8, 16)})

    with pytest.raises(CheckpointError) as refused:
        SafetensorsFile(path)

    assert str(refused.value) == (
        f"model.safetensors: layer.scale is stored as {name}, which this version does not read: use the bf16 or the fp8 file "
        "of this model"
    )


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry("F16", [2, 4], 0, 12), "b": SOUND["b"]}, "a .* another size than its shape"),
        ({"a": SOUND["a"], "b": entry("U8", [3], 13, 16)}, "b does not follow the tensor before it"),
        ({"a": SOUND["a"], "b": entry("U8", [6], 10, 16)}, "b does not follow the tensor before it"),
        ({"a": SOUND["a"]}, "it has [0-9]+ bytes and [0-9]+ by its header"),
        (SOUND | {"c": entry("U8", [1], 16, 17)}, "it has [0-9]+ bytes and [0-9]+ by its header"),
        ({"a": entry("F16", [-2, -3], 0, 12), "b": SOUND["b"]}, "a has an impossible shape"),
        (SOUND | {"__metadata__": {"who": 1}}, "its metadata is not text"),
        ('{"a": {}, "a": {}}', "a name occurs twice in its header"),
        ({"a": {}}, "data_offsets"),
        ("[]", "not a safetensors file"),
        ("{", "not a safetensors file"),
    ],
)
def test_a_damaged_header_is_refused(
    write: Callable[..., Path], header: dict[str, Any] | str, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=f"model.safetensors is damaged.*{reason}.*again$"):
        SafetensorsFile(write(header))
