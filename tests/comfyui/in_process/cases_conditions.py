"""Conditions stay exact when they are batched, concatenated, or changed by stock nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from the_pack.nodes.comfy import conditions
from the_pack.unifusion_core.contracts import Features

from .case import PARITY, case, difference
from .small_unifusion import by_comfyui, by_core, conditioning, core_model, features, host_model, stock


@case(at_most=PARITY)
def condition_per_latent() -> float:
    """Two conditions for two latents in one CONDITIONING, the shorter one padded."""
    core, model = core_model(), host_model()
    long, short = features(9, 3), features(9, seed=2)
    short.mask[:, 6:] = False
    both = Features.cat([long, short])
    negative, latent = features(4), torch.zeros(2, 16, 6, 8)
    expected = by_core(core, core.pool(both), core.pool(negative), latent)
    return difference(by_comfyui(model, conditioning(both), conditioning(negative), latent), expected)


@case(at_most=PARITY)
def concatenation() -> float:
    """ConditioningConcat puts the features one behind the other."""
    core, model = core_model(), host_model()
    a, b, negative = features(7), features(12), features(5)
    both = Features(
        **{n: torch.cat([getattr(a, n), getattr(b, n)], 1) for n in ("states", "mask", "positions")}
    )
    (joined,) = stock.ConditioningConcat().concat(conditioning(a), conditioning(b))
    expected = by_core(core, core.pool(both), core.pool(negative))
    return difference(by_comfyui(model, joined, conditioning(negative)), expected)


@contextmanager
def _nothing_shared() -> Iterator[None]:
    """Every condition has a pass of its own, and everything is computed anew."""
    alone, once = conditions.ConditionInBatch, conditions.SamplingCondition
    saved = alone.can_concat, once.once
    alone.can_concat, once.once = (lambda self, other: False), (lambda self, key, compute: compute())
    try:
        yield
    finally:
        alone.can_concat, once.once = saved


def _combined() -> tuple[dict[str, Any], Any]:
    """Positive conditions out of stock conditioning nodes, and a negative one."""
    long, short, third = (conditioning(each) for each in (features(23, 9), features(7), features(12, 4)))
    (area,) = stock.ConditioningSetArea().append(short, 48, 40, 16, 16, 0.8)
    (early,) = stock.ConditioningSetTimestepRange().set_range(long, 0.0, 0.5)
    (late,) = stock.ConditioningSetTimestepRange().set_range(third, 0.5, 1.0)
    (joined,) = stock.ConditioningConcat().concat(short, third)
    (mixed,) = stock.ConditioningAverage().addWeighted(long, short, 0.3)
    (zero,) = stock.ConditioningZeroOut().zero_out(third)
    positives = {
        "area": long + area,
        "time": early + late,
        "concat": joined,
        "average": mixed,
        "all": early + late + area + joined,
    }
    return positives, zero


@case(at_most=PARITY)
def stock_conditioning_nodes() -> dict[str, float]:
    """Areas, time ranges, concatenation and averages: the same with and without batching and reuse."""
    model = host_model()
    positives, negative = _combined()
    found = {}
    for name, positive in positives.items():
        given = by_comfyui(model, positive, negative)
        with _nothing_shared():
            found[name] = difference(given, by_comfyui(model, positive, negative))
    return found
