"""Content hash of a VLM's weights, so that a generator can require exactly the weights it was trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def fingerprint_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    content = hashlib.sha256()
    for name, tensor in tensors:
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def tensors_in_files(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder's safetensors files, sorted by name."""
    where = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            where.update(dict.fromkeys(file.keys(), path))
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as file:
            yield name, file.get_tensor(name)
