"""From a prompt to an image in one call: `Pipeline.load`, then `pipe(prompt, images=..., seed=...)`.

The steps behind it are `rewrite_requests` or `encode` (VLM), then `sample` (LAP, refiner, DiT, VAE). Every default comes from the
loaded generator's spec (zoo/), on the command line as in Python.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from . import zoo
from .checkpoints.adapter_file import merge_adapters
from .checkpoints.generator_file import GeneratorFile
from .checkpoints.vae_file import AnyAutoencoder, check_decodes, load_vae
from .contracts import MAX_TILES, Conditioning, Features, Request, RewriteSettings
from .errors import ConfigError, PromptError, ShapeError
from .flow.schedule import build_schedule, check_schedule
from .images import (
    ImageLike,
    Pixels,
    check_size,
    edited_size,
    size_for_image,
    to_pixels,
    to_tensor,
    warn_of_other_size,
    warn_of_untrained_size,
)
from .models.autoencoder import DOWNSCALE, Autoencoder
from .models.unifusion import UniFusion
from .sampling import OnStep, make_noise, sample
from .vlm.backbone import VLMBackbone
from .vlm.folder import load_vlm
from .vlm.prompt_check import warn_of_unread_parts
from .vlm.rewrite import Rewrite, encode_requests, rewrite
from .vlm.styles import with_style
from .zoo.spec import GeneratorSpec

# drawn at once: more is no faster on a CPU
PIXELS_PER_BATCH = 16 * 128 * 128
SEED_LIMIT = 2**63


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """How images are drawn. `Pipeline.settings` fills in what the model draws best with.

    size        (width, height) in pixels, multiples of 8
    steps       calls of the model, 1 or more
    cfg         guidance scale, 1 = off
    schedule    a name of `flow.schedule.SCHEDULES`
    image_cfg   guidance by the input images, apart from the text's; None = guided together
    max_tiles   per input image, thumbnail included

    Raises ConfigError for a number out of range or an unknown schedule, ShapeError for an impossible size.
    """

    size: tuple[int, int]
    steps: int
    cfg: float
    schedule: str
    image_cfg: float | None = None
    max_tiles: int = MAX_TILES

    def __post_init__(self) -> None:
        _check_size_type(self.size)
        check_size(self.size)
        _check_whole("steps", self.steps, 1)
        _check_whole("max_tiles", self.max_tiles, 1)
        _check_finite("cfg", self.cfg)
        if self.image_cfg is not None:
            _check_finite("image_cfg", self.image_cfg)
        check_schedule(self.schedule)


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
        self._unconditional: tuple[object, Conditioning] | None = None

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
        lora      adapter files whose changes are merged into the generator's weights, in this order

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
            merge_adapters(generator, Path(adapter))
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
        warn_of_unread_parts(self.backbone.tokenizer, requests)
        if image_cfg is not None and not inputs:
            raise ConfigError(
                "image_cfg guides by input images, and none is given: give images, or leave image_cfg out."
            )
        settings = self.settings(
            size=size or (size_for_image(inputs[0]) if inputs else None),
            steps=steps,
            cfg=cfg,
            schedule=schedule,
            image_cfg=image_cfg,
            max_tiles=max_tiles,
        )
        if (edited := edited_size(inputs)) is not None:
            warn_of_other_size(settings.size, edited)
        drawn: list[Image.Image] = []
        for part in batches(len(requests), settings.size):
            done = self.generate(requests[part], seeds[part], settings, rewriting=rewriting, on_step=on_step)
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
        requests = [with_style(Request(prompt=each, images=inputs), style) for each in _check_prompts(prompt)]
        warn_of_unread_parts(self.backbone.tokenizer, requests)
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
        styled = with_style(request, style)
        if styled.style and (not rewriting or request.rewrite is not None):
            raise ConfigError(
                f'The style "{style}" says how to rewrite, and nothing is rewritten: leave it out, or rewrite.'
            )
        return styled

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
    ) -> SamplingSettings:
        """Settings with what the model draws best with in every place that is None. Raises as `SamplingSettings` does."""
        if schedule is not None:
            check_schedule(schedule)
        usual = zoo.sampling_for(self.spec, schedule)
        return SamplingSettings(
            size=self.spec.size if size is None else size,
            steps=usual.steps if steps is None else steps,
            cfg=usual.cfg if cfg is None else cfg,
            schedule=usual.schedule,
            image_cfg=image_cfg,
            max_tiles=max_tiles,
        )

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        *,
        rewriting: bool | None = None,
        on_step: OnStep | None = None,
    ) -> list[Generated]:
        """One image per request, all in one batch. `rewriting` None = as the model wants it; a locked rewrite is always read.

        Raises PromptError for a chat that the VLM cannot take, ConfigError and ShapeError as `sample` does; warns of a size
        that the generator was not trained on.
        """
        settings = settings or self.settings()
        if self.spec.rewrites if rewriting is None else rewriting:
            rewrites = self.rewrite_requests(requests, max_tiles=settings.max_tiles)
            requests = [each.request for each in rewrites]
            features = Features.cat([each.features for each in rewrites])
        else:
            features = self.encode(requests, settings.max_tiles)
        image_only = None
        if settings.image_cfg is not None:
            alone = [replace(request, prompt="", style="", rewrite=None) for request in requests]
            image_only = self.encode(alone, settings.max_tiles)
        self.spec.warn_of_long_condition(features.mask.shape[1])
        pixels = self.sample(features, seeds, settings, on_step, image_only=image_only)
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
    ) -> list[Pixels]:
        """One image per row of features. An image depends on its row and its seed, not on its neighbours in the batch.

        `image_only`: the same images with an empty prompt. Text and images are then guided apart, by
        negative + image_cfg (image_only - negative) + cfg (positive - image_only). `layer_gains` concern `features` alone.

        Raises ConfigError for another number of seeds than rows; warns of a size that the generator was not trained on.
        """
        settings = settings or self.settings()
        if len(seeds) != len(features.mask):
            raise ConfigError(
                f"{len(seeds)} seeds were given for {len(features.mask)} pictures; give one for each."
            )
        config = self.model.config
        width, height = settings.size
        warn_of_untrained_size((width, height), config.trained_sizes)
        patch = config.dit.patch_size
        # whole patches; what is more than the size is cut off
        rows, columns = (-(-side // DOWNSCALE // patch) for side in (height, width))
        grid = (rows, columns)
        schedule = build_schedule(settings.schedule, settings.steps, rows * columns)
        noise = make_noise(
            list(seeds), config.dit.latent_channels, rows * patch, columns * patch, self.device
        )
        guided = settings.cfg != 1 or image_only is not None
        latents = sample(
            self.model,
            self.model.prepare(self.pool(features, layer_gains), grid),
            noise.to(self.dtype),
            schedule,
            negative=self.model.prepare(self.unconditional, grid) if guided else None,
            cfg=settings.cfg,
            image_only=None if image_only is None else self.model.prepare(self.pool(image_only), grid),
            image_cfg=1.0 if settings.image_cfg is None else settings.image_cfg,
            on_step=on_step,
        )
        pixels = self.autoencoder.decode(latents.float())
        return to_pixels(pixels[..., :height, :width])

    @torch.no_grad()
    def pool(self, features: Features, layer_gains: Sequence[float] | None = None) -> Conditioning:
        """What the DiT reads: features pooled by LAP and refined; `layer_gains` as in `UniFusion.pool`. Image tokens that were
        pooled before are not pooled again."""
        features = features.to(self.device, self.dtype)
        return self.model.pool(features, layer_gains, weights=self._state_of_weights())

    @property
    def unconditional(self) -> Conditioning:
        """The empty prompt in the same template: what guidance leads away from. It is encoded once, and again after the weights
        that make it have changed (a merged LoRA, another type or device)."""
        of_weights = self._state_of_weights(self.backbone.model)
        if self._unconditional is None or self._unconditional[0] != of_weights:
            self._unconditional = (of_weights, self.pool(self.encode([Request(prompt="")])))
        return self._unconditional[1]

    def _state_of_weights(self, *others: nn.Module) -> Hashable:
        """Something that is equal as long as the weights behind a condition are, and those of `others`: torch counts changes in
        place."""
        pooling = [p for name, p in self.model.named_parameters() if name.startswith("txt")]
        weights = [*pooling, *(p for other in others for p in other.parameters())]
        return self.dtype, self.device, tuple((p.data_ptr(), p._version, p.dtype) for p in weights)


def batches(count: int, size: tuple[int, int]) -> Iterator[slice]:
    """Slices over `count` images of one size, as many in each as are drawn at once."""
    fitting = max(1, PIXELS_PER_BATCH // (size[0] * size[1]))
    for start in range(0, count, fitting):
        yield slice(start, start + fitting)


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


def _check_size_type(size: tuple[int, int]) -> None:
    whole = isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not whole:
        raise ConfigError(f"size is {size!r}; give (width, height) in pixels.")
