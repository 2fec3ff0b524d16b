"""A safetensors file, opened once. The header is read at once, the tensors on demand.

Other kinds of files (PyTorch pickle, GGUF) are not opened, and the error names the kind. Format:
github.com/huggingface/safetensors.
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

# name of the type in safetensors files -> torch's; other types are refused
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# how a GGUF file of Krea 2 is used
IN_COMFYUI = (
    "in ComfyUI load it with Load Diffusion Model (GGUF) of the pack ComfyUI-GGUF, and connect the prompt by UniFusion Features "
    "to Krea 2"
)
# bytes; the limit of the package safetensors
LONGEST_HEADER = 100_000_000


class SafetensorsFile:
    """One open file: names, shapes and metadata, and the tensors by `tensors`.

    The header is parsed here, because the package safetensors maps the whole file as private memory when it opens it, so that a
    file larger than the memory could not even be inspected.

    path       of the file
    names      of all tensors
    metadata   name -> text
    layout     all tensors on the meta device, except for uint8 vectors, which contain configurations and have their values

    Raises CheckpointError if the file is missing, unreadable, damaged, cut short, a folder or another kind of file, or has
    tensors of a type that is not in `DTYPES`.
    """

    def __init__(self, path: Path, *, wanted: str = "a safetensors file") -> None:
        """`wanted`: the kind of file that is needed, for the error about a folder."""
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
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._of_another_kind(start, error) from error
        self.names = list(self._places)
        self.layout = {name: self._without_numbers(place) for name, place in self._places.items()}

    def _read_header(self, start: bytes) -> tuple[dict[str, str], dict[str, _Place]]:
        """(metadata, place of each tensor). Raises ValueError if the tensors do not fill the file exactly, CheckpointError for a
        type that is not in `DTYPES`."""
        length, size = int.from_bytes(start, "little"), self.path.stat().st_size
        if len(start) < 8 or not 0 < length <= min(LONGEST_HEADER, size - 8):
            raise ValueError("it has no header")
        header = json.loads(self._file.read(length), object_pairs_hook=_without_doubles)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not text")
        places: dict[str, _Place] = {}
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
            if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, last)):
                raise ValueError(f"{name} has an impossible shape or offset")
            dtype = DTYPES.get(entry["dtype"])
            if dtype is None:
                raise CheckpointError(
                    f"{self.path.name}: {name} is stored as {entry['dtype']}, which this version does not read: "
                    "use the bf16 or the fp8 file of this model"
                )
            if first != end or last - first != math.prod(shape) * dtype.itemsize:
                raise ValueError(
                    f"{name} does not follow the tensor before it, or has another size than its shape"
                )
            places[name], end = _Place(dtype, shape, 8 + length + first), last
        if 8 + length + end != size:
            raise ValueError(f"it has {size} bytes and {8 + length + end} by its header")
        return metadata, places

    def _without_numbers(self, place: _Place) -> Tensor:
        if place.dtype == torch.uint8 and len(place.shape) == 1:
            self._file.seek(place.offset)
            return torch.tensor(list(self._file.read(place.shape[0])), dtype=torch.uint8)
        return torch.empty(place.shape, dtype=place.dtype, device="meta")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, mapped from the file: memory is used only for what is copied from them.

        Raises CheckpointError if the file cannot be mapped for lack of memory.
        """
        try:
            # copy on write: weights may be changed in place without changing the file
            content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError, MemoryError) as error:
            raise CheckpointError(
                f"{self.path.name} needs more memory than is available ({error}): use a smaller file, or close other "
                "programs"
            ) from error
        return {name: place.tensor(content) for name, place in self._places.items()}

    def _of_another_kind(self, start: bytes, error: Exception) -> CheckpointError:
        """The error for a file whose header cannot be read. The first bytes identify its kind. They are checked
        only here, because the length in front of a valid header may begin with the same bytes."""
        name = self.path.name
        if start[:2] == b"PK" or start[:1] == b"\x80":
            return CheckpointError(
                f"{name} is a PyTorch pickle, which may run code: only safetensors files are opened"
            )
        if start[:4] == b"GGUF":
            return CheckpointError(
                f"{name} is a GGUF file, which is not read here: use the safetensors file of the same model; {IN_COMFYUI}"
            )
        return CheckpointError(
            f"{name} is damaged, cut short or not a safetensors file ({error}): download or save it again"
        )


@dataclass(frozen=True)
class _Place:
    """Type, shape and offset in bytes of a tensor in a file."""

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
    """A JSON object as a dictionary. Raises ValueError if a name occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(all tensors, mapped from the file; its metadata). Raises CheckpointError as `SafetensorsFile` does."""
    file = SafetensorsFile(path)
    return file.tensors(), file.metadata
