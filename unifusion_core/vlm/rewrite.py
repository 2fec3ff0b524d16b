"""VERIFI (paper, section on VERIFI): the VLM rewrites the prompt, and the states of the rewrite condition the generator.

`RewriteSettings.states` is the source of these states. "one_pass": the decoding pass over [system, images, prompt, rewrite].
"reencode": a new chat with the same images and the rewrite as its prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from ..contracts import MAX_TILES, Features, Request, RewriteSettings, RewriteStates, VLMSpec
from ..errors import PromptError
from .answer import description_in, whole_sentences
from .base import NEW_TOKENS, BaseVLM
from .features import encode_chat, select_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A request with its rewrite, and one row of features of the selected tokens."""

    request: Request
    features: Features

    @property
    def text(self) -> str:
        """The rewrite, or the prompt if there is none."""
        return self.request.prompt if self.request.rewrite is None else self.request.rewrite


def encode_requests(
    backbone: BaseVLM,
    spec: VLMSpec,
    requests: Sequence[Request],
    *,
    states: RewriteStates,
    max_tiles: int = MAX_TILES,
    weights: Hashable = None,
) -> Features:
    """Features of the selected tokens, one row per request.

    states    "one_pass": a given rewrite is the assistant's turn (teacher forcing). "reencode": it is the prompt
    weights   key of the weights in the prefix cache, for hosts that patch weights

    States of images come from the prefix cache where they are in it. Raises as `encode_chat` and `BaseVLM.prepare` do.
    """
    if states == "reencode":
        # without style and system text, which were meant for the VLM that wrote the rewrite
        requests = [
            r if r.rewrite is None else replace(r, prompt=r.rewrite, style="", system="", rewrite=None)
            for r in requests
        ]
    if not any(request.images for request in requests):
        return encode_chat(backbone, spec, backbone.prepare(requests, spec.template, max_tiles))
    chats = [backbone.prepare([request], spec.template, max_tiles) for request in requests]
    return Features.cat(
        [encode_chat(backbone, spec, chat, reuse_images=True, weights=weights) for chat in chats]
    )


def rewrite(
    backbone: BaseVLM,
    spec: VLMSpec,
    requests: Sequence[Request],
    settings: RewriteSettings,
    *,
    max_tiles: int = MAX_TILES,
    weights: Hashable = None,
    on_token: Callable[[int], None] | None = None,
) -> list[Rewrite]:
    """One rewrite per request. Arguments as in `attempt_rewrites`.

    Raises PromptError for a rewrite that is empty or truncated, which would silently drop content, else as `attempt_rewrites`.
    """
    done = []
    for attempt in attempt_rewrites(
        backbone, spec, requests, settings, max_tiles=max_tiles, weights=weights, on_token=on_token
    ):
        if isinstance(attempt, PromptError):
            raise attempt
        done.append(attempt)
    return done


def attempt_rewrites(
    backbone: BaseVLM,
    spec: VLMSpec,
    requests: Sequence[Request],
    settings: RewriteSettings,
    *,
    max_tiles: int = MAX_TILES,
    weights: Hashable = None,
    on_token: Callable[[int], None] | None = None,
) -> list[Rewrite | PromptError]:
    """One rewrite per request, or a PromptError in place of one that is empty or truncated.

    What the VLM writes around the description (greetings, thoughts, Markdown) is cut; the states are then computed again from the
    description alone.

    weights    as in `encode_requests`
    on_token   called with the number of tokens so far; may raise to interrupt

    Raises as `BaseVLM.prepare` and `BaseVLM.write` do, NumericsError for a VLM whose numbers are NaN or infinite.
    """
    written = backbone.write(
        backbone.prepare(requests, spec.template, max_tiles),
        spec if settings.states == "one_pass" else (),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        on_token=on_token,
        reuse_images=True,
        weights=weights,
    )
    attempts: list[Rewrite | PromptError] = []
    for row, (request, answer, ended) in enumerate(zip(requests, written.texts, written.ended, strict=True)):
        text = description_in(answer)
        if not ended and settings.cut_off == "whole sentences":
            text = whole_sentences(text)
        if not ended and (settings.cut_off == "refuse" or not text):
            attempts.append(
                PromptError(
                    f"The rewrite of {_shown(request)} did not end within {settings.max_new_tokens} tokens: reword the prompt, "
                    f"raise {NEW_TOKENS}, use its whole sentences (cut_off), or give the rewrite yourself (locked_text). So far "
                    f'it is: "{answer.strip()}"'
                )
            )
        elif not text:
            # an answer out of NaN is empty, too: this raises NumericsError for it
            encode_requests(
                backbone, spec, [request], states=settings.states, max_tiles=max_tiles, weights=weights
            )
            said = (
                f'"{answer.strip()}" describes nothing'
                if answer.strip()
                else "the VLM ended its answer at once"
            )
            attempts.append(
                PromptError(
                    f"The rewrite of {_shown(request)} is empty ({said}): reword the prompt, or turn rewriting off."
                )
            )
        else:
            done = replace(request, rewrite=text)
            if text != answer.strip():
                # the states of the decoding pass are those of all words of the answer
                logger.warning(
                    'The VLM wrote more than a description, which is cut; the states of the rest are computed again: "%s"',
                    text,
                )
            if written.features is None or text != answer.strip():
                features = encode_requests(
                    backbone, spec, [done], states=settings.states, max_tiles=max_tiles, weights=weights
                )
            else:
                features = select_tokens(written.features.row(row), spec.token_selection)
            attempts.append(Rewrite(request=done, features=features))
    return attempts


def describe_image(
    backbone: BaseVLM,
    spec: VLMSpec,
    image: Float[Tensor, "3 H W"],
    settings: RewriteSettings,
    *,
    weights: Hashable = None,
) -> str:
    """The VLM's caption of an image: its answer to the image without a prompt. Empty if it finds no words or no end. `weights` as
    in `encode_requests`."""
    request = Request(prompt="", images=[image])
    (attempt,) = attempt_rewrites(backbone, spec, [request], settings, weights=weights)
    return "" if isinstance(attempt, PromptError) else attempt.text


def _shown(request: Request) -> str:
    """The prompt for an error message, cut to 60 characters."""
    prompt = request.prompt
    images = f" with {len(request.images)} image(s)" if request.images else ""
    return f'"{prompt if len(prompt) <= 60 else prompt[:57] + "..."}"{images}'
