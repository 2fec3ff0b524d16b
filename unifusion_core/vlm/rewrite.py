"""VERIFI: the VLM writes what the target image shows, and the generator reads the states of those words.

`RewriteSettings.states` says where the states come from. "one_pass": the decoding pass over [system, images, instruction,
rewrite] (paper, section on VERIFI). "reencode": a new chat whose prompt is the rewrite; images stay where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from ..contracts import MAX_TILES, Features, Request, RewriteSettings, RewriteStates, VLMSpec
from ..errors import PromptError
from .base import NEW_TOKENS, BaseVLM
from .features import encode_chat, select_tokens


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A request with its rewrite, and the features of its selected tokens (one row)."""

    request: Request
    features: Features

    @property
    def text(self) -> str:
        """The rewrite; the prompt itself where nothing was rewritten."""
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
    """Features of the selected tokens of chats, one row per request.

    A locked rewrite is read word by word in the assistant's turn (teacher-forced), or for `states` "reencode" as the prompt.
    Images that were read before are not read again; `weights` tells states of patched weights apart.

    Raises as `BaseVLM.prepare` does.
    """
    if states == "reencode":
        # without the style, which spoke to the VLM that wrote; the images stay in view
        requests = [
            r if r.rewrite is None else replace(r, prompt=r.rewrite, style="", rewrite=None) for r in requests
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
    """One rewrite per request, in the generator's own chat template. Arguments as in `attempt_rewrites`.

    Raises PromptError for a rewrite that is empty or does not end: a truncated rewrite would silently drop content.
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
    """One rewrite per request, or the error in its place. `weights` as in `encode_requests`; `on_token` is called with the
    number of tokens so far and may raise to interrupt.

    Raises as `BaseVLM.write` does.
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
    for row, (request, text, ended) in enumerate(zip(requests, written.texts, written.ended, strict=True)):
        if not ended:
            attempts.append(
                PromptError(
                    f"The rewrite of {_shown(request)} did not end within {settings.max_new_tokens} tokens: word the prompt "
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
            done = replace(request, rewrite=text.strip())
            features = (
                encode_requests(
                    backbone, spec, [done], states=settings.states, max_tiles=max_tiles, weights=weights
                )
                if written.features is None
                else select_tokens(written.features.row(row), spec.token_selection)
            )
            attempts.append(Rewrite(request=done, features=features))
    return attempts


def _shown(request: Request) -> str:
    """The request's prompt for an error's sentence, cut if it is long."""
    prompt = request.prompt
    images = f" with {len(request.images)} picture(s)" if request.images else ""
    return f'"{prompt if len(prompt) <= 60 else prompt[:57] + "..."}"{images}'
