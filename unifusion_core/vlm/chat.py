"""Chats as token ids, with a role and a position for every token.

Each part of a chat (prefix, images, prompt, suffix, rewrite, end) is tokenised separately, so that every token has exactly one
role. User text is tokenised without special tokens, so that a prompt cannot inject them.
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
    """Positions of one image's tokens.

    centres          per tile, in the order of the chat: (row, column) of each token in the image, 0..1
    block_per_tile   True = image marks around each tile, False = around all tiles of the image
    """

    centres: tuple[Float[Tensor, "tokens 2"], ...]
    block_per_tile: bool


@dataclass(frozen=True, kw_only=True)
class VLMInputs:
    """A batch of chats as the VLM's inputs.

    token_ids     B T      padded at the end with the end token
    mask          B T      True = a real token
    roles         B T      `TokenRole`
    positions     B T 3    as in `Features`
    end_id                 the token that ends a rewrite
    pixel_inputs           the model's arguments for all tiles of all images; empty without images
    tiles                  tiles per image and request, in the order of the chat
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
        """Roles and ids as in `Features.tokens`."""
        return TokenInfo(roles=self.roles, ids=self.token_ids)

    def row(self, number: int) -> VLMInputs:
        """One chat of several about the same images, with its padding; `pixel_inputs` are those of one chat already."""
        one = slice(number, number + 1)
        return replace(
            self,
            token_ids=self.token_ids[one],
            mask=self.mask[one],
            roles=self.roles[one],
            positions=self.positions[one],
            tiles=self.tiles[one],
        )

    def to(self, device: torch.device | str) -> VLMInputs:
        """On another device. `tiles` stay where they are: the VLM does not compute with them."""
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
    """One token of a chat under construction."""

    id: int
    role: TokenRole
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)


def token_centres(box: Sequence[float], rows: int, columns: int) -> Float[Tensor, "tokens 2"]:
    """Centres (row, column) of a tile's tokens in raster order. `box` = (top, left, bottom, right) of the tile in the image."""
    top, left, bottom, right = box
    row = top + (bottom - top) * (torch.arange(rows) + 0.5) / rows
    column = left + (right - left) * (torch.arange(columns) + 0.5) / columns
    return torch.cartesian_prod(row, column)


def encode_template(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a template's text, which may contain special tokens."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)


def encode_plain_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a user's text, without special tokens: "<|im_end|>" becomes ordinary text.

    Runs the tokenizer's steps without its added tokens, because `split_special_tokens=True` keeps added tokens that are not
    marked special. Other text has its usual ids.
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
    """Id of a template's text that must be one token. Raises VLMError if it is not."""
    ids = encode_template(tokenizer, text)
    if len(ids) != 1:
        raise VLMError(
            f'The template\'s {name} "{text}" is {len(ids)} tokens of this VLM and must be one: '
            "use the VLM that the template was made for, or a template of this VLM."
        )
    return ids[0]


def build_chat(
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    requests: Sequence[Request],
    images: Sequence[Sequence[ImageLayout]],
    max_length: int,
) -> VLMInputs:
    """Lays out requests in the order of `ChatTemplate`. `images` holds the layouts of each request's images.

    A chat without a rewrite ends with the suffix, where the VLM's answer starts.

    Raises PromptError for an empty batch, for a chat of more than `max_length` tokens and for a system text that the template
    cannot take, VLMError for a template whose image
    token or end token is not one token of this tokenizer.
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
    """The tokens of a chat."""

    def written(text: str, role: TokenRole) -> list[_Token]:
        return [_Token(token_id, role) for token_id in encode_template(tokenizer, text)]

    def plain(text: str, role: TokenRole) -> list[_Token]:
        return [_Token(token_id, role) for token_id in encode_plain_text(tokenizer, text)]

    if request.system:
        template = template.with_system(request.system)
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
    if not layouts and instruction[:1].isspace():
        chat = _opening(tokenizer, template, instruction)
    else:
        chat += plain(instruction, TokenRole.PROMPT)
    chat += written(template.suffix, TokenRole.SUFFIX)
    if request.rewrite is not None:
        chat += plain(request.rewrite, TokenRole.REWRITE) + written(template.end, TokenRole.END)
    return chat


def _opening(tokenizer: PreTrainedTokenizerFast, template: ChatTemplate, instruction: str) -> list[_Token]:
    """The prefix and an instruction that begins with white space, as one text: a line break merges with one that ends the prefix.
    As many tokens as the prefix has alone are the prefix's (Krea 2's public code)."""
    prefix = encode_template(tokenizer, template.prefix)
    behind = max(
        (i + 1 for i, each in enumerate(prefix) if each in tokenizer.added_tokens_decoder), default=0
    )
    tail = str(tokenizer.decode(prefix[behind:], clean_up_tokenization_spaces=False))
    if encode_plain_text(tokenizer, tail) == prefix[behind:]:
        ids = prefix[:behind] + encode_plain_text(tokenizer, tail + instruction)
    else:
        # a tokenizer for which parts of a text are no texts
        ids = prefix + encode_plain_text(tokenizer, instruction)
    return [
        _Token(each, TokenRole.SYSTEM if number < len(prefix) else TokenRole.PROMPT)
        for number, each in enumerate(ids)
    ]


def _too_long(number: int, chat: list[_Token], layouts: Sequence[ImageLayout], max_length: int) -> str:
    """Error message for a chat that is too long: the excess, and the number of tiles that would fit."""
    problem = f"Request {number} has {len(chat)} tokens and this VLM takes {max_length}"
    excess = len(chat) - max_length
    if not layouts:
        return f"{problem}: shorten the prompt or rewrite by {excess} tokens."
    in_images = sum(token.role in (TokenRole.IMAGE, TokenRole.IMAGE_MARK) for token in chat)
    num_tiles = sum(len(layout.centres) for layout in layouts)
    marks = sum(token.role == TokenRole.IMAGE_MARK for token in chat)
    # marks belong to each tile, or to each image
    if layouts[0].block_per_tile:
        per_tile, per_image = in_images // num_tiles, 0
    else:
        per_tile, per_image = (in_images - marks) // num_tiles, marks // len(layouts)
    room = max_length - (len(chat) - in_images)
    fitting = max(0, (room // len(layouts) - per_image) // per_tile)
    problem += f"; {in_images} of them are {num_tiles} tiles of {len(layouts)} image(s)"
    if fitting:
        words = sum(token.role in (TokenRole.PROMPT, TokenRole.REWRITE) for token in chat)
        shorter = f", or shorten the prompt or rewrite by {excess} tokens" if words > excess else ""
        return f"{problem}. Set max_tiles to {fitting} or less{shorter}."
    return f"{problem}. Even one tile per image is too much: give fewer images or a shorter prompt."
