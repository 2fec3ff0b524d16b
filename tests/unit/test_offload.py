"""Weights that wait in main memory draw the same picture: pytest tests/unit/test_offload.py"""

from __future__ import annotations

import numpy as np
import torch

from unifusion_core.contracts import Request
from unifusion_core.pipeline import Pipeline


def test_offloaded_weights_draw_the_same() -> None:
    """Here they visit the CPU from the CPU: what is tested is that every layer that works is brought first."""
    request = Request(prompt="a red circle")
    pictures = []
    for offload in (False, True):
        pipeline = Pipeline.load(device="cpu", offload=offload)
        places = {parameter.device.type for parameter in pipeline.model.parameters()}
        assert places == ({"meta"} if offload else {"cpu"})
        assert pipeline.device == torch.device("cpu")
        (rewritten,) = pipeline.rewrite_requests([request])
        pictures += pipeline.sample(rewritten.features, [1], pipeline.settings(steps=2))
    assert np.array_equal(*pictures)
