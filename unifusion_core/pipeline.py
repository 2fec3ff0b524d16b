"""The whole way from a prompt to a picture, readable in two functions: `Pipeline.read` (or `rewrite`) and `Pipeline.draw`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from . import embedded
from .checkpoint import build_unifusion, load_autoencoder, load_generator, read_config
from .contracts import Conditioning, VLMFeatures, VLMRequest
from .errors import CheckpointError, ConfigError, ShapeError
from .flow.schedule import build_schedule
from .models.autoencoder import DOWNSCALE, Autoencoder
from .models.layers import Build
from .models.qwen_image_vae import QwenImageAutoencoder, load_qwen_image_vae
from .models.unifusion import UniFusion, UniFusionConfig
from .presets import DRAWN_WITH
from .rewriting import REWRITE_BY_DEFAULT, STATES_BY_DEFAULT, Rewrite, read, rewrite
from .sampling import OnStep, draw_noise, sample
from .sizes import check_size, warn_of_untrained_size
from .vlm.backbone import VLMBackbone
from .vlm.folder import load_vlm
from .vlm.tiling import flatten_alpha

EMBEDDED = "tiny"  # what a user writes for the embedded model's parts
MAX_TILES = 10
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
LARGE = 1_000_000_000  # parameters of a generator; from there on 16 bits are taken
_DRAWING = DRAWN_WITH[Autoencoder.latent_format]
PNG_KEY = "unifusion"  # one entry of JSON; "prompt" and "workflow" would be taken for ComfyUI's own

Picture = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawSettings:
    """How a picture is drawn; the defaults are those that the embedded model is evaluated with."""

    size: tuple[int, int] = _DRAWING.size  # width, height in pixels, multiples of 8
    steps: int = _DRAWING.steps
    cfg: float = _DRAWING.cfg  # 1 = no guidance
    image_cfg: float = 1.0  # guidance by input pictures, apart from the text's; used with `picture_only`
    schedule: str = _DRAWING.schedule
    max_tiles: int = MAX_TILES  # per input picture, thumbnail counted


class Pipeline:
    """Generator, VLM and autoencoder that fit each other."""

    def __init__(
        self,
        model: UniFusion,
        backbone: VLMBackbone,
        autoencoder: Autoencoder | QwenImageAutoencoder,
        *,
        training: dict[str, Any] | None = None,
        run_device: torch.device | str | None = None,
    ) -> None:
        """`training`: the generator's record of how it was made. `run_device`: where to compute, if the weights wait elsewhere.

        Raises VLMError for a VLM and CheckpointError for an autoencoder that the generator was not trained with.
        """
        backbone.check_fits(model.config.vlm)
        _check_decodes(autoencoder, model.config)
        self.model, self.backbone = model, backbone
        if isinstance(autoencoder, Autoencoder):
            autoencoder.to(memory_format=torch.channels_last)  # faster convolutions on a CPU
        self.autoencoder, self.run_device = autoencoder, run_device
        self.training = training or {}

    @classmethod
    def load(
        cls,
        model: str | Path = EMBEDDED,
        vlm: str | Path = EMBEDDED,
        vae: str | Path = EMBEDDED,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> Pipeline:
        """From files, "tiny" standing for the embedded ones; `device` None means a GPU if there is one, `dtype` None 32 bits, for
        generators of a billion parameters bfloat16. `offload`: weights of generator and VLM wait in main memory, and visit the
        device layer by layer (accelerate).

        Raises CheckpointError or VLMError for what is missing, damaged, or does not fit.
        """
        device, path = device or default_device(), generator_path(model)
        config = read_config(path)
        autoencoder = load_vae(vae, device)
        _check_decodes(autoencoder, config)  # before the weights, which may be many GB
        dtype, home = dtype or default_dtype(config), "cpu" if offload else device
        backbone = load_vlm(vlm_path(vlm), dtype, home, spec=config.vlm)
        generator, training = load_generator(path, device=home, dtype=dtype)
        if not offload:
            return cls(generator, backbone, autoencoder, training=training)
        from accelerate import cpu_offload  # noqa: PLC0415  (takes time, and few need it)

        backbone.check_fits(config.vlm)  # while its weights are in their place
        for part in (generator, backbone.model):
            cpu_offload(part, torch.device(device))
        backbone.run_device = torch.device(device)
        return cls(generator, backbone, autoencoder, training=training, run_device=device)

    @property
    def device(self) -> torch.device:
        """Where the generator computes."""
        return torch.device(self.run_device) if self.run_device else self.model.first.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the generator computes in."""
        return self.model.first.weight.dtype

    @property
    def rewrites_by_default(self) -> bool:
        """Whether this generator wants its prompts rewritten if the user does not say."""
        return REWRITE_BY_DEFAULT[self.model.config.vlm.kept_tokens]

    def rewrite(
        self,
        requests: Sequence[VLMRequest],
        *,
        max_tiles: int = MAX_TILES,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> list[Rewrite]:
        """The requests with the VLM's rewrite as their decoded text, and the features to `draw` from.

        Only read, not rewritten: locked rewrites, and empty prompts without pictures, which ask for the unconditional
        picture.
        """
        spec = self.model.config.vlm
        numbers = [
            i for i, r in enumerate(requests) if r.decoded is None and (r.prompt.strip() or r.pictures)
        ]
        done: dict[int, Rewrite] = {}
        if numbers:
            rewritten = rewrite(
                self.backbone,
                spec,
                [requests[i] for i in numbers],
                max_tiles=max_tiles,
                temperature=temperature,
                seed=seed if isinstance(seed, int) else [seed[i] for i in numbers],
            )
            done = dict(zip(numbers, rewritten, strict=True))
        return [
            done.get(i) or Rewrite(request=request, features=self.read([request], max_tiles))
            for i, request in enumerate(requests)
        ]

    def read(self, requests: Sequence[VLMRequest], max_tiles: int = MAX_TILES) -> VLMFeatures:
        """VLM states of the kept tokens, for requests as they are."""
        spec = self.model.config.vlm
        return read(
            self.backbone, spec, requests, max_tiles=max_tiles, states=STATES_BY_DEFAULT[spec.kept_tokens]
        )

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[VLMRequest],
        seeds: Sequence[int],
        settings: DrawSettings | None = None,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        """One picture per request as it is (`rewrite` and `draw` have the VLM rewrite it first).

        Raises ShapeError for an impossible size or input picture, PromptError for a chat the VLM cannot take,
        ConfigError for an impossible setting; warns if the size is none that the generator was trained on.
        """
        settings = settings or DrawSettings()
        check_size(settings.size)
        return self.draw(self.read(requests, settings.max_tiles), seeds, settings, on_step)

    @torch.no_grad()
    def draw(
        self,
        features: VLMFeatures,
        seeds: Sequence[int],
        settings: DrawSettings | None = None,
        on_step: OnStep | None = None,
        *,
        picture_only: VLMFeatures | None = None,
        layer_gains: Sequence[float] | None = None,
    ) -> list[Picture]:
        """One picture per row of VLM features. A picture depends on its row and its seed, not on its neighbours in the batch.

        `picture_only`: the same pictures with an empty prompt; then text and pictures are guided apart, by
        negative + image_cfg (picture_only - negative) + cfg (positive - picture_only). `layer_gains` concern `features` alone.

        Raises and warns as `generate` does.
        """
        settings = settings or DrawSettings()
        if len(seeds) != len(features.mask):
            raise ConfigError(
                f"{len(seeds)} seeds were given for {len(features.mask)} pictures; give one for each."
            )
        config = self.model.config
        width, height = check_size(settings.size)
        warn_of_untrained_size((width, height), config.trained_sizes)
        patch = config.dit.patch_size
        rows, columns = (
            -(-side // DOWNSCALE // patch) for side in (height, width)
        )  # whole patches; more is cut off
        schedule = build_schedule(settings.schedule, settings.steps, rows * columns)

        condition = self.model.prepare(self.pool(features, layer_gains), (rows, columns))
        guided = settings.cfg != 1 or picture_only is not None
        negative = self.model.prepare(self.unconditional, (rows, columns)) if guided else None
        pictures = (
            None if picture_only is None else self.model.prepare(self.pool(picture_only), (rows, columns))
        )
        noise = draw_noise(
            list(seeds), config.dit.latent_channels, rows * patch, columns * patch, self.device
        )
        latents = sample(
            self.model,
            condition,
            noise.to(self.dtype),
            schedule,
            negative=negative,
            cfg=settings.cfg,
            picture_only=pictures,
            image_cfg=settings.image_cfg,
            on_step=on_step,
        )
        pixels = self.autoencoder.decode(latents.float())  # B 3 H W
        return to_pictures(pixels[..., :height, :width])

    @torch.no_grad()
    def pool(self, features: VLMFeatures, layer_gains: Sequence[float] | None = None) -> Conditioning:
        """What the DiT reads: features pooled by LAP and refined; `layer_gains` as in `UniFusion.pool`."""
        return self.model.pool(features.to(self.device, self.dtype), layer_gains)

    @cached_property
    def unconditional(self) -> Conditioning:
        """The empty prompt in the same template: what guidance leads away from. Encoded once."""
        return self.pool(self.read([VLMRequest(prompt="")]))


def _check_decodes(autoencoder: Autoencoder | QwenImageAutoencoder, config: UniFusionConfig) -> None:
    channels, latent_format = config.dit.latent_channels, config.latent_format
    if (channels, latent_format) != (autoencoder.latent_channels, autoencoder.latent_format):
        raise CheckpointError(
            f'This VAE decodes {autoencoder.latent_channels} channels of the format "{autoencoder.latent_format}", '
            f'the generator draws {channels} of "{latent_format}": choose its own VAE (--vae; for Krea 2 the folder vae/ of its '
            "diffusers repository)."
        )


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(config: UniFusionConfig) -> torch.dtype:
    """What a generator computes in: 16 bits for large ones, whose files have no more."""
    count = sum(p.numel() for p in build_unifusion(config, Build(device="meta")).parameters())
    return torch.bfloat16 if count >= LARGE else torch.float32


# Parts --------------------------------------------------------------------------------------------


def generator_path(name: str | Path) -> Path:
    """The file of a generator; "tiny" is the embedded one."""
    return embedded.GENERATOR if name == EMBEDDED else Path(name)


def vae_path(name: str | Path) -> Path:
    """The file of an autoencoder; "tiny" is the embedded one."""
    return embedded.VAE if name == EMBEDDED else Path(name)


def load_vae(name: str | Path, device: torch.device | str) -> Autoencoder | QwenImageAutoencoder:
    """A VAE: "tiny", a file in the TAESD layout, or diffusers' folder of the Qwen-Image VAE. Raises CheckpointError."""
    path = vae_path(name)
    return load_qwen_image_vae(path, device) if path.is_dir() else load_autoencoder(path, device=device)


def vlm_path(name: str | Path) -> Path:
    """The folder of a VLM; "tiny" is the embedded one."""
    return embedded.VLM if name == EMBEDDED else Path(name)


# Picture files ------------------------------------------------------------------------------------


def to_pictures(pixels: Float[Tensor, "B 3 H W"]) -> list[Picture]:
    """Decoded pixels as 8-bit pictures, what lies outside 0..1 cut off."""
    whole = pixels.float().clamp(0, 1).mul(255).round().byte()
    return list(whole.permute(0, 2, 3, 1).cpu().numpy())


def read_picture_file(path: Path) -> Float[Tensor, "3 H W"]:
    """A PNG, JPEG or WebP file as RGB in 0..1, upright, transparency laid on white. Raises ShapeError."""
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16-bit gray, which convert() would cut off at 255
                image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
            image = image.convert("RGBA")
    except FileNotFoundError as error:
        raise ShapeError(f"There is no picture {path}: check its name.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = (
            "of another kind or damaged" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        )
        raise ShapeError(
            f"{path} cannot be read as a picture ({reason}): give a whole {', '.join(PICTURE_FORMATS)} file."
        ) from error
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # 4 H W
    return flatten_alpha(pixels)


def write_picture_file(path: Path, picture: Picture, record: dict[str, Any]) -> None:
    """A PNG that carries what made it (prompt, seed, settings) as JSON in its text entry "unifusion"."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, json.dumps(record, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, "PNG", pnginfo=info)
