"""The pack's own socket types; everything else travels in ComfyUI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from comfy_api.latest import io
from torch import Tensor

from ..unifusion_core.contracts import Features, VLMSpec

CATEGORY = "UniFusion"

FeaturesSocket = io.Custom("UNIFUSION_FEATURES")
"""`Encoded`: hidden states of the VLM's tapped layers for the kept tokens."""


@dataclass(frozen=True)
class Encoded:
    """Features, and what a generator must read for them to mean what it thinks: taps, template, kept tokens. `edited` is the
    size (width, height) in which a single picture would be drawn anew; several pictures or none have no such size. For looking
    at them: the tokens' own texts by their vocabulary ids, and the pictures (C H W) that the VLM read."""

    features: Features
    spec: VLMSpec
    edited: tuple[int, int] | None = None
    texts: Mapping[int, str] = field(default_factory=dict)
    images: Sequence[Tensor] = ()
