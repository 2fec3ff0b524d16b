"""The VLM as a ComfyUI CLIP, which stock text nodes and ComfyUI's model manager take; encoding and rewriting on it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import comfy.model_management as mm
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...unifusion_core.contracts import (
    MAX_TILES,
    CutOff,
    Features,
    Request,
    RewriteSettings,
    RewriteStates,
    VLMSpec,
)
from ...unifusion_core.errors import ConfigError, ShapeError, VLMError
from ...unifusion_core.images import edited_size
from ...unifusion_core.zoo.spec import GeneratorSpec
from ..sockets import Encoded
from . import host
from .conditions import flattened
from .host import AUTOMATIC, WeightType
from .ops import move_other_parameters, use_host_layers

if TYPE_CHECKING:
    from ...unifusion_core.vlm.backbone import VLMBackbone
    from ...unifusion_core.vlm.chat import VLMInputs
    from ...unifusion_core.vlm.rewrite import Rewrite
    from .stock_clip import StockEncoder

# names of ComfyUI's own text encoders, which LoRAs for them have, by transformers' family
_STOCK_NAMES = {"qwen3_vl": "qwen3vl_4b", "qwen2_5_vl": "qwen25_7b"}


class Tokens(dict[str, Any]):
    """{"inputs": VLMInputs}, from `VLMTokenizer` to `VLMEncoder`."""

    def __missing__(self, key: str) -> Any:
        """Nodes for text encoders of several parts ask for the tokens of one of them. Raises ConfigError."""
        raise ConfigError(
            f'This node needs a text encoder with a part "{key}", such as those of Flux, SD3 or SDXL; this CLIP is one VLM: use '
            "Encode for UniFusion or CLIP Text Encode."
        )


StatesChoice = RewriteStates | Literal["automatic"]
# what the images of a batch become: one chat about all of them, or a chat for each
BatchUse = Literal["all in one prompt", "one prompt each"]


class VLMTokenizer:
    """Prompts and images as chats. Stock nodes give a text, some of them images (B H W C) as well."""

    def __init__(
        self,
        backbone: VLMBackbone,
        spec: VLMSpec,
        generator: GeneratorSpec,
        embedding_directory: Any = None,
        tokenizer_data: Any = None,
    ) -> None:
        self.backbone, self.spec, self.generator = backbone, spec, generator

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        *,
        image: Tensor | None = None,
        images: Sequence[Tensor] = (),
        max_tiles: int = MAX_TILES,
        rewrite: str | None = None,
        **unknown: Any,
    ) -> Tokens:
        """One chat. `unknown` settings belong to other text encoders; those that a user chose are named as without effect."""
        _warn_of_settings(unknown)
        images = unbatched([*images] if image is None else [image, *images])
        request = Request(prompt=text, images=images, rewrite=rewrite)
        warn_of_prompt(self.generator, self.spec, request)
        return Tokens(inputs=self.backbone.prepare([request], self.spec.template, max_tiles))

    def decode(self, text: str, skip_special_tokens: bool = True) -> str:
        """The text that `VLMEncoder.generate` returned, unchanged."""
        return text

    def state_dict(self) -> dict[str, Tensor]:
        """ComfyUI calls this to save a CLIP. Raises VLMError, because a VLM is a folder, and the file could not be opened."""
        raise VLMError(
            "The VLM of Load UniFusion VLM is a folder in models/vlm, and ComfyUI would save it as one file that nothing opens: "
            "copy the folder, and save the MODEL alone with Save Model."
        )


def _warn_of_settings(settings: Mapping[str, Any]) -> None:
    """Warns of settings of Generate Text and other stock nodes that have no effect on a VLM of the pack."""
    chosen = {
        "thinking": settings.get("thinking"),
        "use_default_template off": settings.get("skip_template"),
        "a template of its own": settings.get("llama_template"),
        "video": settings.get("video") is not None,
        "audio": settings.get("audio") is not None,
    }
    if named := [name for name, value in chosen.items() if value]:
        host.warn_once(
            f"This CLIP does not use {', '.join(named)}: the generator's own chat template applies. Give frames as images, and "
            "instructions in the prompt."
        )


class StockLayout(nn.Module):
    """The parts of a VLM under the names that ComfyUI's own text encoders give them."""

    def __init__(self, backbone: VLMBackbone) -> None:
        super().__init__()
        outer: Any = backbone.model
        for name, part in outer.model.named_children():
            self.add_module("model" if name == "language_model" else name, part)
        for name, part in outer.named_children():
            if part is not outer.model:
                self.add_module(name, part)


