"""What is computed once and kept on disk: latents of target images and rewrites of captions.

An entry's name is the hash of everything that it depends on, so runs can share a folder, and changed data or weights make new
entries. Entries are written whole or not at all, and several processes may write the same one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..contracts import Features
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


# bytes of a state
STATE_BYTES = {"bf16": 2, "fp8": 1}
# the largest number of float8_e4m3fn
_LARGEST = 448.0


class StatesCache(FileCache):
    """The VLM's states of one condition by key, in bfloat16, or in 8 bits with a scale for each tap."""

    def __init__(self, folder: Path, kind: Literal["bf16", "fp8"]) -> None:
        super().__init__(folder, f".{kind}.safetensors")
        self.kind = kind

    def load(self, key: str) -> Features | None:
        """The condition of one chat in float32; None if it is not there or the file is damaged, which makes it anew."""
        data = self.read(key)
        if data is None:
            return None
        try:
            kept = load(data)
            states = kept["states"].float()
            if self.kind == "fp8":
                states = states * kept["scales"][:, None]
            return Features(
                states=states[None],
                mask=torch.ones(1, len(states), dtype=torch.bool),
                positions=kept["positions"][None],
            )
        except (SafetensorError, KeyError):
            return None

    def save(self, key: str, features: Features) -> None:
        """Keeps the condition of one chat."""
        states = features.states[0].detach().float().cpu()
        kept = {"positions": features.positions[0].cpu().contiguous()}
        if self.kind == "fp8":
            kept["scales"] = states.abs().amax((0, 2)).clamp(min=1e-12) / _LARGEST
            states = states / kept["scales"][:, None]
        dtype = torch.bfloat16 if self.kind == "bf16" else torch.float8_e4m3fn
        self.write(key, save({**kept, "states": states.to(dtype).contiguous()}))
