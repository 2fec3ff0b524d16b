"""From a prompt to an image in one call: `Pipeline.load`, then `pipe(prompt, images=..., seed=...)`.

The steps behind it are `rewrite_requests` or `encode` (VLM), then `sample` (LAP, refiner, DiT, VAE). Every default comes from the
loaded generator's spec (zoo/), on the command line as in Python.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from . import zoo
from .caching import digest
from .checkpoints.adapter_file import merge_adapters, with_strength
from .checkpoints.generator_file import GeneratorFile
from .checkpoints.vae_file import AnyAutoencoder, check_decodes, load_vae
from .contracts import MAX_TILES, Conditioning, Features, Request, RewriteSettings
from .errors import ConfigError, PromptError, ShapeError
from .flow.guidance import OFF_IS_ONE
from .flow.schedule import build_schedule, check_schedule
from .images import (
    ImageLike,
    Pixels,
    check_size,
    edited_size,
    size_to_draw,
    to_pixels,
    to_tensor,
    untrained_size,
    warn_of_other_size,
)
from .models.autoencoder import DOWNSCALE, Autoencoder
from .models.unifusion import UniFusion
from .sampling import OnStep, make_noise, sample, work_of_step
from .vlm.backbone import VLMBackbone
from .vlm.folder import load_vlm
from .vlm.rewrite import Rewrite, describe_image, encode_requests, rewrite
from .vlm.tiling import resize
from .zoo.spec import GeneratorSpec

logger = logging.getLogger(__name__)

# drawn at once: more is no faster on a CPU
PIXELS_PER_BATCH = 16 * 128 * 128
SEED_LIMIT = 2**63
# the range of ComfyUI's samplers
MAX_CFG = 100.0
MIN_DENOISE = 0.01
MAX_STEPS = 10_000
CAPTIONS_KEPT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """How images are drawn. `Pipeline.settings` fills in what the model draws best with.

    size        (width, height) in pixels, multiples of 8
    steps       calls of the model, 1 or more
    cfg         guidance scale, 1 = off
    schedule    a name of `flow.schedule.SCHEDULES`
    image_cfg   guidance by the input images, apart from the text's; None = guided together
    max_tiles   per input image, thumbnail included
    negative    what guidance leads away from; empty = the empty prompt. Without effect at cfg 1
    denoise     share of the schedule that is run, above 0; less than 1 starts from an image (`Start`)

    Raises ConfigError for a number out of range, an unknown schedule or a negative prompt without guidance, ShapeError for an
    impossible size.
    """

    size: tuple[int, int]
    steps: int
    cfg: float
    schedule: str
    image_cfg: float | None = None
    max_tiles: int = MAX_TILES
    negative: str = ""
    denoise: float = 1.0

    def __post_init__(self) -> None:
        _check_size_type(self.size)
        check_size(self.size)
        _check_whole("steps", self.steps, 1)
        if self.steps > MAX_STEPS:
            raise ConfigError(f"steps is {self.steps}; give at most {MAX_STEPS}.")
        _check_whole("max_tiles", self.max_tiles, 1)
        _check_range("cfg", self.cfg, 0, MAX_CFG)
        if self.cfg == 0 and self.image_cfg is None:
            raise ConfigError(f"{OFF_IS_ONE}.")
        if self.image_cfg is not None:
            _check_range("image_cfg", self.image_cfg, 0, MAX_CFG)
        check_schedule(self.schedule)
        if not isinstance(self.negative, str):
            raise ConfigError(f"negative is {self.negative!r}; give a text.")
        if self.negative and self.cfg == 1:
            raise ConfigError(
                "a negative prompt acts through guidance, and cfg 1 is none: raise cfg, or leave the negative prompt out."
            )
        _check_range("denoise", self.denoise, MIN_DENOISE, 1)


@dataclass(frozen=True, kw_only=True)
class Start:
    """An image that is drawn over, in part or with less than all of the noise (inpainting, img2img).

    image   3 H W, RGB in 0..1, of any size
    mask    H W, 0..1: 1 = drawn anew, 0 = stays as it is, pixel by pixel; None = all of it is drawn over
    """

    image: Float[Tensor, "3 H W"]
    mask: Float[Tensor, "H W"] | None = None


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One drawn image: its pixels (H W 3, bytes), and the request as it was drawn, with its rewrite."""

    pixels: Pixels
    request: Request


