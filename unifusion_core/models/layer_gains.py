"""Layer gains as a user writes them: how much of each tapped VLM layer the pooling takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import ConfigError

LARGEST = 100.0  # beyond it the pooled token is nothing but this layer, and numbers overflow


def read_layer_gains(text: str, taps: Sequence[int]) -> tuple[float, ...] | None:
    """One gain for each tap, out of "1, 1, 0.5, 1, 1" (one number each, in the taps' order) or "3: 0.5, 5: 0" (some layers by
    their number, the others 1). None for an empty text: as trained. Raises ConfigError for anything else.
    """
    if not text.strip():
        return None
    entries = [entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip()]
    named = [entry for entry in entries if ":" in entry]
    if named and len(named) < len(entries):
        raise ConfigError(
            f"The layer gains mix both ways of writing: give one number for each of the {len(taps)} layers, or every number with "
            f"its layer, such as {taps[-1]}: 0.5."
        )
    if named:
        if len({entry.partition(":")[0].strip() for entry in named}) < len(named):
            raise ConfigError("A layer has two gains: give each layer one.")
        gains = dict.fromkeys(taps, 1.0)
        for entry in named:
            layer, _, gain = entry.partition(":")
            gains[_layer(layer.strip(), taps)] = _gain(gain.strip())
        found = tuple(gains.values())
    else:
        found = tuple(_gain(entry) for entry in entries)
    if len(found) != len(taps):
        raise ConfigError(
            f"{len(found)} layer gains were given, this model reads {len(taps)} layers ({_listed(taps)}): give one for each, or "
            f"name those to change, such as {taps[-1]}: 0.5."
        )
    if not any(found):
        raise ConfigError(
            "All layer gains are 0, so nothing is left to draw by: leave at least one layer in."
        )
    return found


def _layer(text: str, taps: Sequence[int]) -> int:
    known = {str(tap): tap for tap in taps}
    if text not in known:
        raise ConfigError(
            f'There is no layer "{text:.40}" to give a gain to: this model reads {_listed(taps)}.'
        )
    return known[text]


def _gain(text: str) -> float:
    try:
        gain = float(text)
    except ValueError:
        gain = math.nan
    if not -LARGEST <= gain <= LARGEST:
        raise ConfigError(
            f'The layer gain "{text:.40}" is no number from {-LARGEST:g} to {LARGEST:g}: 1 is as trained, 0 leaves a layer out.'
        )
    return gain


def _listed(taps: Sequence[int]) -> str:
    return ", ".join(map(str, taps))
