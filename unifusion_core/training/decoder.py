"""Finish the decoder on what the generator draws.

A drawn latent is never exact, and its errors are not white noise: outlines waver, a colour bleeds. Pairs of such latents and the
picture they stand for come from the generator itself: true latents, noised half-way, drawn to the end again. The encoder, and so
all that the generator was trained on, stays as it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoint import load_autoencoder, load_generator
from ..contracts import VLMRequest
from ..flow.path import interpolate
from ..models.autoencoder import DOWNSCALE
from ..pipeline import CFG
from ..rewriting import read
from ..sampling import draw_noise, sample
from ..vlm.backbone import VLMBackbone
from ..world import wordings
from ..world.render import object_geometry, render
from ..world.scenes import ASPECT_SIZES, Scene
from .autoencoder import AutoencoderTask, reconstruction_loss, weighted_object
from .generator import pool_scene, read_pool

NOISED = (0.2, 0.55)  # times from which latents are drawn anew: layout and traits stay, outlines do not
STEPS = 6
BATCH = 32

Sizes = dict[tuple[int, int], list[int]]


def draw_again(
    generator: Path,
    backbone: VLMBackbone,
    pool: dict[tuple[int, int], Tensor],
    numbers: Sizes,
    seed: int,
    path: Path,
) -> dict[tuple[int, int], Tensor]:
    """For every latent of the pool, one that the generator drew from half-way, by the picture's caption and with its default
    guidance. Kept in `path` for the same generator."""
    model, _ = load_generator(generator)
    weights = sum(float(p.double().abs().sum()) for p in model.parameters())
    key = f"{seed} {weights:.6f} {sum(map(len, pool.values()))}"
    if path.exists():
        with safe_open(str(path), "pt") as file:
            if file.metadata()["key"] == key:
                return {size: file.get_tensor("{}x{}".format(*size)) for size in pool}
    spec = model.config.vlm
    backbone.check_fits(spec)

    def condition(requests: Sequence[VLMRequest]) -> Any:
        return model.pool(read(backbone, spec, requests))

    rng = random.Random(f"decoder-{seed}")
    drawn = {}
    bar = tqdm(total=sum(map(len, pool.values())), desc="drawing the pool again")
    with torch.no_grad():
        negative = condition([VLMRequest(prompt="")])
        for size, latents in pool.items():
            parts = []
            for start in range(0, len(latents), BATCH):
                clean = latents[start : start + BATCH].float()
                scenes = [pool_scene(seed, n)[0] for n in numbers[size][start : start + BATCH]]
                wanted = [VLMRequest(prompt="", decoded=wordings.caption(scene)) for scene in scenes]
                t = rng.uniform(*NOISED)
                channels, rows, columns = clean.shape[1:]
                noise = draw_noise([rng.getrandbits(32) for _ in scenes], channels, rows, columns)
                begun = interpolate(clean, noise, torch.full((len(clean),), t))
                schedule = t * torch.linspace(1, 0, STEPS + 1)
                parts.append(
                    sample(model, condition(wanted), begun, schedule, negative=negative, cfg=CFG).half()
                )
                bar.update(len(clean))
            drawn[size] = torch.cat(parts)
    bar.close()
    save_file({"{}x{}".format(*size): latents for size, latents in drawn.items()}, str(path), {"key": key})
    return drawn


class DecoderTask(AutoencoderTask):
    """Half of the crops from drawn latents, half from true ones with noise; judged where the crop's edge cannot be seen."""

    name = "decoder"

    def __init__(
        self,
        *,
        seed: int,
        start: Path,
        generator: Path,
        backbone: VLMBackbone,
        pool_seed: int,
        pool_size: int,
        pool_path: Path,
        drawn_path: Path,
        crop: int = 48,
        margin: int = 8,
        latent_noise: float = 0.15,
        object_share: float = 0.85,
    ) -> None:
        """`pool_seed`, `pool_size`, `pool_path`: the pool of latents that the generator was trained on; `margin`: pixels at the
        crop's edges, where its neighbours are missing, that are not judged."""
        super().__init__(
            seed=seed,
            crop=crop,
            latent_noise=latent_noise,
            object_share=object_share,
            start=start,
            decoder_only=True,
        )
        self.margin, self.pool_seed = margin, pool_seed
        self.settings |= {"generator": generator.name, "pool_size": pool_size, "margin": margin}
        frozen = load_autoencoder(start).to(memory_format=torch.channels_last)
        self.numbers: Sizes = {size: [] for size in ASPECT_SIZES}
        for number in range(pool_size):
            self.numbers[pool_scene(pool_seed, number)[1]].append(number)
        pool = read_pool(frozen, pool_seed, pool_size, pool_path)  # may be longer
        self.pool = {size: pool[size][: len(numbers)] for size, numbers in self.numbers.items()}
        self.drawn = draw_again(generator, backbone, self.pool, self.numbers, pool_seed, drawn_path)

    def item(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, pixels, and which pixels are judged."""
        rng = random.Random(f"decoder-{self.seed}-{index}")
        size = rng.choices(ASPECT_SIZES, [len(self.numbers[s]) for s in ASPECT_SIZES])[0]
        place = rng.randrange(len(self.numbers[size]))
        scene, _ = pool_scene(self.pool_seed, self.numbers[size][place])
        is_drawn = rng.random() < 0.5
        latents = (self.drawn if is_drawn else self.pool)[size][place].float()
        cells = self.crop // DOWNSCALE
        left, top = (
            min(max(at, 0), length // DOWNSCALE - cells)
            for at, length in zip(self._corner(rng, scene, size), size, strict=True)
        )
        latents = latents[:, top : top + cells, left : left + cells]
        if not is_drawn:
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
            latents = latents + self.latent_noise * rng.random() * noise
        rows, columns = (slice(DOWNSCALE * at, DOWNSCALE * at + self.crop) for at in (top, left))
        pixels = torch.from_numpy(render(scene, *size)[rows, columns].copy()).permute(2, 0, 1).float() / 255
        judged = torch.zeros(1, self.crop, self.crop)
        first_row, first_column = (0 if at == 0 else self.margin for at in (top, left))
        last_row = self.crop if rows.stop == size[1] else self.crop - self.margin
        last_column = self.crop if columns.stop == size[0] else self.crop - self.margin
        judged[:, first_row:last_row, first_column:last_column] = 1
        return latents, pixels, judged

    def _corner(self, rng: random.Random, scene: Scene, size: tuple[int, int]) -> tuple[int, int]:
        """Left and top of a crop, in latent cells; may lie outside."""
        if rng.random() >= self.object_share:
            return rng.randint(0, size[0] // DOWNSCALE), rng.randint(0, size[1] // DOWNSCALE)
        x, y, _ = object_geometry(weighted_object(rng, scene), *size)
        half = self.crop / 2
        return round((x - half) / DOWNSCALE + rng.uniform(-1, 1)), round(
            (y - half) / DOWNSCALE + rng.uniform(-1, 1)
        )

    def collate(self, items: list[Any]) -> Any:
        latents, pixels, judged = (torch.stack(part) for part in zip(*items, strict=True))
        return latents.contiguous(memory_format=torch.channels_last), pixels, judged

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        latents, pixels, judged = batch
        decoded = model.decode(latents)
        loss = reconstruction_loss(decoded, pixels, self.edge_weight, judged)
        error = ((decoded.detach() - pixels).square() * judged).sum() / (3 * judged.sum())
        return loss, {"mse": float(error)}

    def evaluate(self, model: nn.Module, step: int, out: Path) -> dict[str, float]:
        """Of whole pictures, as for every autoencoder, and of drawn latents of the first square pictures."""
        size = ASPECT_SIZES[0]
        latents = self.drawn[size][:24].float().contiguous(memory_format=torch.channels_last)
        scenes = [pool_scene(self.pool_seed, n)[0] for n in self.numbers[size][:24]]
        pixels = (
            torch.stack([torch.from_numpy(render(s, *size)).permute(2, 0, 1) for s in scenes]).float() / 255
        )
        mse = (model.decode(latents).clamp(0, 1) - pixels).square().mean((1, 2, 3))
        return {**super().evaluate(model, step, out), "psnr_drawn": round(float(-10 * mse.log10().mean()), 3)}
