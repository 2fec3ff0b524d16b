"""Attention patches on a model in prefix form, whose conditions are otherwise computed once and are no part of the stream."""

from __future__ import annotations

from typing import Any

import comfy_extras.nodes_nag as nag
import torch
from the_pack.unifusion_core.flow.schedule import build_schedule
from the_pack.unifusion_core.models.dit import from_patches, patch_positions, to_patches
from the_pack.unifusion_core.models.layers import LayerFactory, attend, key_bias
from the_pack.unifusion_core.models.unifusion import UniFusion
from torch import Tensor

from .case import PARITY, case, difference
from .small_unifusion import (
    CFG,
    LATENT,
    SCHEDULE,
    STEPS,
    by_comfyui,
    conditioning,
    core_model,
    features,
    host_model,
    noise_for,
)

ROWS, COLUMNS = 4, 6


class _OneStream:
    """The prefix form as one stream of [condition, latents] for the positive and the negative, with patches on its attention."""

    def __init__(self, after: Any) -> None:
        self.after, self.options = after, {"cond_or_uncond": [0, 1]}
        plain = core_model()
        self.model = UniFusion(plain.config, LayerFactory(attend=self._attend)).requires_grad_(False)
        self.model.load_state_dict(plain.state_dict())

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Any, bias: Any) -> Tensor:
        out = attend(q, k, v, rope, bias)
        return out if rope is None else self.after(out, self.options)

    def velocities(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocities for the positive and for the negative, as a batch of two."""
        model = self.model
        pooled = [model.pool(each) for each in (features(9, 4), features(6))]
        length = max(each.tokens.shape[1] for each in pooled)

        def padded(values: Tensor) -> Tensor:
            rest = values.new_zeros(1, length - values.shape[1], *values.shape[2:])
            return torch.cat([values, rest], 1)

        condition = type(pooled[0])(
            **{
                name: torch.cat([padded(getattr(each, name)) for each in pooled])
                for name in ("tokens", "mask", "positions")
            }
        )
        latents = to_patches(x.expand(2, -1, -1, -1), 2)
        num_latent = latents.shape[1]
        stream = torch.cat([condition.tokens, model.first(latents)], 1)
        time, at_t = model._time(t.expand(2), stream.dtype)
        _, at_zero = model._time(torch.zeros(2), stream.dtype)
        modulation = torch.cat([at_zero.expand(-1, length, -1), at_t.expand(-1, num_latent, -1)], 1)
        positions = patch_positions(ROWS, COLUMNS, x.device).expand(2, -1, -1)
        own = model._condition_positions(condition, (ROWS, COLUMNS))
        rope = model._rope(torch.cat([own, positions], 1))
        mask = torch.cat([condition.mask, condition.mask.new_ones(2, num_latent)], 1)
        bias = key_bias(mask, stream.dtype).repeat(1, 1, length + num_latent, 1)
        bias[:, :, :length, length:] = torch.finfo(stream.dtype).min
        self.options["img_slice"] = [length, length + num_latent]
        for block in model.blocks:
            stream = block(stream, modulation, rope, bias)
        return from_patches(model.last(stream[:, length:], time), 2, ROWS, COLUMNS)


def _patch_of_nag() -> Any:
    patched = nag.NAGuidance.execute(host_model(), 5.0, 0.5, 1.5).args[0]
    (patch,) = patched.model_options["transformer_options"]["patches"]["attn1_output_patch"]
    return patch


def _scaled(out: Tensor, options: dict[str, Any]) -> Tensor:
    """Changes condition tokens, too."""
    start, end = options["img_slice"]
    return torch.cat([out[:, :start] * 0.6, out[:, start:end] * 1.3], 1)


@case()
def patches_in_prefix_form() -> dict[str, dict[str, float]]:
    """Prompts of unequal length in one batch: against the stream above, and without a patch."""
    conditions = [conditioning(features(9, 4)), conditioning(features(6))]
    plain = by_comfyui(host_model(), *conditions)
    found = {}
    for name, patch in (("NAG", _patch_of_nag()), ("scaled", _scaled)):
        stream, x = _OneStream(patch), noise_for(LATENT)
        times = build_schedule(SCHEDULE, STEPS, ROWS * COLUMNS)
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            v, v_negative = stream.velocities(x, t)[:, None]
            x = x + (t_next - t) * (v_negative + CFG * (v - v_negative))
        model = host_model().clone()
        model.set_model_attn1_output_patch(patch)
        given = by_comfyui(model, *conditions)
        found[name] = {"difference": difference(given, x), "effect": difference(given, plain)}
    return found


@patches_in_prefix_form.check
def _(found: dict[str, dict[str, float]]) -> None:
    for each in found.values():
        assert each["difference"] <= PARITY
        assert each["effect"] > 100 * PARITY


@case()
def patches_that_change_nothing() -> dict[str, float]:
    """Patches at every place, and a hook, that return what they are given: what is drawn without them."""
    conditions = [conditioning(features(9, 4)), conditioning(features(6))]
    calls = dict.fromkeys(("attn1_patch", "attn1_output_patch", "post_input", "hook"), 0)

    def counted(name: str, result: Any) -> Any:
        calls[name] += 1
        return result

    model = host_model().clone()
    model.set_model_attn1_patch(lambda q, k, v, **rest: counted("attn1_patch", {"q": q, "k": k, "v": v}))
    model.set_model_attn1_output_patch(lambda out, options: counted("attn1_output_patch", out))
    model.set_model_post_input_patch(lambda inputs: counted("post_input", inputs))
    hooked = host_model()
    hooked.model.diffusion_model.blocks[1].attn.register_forward_hook(lambda *_: counted("hook", None))
    plain = by_comfyui(host_model(), *conditions)
    return {
        "patches": difference(by_comfyui(model, *conditions), plain),
        "hooked": difference(by_comfyui(hooked, *conditions), plain),
    } | calls


@patches_that_change_nothing.check
def _(found: dict[str, float]) -> None:
    assert found.pop("patches") <= PARITY
    assert found.pop("hooked") <= PARITY
    # blocks of the DiT, times steps
    assert found == {"attn1_patch": 15, "attn1_output_patch": 15, "post_input": 5, "hook": 5}
