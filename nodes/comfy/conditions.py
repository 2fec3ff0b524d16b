"""Conditions on their way through ComfyUI's sampling: pooled once, prepared once, padded when run together.

ComfyUI concatenates conditions anew for every step, so their tensors tell nothing about identity. Here an object
travels instead of a tensor: it carries what has been computed, and lives exactly as long as one sampling call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import comfy.conds
import torch
import torch.nn.functional as F
from torch import Tensor

from ...unifusion_core.contracts import Conditioning, Features, VLMSpec
from ...unifusion_core.errors import ShapeError
from ...unifusion_core.models.unifusion import PreparedCondition, UniFusion, UniFusionConfig

# What stands beside the tokens in a CONDITIONING
MASK = "attention_mask"  # ComfyUI's own name
POSITIONS = "unifusion_positions"
EDITED = "unifusion_edited_size"  # (width, height) of the one picture that the VLM read
SPEC = "unifusion_vlm"  # for whom it was encoded; pooled ones have none


def flattened(features: Features, spec: VLMSpec) -> tuple[Tensor, dict[str, Any]]:
    """Features as a stock CONDITIONING: the layers of a token side by side, B T LD. The MODEL pools them."""
    rest = {MASK: features.mask.long(), POSITIONS: features.positions, SPEC: spec}
    return features.states.flatten(2).float(), rest


def check_reads(config: UniFusionConfig, spec: VLMSpec) -> None:
    """Refuse features that were encoded for a generator which reads its VLM in another way (ShapeError)."""
    if spec == config.vlm:
        return
    names = {
        "family": "VLM family",
        "hidden_size": "width",
        "num_layers": "layers of the VLM",
        "taps": "layers read",
        "template": "chat template",
        "kept_tokens": "tokens kept",
        "fingerprint": "VLM weights",
    }
    differing = [
        field.name
        for field in fields(VLMSpec)
        if getattr(spec, field.name) != getattr(config.vlm, field.name)
    ]
    told = ", ".join(
        names[name]
        if name in ("template", "fingerprint")  # too long to be read
        else f"{names[name]} ({getattr(spec, name)}, here {getattr(config.vlm, name)})"
        for name in differing
    )
    raise ShapeError(
        f"This prompt was encoded for another model than the one that draws; what differs: {told}. Connect the model that "
        "draws to the `model` input of Load UniFusion VLM."
    )


class SamplingCondition:
    """One condition during one sampling call: its pooled tokens and, per latent grid, its keys and values.

    `tokens` are flattened VLM features (B T LD, pooled here by LAP and refiner) or pooled already (B T E).
    """

    def __init__(self, config: UniFusionConfig, tokens: Tensor, rest: Mapping[str, Any]) -> None:
        """`rest` is the conditioning's dictionary. Raises ShapeError for a conditioning of another model."""
        self.joint = config.condition_attention == "joint"
        self.layers = (len(config.vlm.taps), config.vlm.hidden_size)
        self.pooled = tokens.shape[-1] == config.dit.hidden_size
        if not self.pooled and tokens.shape[-1] != self.layers[0] * self.layers[1]:
            raise ShapeError(_foreign(config, tokens.shape[-1]))
        if SPEC in rest:
            check_reads(config, rest[SPEC])
        length, mask, positions = tokens.shape[1], rest.get(MASK), rest.get(POSITIONS)
        self.tokens = tokens
        # ConditioningConcat and ConditioningAverage change the tokens, not what stands beside them
        mask = torch.ones(1, length) if mask is None else mask
        self.mask = _rows(_fitted(mask.bool(), length, True), len(tokens))
        self.has_padding = not bool(self.mask.all())
        positions = torch.zeros(1, length, 3) if positions is None else positions
        self.positions = _rows(_fitted(positions.float(), length, 0.0), len(tokens))
        self.computed: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, kept under `key` for the rest of the sampling call."""
        if key not in self.computed:
            self.computed[key] = compute()
        return self.computed[key]

    def prepared(
        self, model: UniFusion, like: Tensor, grid: tuple[int, int], weights: Hashable
    ) -> PreparedCondition:
        """The condition for latents of type and device of `like` on a `grid` of patches. `weights` tells states of the
        model's weights apart: a hook may change them from step to step."""
        key = (like.device, like.dtype, weights)
        conditioning = self.once(key, lambda: self._pool(model, like))
        return self.once((*key, grid), lambda: model.prepare(conditioning, grid))

    def _pool(self, model: UniFusion, like: Tensor) -> Conditioning:
        tokens = self.tokens.to(like)
        mask, positions = self.mask.to(like.device), self.positions.to(like.device)
        if self.pooled:
            return Conditioning(tokens=tokens, mask=mask, positions=positions)
        states = tokens.unflatten(-1, self.layers)
        return model.pool(Features(states=states, mask=mask, positions=positions))