class VLMEncoder(nn.Module):
    """The VLM as a module for ComfyUI's model manager, which sets `.device`; a model of transformers does not allow that."""

    backbone: VLMBackbone

    def __init__(
        self,
        backbone: VLMBackbone,
        spec: VLMSpec,
        generator: GeneratorSpec,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        model_options: Any = None,
    ) -> None:
        super().__init__()
        self.spec, self.generator = spec, generator
        self.dtypes = {dtype}
        use_host_layers(backbone)
        # its layers are registered by the names that LoRAs for text encoders have, and by no others
        object.__setattr__(self, "backbone", backbone)
        named = nn.Module()
        named.transformer = StockLayout(backbone)
        self.add_module(_STOCK_NAMES.get(spec.family, spec.family), named)
        if device is not None:
            self.to(device)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        if "execution_device" in options:
            # the device of the inputs; the manager may keep the weights elsewhere
            device = self.backbone.run_device = torch.device(options["execution_device"])
            move_other_parameters(self, device)
        if options.get("layer") is not None:
            host.warn_once(
                "CLIP Set Last Layer has no effect: the model determines which VLM layers are used"
            )

    def reset_clip_options(self) -> None:
        self.backbone.run_device = None

    def memory_estimation_function(self, tokens: Tokens, device: Any = None) -> int:
        """Bytes for one forward pass. ComfyUI also calls this without tokens."""
        length = tokens["inputs"].token_ids.shape[1] if tokens else 1
        return length * self.backbone.hidden_size * mm.dtype_size(torch.float32) * 64

    def encode_token_weights(self, tokens: Tokens) -> tuple[Tensor, None, dict[str, Any]]:
        """For stock nodes: flattened features, no pooled vector, and the entries of the conditioning's dictionary."""
        states, rest = flattened(features_of(self, tokens), self.spec)
        return states, None, rest

    def generate(
        self,
        tokens: Tokens,
        do_sample: bool = False,
        max_length: int = 256,
        temperature: float = 1.0,
        seed: int | None = None,
        **unused: Any,
    ) -> str:
        """The VLM's answer, sampled at a temperature from the whole distribution. top_k, top_p, min_p and penalties are
        ignored."""
        if do_sample:
            host.warn_once(
                "Text is sampled with temperature and seed only; top_k, top_p, min_p, repetition_penalty and presence_penalty "
                "have no effect."
            )
        (text,) = self.backbone.generate(
            tokens["inputs"],
            max_new_tokens=max_length,
            temperature=temperature if do_sample else 0.0,
            seed=seed,
            on_token=host.progress(max_length),
        )
        return text


