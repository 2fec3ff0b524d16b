"""The pool of the generator's training: a fixed number of scenes whose latents are encoded once and kept in a file."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ...checkpoints.safetensors_file import read_tensors
from ...errors import CheckpointError
from ...models.autoencoder import Autoencoder
from ..world.marks import with_marks
from ..world.prompts import with_equal_objects
from ..world.render import render_tensor
from ..world.scenes import ASPECT_SIZES, Scene, sample_scene, with_free_colors
from .autoencoder import encode_images

logger = logging.getLogger(__name__)

Size = tuple[int, int]
# (seed, number) -> scene, size
SceneAt = Callable[[int, int], tuple[Scene, Size]]

# shares of `ASPECT_SIZES`; files of pools are valid for these shares only
POOL_SHARES = (0.7, 0.15, 0.15)
ENCODED_AT_ONCE = 64


def pool_scene(seed: int, number: int) -> tuple[Scene, Size]:
    """Scene `number` of the pool and its size (width, height), without held-out pairs."""
    rng = random.Random(f"pool-{seed}-{number}")
    size = rng.choices(ASPECT_SIZES, POOL_SHARES)[0]
    count = rng.choices((1, 2, 3), (0.2, 0.35, 0.45))[0]
    scene = sample_scene(rng, num_objects=count)
    return with_equal_objects(rng, scene) if rng.random() < 0.08 else scene, size


def free_pool_scene(seed: int, number: int) -> tuple[Scene, Size]:
    """Scene `number` of the second pool, in colours between the named ones.

    Colours and shapes meet in every combination except the held-out pairs, which can be interpolated from their neighbours.
    """
    scene, size = pool_scene(seed, -1 - number)
    return with_free_colors(random.Random(f"free-{seed}-{number}"), scene), size


def marked_pool_scene(seed: int, number: int) -> tuple[Scene, Size]:
    """Scene `number` of the first pool with marks on its objects."""
    scene, size = pool_scene(seed, number)
    return with_marks(random.Random(f"marked-{seed}-{number}"), scene), size


class Pool:
    """Scenes by number with their latents, drawn at random by size. Latents that are not loaded are encoded on demand."""

    def __init__(
        self, autoencoder: Autoencoder, seed: int, count: int, path: Path, scene_at: SceneAt
    ) -> None:
        self.autoencoder, self.seed, self.count, self.path = autoencoder, seed, count, path
        self.scene_at = scene_at
        # by number
        self.latents: dict[int, Float[Tensor, "C h w"]] = {}
        self.numbers: dict[Size, list[int]] = {size: [] for size in ASPECT_SIZES}
        for number in range(count):
            self.numbers[scene_at(seed, number)[1]].append(number)

    def load(self, process: tuple[int, int] = (0, 1)) -> None:
        """Load all latents from the file, which is made or extended first; `process`: its index, and the number of processes."""
        if self.count:
            by_size = load_latents(
                self.autoencoder, self.seed, self.count, self.path, self.scene_at, process=process
            )
            for size, latents in by_size.items():
                # the file may hold more than this pool
                self.latents |= zip(self.numbers[size], latents, strict=False)

    def draw(self, rng: random.Random, size: Size) -> int:
        """The number of a random scene of this size."""
        return rng.choice(self.numbers[size])

    def at(self, number: int) -> tuple[Scene, Float[Tensor, "C h w"]]:
        """The scene of this number and its latents."""
        scene, size = self.scene_at(self.seed, number)
        if number not in self.latents:
            self.latents[number] = encode_scenes(self.autoencoder, [render_tensor(scene, *size)])[0]
        return scene, self.latents[number]


def load_latents(
    autoencoder: Autoencoder,
    seed: int,
    count: int,
    path: Path,
    scene_at: SceneAt = pool_scene,
    *,
    process: tuple[int, int] = (0, 1),
) -> dict[Size, Tensor]:
    """Latents of the pool's scenes by size, in the order of their numbers.

    Encoding an image costs more than a training step on it, so the latents are kept in `path`. Several processes share the work.
    A shorter file of the same seed and autoencoder is extended; any other file is replaced.
    """
    weights = sum(
        float(p.detach().cpu().double().abs().sum()) for p in autoencoder.taesd_encoder.parameters()
    )
    key = f"{seed} {weights:.6f}"
    index, num_processes = process
    done, kept = _kept_latents(path, key)
    # (first number, latents by size)
    encoded: list[tuple[int, dict[Size, Tensor]]] = []
    starts = range(done, count, ENCODED_AT_ONCE)[index::num_processes]
    for start in tqdm(starts, desc="encoding the pool", disable=index > 0 or not starts):
        images: dict[Size, list[Tensor]] = {}
        for number in range(start, min(start + ENCODED_AT_ONCE, count)):
            scene, size = scene_at(seed, number)
            images.setdefault(size, []).append(render_tensor(scene, *size))
        encoded.append((start, {size: encode_scenes(autoencoder, group) for size, group in images.items()}))
    if num_processes > 1:
        encoded = gather_object(encoded)
    groups = [kept, *(group for _, group in sorted(encoded, key=lambda part: part[0]))]
    parts = {size: [group[size] for group in groups if size in group] for size in ASPECT_SIZES}
    pool = {size: torch.cat(part) for size, part in parts.items() if part}
    if done < count and index == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"{}x{}".format(*size): latents for size, latents in pool.items()}
        unfinished = path.with_suffix(".part")
        save_file(tensors, str(unfinished), {"key": key, "count": str(count)})
        unfinished.replace(path)
    return pool


def _kept_latents(path: Path, key: str) -> tuple[int, dict[Size, Tensor]]:
    """The number of scenes in a pool's file and their latents by size; none if it is damaged or of another key."""
    if not path.exists():
        return 0, {}
    try:
        tensors, metadata = read_tensors(path)
    except CheckpointError as error:
        # without the error's advice, which is for a file that cannot be made again
        reason = error.__cause__ or error
        logger.warning("%s cannot be read (%s): the pool is encoded again", path, reason)
        return 0, {}
    if metadata.get("key") != key:
        return 0, {}
    names = {size: "{}x{}".format(*size) for size in ASPECT_SIZES}
    return int(metadata["count"]), {size: tensors[name] for size, name in names.items() if name in tensors}


@torch.no_grad()
def encode_scenes(autoencoder: Autoencoder, images: list[Float[Tensor, "3 H W"]]) -> Float[Tensor, "B C h w"]:
    """Latents as a pool keeps them: 16 bits, in main memory."""
    return encode_images(autoencoder, torch.stack(images)).half().cpu().contiguous()