def _fitted(values: Tensor, length: int, fill: float | bool) -> Tensor:
    """Axis 1 cut or lengthened to `length`."""
    short = length - values.shape[1]
    if short <= 0:
        return values[:, :length]
    return torch.cat([values, values.new_full((len(values), short, *values.shape[2:]), fill)], 1)


def _foreign(config: UniFusionConfig, width: int) -> str:
    taps, size, pooled = len(config.vlm.taps), config.vlm.hidden_size, config.dit.hidden_size
    return (
        f"This conditioning is {width} wide; this UniFusion model reads {taps * size} ({taps} layers of its VLM, "
        f"{size} each) or {pooled} (pooled): encode the prompt with the CLIP of Load UniFusion VLM whose `model` "
        "input is this model, or connect Pool UniFusion Features."
    )


@dataclass(frozen=True)
class Rows:
    """A condition and for how many latents it stands in a batch."""

    condition: SamplingCondition
    count: int


class ConditionInBatch(comfy.conds.CONDRegular):
    """`Rows` in ComfyUI's clothes. Conditions of any length may share a batch: padding is masked, and exact. In joint form
    only those without padding do: a second pass costs less than padded tokens and a mask, which fast kernels do not take."""

    cond: list[Rows]

    def process_cond(self, batch_size: int, **kwargs: object) -> ConditionInBatch:
        return ConditionInBatch([Rows(rows.condition, batch_size) for rows in self.cond])

    def can_concat(self, other: ConditionInBatch) -> bool:
        conditions = [rows.condition for each in (self, other) for rows in each.cond]
        lengths = {condition.tokens.shape[1] for condition in conditions}
        padded = len(lengths) > 1 or any(condition.has_padding for condition in conditions)
        return not (padded and conditions[0].joint)

    def concat(self, others: Sequence[ConditionInBatch]) -> list[Rows]:
        return [rows for each in (self, *others) for rows in each.cond]

    def size(self) -> list[int]:
        """B T LD, for ComfyUI's estimate of memory."""
        longest = max((rows.condition.tokens for rows in self.cond), key=lambda tokens: tokens.shape[1])
        return [sum(rows.count for rows in self.cond), *longest.shape[1:]]


def put_together(parts: Sequence[tuple[PreparedCondition, int]]) -> PreparedCondition:
    """Prepared conditions one under the other, each for its number of latents, padded to the longest."""
    length = max(prepared.conditioning.tokens.shape[1] for prepared, _ in parts)

    def joined(values: Sequence[Tensor], axis: int) -> Tensor:
        rows = [_rows(v, count) for v, (_, count) in zip(values, parts, strict=True)]
        if len(rows) == 1:
            return rows[0]
        return torch.cat([_padded(v, length, axis) for v in rows])

    each = [prepared.conditioning for prepared, _ in parts]
    conditioning = Conditioning(
        tokens=joined([c.tokens for c in each], 1),
        mask=joined([c.mask for c in each], 1),
        positions=joined([c.positions for c in each], 1),
    )

    def keys_values() -> Iterator[tuple[Tensor, Tensor]]:
        # block by block, so that only one block's copies exist at a time
        for keys_values in zip(*(prepared.keys_values for prepared, _ in parts), strict=True):
            yield joined([k for k, _ in keys_values], 2), joined([v for _, v in keys_values], 2)

    ready = parts[0][0].keys_values is not None
    lengths = {len(c.tokens[0]) for c in each}
    return PreparedCondition(
        conditioning=conditioning,
        grid=parts[0][0].grid,
        has_padding=len(lengths) > 1 or any(prepared.has_padding for prepared, _ in parts),
        keys_values=keys_values() if ready else None,
    )


def _rows(values: Tensor, count: int) -> Tensor:
    """As many rows as latents; a batch of conditions is repeated in turn, as ComfyUI does."""
    if len(values) == count:
        return values
    if len(values) == 1:
        return values.expand(count, *values.shape[1:])
    return values[torch.arange(count, device=values.device) % len(values)]


def _padded(values: Tensor, length: int, axis: int) -> Tensor:
    short = length - values.shape[axis]
    return F.pad(values, (0, 0) * (values.ndim - 1 - axis) + (0, short)) if short else values
