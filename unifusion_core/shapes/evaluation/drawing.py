"""Images for many requests, with the text that the VLM wrote for each. A failed rewrite loses its own image only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...contracts import Features, Request, TokenRole
from ...errors import PromptError
from ...images import Pixels
from ...pipeline import Pipeline, SamplingSettings
from ...vlm.rewrite import Rewrite, attempt_rewrites


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The result of a request.

    words    the rewrite, or the error if it failed
    picture  None if the rewrite failed
    blind    the image from the same noise without image tokens, if asked for: it shows what the words alone achieve
    """

    words: str | None
    picture: Pixels | None
    blind: Pixels | None = None


def generate_attempts(
    pipeline: Pipeline,
    requests: Sequence[Request],
    seeds: Sequence[int],
    *,
    rewriting: bool,
    blind: bool = False,
    settings: SamplingSettings | None = None,
) -> list[Attempt]:
    """One attempt per request, all in one batch; without `settings` those of the model."""
    settings = settings or pipeline.settings()
    spec = pipeline.model.config.vlm
    rewrites: list[Rewrite | PromptError] = (
        attempt_rewrites(
            pipeline.backbone, spec, requests, pipeline.spec.rewriting, max_tiles=settings.max_tiles
        )
        if rewriting
        else [Rewrite(request=r, features=pipeline.encode([r], settings.max_tiles)) for r in requests]
    )
    good = {i: each for i, each in enumerate(rewrites) if isinstance(each, Rewrite)}
    images: dict[int, Pixels] = {}
    without: dict[int, Pixels] = {}
    if good:
        features = Features.cat([each.features for each in good.values()])
        of_these = [seeds[i] for i in good]
        images = dict(zip(good, pipeline.sample(features, of_these, settings), strict=True))
        if blind:
            blind_images = pipeline.sample(without_pictures(features), of_these, settings)
            without = dict(zip(good, blind_images, strict=True))
    return [
        Attempt(
            words=good[i].request.rewrite if i in good else str(each),
            picture=images.get(i),
            blind=without.get(i),
        )
        for i, each in enumerate(rewrites)
    ]


def generate_as_is(pipeline: Pipeline, requests: Sequence[Request], seeds: Sequence[int]) -> list[Pixels]:
    """One image per request, without rewriting, with the model's default settings."""
    return [each.pixels for each in pipeline.generate(requests, seeds, rewriting=False)]


def without_pictures(features: Features) -> Features:
    """The features with every image token masked."""
    return replace(features, mask=features.mask & (features.token_info.roles != TokenRole.IMAGE))
