"""What all VLMs do alike, whoever runs them: requests become chats. States and text each gets in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..contracts import MAX_TILES, ChatTemplate, Features, Request, TokenRole, VLMSpec
from ..errors import ConfigError, PromptError, VLMError
from .chat import ImageLayout, VLMInputs, build_chat, single_token, token_centres
from .families import VLMFamily
from .prefix_cache import LRUCache, digest
from .tiling import Tiles, split_into_tiles

NEW_TOKENS = "the number of new tokens (max_new_tokens in Rewrite for UniFusion, max_length in Generate Text)"
"""What messages call it: the command line has no such option, and ComfyUI's own node another name for it."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the VLM wrote to a batch of chats.

    texts      one per chat
    ended      whether each ended by itself, and not at the limit
    features   tapped states of all tokens of the chats and of what was written, taken while it was written: the end
               token is not among them. Rows have padding between chat and answer. None if no taps were asked for.
    """

    texts: list[str]
    ended: list[bool]
    features: Features | None


class BaseVLM(ABC):
    """A frozen VLM as the rest of the package knows it: it prepares, encodes and writes.

    family_name, family   which one it is, and what is its own
    tokenizer             words to token ids
    picture_id            the token in whose places pictures stand
    tile_size, token_grid side of a tile in pixels, (rows, columns) of its tokens
    num_layers            decoder layers
    max_length            most tokens that a chat may have
    """

    family_name: str
    family: VLMFamily
    tokenizer: PreTrainedTokenizerFast
    tile_size: int
    token_grid: tuple[int, int]
    tile_cache: LRUCache[Tiles]

    @property
    @abstractmethod
    def image_id(self) -> int: ...

    @property
    @abstractmethod
    def num_layers(self) -> int: ...

    @property
    @abstractmethod
    def max_length(self) -> int: ...

    @property
    def tokens_per_tile(self) -> int:
        """Picture tokens that one tile becomes."""
        return self.token_grid[0] * self.token_grid[1]

    @property
    def template(self) -> ChatTemplate:
        """The family's own chat format."""
        return self.family.template

    def token_texts(self, token_ids: Int[Tensor, " T"]) -> list[str]:
        """Each token's own text, special tokens by their names."""
        return [str(self.tokenizer.decode([token])) for token in token_ids.tolist()]

    def prepare(
        self, requests: Sequence[Request], template: ChatTemplate | None = None, max_tiles: int = MAX_TILES
    ) -> VLMInputs:
        """Tile the pictures and lay out the chats; `template` defaults to the family's own.

        Raises ShapeError for a picture that is none, PromptError for a chat that is too long, VLMError for
        a template that does not fit this VLM.
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
        """A picture's tiles; those of one that was seen before are not cut again."""
        key = (digest(image), max_tiles)
        known = self.tile_cache.get(key)
        return known or self.tile_cache.keep(key, split_into_tiles(image, max_tiles, self.tile_size))

    def clear_image_caches(self) -> None:
        """Let go of the tiles that are kept."""
        self.tile_cache.clear()

    def check_taps(self, taps: Sequence[int]) -> None:
        """Refuse taps that this VLM does not have (VLMError)."""
        wrong = [tap for tap in taps if not 0 <= tap < self.num_layers]
        if wrong or not taps or list(taps) != sorted(set(taps)):
            raise VLMError(
                f"Taps {list(taps)} were asked for; this VLM has {self.num_layers} layers: "
                f"give one or more of 0..{self.num_layers - 1}, ascending and without repetition."
            )

    def check_image_token(self, template: ChatTemplate) -> None:
        """Refuse a template whose pictures this VLM would not see (VLMError)."""
        image_id = single_token(self.tokenizer, template.image_token, "image_token")
        if image_id != self.image_id:
            raise VLMError(
                f'The template\'s image_token "{template.image_token}" is token {image_id}, the VLM '
                f"puts pictures at token {self.image_id}: "
                "use the VLM that the template was made for."
            )
        if self.family.block_per_tile and not template.image_prefix + template.image_suffix:
            raise VLMError(
                f"A {self.family_name} template needs image_prefix or image_suffix to keep tiles apart."
            )

    def check_room(self, inputs: VLMInputs, max_new_tokens: int) -> None:
        """Refuse chats that have a rewrite already or leave no room for one (PromptError, ConfigError)."""
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; give at least 1.")
        if bool(((inputs.roles == TokenRole.REWRITE) | (inputs.roles == TokenRole.END)).any()):
            raise PromptError(
                "A chat has its rewrite already; give requests without `rewrite` to have one written."
            )
        longest = int(inputs.mask.sum(dim=1).max())
        if longest + max_new_tokens > self.max_length:
            raise PromptError(
                f"The longest chat has {longest} tokens and {max_new_tokens} new ones were asked for; "
                f"this VLM takes {self.max_length} in all: set {NEW_TOKENS} to "
                f"{max(0, self.max_length - longest)} or less, or give fewer tiles or a shorter prompt."
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
        """Hidden states of the tapped layers for all tokens; see `VLMBackbone.encode`."""

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
        """The VLM's answers, with the tapped states of all tokens if there are taps; see `VLMBackbone.write`."""
