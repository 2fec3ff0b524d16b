"""Suite "vlm-speed": time and memory of encoding a prompt, against transformers' own calls on the same weights.

"with logits" is the whole model with `output_hidden_states`, as pipelines call it. "without head" is its base model
without a cache. Each returns the states of the same layers in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..contracts import TokenRole
from ..live_bytes import LiveBytes
from ..vlm.backbone import VLMBackbone
from ..vlm.chat import VLMInputs
from .random_qwen import TAPS, VOCABULARY, build_random_qwen
from .speed import timed
from .subject import Row, Sampling, Subject

# tokens
LENGTHS = (300, 1500)
RUNS = 3
OURS = "ours"


def evaluate_vlm_speed(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Ratios of median times, measured in turns, and of peak memory without the weights. Ignores `sampling`."""
    backbone = build_random_qwen(subject.backbone.tokenizer, subject.device)
    for length in LENGTHS:
        by_name = ways(backbone, length)
        rounds = [
            {name: _seconds(way, subject.device) for name, way in by_name.items()} for _ in range(RUNS + 1)
        ]
        # the first round allocates
        seconds = {name: median(each[name] for each in rounds[1:]) for name in by_name}
        peaks = {name: _peak(way) for name, way in by_name.items()}
        others = [name for name in by_name if name != OURS]
        yield Row(
            name=f"{length} tokens",
            values={
                **{f"time / {name}": seconds[OURS] / seconds[name] for name in others},
                **{f"memory / {name}": peaks[OURS] / peaks[name] for name in others},
                "ours s": seconds[OURS],
                "ours MB": peaks[OURS] / 1e6,
            },
        )


def ways(backbone: VLMBackbone, length: int) -> dict[str, Callable[[], Tensor]]:
    """Three ways to encode a prompt of random tokens; each returns B T L D."""
    ids = torch.randint(VOCABULARY - 2000, (1, length), generator=torch.Generator().manual_seed(0))
    roles = torch.full_like(ids, int(TokenRole.PROMPT))
    inputs = VLMInputs(
        token_ids=ids, mask=roles > 0, roles=roles, positions=torch.zeros(1, length, 3), end_id=0
    ).to(next(backbone.parameters()).device)
    model: Any = backbone.model

    @torch.no_grad()
    def by_transformers(call: Any, **options: Any) -> Tensor:
        hidden = call(
            input_ids=inputs.token_ids,
            attention_mask=inputs.mask.long(),
            output_hidden_states=True,
            **options,
        ).hidden_states
        return torch.stack([hidden[tap] for tap in TAPS], dim=2)

    return {
        OURS: lambda: backbone.encode(inputs, TAPS).states,
        "with logits": lambda: by_transformers(model),
        "without head": lambda: by_transformers(model.model, use_cache=False),
    }


def _seconds(way: Callable[[], Tensor], device: torch.device | str) -> float:
    def finished() -> None:
        way()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    return timed(finished)


def _peak(way: Callable[[], Tensor]) -> int:
    with LiveBytes() as memory:
        way()
    return memory.peak
