"""A safetensors file, opened once: its header, then its tensors.

Nothing else is opened: no pickle, no zip, no GGUF. Each of them is refused by its name.
"""

from __future__ import annotations

import json
import math
import mmap
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number types by their names in safetensors files."""
# bytes; the limit that the package safetensors has, too
LONGEST_HEADER = 100_000_000


class SafetensorsFile:
    """One file, opened once: its header now, its tensors when they are asked for.

    The header is read here and not by the package safetensors, which maps the whole file as private memory when it opens it: a
    file that is larger than the memory could not even be looked at.

    names      of all tensors
    metadata   the file's text entries
    layout     every tensor on the meta device, without its numbers; rows of bytes, which hold configurations, have theirs

    Raises CheckpointError if the file is missing, damaged, cut short, a folder, another kind of file under that name, or has
    a type of numbers that this version does not read.
    """

    def __init__(self, path: Path, *, wanted: str = "a safetensors file") -> None:
        """`wanted`: what an error's sentence says is needed in place of a folder."""
        self.path = path
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a folder, such as diffusers saves, and one file is needed: {wanted}"
            )
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}: check the name, or put the file there")
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}): check its permissions"
            ) from error
        weakref.finalize(self, self._file.close)
        start = self._file.read(8)
        try:
            self.metadata, self._places = self._read_header(start)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._of_another_kind(start, error) from error
        self.names = list(self._places)
        self.layout = {name: self._without_numbers(place) for name, place in self._places.items()}

    def _read_header(self, start: bytes) -> tuple[dict[str, str], dict[str, _Place]]:
        """Metadata, and where each tensor lies in the file. Raises ValueError if that is not the whole file."""
        length, size = int.from_bytes(start, "little"), self.path.stat().st_size
        if len(start) < 8 or not 0 < length <= min(LONGEST_HEADER, size - 8):
            raise ValueError("it has no header")
        header = json.loads(self._file.read(length), object_pairs_hook=_without_doubles)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is no text")
        places: dict[str, _Place] = {}
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
            if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, last)):
                raise ValueError(f"{name} has an impossible shape or place")
            dtype = DTYPES.get(entry["dtype"])
            if dtype is None:
                raise CheckpointError(
                    f"{self.path.name}: {name} has numbers of type {entry['dtype']}, which this version does not read: "
                    "take the bf16 or the fp8 file of this model"
                )
            if first != end or last - first != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} does not lie where it should")
            places[name], end = _Place(dtype, shape, 8 + length + first), last
        if 8 + length + end != size:
            raise ValueError(f"it has {size} bytes, its header tells of {8 + length + end}")
        return metadata, places

    def _without_numbers(self, place: _Place) -> Tensor:
        if place.dtype == torch.uint8 and len(place.shape) == 1:
            self._file.seek(place.offset)
            return torch.tensor(list(self._file.read(place.shape[0])), dtype=torch.uint8)
        return torch.empty(place.shape, dtype=place.dtype, device="meta")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors. They are mapped from the file, not read: used memory grows only with what is copied from them.

        Raises CheckpointError if the system grants no memory for the mapping."""
        try:
            # private and writable, so that weights may be changed in place without changing the file
            content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError, MemoryError) as error:
            raise CheckpointError(
                f"{self.path.name} needs more memory than the system grants ({error}): take a smaller file, or end other "
                "programs"
            ) from error
        return {name: place.tensor(content) for name, place in self._places.items()}

    def _of_another_kind(self, start: bytes, error: Exception) -> CheckpointError:
        """What a file that is no safetensors file is, told by its first bytes; a whole one may begin with any of these, too."""
        name = self.path.name
        if start[:2] == b"PK" or start[:1] == b"\x80":
            return CheckpointError(
                f"{name} is a PyTorch pickle, which may run code: only safetensors files are opened"
            )
        if start[:4] == b"GGUF":
            return CheckpointError(
                f"{name} is a GGUF file, which is not read: use the safetensors file of the same model"
            )
        return CheckpointError(
            f"{name} is damaged, cut short or no safetensors file ({error}): download or save it again"
        )


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def tensor(self, content: mmap.mmap) -> Tensor:
        """The tensor in the mapped file."""
        count = math.prod(self.shape)
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(content, dtype=self.dtype, count=count, offset=self.offset).view(self.shape)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different. Raises ValueError otherwise."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name in its header stands twice")
    return found


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (mapped) and the metadata of a file. Raises CheckpointError as `SafetensorsFile` does."""
    file = SafetensorsFile(path)
    return file.tensors(), file.metadata
