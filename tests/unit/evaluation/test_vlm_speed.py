"""What the suite `vlm-speed` compares is the same work: pytest -m slow tests/unit/evaluation/test_vlm_speed.py"""

from __future__ import annotations

import pytest
import torch

from unifusion_core.evaluation.random_qwen import TAPS, build_random_qwen
from unifusion_core.evaluation.subject import Subject
from unifusion_core.evaluation.vlm_speed import ways
from unifusion_core.live_bytes import LiveBytes


@pytest.mark.slow
def test_all_ways_read_the_same_states() -> None:
    backbone = build_random_qwen(Subject(device="cpu").backbone.tokenizer, "cpu")
    ours, *others = (way() for way in ways(backbone, 20).values())
    assert ours.shape == (1, 20, len(TAPS), 1024)
    for other in others:
        assert (ours - other).abs().amax() <= 1e-4 * other.abs().amax()


def test_live_bytes_are_those_that_are_held_at_a_time() -> None:
    older = torch.zeros(1000)
    with LiveBytes() as memory:
        kept = older + 1  # 4 kB
        for _ in range(3):
            (kept[:500] + 1).sum()  # 2 kB and a number, let go of each time
        older.view(10, 100)
    assert memory.peak == 4000 + 2000 + 4
    assert memory.now == 4000
