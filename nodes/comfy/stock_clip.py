"""The text encoder of ComfyUI's own Load CLIP as a VLM: Qwen3-VL-4B from one file, also quantised, for Krea 2.

Hidden states come from a forward pass of ComfyUI's model, text from ComfyUI's generation. Both are what ComfyUI's code makes of
them, which `stock_check` compares with the model's own states once for each encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from comfy.text_encoders import qwen3vl
from torch import Tensor

from ...unifusion_core.caching import LRUCache
from ...unifusion_core.contracts import Features, TokenRole, VLMSpec
from ...unifusion_core.errors import ConfigError
from ...unifusion_core.vlm.base import BaseVLM, Written
from ...unifusion_core.vlm.chat import VLMInputs, encode_plain_text, single_token
from ...unifusion_core.vlm.families import find_family
from ...unifusion_core.vlm.folder import load_tokenizer
from ...unifusion_core.vlm.prefix_cache import TILES_LIMIT
from ...unifusion_core.vlm.tiling import Tiles
from ...unifusion_core.zoo.krea_2 import KREA_2
from . import host
from .stock_check import check_states

SPEC = KREA_2.config.vlm
"""Layers and chat template for such a text encoder. Its files do not name them; Krea 2 is the only generator made for it."""
WANTED = "Load UniFusion VLM, or Qwen3-VL-4B by Load CLIP of type krea2"
# for the check of an encoder's states
CHECKED_TEXT = "a red fox in the snow"
TILE_SIZE = 448
# along a side
PATCHES_PER_TOKEN = 2
# Tiles of images, per text encoder, because each node makes a `StockVLM` of its own. An entry is released with its encoder.
_TILES: WeakKeyDictionary[Any, LRUCache[Tiles]] = WeakKeyDictionary()


@cache
def _tokenizer() -> Any:
    """ComfyUI's own files of Qwen's tokenizer, as the tokenizer that `vlm.chat` needs."""
    return load_tokenizer(Path(qwen3vl.__file__).parent / "qwen25_tokenizer")


class StockVLM(BaseVLM):
    """A Qwen3-VL of ComfyUI, for one chat at a time. Tiles of images are cached, hidden states are not."""

    def __init__(self, encoder: Any) -> None:
        """`encoder`: the `SDClipModel` that holds the model."""
        self.encoder, self.model = encoder, encoder.transformer
        self.family_name, self.family = "qwen3_vl", find_family("qwen3_vl")
        self.tokenizer = _tokenizer()
        self.tile_size = TILE_SIZE
        side = TILE_SIZE // (self.model.visual.patch_size * PATCHES_PER_TOKEN)
        self.token_grid = (side, side)
        self.tile_cache = _TILES.setdefault(encoder, LRUCache(TILES_LIMIT))

    @property
    def image_id(self) -> int:
        return single_token(self.tokenizer, self.template.image_token, "image_token")

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.model.model.config.hidden_size

    @property
    def num_layers(self) -> int:
        return self.model.num_layers

    @property
    def max_length(self) -> int:
        return self.model.model.config.max_position_embeddings

    @torch.no_grad()
    def encode(
        self,
        inputs: VLMInputs,
        taps: VLMSpec | Sequence[int],
        *,
        reuse_images: bool = False,
        weights: Hashable = None,
    ) -> Features:
        """As `VLMBackbone.encode`, for one chat. Its images are encoded again each time."""
        taps = list(taps.taps if isinstance(taps, VLMSpec) else taps)
        self.check_taps(taps)
        check_states(self.encoder, taps, encode_plain_text(self.tokenizer, CHECKED_TEXT))
        embeddings, _, _, places = self.encoder.process_tokens(
            [self._tokens(inputs)], self.encoder.execution_device
        )
        states = self.model(
            None,
            embeds=embeddings,
            embeds_info=places,
            # ComfyUI counts inputs of layers, too
            intermediate_output=taps,
            final_layer_norm_intermediate=False,
            dtype=torch.float32,
        )[1]
        inputs = inputs.to(states.device)
        return Features(
            # from 1 L T D
            states=states.transpose(1, 2),
            mask=inputs.mask,
            positions=inputs.positions,
            tokens=inputs.token_info,
        )

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
        """As `VLMBackbone.write`, for one chat. The hidden states come from a second pass over chat and answer, in fp32.
        `on_token` is not called, because ComfyUI's generation shows its own progress."""
        self.check_room(inputs, max_new_tokens)
        ids = self.encoder.generate(
            [[(token,) for token in self._tokens(inputs)]],
            do_sample=temperature > 0,
            max_length=max_new_tokens,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=seed,
        )
        ended = ids[-1] in self.model.model.config.stop_tokens
        words = ids[:-1] if ended else ids
        text = str(self.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        wanted = taps.taps if isinstance(taps, VLMSpec) else taps
        features = self.encode(_answered(inputs, words), wanted) if wanted else None
        return Written(texts=[text], ended=[ended], features=features)

    def _tokens(self, inputs: VLMInputs) -> list[int | dict[str, Any]]:
        """A chat in ComfyUI's form: token ids, with each tile's image in place of the tile's tokens."""
        tiles = [tile for each in inputs.tiles[0] for tile in each.pixels]
        tokens: list[int | dict[str, Any]] = []
        ids, roles = inputs.token_ids[0].tolist(), inputs.roles[0].tolist()
        at = 0
        while at < len(ids):
            if roles[at] == TokenRole.IMAGE:
                # 1 H W C
                image = tiles.pop(0).movedim(0, -1)[None]
                tokens.append({"type": "image", "data": image, "original_type": "image"})
                at += self.tokens_per_tile
            else:
                tokens.append(ids[at])
                at += 1
        return tokens


def _answered(inputs: VLMInputs, words: list[int]) -> VLMInputs:
    """A chat with `words` (token ids) as its assistant turn."""
    ids = inputs.token_ids.new_tensor([words])

    def longer(values: Tensor, more: Tensor) -> Tensor:
        return torch.cat([values, more], 1)

    return replace(
        inputs,
        token_ids=longer(inputs.token_ids, ids),
        mask=longer(inputs.mask, torch.ones_like(ids, dtype=torch.bool)),
        roles=longer(inputs.roles, torch.full_like(ids, int(TokenRole.REWRITE))),
        positions=longer(inputs.positions, inputs.positions.new_zeros(1, len(words), 3)),
    )


class StockEncoder:
    """The text encoder of Load CLIP with the interface of `clip.VLMEncoder`."""

    def __init__(self, clip: Any) -> None:
        """Raises ConfigError for a text encoder that is no Qwen3-VL of Krea 2's width."""
        self.inner: Any = getattr(clip, "cond_stage_model", None)
        encoder = getattr(self.inner, getattr(self.inner, "clip", ""), None)
        if not isinstance(getattr(encoder, "transformer", None), qwen3vl.Qwen3VL):
            raise ConfigError(host.wrong_type("CLIP", type(self.inner).__name__, WANTED))
        self.backbone, self.spec, self.generator = StockVLM(encoder), SPEC, KREA_2
        given, needed = self.backbone.hidden_size, SPEC.hidden_size
        if given != needed:
            raise ConfigError(
                f"The CLIP input got a Qwen3-VL {given} wide; Krea 2, the only model that uses the text encoders of Load CLIP, "
                f"needs one {needed} wide: load Qwen3-VL-4B, or connect Load UniFusion VLM for another model."
            )

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """As ComfyUI's text encoders."""
        self.inner.set_clip_options(options)

    def reset_clip_options(self) -> None:
        """As ComfyUI's text encoders."""
        self.inner.reset_clip_options()
