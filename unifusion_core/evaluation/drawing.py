"""Pictures for many requests, with what the VLM wrote for each; a rewrite that fails costs its own picture and no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..contracts import TokenRole, VLMFeatures, VLMRequest
from ..errors import PromptError
from ..pipeline import DrawSettings, Picture, Pipeline
from ..rewriting import Rewrite, attempt_rewrites
from ..vlm.prompts import join_features


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What became of a request: the VLM's words (or why there are none), and a picture unless that failed.

    `blind` is the same picture drawn with the pictures' tokens removed from the condition, if it was asked for: what the words
    alone can do.
    """

    words: str | None
    picture: Picture | None
    blind: Picture | None = None


def draw_attempts(
    pipeline: Pipeline,
    requests: Sequence[VLMRequest],
    seeds: Sequence[int],
    *,
    rewriting: bool,
    blind: bool = False,
    settings: DrawSettings | None = None,
) -> list[Attempt]:
    """One attempt per request, all drawn in one batch with the shipped default settings if no others are given."""
    settings = settings or DrawSettings()
    spec = pipeline.model.config.vlm
    read: list[Rewrite | PromptError] = (
        attempt_rewrites(pipeline.backbone, spec, requests, max_tiles=settings.max_tiles)
        if rewriting
        else [Rewrite(request=r, features=pipeline.read([r], settings.max_tiles)) for r in requests]
    )
    good = {i: each for i, each in enumerate(read) if isinstance(each, Rewrite)}
    pictures: dict[int, Picture] = {}
    without: dict[int, Picture] = {}
    if good:
        features = join_features([each.features for each in good.values()])
        of_these = [seeds[i] for i in good]
        pictures = dict(zip(good, pipeline.draw(features, of_these, settings), strict=True))
        if blind:
            drawn = pipeline.draw(without_pictures(features), of_these, settings)
            without = dict(zip(good, drawn, strict=True))
    return [
        Attempt(
            words=good[i].request.decoded if i in good else str(each),
            picture=pictures.get(i),
            blind=without.get(i),
        )
        for i, each in enumerate(read)
    ]


def without_pictures(features: VLMFeatures) -> VLMFeatures:
    """The same features with every picture token masked."""
    return replace(features, mask=features.mask & (features.roles != TokenRole.PICTURE))
