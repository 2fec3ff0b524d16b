"""VERIFI: the VLM writes down what the target picture shows, and the generator reads the states of those words.

Here the text is written. Its states come from the encoding pass over [system, pictures, instruction, rewrite]
(`VLMRequest.decoded`), which equal those of the decoding pass itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .contracts import VLMRequest, VLMSpec
from .errors import PromptError
from .vlm.backbone import VLMBackbone

MAX_NEW_TOKENS = 128  # a caption of the small world has at most 50
REWRITE_BY_DEFAULT = {"decoded": True, "after_prefix": False}
"""By `VLMSpec.kept_tokens`: whether a generator wants its prompts rewritten if the user does not say."""


class _LimitReachedError(Exception):
    """Ends a generation that did not end by itself."""


def rewrite(
    backbone: VLMBackbone,
    spec: VLMSpec,
    requests: Sequence[VLMRequest],
    *,
    max_tiles: int = 10,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    on_token: Callable[[int], None] | None = None,
) -> list[str]:
    """One text per request, in the generator's own chat template.

    Temperature 0 writes the likeliest words, more of it varies them by `seed` (one for all requests, or one for each).
    `on_token` is called with the number of tokens so far and may raise to interrupt.

    Raises PromptError for a rewrite that is empty or does not end: half a description would draw half a picture.
    """
    texts = attempt_rewrites(
        backbone,
        spec,
        requests,
        max_tiles=max_tiles,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_token=on_token,
    )
    for text in texts:
        if isinstance(text, PromptError):
            raise text
    return [str(text) for text in texts]


def attempt_rewrites(
    backbone: VLMBackbone,
    spec: VLMSpec,
    requests: Sequence[VLMRequest],
    *,
    max_tiles: int = 10,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    on_token: Callable[[int], None] | None = None,
) -> list[str | PromptError]:
    """`rewrite` with the error in the place of each rewrite that failed."""
    seeds = [seed] * len(requests) if isinstance(seed, int) else list(seed)
    inputs = backbone.prepare(requests, spec.template, max_tiles)

    def watch(count: int) -> None:
        if on_token is not None:
            on_token(count)
        if count == max_new_tokens:
            raise _LimitReachedError

    try:
        texts = backbone.generate(
            inputs, max_new_tokens=max_new_tokens, temperature=temperature, seed=seeds, on_token=watch
        )
    except _LimitReachedError:
        if len(requests) > 1:  # one at a time, to see which: answers do not depend on their neighbours
            return [
                attempt_rewrites(
                    backbone,
                    spec,
                    [request],
                    max_tiles=max_tiles,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=own_seed,
                    on_token=on_token,
                )[0]
                for request, own_seed in zip(requests, seeds, strict=True)
            ]
        return [
            PromptError(
                f"The rewrite of {_shown(requests[0])} did not end within {max_new_tokens} tokens: word the prompt "
                "otherwise, or give the rewrite yourself."
            )
        ]
    return [
        text.strip()
        or PromptError(
            f"The VLM had nothing to say to {_shown(request)}: word the prompt otherwise, or switch rewriting off."
        )
        for text, request in zip(texts, requests, strict=True)
    ]


def _shown(request: VLMRequest) -> str:
    """The request's prompt for an error's sentence, cut if it is long."""
    prompt = request.prompt
    pictures = f" with {len(request.pictures)} picture(s)" if request.pictures else ""
    return f'"{prompt if len(prompt) <= 60 else prompt[:57] + "..."}"{pictures}'
