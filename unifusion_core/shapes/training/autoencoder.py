"""Train the embedded autoencoder on crops of shapes.

A penalty keeps the latents, which the DiT must learn to generate, near zero mean and unit spread per channel and inside the
decoder's clamp. The decoder is trained on noisy latents, since generated ones are never exact.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...checkpoints.vae_file import load_autoencoder
from ...models.autoencoder import DOWNSCALE, Autoencoder
from ...training.loop import Loop, Loss, Task, seeded, step_generator
from ..world.marks import with_marks
from ..world.render import mark_geometry, object_geometry, render, render_tensor, shape_coverage
from ..world.scenes import (
    ASPECT_SIZES,
    Scene,
    SceneObject,
    free_rgb,
    sample_scene,
    with_free_colors,
    with_free_rgb,
)
from ..world.scorer import read_picture

# how much more often crops are centred on these shapes
HARDNESS = {"star": 3, "cross": 2}


class AutoencoderTask(Task[Autoencoder]):
    """Square crops of images with up to nine objects; the loss has a higher weight on edges."""

    unused = False
    not_muon = ("taesd_encoder.0.", "taesd_decoder.1.", "taesd_encoder.14.", "taesd_decoder.19.")

    def __init__(
        self,
        *,
        seed: int,
        crop: int = 64,
        edge_weight: float = 4.0,
        latent_noise: float = 0.1,
        latent_penalty: float = 0.05,
        object_share: float = 0.0,
        free_color_share: float = 0.0,
        size_shares: tuple[float, ...] = (1.0,) * len(ASPECT_SIZES),
        start: Path | None = None,
        decoder_of: Path | None = None,
        decoder_only: bool = False,
        marked_share: float = 0.0,
        mark_weight: float = 0.0,
        free_rgb_share: float = 0.0,
        anchor: float = 0.0,
        color_weight: float = 0.0,
    ) -> None:
        """
        crop              side in pixels
        object_share      share of crops near an object (near its mark if it has one), most often a small one, a star or a cross;
                          the others are anywhere
        free_color_share  share of images with free colours: a decoder that was trained on the named colours alone jumps between
                          them, so that a slightly wrong latent becomes a stain
        size_shares       of `ASPECT_SIZES`
        start             a file to continue from
        decoder_of        a file whose decoder to continue from instead
        decoder_only      keep the encoder, so that a generator trained on its latents stays valid
        marked_share      share of images whose objects have marks
        mark_weight       further weight of the loss on marks, which are too few and too faint to be learned otherwise
        free_rgb_share    share of images with a background from anywhere in RGB, and free colours
        anchor            weight of the squared distance of the latents from those of `start`, beside marks and free colours, so
                          that a generator trained on those stays nearly valid
        color_weight      of the error of each latent cell's mean colour: it tells a colour that is a few levels off everywhere
                          from noise, which pixels do not
        """
        self.seed, self.crop = seed, crop
        self.object_share, self.free_color_share = object_share, free_color_share
        self.size_shares = size_shares
        self.marked_share, self.mark_weight = marked_share, mark_weight
        self.free_rgb_share, self.anchor = free_rgb_share, anchor
        self.color_weight = color_weight
        self.settings = {
            "seed": seed,
            "crop": crop,
            "edge_weight": edge_weight,
            "latent_noise": latent_noise,
            "latent_penalty": latent_penalty,
            "object_share": object_share,
            "free_color_share": free_color_share,
            "size_shares": size_shares,
            "start": start.name if start else None,
            "decoder_of": decoder_of.name if decoder_of else None,
            "decoder_only": decoder_only,
            "marked_share": marked_share,
            "mark_weight": mark_weight,
            "free_rgb_share": free_rgb_share,
            "anchor": anchor,
            "color_weight": color_weight,
        }
        self.edge_weight, self.latent_noise, self.latent_penalty = edge_weight, latent_noise, latent_penalty
        with seeded(seed):
            model = load_autoencoder(start) if start else Autoencoder()
        if start:
            with safe_open(str(start), "pt") as file:
                self.before = json.loads(file.metadata()["training"])
        if decoder_of:
            model.taesd_decoder.load_state_dict(load_autoencoder(decoder_of).taesd_decoder.state_dict())
        # what it was before this run
        self.earlier = copy.deepcopy(model).requires_grad_(False) if anchor else None
        model.taesd_encoder.requires_grad_(not decoder_only)
        model.taesd_decoder.requires_grad_(True)
        # torch's stubs lack memory_format
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def item(self, index: int) -> Tensor:
        rng = random.Random(f"autoencoder-{self.seed}-{index}")
        width, height = rng.choices(ASPECT_SIZES, self.size_shares)[0]
        scene = sample_scene(rng, max_objects=9)
        if rng.random() < self.free_color_share:
            scene = with_free_colors(rng, scene)
        # random numbers of their own, so that images of recipes without them stay as they are
        further = random.Random(f"autoencoder-marks-{self.seed}-{index}")
        ground = None
        free = further.random() < self.free_rgb_share
        if free:
            scene, ground = with_free_rgb(further, scene), free_rgb(further)
        if further.random() < self.marked_share:
            # on every object: the loss is local, and marks are few
            scene = with_marks(further, scene, 1.0)
        image = render(scene, width, height, ground=ground)
        left, top = rng.randint(0, width - self.crop), rng.randint(0, height - self.crop)
        if rng.random() < self.object_share:
            chosen = weighted_object(rng, scene)
            x, y, _ = mark_geometry(chosen, width, height) or object_geometry(chosen, width, height)
            jitter = self.crop // 4
            left, top = (
                min(max(round(at) - self.crop // 2 + rng.randint(-jitter, jitter), 0), length - self.crop)
                for at, length in ((x, width), (y, height))
            )
        covered = np.zeros((height, width), np.uint8)
        for obj in scene.objects:
            if geometry := mark_geometry(obj, width, height):
                x, y, radius = geometry
                # and one pixel around it
                disc = shape_coverage("circle", radius=radius + 1, center=(x, y), size=(width, height))
                covered |= disc >= 0.5
        colors_stay = np.full_like(covered, 0 if free else 1)
        crop = np.dstack([image, 255 * covered, 255 * colors_stay])
        crop = crop[top : top + self.crop, left : left + self.crop]
        return torch.from_numpy(crop.copy()).permute(2, 0, 1)

    def collate(self, items: list[Tensor]) -> Tensor:
        return (torch.stack(items).float() / 255).to(memory_format=torch.channels_last)

    def loss(self, model: Autoencoder, batch: Tensor, number: int) -> Loss:
        # the fourth channel is 1 on marks, the fifth where the latents of colours should stay
        batch, covered, colors_stay = batch.split((3, 1, 1), 1)
        latents = model.encode(batch)
        generator = step_generator(self.seed, number)
        sigma = self.latent_noise * torch.rand(len(batch), 1, 1, 1, generator=generator)
        noise = sigma * torch.randn(latents.shape, generator=generator)
        decoded = model.decode(latents + noise.to(batch.device))
        weight = 1 + self.edge_weight * _edges(batch) + self.mark_weight * covered
        error = decoded - batch
        reconstruction = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
        mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        drift = (
            mean.square().mean() + (spread - 1).square().mean() + F.relu(latents.abs() - 2.5).square().mean()
        )
        loss = reconstruction + self.latent_penalty * drift
        parts = {"mse": error.square().mean(), "drift": drift}
        if self.color_weight:
            parts["color_error"] = F.avg_pool2d(error, DOWNSCALE).abs().mean()
            loss = loss + self.color_weight * parts["color_error"]
        if self.earlier is not None:
            # a mark changes the cells around its own, too
            stays = F.max_pool2d(colors_stay, DOWNSCALE) * (
                1 - F.max_pool2d(F.max_pool2d(covered, DOWNSCALE), 3, 1, 1)
            )
            off = (stays * (latents - self.earlier.encode(batch)).square()).sum()
            parts["moved"] = off / (latents.shape[1] * stays.sum()).clamp(min=1)
            loss = loss + self.anchor * parts["moved"]
        return loss, parts

    def place(self, device: torch.device) -> None:
        if self.earlier is not None:
            self.earlier.to(device)

    def evaluate(self, loop: Loop, step: int) -> dict[str, float]:
        if not loop.chief:
            return {}
        model = self.model
        rng = random.Random("autoencoder-evaluation")
        scenes = [sample_scene(rng, held_out=True) for _ in range(24)]
        pixels = torch.stack([render_tensor(s) for s in scenes])
        latents = encode_images(model, pixels)
        decoded = model.decode(latents).clamp(0, 1).cpu()
        grid = torch.cat([pixels[:8], decoded[:8]], 0)
        save_grid(grid, loop.out / "samples" / f"{step:06d}.png", columns=8)
        mse = (decoded - pixels).square().mean((1, 2, 3))
        return {
            "psnr": round(float(-10 * mse.log10().mean()), 3),
            "latent_std": round(float(latents.std()), 3),
            "latent_max": round(float(latents.abs().max()), 3),
            **self._exact(model),
        }

    @staticmethod
    def _exact(model: Autoencoder) -> dict[str, float]:
        """Share of held-out pairs that are exact after the autoencoder, and PSNR of free colours, without and with noise."""
        rng = random.Random("autoencoder-evaluation-exact")
        scenes = [sample_scene(rng, held_out=True) for _ in range(48)]
        free = [with_free_colors(rng, sample_scene(rng)) for _ in range(16)]
        pixels = torch.stack([render_tensor(s) for s in scenes + free])
        latents = encode_images(model, pixels)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents.device)
        scores = {}
        for level in (0.0, 0.2):
            images = model.decode(latents + level * noise).clamp(0, 1).cpu()
            arrays = (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
            right = [read_picture(a).shows(s) for a, s in zip(arrays[: len(scenes)], scenes, strict=True)]
            scores[f"exact_noise_{level}"] = round(sum(right) / len(right), 3)
            mse = (images - pixels)[len(scenes) :].square().mean((1, 2, 3))
            scores[f"psnr_free_noise_{level}"] = round(float(-10 * mse.log10().mean()), 2)
        return scores

    def export(self, loop: Loop, weights: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        if loop.chief:
            save_autoencoder(self.model, loop.out / "vae.safetensors", record)


def encode_images(model: Autoencoder, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """Latents of images, on the autoencoder's device."""
    device = next(model.parameters()).device
    return model.encode(pixels.to(device, memory_format=torch.channels_last))