class Pipeline:
    """Generator, VLM and autoencoder that fit each other."""

    def __init__(
        self,
        model: UniFusion,
        backbone: VLMBackbone,
        autoencoder: AnyAutoencoder,
        *,
        spec: GeneratorSpec,
        training: dict[str, Any] | None = None,
        run_device: torch.device | str | None = None,
    ) -> None:
        """`spec`: what the generator is, with its defaults. `training`: the record of how it was made. `run_device`: where to
        compute, if the weights wait elsewhere.

        Raises VLMError for a VLM and CheckpointError for an autoencoder that the generator was not trained with.
        """
        backbone.check_fits(model.config.vlm)
        check_decodes(autoencoder, model.config)
        self.model, self.backbone, self.spec = model, backbone, spec
        if isinstance(autoencoder, Autoencoder):
            # faster convolutions on a CPU
            autoencoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack memory_format)
        self.autoencoder, self.run_device = autoencoder, run_device
        self.training = training or {}
        self._negative: tuple[object, Conditioning] | None = None
        self._captions: dict[Hashable, str] = {}
        # of a step in the model's own size, with guidance or without
        self._step_seconds: dict[bool, float] = {}

    @classmethod
    def load(
        cls,
        model: str | Path | GeneratorFile = "tiny",
        vlm: str | Path = "tiny",
        vae: str | Path = "tiny",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        offload: bool = False,
        lora: Sequence[str | Path] = (),
    ) -> Pipeline:
        """A pipeline from files; "tiny" is the embedded model's. The generator's file is opened once.

        device    None = a GPU if there is one
        dtype     None = 32 bits; for generators of a billion parameters bfloat16
        offload   weights of generator and VLM wait in main memory and visit the device layer by layer (accelerate)
        lora      adapter files whose changes are merged into the generator's weights, in this order; "FILE:0.5" merges half

        Raises CheckpointError or VLMError for what is missing, damaged, or does not fit, and ConfigError for a device that is
        absent or a dtype that is no type of floats. What does not fit is refused before the weights are read.
        """
        for name, part in (("model", model), ("vlm", vlm), ("vae", vae)):
            if not isinstance(part, str | Path | GeneratorFile):
                raise ConfigError(f'{name} is {part!r}; give a path, or "tiny" for the embedded one.')
        device = check_device(default_device() if device is None else device)
        file = model if isinstance(model, GeneratorFile) else GeneratorFile(model)
        autoencoder = load_vae(vae, device)
        check_decodes(autoencoder, file.config)
        dtype, home = check_dtype(dtype or file.default_dtype), "cpu" if offload else device
        backbone = load_vlm(zoo.path_of(vlm, "vlm"), dtype, home, spec=file.config.vlm)
        backbone.check_fits(file.config.vlm)
        generator = file.load(device=home, dtype=dtype)
        for adapter in lora:
            merge_adapters(generator, *with_strength(adapter))
        run_device = None
        if offload:
            # takes time to import, and few need it
            from accelerate import cpu_offload  # noqa: PLC0415

            for part in (generator, backbone.model):
                cpu_offload(part, torch.device(device))
            run_device = backbone.run_device = torch.device(device)
        return cls(
            generator, backbone, autoencoder, spec=file.spec, training=file.training, run_device=run_device
        )

    @property
    def device(self) -> torch.device:
        """Where the generator computes."""
        return torch.device(self.run_device) if self.run_device else self.model.first.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the generator computes in."""
        return self.model.first.weight.dtype

    # In one call ------------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        images: Sequence[ImageLike] = (),
        rewrite: bool | str | None = None,
        style: str = "caption",
        seed: int | Sequence[int] = 0,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        cfg: float | None = None,
        image_cfg: float | None = None,
        schedule: str | None = None,
        max_tiles: int = MAX_TILES,
        negative: str = "",
        denoise: float = 1.0,
        mask: ImageLike | None = None,
        on_step: OnStep | None = None,
    ) -> Any:
        """Draws a prompt: one PIL image for one prompt and one seed, a list of them for a list of either.

        images      PIL images, paths, arrays (H W C) or tensors (C H W, 0..1), in the order in which the prompt counts them
        rewrite     True = the VLM rewrites the prompt (VERIFI); False = the prompt as it is; a text = your own rewrite;
                    None = as the model wants it
        style       how the VLM rewrites: a name of `vlm.styles.STYLES` or any text
        seed        whole number from 0 to 2^63 - 1, for all prompts; a list has one for each prompt, or several for one prompt
        size        (width, height) in pixels; None = the first image's, or the model's own
        steps, cfg, schedule    None = what the model draws best with
        image_cfg   guidance by the images, apart from the text's; None = guided together
        max_tiles   per image, thumbnail included
        negative    what guidance leads away from; empty = the empty prompt
        denoise     less than 1 starts from the first image, and keeps more of it the smaller it is
        mask        an image in the shape of the first one: white = drawn anew, black = stays as it is
        on_step     called with (step, steps, clean latents as predicted now); an exception that it raises cancels the call

        Raises a UniFusionError (ConfigError, ShapeError, PromptError) for every argument that cannot be drawn.
        """
        prompts, inputs = _check_prompts(prompt), _check_images(images)
        locked = rewrite if isinstance(rewrite, str) else None
        if locked is not None and not locked.strip():
            raise PromptError("the rewrite is empty: give its words, or rewrite=False")
        if rewrite is not None and not isinstance(rewrite, bool | str):
            raise ConfigError(f"rewrite is {rewrite!r}; give True, False, a text or None.")
        if on_step is not None and not callable(on_step):
            raise ConfigError(f"on_step is {on_step!r}; give a function of (step, steps, latents) or None.")
        seeds = _check_seeds(seed, len(prompts))
        if len(prompts) == 1:
            prompts = prompts * len(seeds)
        rewriting = self.spec.rewrites if rewrite is None else bool(rewrite)
        requests = [Request(prompt=each, images=inputs, rewrite=locked) for each in prompts]
        requests = [self._with_style(each, style, rewriting) for each in requests]
        self._warn_of_outside(requests)
        if image_cfg is not None and not inputs:
            raise ConfigError(
                "image_cfg guides by input images, and none is given: give images, or leave image_cfg out."
            )
        settings = self.settings(
            size=size or (size_to_draw(inputs[0], self.max_pixels) if inputs else None),
            steps=steps,
            cfg=cfg,
            schedule=schedule,
            image_cfg=image_cfg,
            max_tiles=max_tiles,
            negative=negative,
            denoise=denoise,
        )
        start = start_from(inputs, denoise, None if mask is None else to_tensor(mask))
        if (edited := edited_size(inputs)) is not None:
            warn_of_other_size(settings.size, edited)
        drawn: list[Image.Image] = []
        for part in batches(len(requests), settings.size):
            starts = None if start is None else [start] * len(requests[part])
            done = self.generate(
                requests[part], seeds[part], settings, rewriting=rewriting, starts=starts, on_step=on_step
            )
            drawn += [Image.fromarray(each.pixels) for each in done]
        single = isinstance(prompt, str) and not isinstance(seed, Sequence)
        return drawn[0] if single else drawn

    def rewrite(
        self,
        prompt: str | Sequence[str],
        *,
        images: Sequence[ImageLike] = (),
        style: str = "caption",
        temperature: float = 0.0,
        seed: int = 0,
        max_new_tokens: int | None = None,
        max_tiles: int = MAX_TILES,
    ) -> Any:
        """The VLM's description of the target image (VERIFI): a `Rewrite`, whose `.text` has the words. A list of prompts gives
        a list.

        temperature      0 = the likeliest words; more varies them by `seed`
        max_new_tokens   None = as the model wants it

        Raises PromptError for a rewrite that is empty or does not end, and a UniFusionError for every argument that is wrong.
        """
        inputs = _check_images(images)
        requests = [
            self.spec.with_style(Request(prompt=each, images=inputs), style)
            for each in _check_prompts(prompt)
        ]
        self._warn_of_outside(requests)
        _check_whole("max_tiles", max_tiles, 1)
        _check_finite("temperature", temperature)
        (checked,) = _check_seeds(seed, 1)
        settings = replace(self.spec.rewriting, temperature=temperature, seed=checked)
        if max_new_tokens is not None:
            _check_whole("max_new_tokens", max_new_tokens, 1)
            settings = replace(settings, max_new_tokens=max_new_tokens)
        done = self.rewrite_requests(requests, settings, max_tiles=max_tiles)
        return done[0] if isinstance(prompt, str) else done

    def _with_style(self, request: Request, style: str, rewriting: bool) -> Request:
        """The request in a style. Raises ConfigError for a style where nothing is rewritten."""
        if not isinstance(style, str):
            raise PromptError(f"The style is {style!r}; give a name or a text.")
        styled = self.spec.with_style(request, style)
        if styled.style and (not rewriting or request.rewrite is not None):
            raise ConfigError(
                f'The style "{style}" says how to rewrite, and nothing is rewritten: leave it out, or rewrite.'
            )
        return styled

    def outside(self, request: Request, settings: SamplingSettings | None = None) -> list[str]:
        """What of a request the model was not trained to draw, one sentence each with the words concerned; empty if it knows how.
        With `settings` also a size far from the trained ones, with the time that it will take."""
        sentences = self.spec.not_drawn(request, self.describe)
        if settings is not None:
            width, height = settings.size
            told = untrained_size(settings.size, self.model.config.trained_sizes)
            sentences += [told] if told else []
            if width * height > 2 * self.max_pixels:
                seconds = told_time(self.estimate_seconds(settings))
                sentences.append(f"{width}x{height} will take about {seconds} on this machine.")
        return sentences

    def _warn_of_outside(self, requests: Sequence[Request]) -> None:
        sentences = (sentence for request in requests for sentence in self.outside(request))
        for sentence in dict.fromkeys(sentences):
            logger.warning("%s", sentence)

    def describe(self, image: Float[Tensor, "3 H W"]) -> str:
        """The VLM's caption of an image. Those of the latest images are kept."""
        key = digest(image)
        if key not in self._captions:
            while len(self._captions) >= CAPTIONS_KEPT:
                self._captions.pop(next(iter(self._captions)))
            self._captions[key] = describe_image(
                self.backbone, self.model.config.vlm, image, self.spec.rewriting
            )
        return self._captions[key]

    @torch.no_grad()
    def estimate_seconds(self, settings: SamplingSettings) -> float:
        """About how long an image takes: a step in the model's own size is timed, and scaled by the work that a size needs."""
        guided = settings.cfg != 1
        if guided not in self._step_seconds:
            one = self.settings(steps=1, cfg=2.0 if guided else 1.0)
            features = self.encode([Request(prompt="")])
            # the first call of a process allocates
            for _ in range(2):
                started = time.perf_counter()
                self.sample(features, [0], one)
                self._step_seconds[guided] = time.perf_counter() - started
        work = work_of_step(self.model, settings.size) / work_of_step(self.model, self.spec.size)
        return self._step_seconds[guided] * settings.steps * work

    # Step by step -----------------------------------------------------------------------------------

    def settings(
        self,
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        cfg: float | None = None,
        schedule: str | None = None,
        image_cfg: float | None = None,
        max_tiles: int = MAX_TILES,
        negative: str = "",
        denoise: float = 1.0,
    ) -> SamplingSettings:
        """Settings with what the model draws best with in every place that is None. Raises as `SamplingSettings` does."""
        return settings_for(
            self.spec,
            size=size,
            steps=steps,
            cfg=cfg,
            schedule=schedule,
            image_cfg=image_cfg,
            max_tiles=max_tiles,
            negative=negative,
            denoise=denoise,
        )

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest image that the model draws well."""
        return self.spec.max_pixels(self.model.config)

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        *,
        rewriting: bool | None = None,
        rewrite_settings: RewriteSettings | None = None,
        starts: Sequence[Start] | None = None,
        on_step: OnStep | None = None,
    ) -> list[Generated]:
        """One image per request, all in one batch. `rewriting`, `rewrite_settings` None = as the model wants it; a locked rewrite
        is always read. `starts`: an image per request that is drawn over.

        Raises PromptError for a chat that the VLM cannot take, ConfigError and ShapeError as `sample` does; warns of a size
        that the generator was not trained on.
        """
        settings = settings or self.settings()
        if self.spec.rewrites if rewriting is None else rewriting:
            rewrites = self.rewrite_requests(requests, rewrite_settings, max_tiles=settings.max_tiles)
            requests = [each.request for each in rewrites]
            features = Features.cat([each.features for each in rewrites])
        else:
            features = self.encode(requests, settings.max_tiles)
        image_only = None
        if settings.image_cfg is not None:
            alone = [replace(request, prompt="", style="", system="", rewrite=None) for request in requests]
            image_only = self.encode(alone, settings.max_tiles)
        self.spec.warn_of_long_condition(features.mask.shape[1])
        pixels = self.sample(features, seeds, settings, on_step, image_only=image_only, starts=starts)
        return [Generated(pixels=p, request=r) for p, r in zip(pixels, requests, strict=True)]

    def rewrite_requests(
        self,
        requests: Sequence[Request],
        settings: RewriteSettings | None = None,
        *,
        max_tiles: int = MAX_TILES,
    ) -> list[Rewrite]:
        """The requests with the VLM's rewrite, and the features to `sample` from. `settings` None = as the model wants them.

        Locked rewrites are only encoded, and so are empty prompts without images: they ask for the unconditional image.
        Raises PromptError as `vlm.rewrite.rewrite` does.
        """
        settings = settings or self.spec.rewriting
        numbers = [i for i, r in enumerate(requests) if r.rewrite is None and (r.prompt.strip() or r.images)]
        done: dict[int, Rewrite] = {}
        if numbers:
            seed = settings.seed
            own = settings if isinstance(seed, int) else replace(settings, seed=[seed[i] for i in numbers])
            chosen = [requests[i] for i in numbers]
            written = rewrite(self.backbone, self.model.config.vlm, chosen, own, max_tiles=max_tiles)
            done = dict(zip(numbers, written, strict=True))
        return [
            done.get(i) or Rewrite(request=request, features=self.encode([request], max_tiles))
            for i, request in enumerate(requests)
        ]

    def encode(self, requests: Sequence[Request], max_tiles: int = MAX_TILES) -> Features:
        """The VLM's states of the selected tokens, for requests as they are. Raises PromptError for a chat that is too long."""
        spec = self.model.config.vlm
        return encode_requests(self.backbone, spec, requests, states=spec.rewrite_states, max_tiles=max_tiles)

    @torch.no_grad()
    def sample(
        self,
        features: Features,
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        on_step: OnStep | None = None,
        *,
        image_only: Features | None = None,
        layer_gains: Sequence[float] | None = None,
        starts: Sequence[Start] | None = None,
    ) -> list[Pixels]:
        """One image per row of features. An image depends on its row and its seed, not on its neighbours in the batch.

        `image_only`: the same images with an empty prompt. Text and images are then guided apart, by
        negative + image_cfg (image_only - negative) + cfg (positive - image_only). `layer_gains` concern `features` alone.
        `starts`: an image per row that is drawn over.

        Raises ConfigError for another number of seeds than rows; warns of a size that the generator was not trained on.
        """
        images = self.sample_unrounded(
            features,
            seeds,
            settings,
            on_step,
            image_only=image_only,
            layer_gains=layer_gains,
            starts=starts,
        )
        return to_pixels(images)

    @torch.no_grad()
    def sample_unrounded(
        self,
        features: Features,
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        on_step: OnStep | None = None,
        *,
        image_only: Features | None = None,
        layer_gains: Sequence[float] | None = None,
        starts: Sequence[Start] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """As `sample`, before values are cut off at 0 and 1 and rounded to bytes."""
        settings = settings or self.settings()
        if len(seeds) != len(features.mask):
            raise ConfigError(
                f"{len(seeds)} seeds were given for {len(features.mask)} pictures; give one for each."
            )
        config = self.model.config
        width, height = settings.size
        if told := untrained_size((width, height), config.trained_sizes):
            logger.warning("%s", told)
        patch = config.dit.patch_size
        # whole patches; what is more than the size is cut off
        rows, columns = (-(-side // DOWNSCALE // patch) for side in (height, width))
        grid = (rows, columns)
        schedule = build_schedule(settings.schedule, settings.steps, rows * columns, settings.denoise)
        noise = make_noise(
            list(seeds), config.dit.latent_channels, rows * patch, columns * patch, self.device
        )
        guided = settings.cfg != 1 or image_only is not None
        images, masks = self._starts(starts, settings)
        latents = sample(
            self.model,
            self.model.prepare(self.pool(features, layer_gains), grid),
            noise.to(self.dtype),
            schedule,
            negative=self.model.prepare(self.negative(settings.negative), grid) if guided else None,
            cfg=settings.cfg,
            image_only=None if image_only is None else self.model.prepare(self.pool(image_only), grid),
            image_cfg=1.0 if settings.image_cfg is None else settings.image_cfg,
            start=None if images is None else self._encode_images(images, noise),
            mask=None if masks is None else F.adaptive_max_pool2d(masks, noise.shape[-2:]),
            on_step=on_step,
        )
        pixels = self.autoencoder.decode(latents.float())[..., :height, :width]
        if images is not None and masks is not None:
            # what stays is the image's own, not the autoencoder's copy of it
            pixels = masks * pixels + (1 - masks) * images
        return pixels

    def _encode_images(
        self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C h w"]:
        """Latents of images, extended at the edge to the whole patches of the noise."""
        missing = [
            DOWNSCALE * cells - side for cells, side in zip(noise.shape[-2:], images.shape[-2:], strict=True)
        ]
        padded = F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")
        return self.autoencoder.encode(padded).to(noise.device)

    def _starts(
        self, starts: Sequence[Start] | None, settings: SamplingSettings
    ) -> tuple[Float[Tensor, "B 3 H W"] | None, Float[Tensor, "B 1 H W"] | None]:
        """Images and masks in the size that is drawn."""
        if starts is None:
            if settings.denoise < 1:
                raise ConfigError(
                    "denoise below 1 starts from an image, and none is given: give one, or denoise 1."
                )
            return None, None
        width, height = settings.size
        images = torch.stack([resize(each.image, height, width) for each in starts]).to(self.device)
        if all(each.mask is None for each in starts):
            return images, None
        masks = [
            torch.ones(1, height, width) if each.mask is None else resize(each.mask[None], height, width)
            for each in starts
        ]
        return images, torch.stack(masks).to(self.device)

    @torch.no_grad()
    def pool(self, features: Features, layer_gains: Sequence[float] | None = None) -> Conditioning:
        """What the DiT reads: features pooled by LAP and refined; `layer_gains` as in `UniFusion.pool`. Image tokens that were
        pooled before are not pooled again."""
        features = features.to(self.device, self.dtype)
        return self.model.pool(features, layer_gains, weights=self._state_of_weights())

    @property
    def unconditional(self) -> Conditioning:
        """The empty prompt in the same template: what guidance leads away from if nothing else is given."""
        return self.negative("")

    def negative(self, prompt: str) -> Conditioning:
        """What guidance leads away from. It is encoded once, and again after the weights that make it have changed (a merged
        LoRA, another type or device)."""
        made_of = (self._state_of_weights(self.backbone.model), prompt)
        if self._negative is None or self._negative[0] != made_of:
            self._negative = (made_of, self.pool(self.encode([Request(prompt=prompt)])))
        return self._negative[1]

    def _state_of_weights(self, *others: nn.Module) -> Hashable:
        """Something that is equal as long as the weights behind a condition are, and those of `others`: torch counts changes in
        place."""
        pooling = [p for name, p in self.model.named_parameters() if name.startswith("txt")]
        weights = [*pooling, *(p for other in others for p in other.parameters())]
        return self.dtype, self.device, tuple((p.data_ptr(), p._version, p.dtype) for p in weights)


def settings_for(
    spec: GeneratorSpec,
    *,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    cfg: float | None = None,
    schedule: str | None = None,
    image_cfg: float | None = None,
    max_tiles: int = MAX_TILES,
    negative: str = "",
    denoise: float = 1.0,
) -> SamplingSettings:
    """As `Pipeline.settings`, before anything is loaded."""
    if schedule is not None:
        check_schedule(schedule)
    usual = zoo.sampling_for(spec, schedule)
    return SamplingSettings(
        size=spec.size if size is None else size,
        steps=usual.steps if steps is None else steps,
        cfg=usual.cfg if cfg is None else cfg,
        schedule=usual.schedule,
        image_cfg=image_cfg,
        max_tiles=max_tiles,
        negative=negative,
        denoise=denoise,
    )


def batches(count: int, size: tuple[int, int]) -> Iterator[slice]:
    """Slices over `count` images of one size, as many in each as are drawn at once."""
    fitting = max(1, PIXELS_PER_BATCH // (size[0] * size[1]))
    for start in range(0, count, fitting):
        yield slice(start, start + fitting)


def told_time(seconds: float) -> str:
    """For example "40 seconds", "12 minutes", "3.5 hours"."""
    if seconds < 100:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def start_from(
    images: Sequence[Float[Tensor, "3 H W"]], denoise: float, mask: Float[Tensor, "3 H W"] | None
) -> Start | None:
    """The first image as what is drawn over, if `denoise` or `mask` ask for it. A mask's brightness counts.

    Raises ConfigError if there is no image, and ShapeError for a mask of another shape.
    """
    if denoise == 1 and mask is None:
        return None
    if not images:
        raise ConfigError(
            "mask and denoise say how much of an input image is drawn anew, and none is given: give one."
        )
    if mask is None:
        return Start(image=images[0])
    (height, width), (mask_height, mask_width) = images[0].shape[1:], mask.shape[1:]
    if abs(width * mask_height - height * mask_width) > DOWNSCALE * max(width, height):
        raise ShapeError(
            f"The mask is {mask_width}x{mask_height} and the image {width}x{height}: give a mask of the image's shape."
        )
    return Start(image=images[0], mask=mask.mean(0))


# Arguments -----------------------------------------------------------------------------------------


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: torch.device | str) -> torch.device:
    """The device. Raises ConfigError for one that torch does not know or that this machine lacks."""
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'The device "{device}" cannot be used here ({reason}): choose "{default_device()}".'
        ) from error
    return checked


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype. Raises ConfigError for one that a generator cannot compute in."""
    allowed = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    if dtype not in allowed:
        raise ConfigError(
            f"dtype is {dtype!r}; choose {', '.join(str(each).removeprefix('torch.') for each in allowed)} of torch."
        )
    return dtype


def _check_prompts(prompt: str | Sequence[str]) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or not all(isinstance(each, str) for each in prompts):
        raise PromptError(f"The prompt is {prompt!r:.80}; give a text, or a list of texts.")
    if not prompts:
        raise PromptError("No prompt was given; give at least one (it may be empty).")
    return list(prompts)


def _check_images(images: Sequence[ImageLike]) -> list[torch.Tensor]:
    if not isinstance(images, list | tuple):
        raise ShapeError(f"images is a {type(images).__name__}; give a list, also for one image.")
    return [to_tensor(each) for each in images]


def _check_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed for each of `count` prompts; one prompt may have many."""
    seeds = list(seed) if isinstance(seed, list | tuple | range) else None
    for each in seeds if seeds is not None else [seed]:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each < SEED_LIMIT:
            raise ConfigError(f"The seed is {each!r}; give a whole number from 0 to 2^63 - 1.")
    if seeds is None:
        assert isinstance(seed, int)
        return [seed] * count
    if not seeds or (count > 1 and len(seeds) != count):
        raise ConfigError(f"{len(seeds)} seeds were given for {count} prompts; give one for each.")
    return seeds


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least {least}.")


def _check_finite(name: str, value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; give a number.")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    _check_finite(name, value)
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value:g}; give a number from {low:g} to {high:g}.")


def _check_size_type(size: tuple[int, int]) -> None:
    whole = isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not whole:
        raise ConfigError(f"size is {size!r}; give (width, height) in pixels.")
