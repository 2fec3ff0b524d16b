"""Proves that ComfyUI starts and answers: pytest tests/comfyui/test_server.py"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Comfy


pytestmark = pytest.mark.comfyui


def test_stock_graph_saves_the_right_picture(comfy: Comfy) -> None:
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 48, "height": 32, "batch_size": 1, "color": 0xFF8000},
        },
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "server"},
        },
    }

    result = comfy.run(graph)

    assert result.status == "success", comfy.log()[-3000:]
    assert result.executed == ["1", "2"]
    (image,) = comfy.images(result)
    assert image.shape == (32, 48, 3)
    assert np.array_equal(np.unique(image.reshape(-1, 3), axis=0), [[255, 128, 0]])
