"""The frozen VLM: hidden states of its layers for the generator, and text for VERIFI.

One set of weights serves both. A folder is loaded in `folder.py`; what differs between VLM families is in
`families/`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from ..contracts import MAX_TILES, ChatTemplate, Features, Request, TokenInfo, TokenRole, VLMSpec
from ..errors import VLMError
from .base import NEW_TOKENS, BaseVLM, Written
from .chat import VLMInputs, single_token
from .decoding import draw_generators, pick_tokens
from .families import decoder_layers, find_family
from .fingerprint import fingerprint_of, tensors_in_files
from .prefix_cache import STATES_LIMIT, TILES_LIMIT, CachedPrefix, LRUCache, digest
from .taps import TapReader

logger = logging.getLogger(__name__)


def check_size_fits(spec: VLMSpec, family: str, hidden_size: int, num_layers: int) -> None:
    """Refuse a VLM of another family or size than the generator was trained with: VLMError saying what was given and needed."""
    given = {"family": family, "hidden size": hidden_size, "number of layers": num_layers}
    needed = {"family": spec.family, "hidden size": spec.hidden_size, "number of layers": spec.num_layers}
    wrong = [name for name in given if given[name] != needed[name]]
    if wrong:
        raise VLMError(
            "This VLM does not fit the generator: "
            + "; ".join(f"its {name} is {given[name]}, {needed[name]} is needed" for name in wrong)
            + ". Load the VLM that the generator was trained with."
        )


class VLMBackbone(BaseVLM, nn.Module):
    """A VLM of transformers with its tokenizer, frozen.

    Built by `folder.load_vlm`, or around a model in memory (training, tests). `run_device` is where inputs are
    put; None means where the embedding's weights lie, which is right unless a host keeps weights elsewhere
    and moves them only while they work.
    """

    run_device: torch.device | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
        tile_size: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """`normalisation` and `tile_size` default to the family's; VLMError for a contradictory config."""
        super().__init__()
        self.family_name = model.config.model_type
        self.family = find_family(self.family_name)
        self.tokenizer = tokenizer
        self.folder = folder
        self.model = model
        self.tile_size = self.family.tile_size(model.config, tile_size)
        self.token_grid = self.family.token_grid(model.config, self.tile_size)
        self.normalisation = normalisation or self.family.normalisation
        self.prefix_cache: LRUCache[CachedPrefix] = LRUCache(STATES_LIMIT)
        self.tile_cache = LRUCache(TILES_LIMIT)
        self._fingerprint = ""
        # transformers calls it `past_key_values` up to 5.23
        parameters = inspect.signature(self._base().forward).parameters
        self._cache_keyword = "cache" if "cache" in parameters else "past_key_values"
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> VLMBackbone:
        """Stays in evaluation mode: the VLM is frozen, also inside a module in training."""
        return super().train(False)

    # What the VLM is ------------------------------------------------------------------------------

    @property
    def text_config(self) -> Any:
        """transformers' config of the language model."""
        return self.model.config.get_text_config()

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.text_config.hidden_size

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.text_config.num_hidden_layers

    @property
    def image_id(self) -> int:
        """The token in whose places pictures stand."""
        return cast(Any, self.model.config).image_token_id

    @property
    def max_length(self) -> int:
        """Most tokens that a chat may have."""
        return self.text_config.max_position_embeddings

    @property
    def fingerprint(self) -> str:
        """sha256 over names, shapes, types and bytes of the weights: in the folder's files, else in memory.

        Files, because their content does not depend on the dtype that a user loads them in. Computed once.
        """
        if not self._fingerprint:
            in_memory = sorted(self.model.state_dict().items())
            self._fingerprint = fingerprint_of(tensors_in_files(self.folder) if self.folder else in_memory)
        return self._fingerprint

    def check_fits(self, spec: VLMSpec) -> None:
        """Refuse a VLM that the generator was not trained with: VLMError saying what was given and needed."""
        check_size_fits(spec, self.family_name, self.hidden_size, self.num_layers)
        self.check_taps(spec.taps)
        single_token(self.tokenizer, spec.template.end, "end")
        self.check_image_token(spec.template)
        if spec.fingerprint and spec.fingerprint != self.fingerprint:
            raise VLMError(
                f"This VLM has the right size but other weights (fingerprint {self.fingerprint[:12]}, "
                f"{spec.fingerprint[:12]} is needed). Load the VLM that came with the generator."
            )

    # From requests to inputs ----------------------------------------------------------------------

    def prepare(
        self, requests: Sequence[Request], template: ChatTemplate | None = None, max_tiles: int = MAX_TILES
    ) -> VLMInputs:
        """As `BaseVLM.prepare`, with the model's own arguments for all tiles."""
        chats = super().prepare(requests, template, max_tiles)
        pixels = [each.pixels for of_request in chats.tiles for each in of_request]
        return replace(chats, pixel_inputs=self._pixel_inputs(pixels))

    def clear_image_caches(self) -> None:
        """Let go of what is kept of pictures that were read."""
        super().clear_image_caches()
        self.prefix_cache.clear()

    def _pixel_inputs(self, pixels: list[Float[Tensor, "_ C S S"]]) -> dict[str, Tensor]:
        if not pixels:
            return {}
        together = torch.cat(pixels)
        mean, std = (
            torch.tensor(values, device=together.device).reshape(-1, 1, 1) for values in self.normalisation
        )
        return self.family.pixel_inputs(self.model.config, (together - mean) / std)

    # Hidden states --------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self,
        inputs: VLMInputs,
        taps: VLMSpec | Sequence[int],
        *,
        reuse_images: bool = False,
        weights: Hashable = None,
    ) -> Features:
        """Hidden states of the tapped layers for all tokens, in one causal pass that ends with the last tap.

        Tap k is what decoder layer k+1 reads (layers counted from 1), so tap 0 are the embeddings with the
        pictures in their places. No logits. States of padding are 0. VLMError for taps that this VLM does
        not have.

        `reuse_images`: a single chat's pictures, which stand before everything else, are read once and kept
        for other instructions about them (`prefix_cache`); the result is the same whether they were kept or
        not. `weights` tells states of the weights apart, where a host patches them.
        """
        taps = tuple(taps.taps if isinstance(taps, VLMSpec) else taps)
        self.check_taps(taps)
        inputs = inputs.to(self._device())
        states = self._prefill(inputs, taps, whole=False, reuse=reuse_images, weights=weights).states
        assert states is not None
        padding = ~inputs.mask[:, :, None, None].to(states.device)
        return Features(
            states=states.masked_fill_(padding, 0),
            mask=inputs.mask,
            positions=inputs.positions,
            tokens=inputs.token_info,
        )

    def _prefill(
        self, inputs: VLMInputs, taps: tuple[int, ...], *, whole: bool, reuse: bool, weights: Hashable
    ) -> _Pass:
        """A pass over chats, to the last tap or through the whole model; the pictures of a single chat in a pass of
        their own, if they are to be reused."""
        positions = self._position_ids(inputs)
        start = _end_of_pictures(inputs) if reuse and len(inputs.token_ids) == 1 else 0
        if not start:
            cache = DynamicCache(config=self.text_config) if whole else None
            return self._forward(inputs, positions, taps, whole=whole, cache=cache)
        first, second = slice(0, start), slice(start, None)
        key = (
            digest(inputs.token_ids[:, first], *inputs.pixel_inputs.values()),
            taps,
            whole,
            self._embedding().weight.dtype,
            weights,
        )
        kept = self.prefix_cache.get(key)
        if kept is None:
            cache = DynamicCache(config=self.text_config)
            done = self._forward(inputs, positions, taps, whole=whole, cache=cache, tokens=first)
            kept = self.prefix_cache.keep(key, CachedPrefix.of(done.states, cache))
        cache = kept.continued(DynamicCache(config=self.text_config))
        rest = self._forward(inputs, positions, taps, whole=whole, cache=cache, tokens=second)
        if kept.states is None or rest.states is None:
            return rest
        return replace(rest, states=torch.cat([kept.states, rest.states], 1))

    def _forward(
        self,
        inputs: VLMInputs,
        positions: Tensor,
        taps: tuple[int, ...],
        *,
        whole: bool,
        cache: DynamicCache | None,
        tokens: slice = slice(None),
    ) -> _Pass:
        """The model over some of the tokens, after those that the cache holds."""
        layers = decoder_layers(self.model)
        hidden: Tensor | None = None
        with TapReader(layers, taps, whole=whole) if taps else nullcontext() as reader:
            hidden = self._run(
                input_ids=inputs.token_ids[:, tokens],
                attention_mask=inputs.mask[:, : tokens.stop],
                position_ids=positions[..., tokens],
                cache=cache,
                **({} if tokens.start else inputs.pixel_inputs),
            )
        return _Pass(states=reader.states if reader else None, hidden=hidden, cache=cache)

    # Text -----------------------------------------------------------------------------------------

    def generate(
        self,
        inputs: VLMInputs,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The VLM's answers alone, see `write`; a warning tells of those that were cut off."""
        written = self.write(
            inputs, (), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, on_token=on_token
        )
        if not all(written.ended):
            logger.warning(
                "%d of %d rewrites were cut off after %d tokens; raise %s if they matter.",
                written.ended.count(False),
                len(written.ended),
                max_new_tokens,
                NEW_TOKENS,
            )
        return written.texts

    @torch.no_grad()
    def write(
        self,
        inputs: VLMInputs,
        taps: VLMSpec | Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] | None = None,
        on_token: Callable[[int], None] | None = None,
        reuse_images: bool = False,
        weights: Hashable = None,
    ) -> Written:
        """The VLM's answers and, in the same pass, the tapped states of every token, the written ones included: they
        equal those of `encode` over the chat with the answer in its place. Temperature 0 is greedy; else each chat
        is sampled with a generator of its own.

        A chat's answer depends on its own inputs and seed, not on its neighbours in the batch: one `seed`
        is every chat's seed, a sequence has one for each, None draws new ones. The global random state is
        left alone. `on_token` is called with the number of tokens so far and may raise to interrupt.
        `reuse_images` and `weights` as in `encode`.

        Raises PromptError for chats that have a rewrite already or leave no room for `max_new_tokens`,
        ConfigError for impossible settings, VLMError for taps that this VLM does not have.
        """
        taps = tuple(taps.taps if isinstance(taps, VLMSpec) else taps)
        if taps:
            self.check_taps(taps)
        generators = draw_generators(len(inputs.token_ids), temperature, seed)
        self.check_room(inputs, max_new_tokens)
        inputs = inputs.to(self._device())
        mask, lengths = inputs.mask, inputs.mask.sum(dim=1)
        positions = self._position_ids(inputs)
        # B, with M-RoPE 3 B: text goes on after the largest position of all axes
        next_position = positions.masked_fill(~mask, 0).amax(dim=-1) + 1
        if positions.ndim > mask.ndim:
            next_position = next_position.amax(dim=0, keepdim=True).expand_as(next_position)
        prefill = self._prefill(inputs, taps, whole=True, reuse=reuse_images, weights=weights)
        assert prefill.hidden is not None
        skipped = inputs.token_ids.shape[1] - prefill.hidden.shape[1]  # pictures that were read before
        last = prefill.hidden[torch.arange(len(lengths)), (lengths - 1 - skipped).to(prefill.hidden.device)]

        written: list[list[int]] = [[] for _ in lengths]
        ended = [False] * len(written)
        states = [] if prefill.states is None else [prefill.states.masked_fill_(~mask[:, :, None, None], 0)]
        for step in range(1, max_new_tokens + 1):
            token_ids = pick_tokens(self._head()(last), temperature, generators)
            for row, token_id in enumerate(token_ids):
                ended[row] = ended[row] or token_id == inputs.end_id
                if not ended[row]:
                    written[row].append(token_id)
            if on_token is not None:
                on_token(step)
            if all(ended):
                break
            # the padding between a chat and its answer stays masked; positions go on where the chat ended
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            with TapReader(decoder_layers(self.model), taps, whole=True) if taps else nullcontext() as reader:
                last = self._run(
                    input_ids=torch.tensor(token_ids, device=mask.device)[:, None],
                    attention_mask=mask,
                    position_ids=(next_position + step - 1)[..., None],
                    cache=prefill.cache,
                )[:, -1]
            if reader is not None:
                states.append(reader.states)
        texts = [
            str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for ids in written
        ]
        features = _with_answers(inputs, states, written) if states else None
        return Written(texts=texts, ended=ended, features=features)

    # The model's parts ----------------------------------------------------------------------------

    def _base(self) -> Any:
        return cast(Any, self.model).model

    def _run(self, *, cache: DynamicCache | None, **inputs: Tensor) -> Tensor:
        """The model without its head; keys and values of earlier tokens are read from the cache, new ones put into it."""
        return self._base()(
            **inputs, **{self._cache_keyword: cache}, use_cache=cache is not None
        ).last_hidden_state

    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def _head(self) -> nn.Module:
        return cast(nn.Module, self.model.get_output_embeddings())

    def _device(self) -> torch.device:
        return self.run_device or self._embedding().weight.device

    def _position_ids(self, inputs: VLMInputs) -> Int[Tensor, "*axes B T"]:
        # given to the model in every call, so that no position state of an earlier call lives on inside it
        is_image = inputs.roles == TokenRole.IMAGE
        return self.family.position_ids(
            self._base(), inputs.token_ids, inputs.mask, is_image, inputs.pixel_inputs
        )


