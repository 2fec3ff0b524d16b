"""Time of a second instruction about the same images, compared with the first:

    python tests/benchmarks/second_instruction.py [--repeats 3] [--tiles 10] [--out FILE.json]

Encode and pool in Krea 2's proportions at a middle size, with random weights: a Qwen3-VL of 12 layers and width 1024, four tapped
layers, LAP and refiner of the same width, one image in ten tiles. Three instructions are read in turn: the first one with empty
caches, the second one with what the first left, and the second one again with empty caches, whose result must be the same.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unifusion_core.contracts import Conditioning, Request
from unifusion_core.evaluation.random_qwen import TAPS, build_random_qwen
from unifusion_core.models.lap import LAPConfig
from unifusion_core.models.pooled_tokens import PooledTokens
from unifusion_core.models.unifusion import UniFusion, UniFusionConfig
from unifusion_core.vlm.backbone import VLMBackbone
from unifusion_core.vlm.rewrite import encode_requests
from unifusion_core.zoo.krea_2 import KREA_2

# as wide as the VLM; the MLP in Krea 2's proportion
CONFIG = replace(
    KREA_2.config,
    vlm=replace(KREA_2.config.vlm, hidden_size=1024, num_layers=12, taps=TAPS),
    lap=LAPConfig(num_heads=8, mlp_size=2752),
    dit=replace(KREA_2.config.dit, hidden_size=2048, num_blocks=1, num_heads=16, num_kv_heads=4, mlp_size=64),
)
FIRST, SECOND = "make the circle green", "put a small blue star on the left of the house"


def main() -> None:
    parser = argparse.ArgumentParser(description="Encode and pool: a second instruction / the first.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiles", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    backbone = build_random_qwen(byte_tokenizer(), "cpu")
    backbone.model.config.image_token_id = backbone.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    backbone.model.model.config.image_token_id = backbone.image_id
    model = random_model(CONFIG)
    image = torch.rand(3, 1344, 1344, generator=torch.Generator().manual_seed(0))

    def read(prompt: str) -> tuple[float, Conditioning]:
        started = time.perf_counter()
        request = Request(prompt=prompt, images=[image])
        features = encode_requests(
            backbone, CONFIG.vlm, [request], states="one_pass", max_tiles=arguments.tiles, weights="fixed"
        )
        condition = model.pool(features, weights="fixed")
        return time.perf_counter() - started, condition

    rounds, worst, tokens = [], 0.0, 0
    for _ in range(arguments.repeats + 1):
        empty_caches(backbone, model)
        first, _ = read(FIRST)
        second, given = read(SECOND)
        empty_caches(backbone, model)
        alone, expected = read(SECOND)
        rounds.append((first, second, alone))
        worst = max(worst, float((given.tokens - expected.tokens).abs().max() / expected.tokens.abs().max()))
        tokens = given.tokens.shape[1]
    # the first round allocates
    first, second, alone = (median(times) for times in zip(*rounds[1:], strict=True))
    found = {
        "condition tokens": tokens,
        "first s": first,
        "second s": second,
        "second / first": second / first,
        "second with empty caches s": alone,
        "largest relative difference to empty caches": worst,
    }
    for name, value in found.items():
        print(f"{name:44} {value:.4g}")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and the special tokens of Qwen's chats."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=[f"<|{name}|>" for name in names]
    )


def random_model(config: UniFusionConfig) -> UniFusion:
    model, random = UniFusion(config), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.normal_(std=std, generator=random)
    return model.eval()


def empty_caches(backbone: VLMBackbone, model: UniFusion) -> None:
    backbone.clear_image_caches()
    model.txtfusion.pooled_before = PooledTokens()


if __name__ == "__main__":
    main()
