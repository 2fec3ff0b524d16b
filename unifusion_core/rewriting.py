"""VERIFI: the VLM writes down what the target picture shows, and the generator reads the states of those words.

`states` says where the states come from. "one_pass": from the decoding pass itself, over [system, pictures, instruction,
rewrite], nothing encoded twice (paper, section on VERIFI). "reencode": the rewrite takes the place of style and prompt in
the model's own template, for generators that never saw states of an assistant turn; pictures stay where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from .contracts import VLMFeatures, VLMRequest, VLMSpec
from .errors import ConfigError, PromptError
from .vlm.base import NEW_TOKENS, BaseVLM
from .vlm.prompts import join_features, kept_features, one_row

MAX_NEW_TOKENS = {"decoded": 128, "after_prefix": 512}
"""By `VLMSpec.kept_tokens`: how long a rewrite may be if the caller does not say. A caption of the small world has at most 50, a
large VLM describes at length."""
STATES = ("one_pass", "reencode")
REWRITE_BY_DEFAULT = {"decoded": True, "after_prefix": False}
"""By `VLMSpec.kept_tokens`: whether a generator wants its prompts rewritten if the user does not say."""
STATES_BY_DEFAULT = {"decoded": "one_pass", "after_prefix": "reencode"}
"""By `VLMSpec.kept_tokens`: which states of a rewrite a generator reads if the user does not say."""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A request with its rewrite (`request.decoded`), and the features of its kept tokens (one row)."""

    request: VLMRequest
    features: VLMFeatures


def read(
    backbone: BaseVLM,
    spec: VLMSpec,
    requests: Sequence[VLMRequest],
    *,
    max_tiles: int = 10,
    states: str = "one_pass",
    weights: Hashable = None,
) -> VLMFeatures:
    """Features of the kept tokens of chats as they are: with `decoded` that text stands in the assistant turn, word by word
    (teacher-forced), or for `states` "reencode" in the prompt's place. Pictures that were read before are not read again;
    `weights` tells states of the VLM's weights apart, where a host patches them."""
    _check_states(states)
    if states == "reencode":
        # without the style, which spoke to the VLM that wrote; the pictures stay in view
        requests = [
            r if r.decoded is None else replace(r, prompt=r.decoded, style="", decoded=None) for r in requests
        ]
    if not any(request.pictures for request in requests):
        features = backbone.encode(backbone.prepare(requests, spec.template, max_tiles), spec)
        return kept_features(features, spec.kept_tokens)
    rows = [backbone.prepare([request], spec.template, max_tiles) for request in requests]
    return join_features(
        [
            kept_features(backbone.encode(row, spec, reuse_pictures=True, weights=weights), spec.kept_tokens)
            for row in rows
        ]
    )


def rewrite(
    backbone: BaseVLM,
    spec: VLMSpec,
    requests: Sequence[VLMRequest],
    *,
    max_tiles: int = 10,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    states: str | None = None,
    weights: Hashable = None,
    on_token: Callable[[int], None] | None = None,
) -> list[Rewrite]:
    """One rewrite per request, in the generator's own chat template.

    Temperature 0 writes the likeliest words, more of it varies them by `seed` (one for all requests, or one for each).
    `states` and `max_new_tokens` None take what suits the generator. `weights` as in `read`. `on_token` is
    called with the number of tokens so far and may raise to interrupt.

    Raises PromptError for a rewrite that is empty or does not end: half a description would draw half a picture.
    """
    attempts = attempt_rewrites(
        backbone,
        spec,
        requests,
        max_tiles=max_tiles,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        states=states,
        weights=weights,
        on_token=on_token,
    )
    done = []
    for attempt in attempts:
        if isinstance(attempt, PromptError):
            raise attempt
        done.append(attempt)
    return done


def attempt_rewrites(
    backbone: BaseVLM,
    spec: VLMSpec,
    requests: Sequence[VLMRequest],
    *,
    max_tiles: int = 10,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    states: str | None = None,
    weights: Hashable = None,
    on_token: Callable[[int], None] | None = None,
) -> list[Rewrite | PromptError]:
    """`rewrite` with the error in the place of each rewrite that failed."""
    states = states or STATES_BY_DEFAULT[spec.kept_tokens]
    if max_new_tokens is None:
        max_new_tokens = MAX_NEW_TOKENS[spec.kept_tokens]
    _check_states(states)
    written = backbone.write(
        backbone.prepare(requests, spec.template, max_tiles),
        spec if states == "one_pass" else (),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_token=on_token,
        reuse_pictures=True,
        weights=weights,
    )
    attempts: list[Rewrite | PromptError] = []
    for row, (request, text, ended) in enumerate(zip(requests, written.texts, written.ended, strict=True)):
        if not ended:
            attempts.append(
                PromptError(
                    f"The rewrite of {_shown(request)} did not end within {max_new_tokens} tokens: word the prompt "
                    f"otherwise, raise {NEW_TOKENS}, or give the rewrite yourself."
                )
            )
        elif not text.strip():
            attempts.append(
                PromptError(
                    f"The VLM had nothing to say to {_shown(request)}: word the prompt otherwise, or switch "
                    "rewriting off."
                )
            )
        else:
            done = replace(request, decoded=text.strip())
            features = (
                read(backbone, spec, [done], max_tiles=max_tiles, states=states, weights=weights)
                if written.features is None
                else kept_features(one_row(written.features, row), spec.kept_tokens)
            )
            attempts.append(Rewrite(request=done, features=features))
    return attempts


def _check_states(states: str) -> None:
    if states not in STATES:
        raise ConfigError(f'states is "{states}"; choose {" or ".join(STATES)}')


def _shown(request: VLMRequest) -> str:
    """The request's prompt for an error's sentence, cut if it is long."""
    prompt = request.prompt
    pictures = f" with {len(request.pictures)} picture(s)" if request.pictures else ""
    return f'"{prompt if len(prompt) <= 60 else prompt[:57] + "..."}"{pictures}'
