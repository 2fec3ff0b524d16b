"""A frozen VLM of transformers: hidden states for the generator and text for VERIFI, from one set of weights."""

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

from ..caching import LRUCache, digest
from ..contracts import (
    MAX_TILES,
    ChatTemplate,
    Features,
    Request,
    TokenInfo,
    TokenRole,
    TokenSelection,
    VLMSpec,
)
from ..errors import VLMError
from .base import NEW_TOKENS, BaseVLM, Written
from .chat import VLMInputs, single_token
from .decoding import make_generators, pick_tokens
from .families import decoder_layers, find_family
from .fingerprint import fingerprint_of, tensors_in_files
from .prefix_cache import STATES_LIMIT, TILES_LIMIT, CachedPrefix
from .taps import TapReader

logger = logging.getLogger(__name__)


def check_size_fits(spec: VLMSpec, family: str, hidden_size: int, num_layers: int) -> None:
    """Raises VLMError for a VLM of another family or size than the generator was trained with."""
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
    """A VLM of transformers with its tokenizer, frozen. `folder.load_vlm` builds it from a folder.

    run_device   device of the inputs. None = that of the embedding's weights, which is right unless a host moves weights to the
                 device only while they compute
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
        """`normalisation` (mean, std) and `tile_size` default to the family's. Raises VLMError for a contradictory config."""
        super().__init__()
        self.family_name = model.config.model_type
        self.family = find_family(self.family_name)
        self.tokenizer = tokenizer
        self.folder = folder
        self.model = model
        self.set_tile_size(tile_size)
        self.normalisation = normalisation or self.family.normalisation
        self.prefix_cache: LRUCache[CachedPrefix] = LRUCache(STATES_LIMIT)
        self._fingerprint = ""
        # transformers calls it `past_key_values` up to 5.23
        parameters = inspect.signature(self._base().forward).parameters
        self._cache_keyword = "cache" if "cache" in parameters else "past_key_values"
        self.requires_grad_(False)
        self.eval()

    def set_tile_size(self, side: int | None) -> None:
        """Cuts images into tiles of this side in pixels; None = the family's default. Raises VLMError for an unsupported side."""
        self.tile_size = self.family.tile_size(self.model.config, side)
        self.token_grid = self.family.token_grid(self.model.config, self.tile_size)
        self.tile_cache = LRUCache(TILES_LIMIT)

    def train(self, mode: bool = True) -> VLMBackbone:
        """Stays in evaluation mode, also as part of a module in training."""
        return super().train(False)

    # Properties -----------------------------------------------------------------------------------

    @property
    def text_config(self) -> Any:
        """The language model's config."""
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
        """Id of the placeholder token that image features replace."""
        return cast(Any, self.model.config).image_token_id

    @property
    def max_length(self) -> int:
        """Maximum number of tokens in a chat."""
        return self.text_config.max_position_embeddings

    @property
    def fingerprint(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of the weights, computed once.

        Hashes the folder's files where there is a folder, because the dtype in memory is the user's choice.
        """
        if not self._fingerprint:
            in_memory = sorted(self.model.state_dict().items())
            self._fingerprint = fingerprint_of(tensors_in_files(self.folder) if self.folder else in_memory)
        return self._fingerprint

    def spec(self, taps: Sequence[int], token_selection: TokenSelection = "rewrite") -> VLMSpec:
        """What a generator that is trained on this VLM records of it, with the family's chat. Raises ConfigError for taps that
        are not layers of this VLM."""
        return VLMSpec(
            family=self.family_name,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            taps=tuple(taps),
            template=self.template,
            token_selection=token_selection,
            fingerprint=self.fingerprint,
        )

    def reads(self, template: ChatTemplate) -> bool:
        """Whether the template's special tokens are tokens of this VLM."""
        try:
            single_token(self.tokenizer, template.end, "end")
            self.check_image_token(template)
        except VLMError:
            return False
        return True

    def check_fits(self, spec: VLMSpec) -> None:
        """Raises VLMError unless the generator was trained with this VLM: size, taps, chat template and fingerprint."""
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
        """As `BaseVLM.prepare`, with the model's image arguments."""
        chats = super().prepare(requests, template, max_tiles)
        pixels = [each.pixels for of_request in chats.tiles for each in of_request]
        return replace(chats, pixel_inputs=self._pixel_inputs(pixels))

    def clear_image_caches(self) -> None:
        """Frees the memory of cached images: tiles and states."""
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
        """Tapped states of all tokens, from one causal pass that stops after the last tap.

        Tap k = input of decoder layer k+1 (0 = token embeddings, with the image features in place). States of padding are 0.

        reuse_images   keep the states of a single chat's images for other prompts about them (`prefix_cache`). The result is
                       the same on a cache hit and on a miss
        weights        key of the weights in the cache, for hosts that patch weights

        Raises VLMError for taps that this VLM does not have.
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
        """A pass over chats, through all layers (`whole`) or to the last tap. `reuse`: the prefix of a single chat that ends with
        its images is run separately, or taken from the cache."""
        positions = self._position_ids(inputs)
        start = _end_of_images(inputs) if reuse and len(inputs.token_ids) == 1 else 0
        if not start:
            cache = DynamicCache(config=self.text_config) if whole else None
            return self._forward(inputs, positions, taps, whole=whole, cache=cache)
        prefix = self._prefix(inputs, positions, start, taps, whole=whole, weights=weights)
        cache = prefix.fill(DynamicCache(config=self.text_config))
        rest = self._forward(inputs, positions, taps, whole=whole, cache=cache, tokens=slice(start, None))
        if prefix.states is None or rest.states is None:
            return rest
        return replace(rest, states=torch.cat([prefix.states, rest.states], 1))

    def _prefix(
        self,
        inputs: VLMInputs,
        positions: Tensor,
        length: int,
        taps: tuple[int, ...],
        *,
        whole: bool,
        weights: Hashable,
    ) -> CachedPrefix:
        """The first `length` tokens of a single chat, run or taken from the cache."""
        first = slice(0, length)
        key = (
            digest(inputs.token_ids[:, first], *inputs.pixel_inputs.values()),
            taps,
            whole,
            self._embedding().weight.dtype,
            weights,
        )
        prefix = self.prefix_cache.get(key)
        if prefix is None:
            cache = DynamicCache(config=self.text_config)
            done = self._forward(inputs, positions, taps, whole=whole, cache=cache, tokens=first)
            prefix = self.prefix_cache.put(key, CachedPrefix.of(done.states, cache))
        return prefix

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
        """A pass over a slice of the tokens, which follow those in the cache."""
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
        """The answers of `write` without states. Logs a warning if answers were cut off."""
        written = self.write(
            inputs, (), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, on_token=on_token
        )
        if not all(written.ended):
            logger.warning(
                "%d of %d rewrites were cut off after %d tokens; raise %s if that matters.",
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
        """The VLM's answers and the tapped states of all tokens, answers included, from the same decoding pass.

        The states equal those of `encode` over the chat with the answer in its assistant turn. An answer does not depend on the
        other chats of the batch or on the global random state.

        temperature             0 = greedy; above 0, sampling with a random generator per chat
        seed                    one for all chats, or one per chat; None = fresh seeds
        on_token                called with the number of tokens so far; may raise to interrupt
        reuse_images, weights   as in `encode`

        Raises PromptError for chats that already have a rewrite or leave no room for `max_new_tokens`, ConfigError for settings
        out of range, VLMError for taps that this VLM does not have.
        """
        taps = tuple(taps.taps if isinstance(taps, VLMSpec) else taps)
        if taps:
            self.check_taps(taps)
        generators = make_generators(len(inputs.token_ids), temperature, seed)
        self.check_room(inputs, max_new_tokens)
        inputs = inputs.to(self._device())
        mask, lengths = inputs.mask, inputs.mask.sum(dim=1)
        positions = self._position_ids(inputs)
        # B, or 3 B with M-RoPE, where text continues after the largest position of all axes
        next_position = positions.masked_fill(~mask, 0).amax(dim=-1) + 1
        if positions.ndim > mask.ndim:
            next_position = next_position.amax(dim=0, keepdim=True).expand_as(next_position)
        prefill = self._prefill(inputs, taps, whole=True, reuse=reuse_images, weights=weights)
        assert prefill.hidden is not None
        # tokens of the prefix, whose pass was a separate one
        skipped = inputs.token_ids.shape[1] - prefill.hidden.shape[1]
        last = prefill.hidden[torch.arange(len(lengths)), (lengths - 1 - skipped).to(prefill.hidden.device)]

        written: list[list[int]] = [[] for _ in lengths]
        ended = [False] * len(written)
        states = [] if prefill.states is None else [prefill.states.masked_fill_(~mask[:, :, None, None], 0)]
        # hooked once: a small VLM's step takes little more than its hooks
        with TapReader(decoder_layers(self.model), taps, whole=True) if taps else nullcontext() as reader:
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
                # the padding between chat and answer stays masked, and positions continue from the end of the chat
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
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

    @torch.no_grad()
    def first_token_logits(
        self,
        images: Sequence[Float[Tensor, "C H W"]],
        prompts: Sequence[str],
        *,
        template: ChatTemplate | None = None,
        max_tiles: int = MAX_TILES,
    ) -> Float[Tensor, "B vocabulary"]:
        """Logits of the first token of the answer to each prompt about the same images, in float32.

        The images are encoded once; their keys and values serve all prompts, which run as one batch. The result is that of a
        separate chat for each prompt. Raises as `prepare` does, and VLMError for a VLM without a head.
        """
        head = self._head()
        requests = [Request(prompt=prompt, images=images) for prompt in prompts]
        # the images of one chat: those of the others are the same
        chats = super().prepare(requests, template, max_tiles)
        chats = replace(chats, pixel_inputs=self._pixel_inputs([each.pixels for each in chats.tiles[0]])).to(
            self._device()
        )
        rows = [chats.row(number) for number in range(len(requests))]
        positions = torch.cat([self._position_ids(row) for row in rows], dim=-2)
        start = _end_of_images(rows[0])
        cache = DynamicCache(config=self.text_config)
        if start:
            prefix = self._prefix(rows[0], self._position_ids(rows[0]), start, (), whole=True, weights=None)
            cache = prefix.fill(cache, len(rows))
        hidden = self._run(
            input_ids=chats.token_ids[:, start:],
            attention_mask=chats.mask,
            position_ids=positions[..., start:],
            cache=cache,
        )
        last = chats.mask.sum(dim=1) - 1 - start
        return head(hidden[torch.arange(len(rows)), last.to(hidden.device)]).float()

    # Parts of the model ---------------------------------------------------------------------------

    def _base(self) -> Any:
        return cast(Any, self.model).model

    def _run(self, *, cache: DynamicCache | None, **inputs: Tensor) -> Tensor:
        """Last hidden states. Keys and values of earlier tokens come from the cache; new ones are added to it."""
        return self._base()(
            **inputs, **{self._cache_keyword: cache}, use_cache=cache is not None
        ).last_hidden_state

    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def _head(self) -> nn.Module:
        head = cast(nn.Module | None, self.model.get_output_embeddings())
        if head is None:
            raise VLMError(
                f"The VLM {self.folder or self.family_name} has no language model head, so it writes no text: use the whole "
                "model, whose class ends in ForConditionalGeneration, or give the rewrite yourself."
            )
        return head

    def _device(self) -> torch.device:
        return self.run_device or self._embedding().weight.device

    def _position_ids(self, inputs: VLMInputs) -> Int[Tensor, "*axes B T"]:
        # passed in every call, because the model would otherwise reuse positions of an earlier call
        is_image = inputs.roles == TokenRole.IMAGE
        return self.family.position_ids(
            self._base(), inputs.token_ids, inputs.mask, is_image, inputs.pixel_inputs
        )


@dataclass(frozen=True)
class _Pass:
    """The result of a forward pass.

    states   B T L D   tapped states, None without taps
    hidden   B T D     last hidden states, None if the pass stopped after the last tap
    cache              keys and values of all tokens so far, None if they are not needed
    """

    states: Tensor | None
    hidden: Tensor | None
    cache: DynamicCache | None


def _end_of_images(inputs: VLMInputs) -> int:
    """Length of the prefix of a single chat that ends with its images and their marks; 0 without images."""
    of_images = (inputs.roles[0] == TokenRole.IMAGE) | (inputs.roles[0] == TokenRole.IMAGE_MARK)
    return int(of_images.nonzero().max()) + 1 if bool(of_images.any()) else 0


def _with_answers(
    inputs: VLMInputs, states: list[Float[Tensor, "B _ L D"]], written: list[list[int]]
) -> Features:
    """Features of chats and answers. `states` holds those of the chats, then those of each decoding step."""
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
