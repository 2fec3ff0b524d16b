"""Chats as token ids with a role and a place for every token.

A chat is written piece by piece (prefix, pictures, prompt, suffix, rewrite, end) and each piece is
tokenised by itself, so a token belongs to exactly one role. What users write goes in as plain text: no
special token can be smuggled in through a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..contracts import ChatTemplate, Request, TokenInfo, TokenRole
from ..errors import PromptError, VLMError
from .tiling import Tiles


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLayout:
    """Where the tokens of one picture lie.

    centres          "tokens 2" per tile, in the order of the chat: (row, column) in the picture, 0..1
    block_per_tile   True = the template's picture marks stand around every tile, False = around all of them
    """

    centres: tuple[Float[Tensor, "tokens 2"], ...]
    block_per_tile: bool


@dataclass(frozen=True, kw_only=True)
class VLMInputs:
    """A batch of chats, ready for the VLM.

    token_ids     B T      padded at the end, with the end token
    mask          B T      True = a real token
    roles         B T      `TokenRole`
    positions     B T 3    as in `Features`
    end_id                 the token that ends a rewrite
    pixel_inputs           the family's own arguments for all tiles of all pictures; empty without pictures
    tiles                  for each request the tiles of each of its pictures, in the order of the chat
    """

    token_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    roles: Int[Tensor, "B T"]
    positions: Float[Tensor, "B T 3"]
    end_id: int
    pixel_inputs: dict[str, Tensor] = field(default_factory=dict)
    tiles: tuple[tuple[Tiles, ...], ...] = ()

    @property
    def token_info(self) -> TokenInfo:
        """What each token is, as features carry it."""
        return TokenInfo(roles=self.roles, ids=self.token_ids)

    def to(self, device: torch.device | str) -> VLMInputs:
        """On another device; `tiles`, kept for showing them, stay where they are."""
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            mask=self.mask.to(device),
            roles=self.roles.to(device),
            positions=self.positions.to(device),
            pixel_inputs={name: value.to(device) for name, value in self.pixel_inputs.items()},
        )


@dataclass(frozen=True, slots=True)
class _Token:
    """One token while a chat is put together."""

    id: int
    role: TokenRole
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)


def token_centres(box: Sequence[float], rows: int, columns: int) -> Float[Tensor, "tokens 2"]:
    """Centres (row, column) of a tile's tokens in raster order, from the tile's box in the picture."""
    top, left, bottom, right = box
    row = top + (bottom - top) * (torch.arange(rows) + 0.5) / rows
    column = left + (right - left) * (torch.arange(columns) + 0.5) / columns
    return torch.cartesian_prod(row, column)


def encode_template(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a template's text, in which special tokens are written out."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)


def encode_plain_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a user's text, in which "<|im_end|>" is nothing but letters.

    `split_special_tokens=True` would leave added tokens that are not marked special, so the tokenizer's
    steps are run without its added tokens; for other text the ids are those of the ordinary way.
    """
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    pieces = (
        [text]
        if backend.pre_tokenizer is None
        else [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    )
    return [token.id for piece in pieces for token in backend.model.tokenize(piece)]


def single_token(tokenizer: PreTrainedTokenizerFast, text: str, name: str) -> int:
    """The id of a template's text that must be one token; VLMError if it is none or several."""
    ids = encode_template(tokenizer, text)
    if len(ids) != 1:
        raise VLMError(
            f'The template\'s {name} "{text}" is {len(ids)} tokens of this VLM and must be one: '
            "use the VLM that the template was made for, or a template for this VLM."
        )
    return ids[0]


def build_chat(
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    requests: Sequence[Request],
    images: Sequence[Sequence[ImageLayout]],
    max_length: int,
) -> VLMInputs:
    """Lay requests out as `ChatTemplate` says; `images` holds the layouts of each request's pictures.

    With `rewrite` a chat ends after the end token, without it after the suffix, where the VLM would begin
    to write.

    Raises PromptError for an empty batch and for a chat longer than `max_length` tokens, VLMError for a
    template whose picture or end token is not one token of this tokenizer.
    """
    if not requests:
        raise PromptError("No request was given; give at least one (its prompt may be empty).")
    end_id = single_token(tokenizer, template.end, "end")
    chats = []
    for number, (request, layouts) in enumerate(zip(requests, images, strict=True), start=1):
        chat = _chat(tokenizer, template, request, layouts)
        if len(chat) > max_length:
            raise PromptError(_too_long(number, chat, layouts, max_length))
        chats.append(chat)

    shape = (len(chats), max(len(chat) for chat in chats))
    token_ids = torch.full(shape, end_id)
    roles = torch.full(shape, int(TokenRole.PADDING))
    positions = torch.zeros(*shape, 3)
    for row, chat in enumerate(chats):
        token_ids[row, : len(chat)] = torch.tensor([token.id for token in chat])
        roles[row, : len(chat)] = torch.tensor([int(token.role) for token in chat])
        positions[row, : len(chat)] = torch.tensor([token.position for token in chat])
    mask = roles != TokenRole.PADDING
    return VLMInputs(token_ids=token_ids, mask=mask, roles=roles, positions=positions, end_id=end_id)


def _chat(
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    request: Request,
    layouts: Sequence[ImageLayout],
) -> list[_Token]:
    """The tokens of one chat."""

    def written(text: str, role: TokenRole) -> list[_Token]:
        return [_Token(token_id, role) for token_id in encode_template(tokenizer, text)]

    def plain(text: str, role: TokenRole) -> list[_Token]:
        return [_Token(token_id, role) for token_id in encode_plain_text(tokenizer, text)]

    chat = written(template.prefix, TokenRole.SYSTEM)
    if layouts:
        image_id = single_token(tokenizer, template.image_token, "image_token")
        before = written(template.image_prefix, TokenRole.IMAGE_MARK)
        after = written(template.image_suffix, TokenRole.IMAGE_MARK)
        for number, layout in enumerate(layouts, start=1):
            blocks = (
                [[centre] for centre in layout.centres] if layout.block_per_tile else [list(layout.centres)]
            )
            for block in blocks:
                centres = torch.cat(block).tolist()
                tokens = [_Token(image_id, TokenRole.IMAGE, (float(number), *centre)) for centre in centres]
                chat += before + tokens + after
    instruction = f"{request.style} {request.prompt}" if request.style else request.prompt
    chat += plain(instruction, TokenRole.PROMPT) + written(template.suffix, TokenRole.SUFFIX)
    if request.rewrite is not None:
        chat += plain(request.rewrite, TokenRole.REWRITE) + written(template.end, TokenRole.END)
    return chat


def _too_long(number: int, chat: list[_Token], layouts: Sequence[ImageLayout], max_length: int) -> str:
    """What to tell a user whose chat does not fit: by how much, and what would fit."""
    told = f"Request {number} has {len(chat)} tokens and this VLM takes {max_length}"
    excess = len(chat) - max_length
    if not layouts:
        return f"{told}: shorten the prompt or rewrite by {excess} tokens."
    in_pictures = sum(token.role in (TokenRole.IMAGE, TokenRole.IMAGE_MARK) for token in chat)
    num_tiles = sum(len(layout.centres) for layout in layouts)
    marks = sum(token.role == TokenRole.IMAGE_MARK for token in chat)
    if layouts[0].block_per_tile:  # marks count with every tile, else once per picture
        per_tile, per_picture = in_pictures // num_tiles, 0
    else:
        per_tile, per_picture = (in_pictures - marks) // num_tiles, marks // len(layouts)
    room = max_length - (len(chat) - in_pictures)
    fitting = max(0, (room // len(layouts) - per_picture) // per_tile)
    told += f"; {in_pictures} of them are {num_tiles} tiles of {len(layouts)} picture(s)"
    if fitting:
        words = sum(token.role in (TokenRole.PROMPT, TokenRole.REWRITE) for token in chat)
        shorter = f", or shorten the prompt or rewrite by {excess} tokens" if words > excess else ""
        return f"{told}. Set max_tiles to {fitting} or less{shorter}."
    return f"{told}. Even one tile per picture is too much: give fewer pictures or a shorter prompt."
