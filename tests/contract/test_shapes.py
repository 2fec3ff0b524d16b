"""The shapes written in the core's signatures are true: pytest tests/contract/test_shapes.py"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_public_calls_keep_the_shapes_they_state() -> None:
    program = Path(__file__).with_name("checked_shapes.py")

    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == [
        "generator",
        "sampler",
        "inspection",
        "autoencoder",
        "wrong_axes_are_noticed",
    ]
