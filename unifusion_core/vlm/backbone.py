"""The frozen VLM: hidden states of its layers for the generator, and text for VERIFI.

One set of weights serves both. Loading a folder is `load_vlm`; what differs between VLM families is in
`families.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ..contracts import ChatTemplate, TokenRole, VLMFeatures, VLMRequest, VLMSpec
from ..errors import ConfigError, PromptError, VLMError
from .families import VLMFamily, decoder_layers, find_family
from .prompts import PictureLayout, VLMInputs, build_chat, single_token, token_centres
from .tiling import Tiles, split_into_tiles

logger = logging.getLogger(__name__)


class _LastTapRead(BaseException):
    """Ends a forward pass whose rest nobody needs: no error, so no `except Exception` may swallow it."""


class _TapReader:
    """Hooks that copy what the tapped layers read into one tensor and end the pass after the last of them.

    A context: it swallows the end of the pass, and its hooks are gone afterwards, also on errors.
    """

    def __init__(self, layers: nn.ModuleList, taps: tuple[int, ...]) -> None:
        self.layers = layers
        self.taps = taps
        self.states: Float[Tensor, "B T L D"]
        self.hooks: list[RemovableHandle] = []

    def __enter__(self) -> _TapReader:
        for index, tap in enumerate(self.taps):
            read = partial(self._read, index)
            self.hooks.append(self.layers[tap].register_forward_pre_hook(read, with_kwargs=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        for hook in self.hooks:
            hook.remove()
        return isinstance(error, _LastTapRead)

    def _read(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # B T D
        if index == 0:  # the first layer that is read tells dtype and device
            self.states = hidden.new_empty(*hidden.shape[:2], len(self.taps), hidden.shape[2])
        self.states[:, :, index] = hidden
        if index == len(self.taps) - 1:
            raise _LastTapRead


class VLMBackbone(nn.Module):
    """A VLM of transformers with its tokenizer, frozen.

    Built by `load_vlm`, or around a model in memory (training, tests). `run_device` is where inputs are
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
        self.family_name: str = model.config.model_type
        self.family: VLMFamily = find_family(self.family_name)
        self.tokenizer = tokenizer
        self.folder = folder
        self.model = model
        self.tile_size: int = self.family.tile_size(model.config, tile_size)
        self.token_grid: tuple[int, int] = self.family.token_grid(model.config, self.tile_size)
        self.normalisation = normalisation or self.family.normalisation
        self._fingerprint = ""
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
    def max_length(self) -> int:
        """Most tokens that a chat may have."""
        return self.text_config.max_position_embeddings

    @property
    def tokens_per_tile(self) -> int:
        """Picture tokens that one tile becomes."""
        return self.token_grid[0] * self.token_grid[1]

    @property
    def template(self) -> ChatTemplate:
        """The family's own chat format."""
        return self.family.template

    @property
    def fingerprint(self) -> str:
        """sha256 over names, shapes, types and bytes of the weights: in the folder's files, else in memory.

        Files, because their content does not depend on the dtype that a user loads them in. Computed once.
        """
        if not self._fingerprint:
            tensors = (
                _tensors_in_files(self.folder)
                if self.folder
                else iter(sorted(self.model.state_dict().items()))
            )
            digest = hashlib.sha256()
            for name, tensor in tensors:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def check_fits(self, spec: VLMSpec) -> None:
        """Refuse a VLM that the generator was not trained with: VLMError saying what was given and needed."""
        given = {
            "family": self.family_name,
            "hidden size": self.hidden_size,
            "number of layers": self.num_layers,
        }
        needed = {"family": spec.family, "hidden size": spec.hidden_size, "number of layers": spec.num_layers}
        wrong = [name for name in given if given[name] != needed[name]]
        if wrong:
            raise VLMError(
                "This VLM does not fit the generator: "
                + "; ".join(f"its {name} is {given[name]}, {needed[name]} is needed" for name in wrong)
                + ". Load the VLM that the generator was trained with."
            )
        self._check_taps(spec.taps)
        single_token(self.tokenizer, spec.template.end, "end")
        self._check_picture_token(spec.template)
        if spec.fingerprint and spec.fingerprint != self.fingerprint:
            raise VLMError(
                f"This VLM has the right size but other weights (fingerprint {self.fingerprint[:12]}, "
                f"{spec.fingerprint[:12]} is needed). Load the VLM that came with the generator."
            )

    def _check_taps(self, taps: Sequence[int]) -> None:
        wrong = [tap for tap in taps if not 0 <= tap < self.num_layers]
        if wrong or not taps or list(taps) != sorted(set(taps)):
            raise VLMError(
                f"Taps {list(taps)} were asked for; this VLM has {self.num_layers} layers: "
                f"give one or more of 0..{self.num_layers - 1}, ascending and without repetition."
            )

    def _check_picture_token(self, template: ChatTemplate) -> None:
        picture_id = single_token(self.tokenizer, template.picture_token, "picture_token")
        if picture_id != self.model.config.image_token_id:
            raise VLMError(
                f'The template\'s picture_token "{template.picture_token}" is token {picture_id}, the VLM '
                f"puts pictures at token {self.model.config.image_token_id}: "
                "use the VLM that the template was made for."
            )
        if self.family.block_per_tile and not template.picture_prefix + template.picture_suffix:
            raise VLMError(
                f"A {self.family_name} template needs picture_prefix or picture_suffix to keep tiles apart."
            )

    # From requests to inputs ----------------------------------------------------------------------

    def prepare(
        self, requests: Sequence[VLMRequest], template: ChatTemplate | None = None, max_tiles: int = 10
    ) -> VLMInputs:
        """Tile the pictures and lay out the chats; `template` defaults to the family's own.

        Raises ShapeError for a picture that is none, PromptError for a chat that is too long, VLMError for
        a template that does not fit this VLM.
        """
        template = template or self.template
        tiles: list[tuple[Tiles, ...]] = []
        for request in requests:
            split = [split_into_tiles(picture, max_tiles, self.tile_size) for picture in request.pictures]
            tiles.append(tuple(each if template.thumbnail_last else each.thumbnail_first() for each in split))
        if any(tiles):
            self._check_picture_token(template)
        layouts = [
            [
                PictureLayout(
                    centres=tuple(token_centres(box, *self.token_grid) for box in each.boxes.tolist()),
                    block_per_tile=self.family.block_per_tile,
                )
                for each in of_request
            ]
            for of_request in tiles
        ]
        chat = build_chat(self.tokenizer, template, requests, layouts, self.max_length)
        pixels = [each.pixels for of_request in tiles for each in of_request]
        return replace(chat, pixel_inputs=self._pixel_inputs(pixels), tiles=tuple(tiles))

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
    def encode(self, inputs: VLMInputs, taps: VLMSpec | Sequence[int]) -> VLMFeatures:
        """Hidden states of the tapped layers for all tokens, in one causal pass that ends with the last tap.

        Tap k is what decoder layer k+1 reads (layers counted from 1), so tap 0 are the embeddings with the
        pictures in their places. No logits, no cache. States of padding are 0. VLMError for taps that this
        VLM does not have.
        """
        taps = tuple(taps.taps if isinstance(taps, VLMSpec) else taps)
        self._check_taps(taps)
        inputs = inputs.to(self._device())
        with _TapReader(decoder_layers(self.model), taps) as reader:
            self._base()(
                input_ids=inputs.token_ids,
                attention_mask=inputs.mask,
                position_ids=self._position_ids(inputs),
                use_cache=False,
                **inputs.pixel_inputs,
            )
        padding = ~inputs.mask[:, :, None, None].to(reader.states.device)
        return VLMFeatures(
            states=reader.states.masked_fill_(padding, 0),
            mask=inputs.mask,
            roles=inputs.roles,
            token_ids=inputs.token_ids,
            positions=inputs.positions,
        )

    # Text -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        inputs: VLMInputs,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The VLM's answers. Temperature 0 is greedy; else each chat is sampled with a generator of its own.

        A chat's answer depends on its own inputs and seed, not on its neighbours in the batch: one `seed`
        is every chat's seed, a sequence has one for each, None draws new ones. The global random state is
        left alone. `on_token` is called with the number of tokens so far and may raise to interrupt.

        Raises PromptError for chats that have a rewrite already or leave no room for `max_new_tokens`,
        ConfigError for impossible settings.
        """
        generators = _generators(len(inputs.token_ids), temperature, seed)
        self._check_room(inputs, max_new_tokens)
        inputs = inputs.to(self._device())
        mask, lengths = inputs.mask, inputs.mask.sum(dim=1)
        positions = self._position_ids(inputs)
        # B, with M-RoPE 3 B: text goes on after the largest position of all axes
        next_position = positions.masked_fill(~mask, 0).amax(dim=-1) + 1
        if positions.ndim > mask.ndim:
            next_position = next_position.amax(dim=0, keepdim=True).expand_as(next_position)
        cache = DynamicCache(config=self.text_config)
        hidden = self._base()(
            input_ids=inputs.token_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **inputs.pixel_inputs,
        ).last_hidden_state
        last = hidden[torch.arange(len(lengths)), (lengths - 1).to(hidden.device)]

        written: list[list[int]] = [[] for _ in lengths]
        finished = [False] * len(written)
        for step in range(1, max_new_tokens + 1):
            token_ids = _pick_tokens(self._head()(last), temperature, generators)
            for row, token_id in enumerate(token_ids):
                finished[row] = finished[row] or token_id == inputs.end_id
                if not finished[row]:
                    written[row].append(token_id)
            if on_token is not None:
                on_token(step)
            if all(finished) or step == max_new_tokens:
                break
            # the padding between a chat and its answer stays masked; positions go on where the chat ended
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            last = self._base()(
                input_ids=torch.tensor(token_ids, device=mask.device)[:, None],
                attention_mask=mask,
                position_ids=(next_position + step - 1)[..., None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        if not all(finished):
            logger.warning(
                "%d of %d rewrites were cut off after %d tokens; raise max_new_tokens if they matter.",
                finished.count(False),
                len(finished),
                max_new_tokens,
            )
        return [
            str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for ids in written
        ]

    def _check_room(self, inputs: VLMInputs, max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; give at least 1.")
        if bool(((inputs.roles == TokenRole.DECODED) | (inputs.roles == TokenRole.END)).any()):
            raise PromptError(
                "A chat has its rewrite already; give requests without `decoded` to have one written."
            )
        longest = int(inputs.mask.sum(dim=1).max())
        if longest + max_new_tokens > self.max_length:
            raise PromptError(
                f"The longest chat has {longest} tokens and {max_new_tokens} new ones were asked for; "
                f"this VLM takes {self.max_length} in all: set max_new_tokens to "
                f"{max(0, self.max_length - longest)} or less, or give fewer tiles or a shorter prompt."
            )

    # The model's parts ----------------------------------------------------------------------------

    def _base(self) -> Any:
        return cast(Any, self.model).model

    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def _head(self) -> nn.Module:
        return cast(nn.Module, self.model.get_output_embeddings())

    def _device(self) -> torch.device:
        return self.run_device or self._embedding().weight.device

    def _position_ids(self, inputs: VLMInputs) -> Int[Tensor, "*axes B T"]:
        # given to the model in every call, so that no position state of an earlier call lives on inside it
        is_picture = inputs.roles == TokenRole.PICTURE
        return self.family.position_ids(
            self._base(), inputs.token_ids, inputs.mask, is_picture, inputs.pixel_inputs
        )


def _generators(
    num_chats: int, temperature: float, seed: int | Sequence[int] | None
) -> list[torch.Generator] | None:
    """One generator per chat, on the CPU so that a seed means the same on every device; None if greedy."""
    if temperature < 0:
        raise ConfigError(
            f"temperature is {temperature}; give 0 for the likeliest words or more for variety."
        )
    if not isinstance(seed, Sequence):
        seeds = [seed] * num_chats
    elif len(seed) == num_chats:
        seeds = list(seed)
    else:
        raise ConfigError(f"{len(seed)} seeds were given for {num_chats} chats; give one, or one for each.")
    if temperature == 0:
        return None
    generators = [torch.Generator() for _ in seeds]
    for generator, each in zip(generators, seeds, strict=True):
        if each is None:
            generator.seed()
        else:
            generator.manual_seed(each)
    return generators


def _pick_tokens(
    logits: Float[Tensor, "B vocabulary"], temperature: float, generators: list[torch.Generator] | None
) -> list[int]:
    """The next token of each chat: the likeliest, or drawn by inverting the cumulative distribution.

    In float64 and with one uniform number per token, so that rounding in the logits moves a draw only if it
    falls on an edge.
    """
    if generators is None:
        return logits.argmax(dim=-1).tolist()
    cumulative = torch.softmax(logits.double().cpu() / temperature, dim=-1).cumsum(dim=-1)
    draws = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    # the last sum may lie a rounding below 1
    return (
        torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
        .clamp(max=logits.shape[1] - 1)[:, 0]
        .tolist()
    )


# Folders ------------------------------------------------------------------------------------------


def load_vlm(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tile_size: int | None = None,
) -> VLMBackbone:
    """Load a VLM from a local folder in Hugging Face's layout; no download, no code of the folder is run.

    `device="auto"` lets accelerate spread a big model over what there is. `tile_size` is for families that
    do not fix it.

    Raises VLMError for a folder that is missing, incomplete, damaged, of an unsupported type, or that
    brings its own code.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VLMError(
            f"There is no VLM folder {folder}; give the path of a folder in Hugging Face's layout."
        )
    config = _read_json(folder / "config.json")
    if config is None:
        raise VLMError(
            f"{folder} has no config.json, so it is no VLM folder; copy all files of the model into it."
        )
    model_type = str(config.get("model_type"))
    find_family(model_type)
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in (_read_json(folder / name) or {}):
            raise VLMError(
                f'{folder / name} asks to run code of the folder ("auto_map"), which is never done; take the '
                "version of this model that transformers supports by itself (its name often ends in -hf)."
            )
    tokenizer = _load_tokenizer(folder)
    model = _load_model(folder, dtype, device)
    return VLMBackbone(
        model, tokenizer, normalisation=_normalisation(folder), tile_size=tile_size, folder=folder
    )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise VLMError(f"{folder} has no tokenizer (tokenizer.json); copy all files of the model into it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise VLMError(
            f"The tokenizer in {folder} cannot be read ({error}); copy its files again."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise VLMError(
            f"The tokenizer in {folder} is a {type(tokenizer).__name__}; a tokenizer.json is needed."
        )
    return tokenizer


def _load_model(folder: Path, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """The model with exactly the weights of the folder, on its device."""
    options: dict[str, Any] = {"device_map": "auto"} if device == "auto" else {}
    try:
        model, info = cast(Any, AutoModelForImageTextToText).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise VLMError(
            f"The weights in {folder} are missing, damaged or do not fit its config.json ({error}); "
            "copy the model's files again."
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(str(key) for key in info[kind])
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise VLMError(
                f"The weights in {folder} do not fit its config.json: {kind.replace('_', ' ')} {shown}; "
                "copy the model's files again."
            )
    return model if device == "auto" else model.to(device)


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]] | None:
    """(mean, std) of the folder's picture processor; None if it has none (the family's are used)."""
    processor = _read_json(folder / "preprocessor_config.json")
    if processor is None:
        processor = (_read_json(folder / "processor_config.json") or {}).get("image_processor")
    if not processor or "image_mean" not in processor or "image_std" not in processor:
        return None
    return processor["image_mean"], processor["image_std"]


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file's content; None if there is no such file, VLMError if it is damaged."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VLMError(f"{path} is damaged ({error}); copy the model's files again.") from error
    if not isinstance(content, dict):
        raise VLMError(f"{path} is damaged (no JSON object); copy the model's files again.")
    return content


def _tensors_in_files(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder's safetensors files, by name."""
    where = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            where.update(dict.fromkeys(file.keys(), path))
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as file:
            yield name, file.get_tensor(name)
