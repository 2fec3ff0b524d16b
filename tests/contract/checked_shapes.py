"""The core's public calls with every shape in every signature checked; test_shapes.py runs this as a program.

The import hook must come before the first import of the package, hence a process of its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook("unifusion_core", "beartype.beartype"):
    from unifusion_core.contracts import ChatTemplate, Features, TokenInfo, TokenRole, VLMSpec
    from unifusion_core.flow.path import interpolate, sample_training_times, velocity
    from unifusion_core.flow.schedule import SCHEDULES, build_schedule
    from unifusion_core.flow.solver import SOLVERS
    from unifusion_core.inspection.layer_map import draw_layer_map
    from unifusion_core.inspection.reading import read_layers
    from unifusion_core.inspection.table import lines_of
    from unifusion_core.models.autoencoder import Autoencoder
    from unifusion_core.models.dit import DiTConfig
    from unifusion_core.models.lap import LAPConfig
    from unifusion_core.models.unifusion import UniFusion, UniFusionConfig, initialize
    from unifusion_core.sampling import make_noise, sample

TEMPLATE = ChatTemplate(prefix="s", suffix="a", end="e", image_prefix="i", image_token="p", image_suffix="j")
CONFIG = UniFusionConfig(
    vlm=VLMSpec(family="internvl", hidden_size=24, num_layers=5, taps=(0, 1, 3), template=TEMPLATE),
    lap=LAPConfig(num_heads=3, mlp_size=40),
    dit=DiTConfig(
        hidden_size=64,
        num_blocks=2,
        num_heads=4,
        num_kv_heads=2,
        mlp_size=72,
        latent_channels=3,
        time_size=20,
    ),
    condition_attention="prefix",
)


def features(batch: int = 2, length: int = 7) -> Features:
    mask = torch.arange(length)[None] < torch.tensor([length] + [4] * (batch - 1))[:, None]
    return Features(
        states=torch.randn(batch, length, 3, 24),
        mask=mask,
        positions=torch.rand(batch, length, 3).round(),
        tokens=TokenInfo(roles=mask.long(), ids=mask.long()),
    )


def generator() -> None:
    """Pool, prepare, one step of training, for both forms and all switches."""
    for form in ("prefix", "joint"):
        for places in ("grid", "zero"):
            model = UniFusion(replace(CONFIG, condition_attention=form, image_positions=places))
            initialize(model)
            clean, noise = torch.randn(2, 2, 3, 8, 6)
            t = sample_training_times(2)
            prepared = model.prepare(model.pool(features()), (4, 3))
            v = model(interpolate(clean, noise, t), t, prepared)
            (v - velocity(clean, noise)).square().mean().backward()
            model(torch.randn(6, 3, 8, 6), torch.rand(6), prepared.repeat(3))


def sampler() -> None:
    """Every solver and schedule, with guidance and a picture-only branch, a shared condition and one for each."""
    model = UniFusion(CONFIG).requires_grad_(False)
    shared, each = model.pool(features(1)), model.pool(features(3, 5))
    for name in SCHEDULES:
        sample(model, each, make_noise([1, 2, 3], 3, 8, 6), build_schedule(name, 2, 12))
    for solver in SOLVERS:
        sample(
            model,
            each,
            make_noise([1, 2, 3], 3, 8, 6),
            build_schedule("uniform", 2, 12),
            negative=shared,
            cfg=3.0,
            image_only=shared,
            image_cfg=2.0,
            solver=solver,
            on_step=lambda done, steps, clean: None,
        )


def inspection() -> None:
    """Layers read, with a picture among the tokens, with gains, and drawn."""
    model, chat = UniFusion(CONFIG).requires_grad_(False), features(1)
    initialize(model)
    chat.token_info.roles[0, :4] = TokenRole.IMAGE
    chat.positions[0, :4] = torch.tensor([[1, 0.25, 0.25], [1, 0.25, 0.75], [1, 0.75, 0.25], [1, 0.75, 0.75]])
    chat.positions[0, 4:] = 0
    model.pool(chat, (1.0, 0.5, 0.0))
    draw_layer_map(
        read_layers(model, chat), chat, lines_of(chat, ["a"] * 7), CONFIG.vlm.taps, [torch.rand(3, 8, 5)]
    )


def autoencoder() -> None:
    """Pixels to latents and back."""
    model = Autoencoder(5)
    model.decode(model.encode(torch.rand(2, 3, 16, 24)))


def wrong_axes_are_noticed() -> None:
    """Without this, a hook that checks nothing would pass."""
    try:
        velocity(torch.zeros(2, 3, 8, 6), torch.zeros(2, 3, 8, 4))
    except TypeCheckError:
        return
    raise SystemExit("latents of two sizes were accepted: nothing is checked")


if __name__ == "__main__":
    torch.manual_seed(0)
    for case in (generator, sampler, inspection, autoencoder, wrong_axes_are_noticed):
        case()
        print(case.__name__)
