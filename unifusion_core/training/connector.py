"""A new LAP and refiner for a VLM, before the DiT of an existing generator or before a new one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..contracts import Features, Request, VLMSpec
from ..errors import ConfigError, PromptError, ShapeError
from ..images import decode_image
from ..models.lap import LAPConfig
from ..models.unifusion import UniFusion, UniFusionConfig, initialize
from ..vlm.backbone import VLMBackbone
from ..vlm.features import encode_chat
from .config import ConnectorConfig, TrainConfig
from .sources import open_source, read_example

# layers from one tap to the next (paper, figure on layer dropout: 4, 7, ..., 31 of 32)
TAP_STEP = 3
# samples whose states give the taps' scales
MEASURED = 64
# significant digits of a scale, so that another machine's rounding changes none
DIGITS = 3
# parameters between the VLM and the DiT
PARTS = ("txtfusion.", "txtmlp.")


def connected_config(
    config: TrainConfig, backbone: VLMBackbone, of_model: UniFusionConfig
) -> UniFusionConfig:
    """The generator's configuration with LAP and refiner for `backbone`; without the taps' scales if that has no weights.

    Raises ConfigError for taps that the VLM does not have, for heads that do not divide its width, or for data without a usable
    sample.
    """
    empty = next(backbone.parameters()).is_meta
    own = config.connector or ConnectorConfig()  # pyright: ignore[reportCallIssue]
    spec = backbone.spec(own.taps or every_third(backbone.num_layers), own.token_selection)
    if backbone.reads(of_model.vlm.template):
        # what the DiT has seen so far; another VLM has the chat of its family
        spec = replace(spec, template=of_model.vlm.template)
    lap = LAPConfig(
        num_heads=own.heads or backbone.text_config.num_attention_heads,
        mlp_size=own.mlp_size or -(-backbone.hidden_size * 8 // 3 // 64) * 64,
        num_layer_blocks=own.layer_blocks,
        num_refiner_blocks=own.refiner_blocks,
        tap_scales=() if empty else measure_tap_scales(config, backbone, spec),
    )
    return replace(of_model, vlm=spec, lap=lap)


def every_third(num_layers: int) -> tuple[int, ...]:
    """Every third layer from the last one down, without layer 1 and the embeddings: the paper's choice, and Krea 2's."""
    return tuple(range(num_layers - 1, 1, -TAP_STEP))[::-1]


def build_connected(
    config: UniFusionConfig, seed: int, dit: UniFusion | None = None, kind: type[UniFusion] = UniFusion
) -> UniFusion:
    """A generator with new weights; those of the DiT are taken from `dit`, if given. `kind`: another fusion design."""
    model = kind(config)
    initialize(model, torch.Generator().manual_seed(seed))
    if dit is not None:
        kept = {name: value for name, value in dit.state_dict().items() if not name.startswith(PARTS)}
        model.load_state_dict(kept, strict=False, assign=True)
    return model


def train_connector(model: UniFusion, *, dit: bool) -> None:
    """Makes LAP, refiner and projection trainable, in 32 bits; the DiT only if `dit` says so."""
    for name, parameter in model.named_parameters():
        trained = dit or name.startswith(PARTS)
        if trained:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trained)


def measure_tap_scales(config: TrainConfig, backbone: VLMBackbone, spec: VLMSpec) -> tuple[float, ...]:
    """Root mean square of each tap's states over the condition's tokens of the first samples.

    States of a VLM's late layers can be a hundred times larger than those of the first, and would drown them.
    """
    total, count = torch.zeros(len(spec.taps), dtype=torch.float64), 0
    for features in _first_features(config, backbone, spec):
        states = features.states[features.mask].double()
        total += states.square().mean(-1).sum(0).cpu()
        count += len(states)
    if not count:
        raise ConfigError("no sample of the data can be read, and the scales of the VLM's layers need some")
    return tuple(float(f"{value:.{DIGITS}g}") for value in (total / count).sqrt().tolist())


def _first_features(config: TrainConfig, backbone: VLMBackbone, spec: VLMSpec) -> Iterator[Features]:
    """Features of the first usable samples of all sources in turn."""
    sources = [open_source(each) for each in config.data]
    places = ((source, i) for i in range(max(map(len, sources))) for source in sources if i < len(source))
    found = 0
    for source, index in places:
        try:
            example = read_example(source, index)
            images = [decode_image(each, source.names[index]) for each in example.inputs]
            request = Request(prompt=example.prompt, images=images, rewrite=example.rewrite)
            inputs = backbone.prepare([request], spec.template, config.max_tiles)
        except (ShapeError, PromptError):
            # the scan lists it with its reason
            continue
        yield encode_chat(backbone, spec, inputs)
        found += 1
        if found == MEASURED:
            return
