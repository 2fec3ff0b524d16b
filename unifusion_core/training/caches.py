"""What is computed once and kept on disk: latents of target images and rewrites of captions.

An entry's name is the hash of everything that it depends on, so runs can share a folder, and changed data or weights make new
entries. Entries are written whole or not at all, and several processes may write the same one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..files import write_whole


def content_key(parts: Iterable[str | bytes]) -> str:
    """A hash of texts and bytes in their order."""
    hashed = xxhash.xxh3_128()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        # the length separates the parts
        hashed.update(f"{len(data)}:".encode())
        hashed.update(data)
    return hashed.hexdigest()


def weights_key(module: nn.Module) -> str:
    """A hash of a module's weights."""
    parts: list[str | bytes] = []
    for name, value in module.state_dict().items():
        parts += [name, value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    return content_key(parts)


class FileCache:
    """Bytes by key, one file each."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix

    def path(self, key: str) -> Path:
        """Where an entry is kept."""
        return self.folder / key[:2] / f"{key}{self.suffix}"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def read(self, key: str) -> bytes | None:
        """An entry, or None if it is not there."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, key: str, data: bytes) -> None:
        """Keeps an entry."""
        write_whole(self.path(key), data)


class LatentCache(FileCache):
    """Latents by key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ".safetensors")

    def load(self, key: str) -> Tensor | None:
        """Latents C h w; None if they are not there or the file is damaged, which makes them anew."""
        data = self.read(key)
        try:
            return None if data is None else load(data)["latents"]
        except (SafetensorError, KeyError):
            return None

    def save(self, key: str, latents: Tensor) -> None:
        """Keeps latents C h w in their own type."""
        self.write(key, save({"latents": latents.detach().cpu().contiguous()}))
