"""What one generator is: everything that the rest of the package needs to know of it, in one frozen value."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ..contracts import Request, RewriteSettings
from ..errors import PromptError
from ..models.unifusion import UniFusionConfig
from ..vlm.prompt_check import foreign_syntax, words_of
from ..vlm.styles import STYLES, with_style

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
# the VLM's caption of an image
Describe = Callable[[Float[Tensor, "3 H W"]], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingDefaults:
    """What a model draws best with.

    schedule   a name of `flow.schedule.SCHEDULES`
    steps      calls of the model
    cfg        guidance scale, 1 = off (Krea's own scale counts from 0)
    """

    schedule: str
    steps: int
    cfg: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltIn:
    """The files of a generator that comes with the package. `name` is versioned, so that a workflow which names an older one can
    be told so."""

    name: str
    generator: Path
    vlm: Path
    vae: Path


def _never(shapes: Shapes) -> None:
    """For generators whose files always carry their configuration."""


def _nothing_known(request: Request, describe: Describe) -> Sequence[str]:
    """For generators of whose limits nothing can be told from a request."""
    return ()


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """One generator. `zoo/` has a file for each.

    name                  what users and files call it
    title                 what `unifusion inspect` calls a file of it
    config                its configuration; a file may have other sizes
    recognize             names and shapes of weights -> their configuration, for files that carry none; None if they are of
                          another model. May raise CheckpointError
    sampling              by variant of the model; the first is used if the user does not choose
    size                  (width, height) in pixels, used if the user does not choose
    rewrites              whether prompts are rewritten (VERIFI) if the user does not choose
    max_new_tokens        of a rewrite, if the user does not choose
    trained_on_rewrites   whether it was trained on prompts that the VLM rewrote
    vae_hint              which VAE decodes its latents, for error sentences
    comfy_latent_format   class of comfy.latent_formats with the scale of its latents; "" = latents are used as they are
    outside               what of a request it cannot draw, one sentence each that names the words; it may look at images by the
                          VLM's captions. Empty = nothing that is known
    styles                the named styles that its VLM follows
    comfy_easy_cache      the largest reuse_threshold of ComfyUI's EasyCache that keeps its images right; None = not measured
    trained_tokens        the longest condition that it was trained on; None = not known, or any
    unused                layers that some of its files have and that no published code reads
    limits                what it is known not to do, one sentence each
    built_in              its files, if they come with the package
    """

    name: str
    title: str
    config: UniFusionConfig
    sampling: Mapping[str, SamplingDefaults]
    size: tuple[int, int]
    rewrites: bool
    max_new_tokens: int
    trained_on_rewrites: bool
    vae_hint: str
    comfy_latent_format: str = ""
    recognize: Callable[[Shapes], UniFusionConfig | None] = _never
    outside: Callable[[Request, Describe], Sequence[str]] = _nothing_known
    styles: tuple[str, ...] = tuple(STYLES)
    comfy_easy_cache: float | None = None
    trained_tokens: int | None = None
    unused: frozenset[str] = frozenset()
    limits: tuple[str, ...] = field(default=())
    built_in: BuiltIn | None = None

    @property
    def default_sampling(self) -> SamplingDefaults:
        """That of the first variant."""
        return next(iter(self.sampling.values()))

    def max_pixels(self, config: UniFusionConfig) -> int:
        """Pixels of the largest size that a file with this configuration is known to draw well."""
        return max(width * height for width, height in (self.size, *config.trained_sizes))

    def with_style(self, request: Request, style: str) -> Request:
        """The request in a style: one of `styles`, or any text. Raises PromptError for a named style that its VLM was measured
        not to follow, and as `vlm.styles.with_style` does."""
        if style in STYLES and style not in self.styles:
            raise PromptError(
                f'The VLM of this model does not follow the style "{style}": write the prompt in English, and choose one of '
                f"{', '.join(self.styles)}."
            )
        return with_style(request, style)

    def not_drawn(self, request: Request, describe: Describe) -> list[str]:
        """What of a request is not drawn as it is written, one sentence each: commands of other text encoders, and of the other
        words what is `outside`."""
        written = request.prompt if request.rewrite is None else request.rewrite
        return [*foreign_syntax(written), *self.outside(words_of(request), describe)]

    def warn_of_long_condition(self, tokens: int) -> None:
        """Warns of a condition of more tokens than the generator was trained on."""
        if self.trained_tokens is not None and tokens > self.trained_tokens:
            logger.warning(
                "The condition has %d tokens, and %s was trained on at most %d: expect a worse image. Lower max_tiles (each tile "
                "of an image is many tokens), give fewer images, or shorten the prompt.",
                tokens,
                self.name,
                self.trained_tokens,
            )

    @property
    def rewriting(self) -> RewriteSettings:
        """How prompts are rewritten if the user does not choose."""
        return RewriteSettings(max_new_tokens=self.max_new_tokens, states=self.config.vlm.rewrite_states)
