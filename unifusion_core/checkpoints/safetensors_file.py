"""A safetensors file, opened once: its layout without the numbers, then its tensors.

Nothing else is opened: no pickle, no zip, no GGUF. Each of them is refused by its name.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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


class SafetensorsFile:
    """One file, open for as long as this object lives.

    Raises CheckpointError if it is missing, damaged, cut short, a folder, or another kind of file under that name.
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
            self._file: Any = safe_open(str(path), "pt")
            self.names: list[str] = list(self._file.keys())
            self.metadata: dict[str, str] = self._file.metadata() or {}
        # torch's, when it maps the file, and safetensors' own
        except (RuntimeError, MemoryError) as error:
            raise self._too_large(error) from error
        except (SafetensorError, OSError, ValueError) as error:
            raise _of_another_kind(path, error) from error

    @cached_property
    def layout(self) -> dict[str, Tensor]:
        """Every tensor on the meta device, without its numbers, however large the file is; rows of bytes, which hold
        configurations, have theirs. Raises CheckpointError for a type of numbers that this version does not read."""
        return {name: self._without_numbers(name) for name in self.names}

    def _without_numbers(self, name: str) -> Tensor:
        part = self._file.get_slice(name)
        shape, kind = part.get_shape(), part.get_dtype()
        if kind not in DTYPES:
            raise CheckpointError(
                f"{self.path.name}: {name} has numbers of type {kind}, which this version does not read: "
                "take the bf16 or the fp8 file of this model"
            )
        if kind == "U8" and len(shape) == 1:
            return self._tensor(name)
        return torch.empty(shape, dtype=DTYPES[kind], device="meta")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors. They are mapped from the file, not read: used memory grows only with what is copied from them.

        Raises CheckpointError if the system grants no memory for the mapping."""
        return {name: self._tensor(name) for name in self.names}

    def _tensor(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except (RuntimeError, MemoryError) as error:
            raise self._too_large(error) from error
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise _of_another_kind(self.path, error) from error

    def _too_large(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} needs more memory than the system grants ({error}): take a smaller file, or end other programs"
        )


def _of_another_kind(path: Path, error: Exception) -> CheckpointError:
    """What a file that safetensors cannot open is, told by its first bytes."""
    try:
        with path.open("rb") as file:
            # only now: a whole safetensors file may begin with any of these, too
            start = file.read(4)
    except OSError as reading:
        return CheckpointError(f"{path} cannot be read ({reading.strerror}): check its permissions")
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return CheckpointError(
            f"{path.name} is a PyTorch pickle, which may run code: only safetensors files are opened"
        )
    if start == b"GGUF":
        return CheckpointError(
            f"{path.name} is a GGUF file, which is not read: use the safetensors file of the same model"
        )
    return CheckpointError(
        f"{path.name} is damaged, cut short or no safetensors file ({error}): download or save it again"
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (mapped) and the metadata of a file. Raises CheckpointError as `SafetensorsFile` does."""
    file = SafetensorsFile(path)
    return file.tensors(), file.metadata
