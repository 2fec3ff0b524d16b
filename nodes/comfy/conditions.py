"""Conditions during ComfyUI's sampling: pooled once, prepared once, padded when they share a batch.

ComfyUI concatenates the tensors of conditions again in every step, so a tensor does not identify its condition. Here a condition
is an object instead: it caches what has been computed, and exists for one sampling call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import comfy.conds
import torch
import torch.nn.functional as F
from torch import Tensor

from ...unifusion_core.contracts import (
    GENERATOR_REMEDY,
    VLM_REMEDY,
    Conditioning,
    Features,
    VLMSpec,
    check_finite,
)
from ...unifusion_core.errors import ShapeError
from ...unifusion_core.models.unifusion import PreparedCondition, UniFusion, UniFusionConfig
from .host import warn_once

# Entries in the dictionary of a CONDITIONING; the first has ComfyUI's own name
MASK = "attention_mask"
POSITIONS = "unifusion_positions"
# (width, height) of the only image in the prompt
EDITED = "unifusion_edited_size"
# `EmptyPrompt` of the VLM that encoded it
EMPTY = "unifusion_empty_prompt"
# the VLMSpec that a conditioning was encoded for; pooled ones have none
SPEC = "unifusion_vlm"


class ConditionTokens(Tensor):
    """Tokens of a CONDITIONING (B T width). Stock nodes concatenate and average them; where that is impossible, the error is a
    sentence about both sides in place of torch's about sizes."""

    what: ClassVar[str] = "tokens"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **kwargs or {})
        except RuntimeError as error:
            sides = [each for each in _tensors_in(args) if each.ndim == 3]
            if len({each.shape[-1] for each in sides}) < 2:
                raise
            told = " and ".join(f"{_what(each)}, {each.shape[-1]} wide" for each in sides)
            raise ShapeError(
                f"These conditions are of different kinds and cannot be joined ({told}): take both from Pool UniFusion Features, "
                "or both from CLIP Text Encode with the same CLIP."
            ) from error
        keeps = isinstance(result, Tensor) and result.ndim == 3
        return result.as_subclass(cls) if keeps else result


class LayerTokens(ConditionTokens):
    """The layers of each token concatenated, as of CLIP Text Encode."""

    what = "hidden states of VLM layers, not pooled"


class PooledTokens(ConditionTokens):
    """Tokens of Pool UniFusion Features."""

    what = "pooled tokens"


def _what(tokens: Tensor) -> str:
    return tokens.what if isinstance(tokens, ConditionTokens) else "tokens of another text encoder"


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def too_few_latents(prompts: int, latents: int) -> str:
    """The error for a batch of prompts without a latent for each."""
    return (
        f"The conditioning holds {prompts} prompts and the latent {latents} image(s), so prompts would be left out: give a "
        f"latent of {prompts} images (Repeat Latent Batch)."
    )


def flattened(features: Features, spec: VLMSpec) -> tuple[Tensor, dict[str, Any]]:
    """Features as a stock CONDITIONING (B T LD, the layers of a token concatenated), which the MODEL pools."""
    rest = {MASK: features.mask.long(), POSITIONS: features.positions, SPEC: spec}
    return features.states.flatten(2).float().as_subclass(LayerTokens), rest


def check_spec(config: UniFusionConfig, spec: VLMSpec) -> None:
    """Raises ShapeError for features that were encoded with another VLM, other layers or another chat template."""
    if spec == config.vlm:
        return
    names = {"hidden_size": "VLM width", "num_layers": "number of VLM layers", "taps": "tapped layers"}
    too_long_to_show = {"template": "another chat template", "fingerprint": "other VLM weights"}
    given, needed = asdict(spec), asdict(config.vlm)
    differences = ", ".join(
        too_long_to_show.get(name) or f"{names.get(name, name)} {given[name]} instead of {needed[name]}"
        for name in given
        if given[name] != needed[name]
    )
    raise ShapeError(
        f"This prompt was encoded for another model ({differences}): connect the model that you sample with to the `model` input "
        "of Load UniFusion VLM."
    )


