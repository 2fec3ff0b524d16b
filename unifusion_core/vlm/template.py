"""The embedded VLM as its generator knows it: size, taps, chat template. No transformers needed here."""

from __future__ import annotations

from ..contracts import ChatTemplate, VLMSpec

TINY_TEMPLATE = ChatTemplate(
    prefix="<|system|>describe the target picture.<|user|>",
    suffix="<|assistant|>",
    end="<|end|>",
    picture_prefix="<img>",
    picture_token="<IMG_CONTEXT>",
    picture_suffix="</img>",
)
TINY_VLM = VLMSpec(
    family="internvl",
    hidden_size=160,
    num_layers=6,
    taps=(0, 1, 2, 3, 5),
    template=TINY_TEMPLATE,
    kept_tokens="decoded",
)