def load_clip(
    folder: Path,
    spec: VLMSpec,
    generator: GeneratorSpec,
    dtype_name: WeightType = "default",
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """A VLM folder as a CLIP for a generator that was trained with the VLM of this `spec`. Raises VLMError if the folder is
    damaged or does not fit."""
    from ...unifusion_core.vlm.folder import load_vlm

    dtype = host.vlm_dtype(dtype_name, _estimated_parameters(folder))
    backbone = load_vlm(folder, dtype=dtype, spec=spec)
    backbone.check_fits(spec)
    target = comfy.supported_models_base.ClipTarget(
        partial(VLMTokenizer, backbone, spec, generator), partial(VLMEncoder, backbone, spec, generator)
    )
    clip = comfy.sd.CLIP(
        target,
        model_options={"dtype": dtype},
        parameters=sum(p.numel() for p in backbone.parameters()),
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_load_patcher, (folder, spec, generator, dtype_name))
    return clip


def _load_patcher(
    folder: Path,
    spec: VLMSpec,
    generator: GeneratorSpec,
    dtype_name: WeightType,
    disable_dynamic: bool = False,
) -> Any:
    """Another copy of the VLM, which ComfyUI makes for a second device."""
    return load_clip(folder, spec, generator, dtype_name, disable_dynamic).patcher


@torch.no_grad()
def features_of(encoder: VLMEncoder | StockEncoder, tokens: Tokens, weights: Hashable = None) -> Features:
    """Tapped states of the selected tokens, on ComfyUI's intermediate device. `weights` identifies the VLM's patches; with it,
    images that were encoded before are not encoded again."""
    from ...unifusion_core.vlm.features import encode_chat

    host.stop_if_interrupted()
    features = encode_chat(
        encoder.backbone,
        encoder.spec,
        tokens["inputs"],
        reuse_images=weights is not None,
        weights=weights,
    )
    return features.to(mm.intermediate_device())


def encoder_of(clip: Any) -> VLMEncoder | StockEncoder:
    """The VLM of a CLIP from Load UniFusion VLM or Load CLIP. Raises ConfigError for a text encoder of another kind."""
    inner = getattr(clip, "cond_stage_model", None)
    if isinstance(inner, VLMEncoder):
        return inner
    from .stock_clip import StockEncoder

    return StockEncoder(clip)


@contextmanager
def at_work(clip: Any, chats: Sequence[Tokens]) -> Iterator[VLMEncoder | StockEncoder]:
    """The VLM of a CLIP, loaded on its device by ComfyUI's model manager, for chats that are encoded one after the other."""
    encoder = encoder_of(clip)
    encoder.reset_clip_options()
    clip.load_model(max(chats, key=lambda tokens: tokens["inputs"].token_ids.shape[1]))
    encoder.set_clip_options({"execution_device": clip.patcher.load_device})
    with mm.cuda_device_context(clip.patcher.load_device):
        yield encoder


def encode(
    clip: Any, prompt: str, images: Sequence[Tensor], max_tiles: int, batch: BatchUse = "all in one prompt"
) -> tuple[list[Tokens], Encoded]:
    """The tokens of each chat, and the features of all: images (B H W C), then the prompt as it is.

    Raises ConfigError for a text encoder of another kind, ShapeError for an image of the wrong shape or content or for batches of
    unequal sizes, PromptError for a chat that is too long.
    """
    requests = [Request(prompt=prompt, images=each) for each in images_by_chat(images, batch)]
    chats = [tokens_for(clip, request, max_tiles) for request in requests]
    known = encoder_of(clip)
    warn_of_prompt(known.generator, known.spec, requests[0])
    with at_work(clip, chats) as encoder:
        rows = [features_of(encoder, tokens, clip.patcher.patches_uuid) for tokens in chats]
    return chats, _encoded(clip, encoder, Features.cat(rows), requests)


@dataclass
class ClipEmptyPrompt:
    """The empty prompt of a CLIP, encoded when a sampler needs it, and once."""

    clip: Any

    def encoded(self) -> Encoded:
        return self._encoded

    @cached_property
    def _encoded(self) -> Encoded:
        return encode(self.clip, "", (), 1)[1]


def _encoded(
    clip: Any, encoder: VLMEncoder | StockEncoder, features: Features, requests: Sequence[Request]
) -> Encoded:
    """Features as the value of a `FeaturesSocket`, a row for each request."""
    ids = features.token_info.ids.unique()
    return Encoded(
        features=features,
        spec=encoder.spec,
        # images of one batch have one size
        edited=edited_size(requests[0].images),
        texts=dict(zip(ids.tolist(), encoder.backbone.token_texts(ids), strict=True)),
        images=[image for request in requests for image in request.images],
        empty=ClipEmptyPrompt(clip),
    )


def rewrite(
    clip: Any,
    prompt: str,
    images: Sequence[Tensor],
    max_tiles: int,
    *,
    style: str,
    locked_text: str,
    states: StatesChoice,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    cut_off: CutOff = "refuse",
    batch: BatchUse = "all in one prompt",
) -> tuple[Encoded, list[str]]:
    """VERIFI: the features of each chat with its rewrite, and the rewrites. A `locked_text` is that of every chat, word for word.

    Raises as `encode` does, ConfigError for settings out of range, PromptError for a rewrite that is empty or does not end.
    """
    locked = locked_text.strip() or None
    requests = [
        encoder_of(clip).generator.with_style(Request(prompt=prompt, images=each, rewrite=locked), style)
        for each in images_by_chat(images, batch)
    ]
    with at_work(clip, [tokens_for(clip, request, max_tiles) for request in requests]) as encoder:
        weights = clip.patcher.patches_uuid
        warn_of_requests(encoder, requests, weights)
        settings = RewriteSettings(
            max_new_tokens=max_new_tokens,
            states=encoder.spec.rewrite_states if states == AUTOMATIC else states,
            temperature=temperature,
            seed=seed,
            cut_off=cut_off,
        )
        done = [_rewritten(encoder, request, settings, max_tiles, weights) for request in requests]
    features = Features.cat([each.features for each in done]).to(mm.intermediate_device())
    return _encoded(clip, encoder, features, requests), [each.text for each in done]


def _rewritten(
    encoder: VLMEncoder | StockEncoder,
    request: Request,
    settings: RewriteSettings,
    max_tiles: int,
    weights: Hashable,
) -> Rewrite:
    """A request with its rewrite, which the VLM writes if there is none."""
    from ...unifusion_core.vlm import rewrite as verifi

    host.stop_if_interrupted()
    backbone, spec = encoder.backbone, encoder.spec
    how: dict[str, Any] = {"max_tiles": max_tiles, "weights": weights}
    if request.rewrite is not None:
        features = verifi.encode_requests(backbone, spec, [request], states=settings.states, **how)
        return verifi.Rewrite(request=request, features=features)
    on_token = host.progress(settings.max_new_tokens)
    (done,) = verifi.rewrite(backbone, spec, [request], settings, on_token=on_token, **how)
    return done


def tokens_for(clip: Any, request: Request, max_tiles: int) -> Tokens:
    """One chat as tokens. Raises as `encode` does."""
    encoder = encoder_of(clip)
    return Tokens(inputs=encoder.backbone.prepare([request], encoder.spec.template, max_tiles))


def warn_of_requests(
    encoder: VLMEncoder | StockEncoder, requests: Sequence[Request], weights: Hashable
) -> None:
    """Warns of what the generator does not draw of requests that are rewritten. The VLM may be asked what it sees in images."""
    from ...unifusion_core.vlm.rewrite import describe_image

    generator = encoder.generator
    for request in requests:
        sentences = generator.not_drawn(
            request,
            lambda image: describe_image(
                encoder.backbone, encoder.spec, image, generator.rewriting, weights=weights
            ),
        )
        for sentence in sentences:
            host.warn_once(sentence)


def warn_of_prompt(generator: GeneratorSpec, spec: VLMSpec, request: Request) -> None:
    """Warns of what the generator does not draw of a prompt that is used as it is, and of an instruction about images."""
    # a description, even beside images
    for sentence in generator.not_drawn(replace(request, images=()), lambda image: ""):
        host.warn_once(sentence)
    if (
        request.images
        and request.prompt.strip()
        and not request.rewrite
        and spec.rewrite_states == "one_pass"
    ):
        host.warn_once(
            "The prompt is used as it is, beside the images: it should describe the image to generate. For an instruction such "
            "as 'make the circle green' use Rewrite for UniFusion (VERIFI), or the image is drawn unchanged."
        )


def images_by_chat(batches: Sequence[Tensor], batch: BatchUse) -> list[list[Tensor]]:
    """The images (C H W) of each chat, out of ComfyUI's batches (B H W C). With a prompt for each image of a batch, image i of
    every batch is in chat i, and a batch of one image is in all of them.

    Raises ShapeError for a batch without images, and for batches of unequal sizes that are to be paired.
    """
    if batch == "all in one prompt" or not batches:
        return [unbatched(batches)]
    sizes = sorted({len(each) for each in batches} - {1})
    if len(sizes) > 1:
        raise ShapeError(
            f"The pictures are batches of {' and '.join(map(str, sizes))} images, which cannot be paired: give batches of one "
            "size, single images, or choose 'all in one prompt'."
        )
    count = sizes[0] if sizes else 1
    return [unbatched([each[i % len(each)][None] for each in batches]) for i in range(max(1, count))]


def unbatched(batches: Sequence[Tensor]) -> list[Tensor]:
    """The images (C H W) of ComfyUI's batches (B H W C), in order. Raises ShapeError for a batch without images."""
    for batch in batches:
        if 0 in batch.shape:
            raise ShapeError(
                f"An IMAGE input holds no image (its shape is {tuple(batch.shape)}): check the node that it comes from, or "
                "disconnect it."
            )
    return [image.movedim(-1, 0) for batch in batches for image in batch]


def tiles_of(chats: Sequence[Tokens]) -> Tensor:
    """The tiles of all images in the VLM's order, as an IMAGE (B H W C); one gray tile if there are no images."""
    inputs: list[VLMInputs] = [tokens["inputs"] for tokens in chats]
    pixels = [tiles.pixels for each in inputs for of_request in each.tiles for tiles in of_request]
    if not pixels:
        return torch.full((1, 64, 64, 3), 0.5)
    return torch.cat(pixels).movedim(1, -1).contiguous()


def _estimated_parameters(folder: Path) -> int:
    """The approximate number of parameters in a VLM folder, at two bytes each."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2