def weighted_object(rng: random.Random, scene: Scene) -> SceneObject:
    """A random object, most often one that is hard to reconstruct."""
    weights = [(2 if o.size == "small" else 1) * HARDNESS.get(o.shape, 1) for o in scene.objects]
    return rng.choices(scene.objects, weights)[0]


def save_autoencoder(model: Autoencoder, path: Path, record: dict[str, Any]) -> None:
    """Write 16-bit weights in the stock layout, with the record of the run as metadata."""
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(path), {"format": "pt", "training": json.dumps(record)})


def _edges(pixels: Tensor) -> Tensor:
    """Edge strength 0..1, widened by two pixels, (B, 1, H, W)."""
    down = F.pad((pixels[..., 1:, :] - pixels[..., :-1, :]).abs().amax(1, keepdim=True), (0, 0, 0, 1))
    right = F.pad((pixels[..., 1:] - pixels[..., :-1]).abs().amax(1, keepdim=True), (0, 1))
    return (F.max_pool2d(torch.maximum(down, right), 5, 1, 2) * 3).clamp(max=1)


def save_grid(pixels: Tensor, path: Path, *, columns: int) -> None:
    """Write images (B, 3, H, W) in 0..1 as one PNG with `columns` columns."""
    rows = [torch.cat(list(row), 2) for row in pixels.float().cpu().split(columns)]
    width = max(r.shape[2] for r in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = torch.cat([F.pad(r, (0, width - r.shape[2])) for r in rows], 1)
    Image.fromarray(np.round(sheet.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8)).save(path)