@dataclass(frozen=True)
class _Pass:
    """What a pass left: tapped states (B T L D), the model's output for the tokens it ran over (B S D; None if it ended
    before), and the keys and values of all tokens so far."""

    states: Tensor | None
    hidden: Tensor | None
    cache: DynamicCache | None


def _end_of_pictures(inputs: VLMInputs) -> int:
    """Where the pictures of a single chat end, their marks included; 0 without pictures."""
    of_pictures = (inputs.roles[0] == TokenRole.IMAGE) | (inputs.roles[0] == TokenRole.IMAGE_MARK)
    return int(of_pictures.nonzero().max()) + 1 if bool(of_pictures.any()) else 0


def _with_answers(
    inputs: VLMInputs, states: list[Float[Tensor, "B _ L D"]], written: list[list[int]]
) -> Features:
    """The features of chats and answers; `states`: of the chats, then of each further token of the batch."""
    longest = max(map(len, written))
    token_ids = inputs.token_ids.new_full((len(written), longest), inputs.end_id)
    is_word = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, ids in enumerate(written):
        token_ids[row, : len(ids)] = torch.tensor(ids, dtype=token_ids.dtype)
        is_word[row, : len(ids)] = True
    chats = states[0]
    together = chats.new_zeros(len(chats), chats.shape[1] + longest, *chats.shape[2:])
    together[:, : chats.shape[1]] = chats
    for number, of_token in enumerate(states[1 : longest + 1]):
        together[:, chats.shape[1] + number] = of_token[:, 0]
    together[:, chats.shape[1] :].masked_fill_(~is_word[:, :, None, None].to(chats.device), 0)
    roles = torch.where(is_word, int(TokenRole.REWRITE), int(TokenRole.PADDING)).to(inputs.roles)
    return Features(
        states=together,
        mask=torch.cat([inputs.mask, is_word], 1),
        positions=torch.cat([inputs.positions, inputs.positions.new_zeros(*token_ids.shape, 3)], 1),
        tokens=TokenInfo(
            roles=torch.cat([inputs.roles, roles], 1), ids=torch.cat([inputs.token_ids, token_ids], 1)
        ),
    )
