"""The pack's own socket type. All other sockets are ComfyUI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from comfy_api.latest import io
from torch import Tensor

from ..unifusion_core.contracts import Features, VLMSpec

FeaturesSocket = io.Custom("UNIFUSION_FEATURES")
"""`Encoded`: hidden states of the VLM's tapped layers for the selected tokens."""


@dataclass(frozen=True)
class Encoded:
    """The value of a `FeaturesSocket`: features with the context that later nodes need.

    spec     the VLM, layers and chat template that they were encoded with; pooling checks it
    edited   (width, height) of the only image, rounded to sizes that can be generated; None for no image or several
    texts    text of each token by its vocabulary id, for inspection
    images   the encoded images (C H W), for inspection
    empty    the empty prompt of the same VLM, for samplers without a negative conditioning
    """

    features: Features
    spec: VLMSpec
    edited: tuple[int, int] | None = None
    texts: Mapping[int, str] = field(default_factory=dict)
    images: Sequence[Tensor] = ()
    empty: EmptyPrompt | None = None


class EmptyPrompt(Protocol):
    """The empty prompt of a VLM."""

    def encoded(self) -> Encoded:
        """Its features."""
        ...
