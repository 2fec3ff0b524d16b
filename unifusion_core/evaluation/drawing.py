"""Images for many requests, with the text that the VLM wrote for each. A failed rewrite loses its own image only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..contracts import Features, Request, TokenRole
from ..errors import PromptError
from ..images import Pixels
from ..pipeline import Pipeline, SamplingSettings
from ..vlm.rewrite import Rewrite, attempt_rewrites


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
    rewrites = encode_attempts(pipeline, requests, rewriting=rewriting, max_tiles=settings.max_tiles)
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


def encode_attempts(
    pipeline: Pipeline, requests: Sequence[Request], *, rewriting: bool, max_tiles: int
) -> list[Rewrite | PromptError]:
    """What the generator gets for each request, or a PromptError in place of one that is too long or whose rewrite failed."""
    spec, settings = pipeline.model.config.vlm, pipeline.spec.rewriting
    failed: dict[int, PromptError] = {}
    for i, request in enumerate(requests):
        try:
            chat = pipeline.backbone.prepare([request], spec.template, max_tiles)
            if rewriting:
                pipeline.backbone.check_room(chat, settings.max_new_tokens)
        except PromptError as error:
            failed[i] = error
    fitting = [request for i, request in enumerate(requests) if i not in failed]
    done: list[Rewrite | PromptError] = []
    if fitting and rewriting:
        done = attempt_rewrites(pipeline.backbone, spec, fitting, settings, max_tiles=max_tiles)
    else:
        done = [Rewrite(request=r, features=pipeline.encode([r], max_tiles)) for r in fitting]
    of_fitting = iter(done)
    return [failed[i] if i in failed else next(of_fitting) for i in range(len(requests))]


def generate_as_is(pipeline: Pipeline, requests: Sequence[Request], seeds: Sequence[int]) -> list[Pixels]:
    """One image per request, without rewriting, with the model's default settings."""
    return [each.pixels for each in pipeline.generate(requests, seeds, rewriting=False)]


def without_pictures(features: Features) -> Features:
    """The features with every image token masked."""
    return replace(features, mask=features.mask & (features.token_info.roles != TokenRole.IMAGE))