class SamplingCondition:
    """One condition during one sampling call, with its pooled tokens and, per latent grid, its keys and values.

    `tokens` are flattened VLM features (B T LD), which are pooled here, or pooled tokens (B T E).
    """

    def __init__(self, config: UniFusionConfig, tokens: Tensor, rest: Mapping[str, Any]) -> None:
        """`rest` is the conditioning's dictionary. Raises ShapeError for a conditioning of another model."""
        tokens = tokens.as_subclass(Tensor)
        self.joint = config.condition_attention == "joint"
        self.layers = (len(config.vlm.taps), config.vlm.hidden_size)
        self.pooled = tokens.shape[-1] == config.dit.hidden_size
        if not self.pooled and tokens.shape[-1] != self.layers[0] * self.layers[1]:
            raise ShapeError(_wrong_width(config, tokens.shape[-1]))
        if SPEC in rest:
            check_spec(config, rest[SPEC])
        check_finite(tokens, "Conditioning", VLM_REMEDY if not self.pooled else GENERATOR_REMEDY)
        length, mask, positions = tokens.shape[1], rest.get(MASK), rest.get(POSITIONS)
        self.tokens = tokens
        # ConditioningConcat and ConditioningAverage change the tokens, but not mask and positions
        mask = torch.ones(1, length) if mask is None else mask
        self.mask = _rows(_fitted(mask.bool(), length, True), len(tokens))
        self.has_padding = not bool(self.mask.all())
        positions = torch.zeros(1, length, 3) if positions is None else positions
        self.positions = _rows(_fitted(positions.float(), length, 0.0), len(tokens))
        self.computed: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, cached under `key` for the rest of the sampling call. With gradients nothing is cached: each
        step needs a graph of its own."""
        if torch.is_grad_enabled():
            return compute()
        if key not in self.computed:
            self.computed[key] = compute()
        return self.computed[key]

    def tokens_like(self, like: Tensor) -> Tensor:
        """The tokens in the type and on the device of `like`."""
        return self.once(("tokens", like.device, like.dtype), lambda: self.tokens.to(like))

    def pooled_for(self, model: UniFusion, like: Tensor, state: Hashable) -> Conditioning:
        """The pooled tokens in the type and on the device of `like`. `state` identifies the present state of the layers, which
        hooks of the host may change from step to step."""
        return self.once(("pooled", like.device, like.dtype, state), lambda: self._pool(model, like))

    def prepared_for(
        self, model: UniFusion, like: Tensor, grid: tuple[int, int], state: Hashable
    ) -> PreparedCondition:
        """`pooled_for`, with the keys and values for latents on a `grid` of patches."""
        return self.once(
            ("prepared", like.device, like.dtype, state, grid),
            lambda: model.prepare(self.pooled_for(model, like, state), grid),
        )

    def _pool(self, model: UniFusion, like: Tensor) -> Conditioning:
        tokens = self.tokens_like(like)
        mask, positions = self.mask.to(like.device), self.positions.to(like.device)
        if self.pooled:
            return Conditioning(tokens=tokens, mask=mask, positions=positions)
        states = tokens.unflatten(-1, self.layers)
        pooled = model.pool(Features(states=states, mask=mask, positions=positions))
        check_finite(pooled.tokens, "Pooled condition", GENERATOR_REMEDY)
        return pooled


def _fitted(values: Tensor, length: int, fill: float | bool) -> Tensor:
    """Values with axis 1 cut to `length`, or padded with `fill`."""
    short = length - values.shape[1]
    if short <= 0:
        return values[:, :length]
    return torch.cat([values, values.new_full((len(values), short, *values.shape[2:]), fill)], 1)


def _wrong_width(config: UniFusionConfig, width: int) -> str:
    taps, size, pooled = len(config.vlm.taps), config.vlm.hidden_size, config.dit.hidden_size
    return (
        f"This conditioning is {width} wide; this UniFusion model needs {taps * size} ({taps} VLM layers of {size}) or "
        f"{pooled} (pooled): connect this model to the `model` input of Load UniFusion VLM and encode the prompt with its "
        "CLIP, or use Pool UniFusion Features."
    )


@dataclass(frozen=True)
class Rows:
    """A condition and its number of latents in a batch."""

    condition: SamplingCondition
    count: int


class ConditionInBatch(comfy.conds.CONDRegular):
    """`Rows` as a ComfyUI condition. Conditions of any length can share a batch, because padding is masked exactly.

    In joint form only conditions of one length without padding do: a second pass costs less than a mask, which fast attention
    kernels do not support.
    """

    cond: list[Rows]

    def process_cond(self, batch_size: int, **kwargs: object) -> ConditionInBatch:
        return ConditionInBatch([Rows(rows.condition, batch_size) for rows in self.cond])

    def can_concat(self, other: ConditionInBatch) -> bool:
        conditions = [rows.condition for each in (self, other) for rows in each.cond]
        if len({condition.tokens.shape[2] for condition in conditions}) > 1:
            return False
        lengths = {condition.tokens.shape[1] for condition in conditions}
        padded = len(lengths) > 1 or any(condition.has_padding for condition in conditions)
        return not (padded and conditions[0].joint)

    def concat(self, others: Sequence[ConditionInBatch]) -> list[Rows]:
        return [rows for each in (self, *others) for rows in each.cond]

    def size(self) -> list[int]:
        """B T LD, for ComfyUI's estimate of memory use."""
        longest = max((rows.condition.tokens for rows in self.cond), key=lambda tokens: tokens.shape[1])
        return [sum(rows.count for rows in self.cond), *longest.shape[1:]]


