"""The interface of a VLM. Chat layout and checks are shared; encoding and writing are left to the implementation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..caching import LRUCache, digest
from ..contracts import MAX_TILES, ChatTemplate, Features, Request, TokenRole, VLMSpec
from ..errors import ConfigError, PromptError, VLMError
from .chat import ImageLayout, VLMInputs, build_chat, single_token, token_centres
from .families import VLMFamily
from .tiling import Tiles, split_into_tiles

# name in error messages: each host has its own
NEW_TOKENS = (
    "the number of new tokens (--max-new-tokens, max_new_tokens, or max_length of ComfyUI's Generate Text)"
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """The VLM's answers to a batch of chats.

    texts      one per chat
    ended      per chat: True = ended with the end token, False = cut off at the limit
    features   tapped states of the chats and their answers, from the decoding pass, without the end token. Padding is between
               chat and answer. None if no taps were requested
    """

    texts: list[str]
    ended: list[bool]
    features: Features | None


class BaseVLM(ABC):
    """A frozen VLM: prepares chats, encodes them and writes answers.

    family_name   transformers' model_type
    family        what is specific to the family
    tokenizer     text to token ids
    tile_size     side of a tile in pixels
    token_grid    (rows, columns) of the tokens of one tile
    tile_cache    tiles of recent images
    """

    family_name: str
    family: VLMFamily
    tokenizer: PreTrainedTokenizerFast
    tile_size: int
    token_grid: tuple[int, int]
    tile_cache: LRUCache[Tiles]

    @property
    @abstractmethod
    def image_id(self) -> int:
        """Id of the placeholder token that image features replace."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of decoder layers."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Maximum number of tokens in a chat."""

    @property
    def tokens_per_tile(self) -> int:
        """Number of image tokens per tile."""
        return self.token_grid[0] * self.token_grid[1]

    @property
    def template(self) -> ChatTemplate:
        """The family's chat format."""
        return self.family.template

    def token_texts(self, token_ids: Int[Tensor, " T"]) -> list[str]:
        """The text of each token; special tokens by name."""
        return [str(self.tokenizer.decode([token])) for token in token_ids.tolist()]

    def prepare(
        self, requests: Sequence[Request], template: ChatTemplate | None = None, max_tiles: int = MAX_TILES
    ) -> VLMInputs:
        """Splits images into tiles and lays out the chats. `template` defaults to the family's.

        max_tiles   per image, thumbnail included

        Raises ShapeError for an invalid image, PromptError for a chat that is too long, VLMError for a template of another VLM.
        """
        template = template or self.template
        tiles: list[tuple[Tiles, ...]] = []
        for request in requests:
            split = [self._split(image, max_tiles) for image in request.images]
            tiles.append(tuple(each if template.thumbnail_last else each.thumbnail_first() for each in split))
        if any(tiles):
            self.check_image_token(template)
        layouts = [
            [
                ImageLayout(
                    centres=tuple(token_centres(box, *self.token_grid) for box in each.boxes.tolist()),
                    block_per_tile=self.family.block_per_tile,
                )
                for each in of_request
            ]
            for of_request in tiles
        ]
        chats = build_chat(self.tokenizer, template, requests, layouts, self.max_length)
        return replace(chats, tiles=tuple(tiles))

    def _split(self, image: Tensor, max_tiles: int) -> Tiles:
        """The tiles of an image, from the cache if it was split before."""
        key = (digest(image), max_tiles)
        known = self.tile_cache.get(key)
        return known or self.tile_cache.put(key, split_into_tiles(image, max_tiles, self.tile_size))

    def clear_image_caches(self) -> None:
        """Frees the memory of cached images."""
        self.tile_cache.clear()

    def check_taps(self, taps: Sequence[int]) -> None:
        """Raises VLMError unless the taps are layers of this VLM, ascending and without repetition."""
        wrong = [tap for tap in taps if not 0 <= tap < self.num_layers]
        if wrong or not taps or list(taps) != sorted(set(taps)):
            raise VLMError(
                f"Taps {list(taps)} were requested and this VLM has {self.num_layers} layers: "
                f"give one or more of 0..{self.num_layers - 1}, ascending and without repetition."
            )

    def check_image_token(self, template: ChatTemplate) -> None:
        """Raises VLMError for a template with another image token than this VLM's, or without the image marks that it needs."""
        image_id = single_token(self.tokenizer, template.image_token, "image_token")
        if image_id != self.image_id:
            raise VLMError(
                f"The template's image_token \"{template.image_token}\" is token {image_id} and this VLM's image token is "
                f"{self.image_id}: use the VLM that the template was made for."
            )
        if self.family.block_per_tile and not template.image_prefix + template.image_suffix:
            raise VLMError(
                f"The template has neither image_prefix nor image_suffix, and {self.family_name} needs one of them to separate "
                "tiles: use a template of this family."
            )

    def check_room(self, inputs: VLMInputs, max_new_tokens: int) -> None:
        """Checks that the chats can be continued by `max_new_tokens`.

        Raises PromptError for a chat that already has a rewrite or is too long, ConfigError for `max_new_tokens` below 1.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; give at least 1.")
        if bool(((inputs.roles == TokenRole.REWRITE) | (inputs.roles == TokenRole.END)).any()):
            raise PromptError(
                "A chat has a rewrite already; give requests without `rewrite` to have the VLM write one."
            )
        longest = int(inputs.mask.sum(dim=1).max())
        if longest + max_new_tokens > self.max_length:
            raise PromptError(
                f"The longest chat has {longest} tokens, {max_new_tokens} new ones were requested, and this VLM takes "
                f"{self.max_length} in total: set {NEW_TOKENS} to {max(0, self.max_length - longest)} or less, or give fewer "
                "tiles or a shorter prompt."
            )

    @abstractmethod
    def encode(
        self,
        inputs: VLMInputs,
        taps: VLMSpec | Sequence[int],
        *,
        reuse_images: bool = False,
        weights: Hashable = None,
    ) -> Features:
        """Tapped states of all tokens; see `VLMBackbone.encode`."""

    @abstractmethod
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
        """The VLM's answers and, if there are taps, the tapped states of all tokens; see `VLMBackbone.write`."""