class ContextInBatch(comfy.conds.CONDRegular):
    """The tokens of a condition, which wrappers may read and change; padded with zeros where they share a batch."""

    cond: Tensor

    def can_concat(self, other: ContextInBatch) -> bool:
        """`ConditionInBatch` decides."""
        return True

    def concat(self, others: Sequence[ContextInBatch]) -> Tensor:
        tensors = [each.cond for each in (self, *others)]
        longest = max(tensor.shape[1] for tensor in tensors)
        return torch.cat([_padded(tensor, longest, 1) for tensor in tensors])


def rows_of(
    rows: list[Rows] | None,
    context: Tensor,
    attention_mask: Tensor | None,
    config: UniFusionConfig,
    like: Tensor,
    *,
    changed: bool,
) -> list[Rows]:
    """`rows` itself, unless `changed` or if `context` holds other tokens; else the context as one new condition.

    A wrapper may have changed the tokens, added some, or rearranged the batch; mask and positions stay those of the same places.
    """
    rest: dict[str, Any] = {} if attention_mask is None else {MASK: attention_mask}
    if rows is not None and sum(each.count for each in rows) == len(context):
        starts = torch.tensor([0, *(each.count for each in rows)]).cumsum(0).tolist()
        places = zip(rows, starts, starts[1:], strict=False)
        if not changed and all(
            _holds(context[start:end], each.condition.tokens_like(like)) for each, start, end in places
        ):
            return rows
        length = max(each.condition.tokens.shape[1] for each in rows)
        for name, values in (("mask", MASK), ("positions", POSITIONS)):
            each = [_padded(_rows(getattr(row.condition, name), row.count), length, 1) for row in rows]
            rest.setdefault(values, torch.cat(each))
    elif rows is not None and any(row.condition.positions.any() for row in rows):
        warn_once(
            "A node between sampler and model rearranged the batch, so the places of image tokens in their images are lost: take "
            "it out, or draw one image at a time."
        )
    return [Rows(SamplingCondition(config, context, rest), len(context))]


def _holds(context: Tensor, tokens: Tensor) -> bool:
    """Whether the context begins with these tokens in every row, and holds nothing but padding behind them."""
    length = tokens.shape[1]
    if context.shape[1] < length or context.shape[2] != tokens.shape[2]:
        return False
    return torch.equal(context[:, :length], _rows(tokens, len(context))) and not context[:, length:].any()


def to_batch(parts: Sequence[tuple[PreparedCondition, int]]) -> PreparedCondition:
    """Prepared conditions as one batch: each repeated for its number of latents, all padded to the longest."""
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
        # a generator, so that only one block's copies exist at a time
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
    """`count` rows; a shorter batch is repeated cyclically, as ComfyUI does."""
    if len(values) == count:
        return values
    if len(values) == 1:
        return values.expand(count, *values.shape[1:])
    return values[torch.arange(count, device=values.device) % len(values)]


def _padded(values: Tensor, length: int, axis: int) -> Tensor:
    short = length - values.shape[axis]
    return F.pad(values, (0, 0) * (values.ndim - 1 - axis) + (0, short)) if short else values
