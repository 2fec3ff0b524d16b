"""Names and shapes of the weights in a generator file, and its JSON, do not change: pytest tests/contract/test_checkpoint_keys.py

Otherwise existing files would no longer load. golden/krea2_keys.json was taken from Krea 2's public code. After an intended
change (a new format, a new tiny model), write tiny_keys.json and the configurations of format 2 again with

    python tests/contract/test_checkpoint_keys.py

golden/*_config_1.json are configurations of format 1 and stay as they are.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from unifusion_core.checkpoints.generator_file import (
    config_from_json,
    config_to_json,
    load_generator,
)
from unifusion_core.models.layers import LayerFactory
from unifusion_core.models.unifusion import UniFusion, UniFusionConfig
from unifusion_core.zoo.krea_2 import KREA_2
from unifusion_core.zoo.tiny import BUILT_IN, TINY

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SPECS = {"tiny": TINY, "krea2": KREA_2}
BLOCK_NUMBER = re.compile(r"(?<=blocks\.)\d+(?=\.)")


def read_golden(name: str) -> dict:
    return json.loads((GOLDEN / name).read_text())


def layout(config: UniFusionConfig) -> dict[str, dict]:
    """Shape and number of every weight; the blocks of a stack are one entry, `blocks.N`."""
    found: dict[str, dict] = {}
    for key, value in UniFusion(config, LayerFactory(device="meta")).state_dict().items():
        entry = found.setdefault(BLOCK_NUMBER.sub("N", key), {"shape": list(value.shape), "count": 0})
        assert entry["shape"] == list(value.shape)
        entry["count"] += 1
    return dict(sorted(found.items()))


def test_krea_2_has_the_public_layout() -> None:
    assert layout(KREA_2.config) == read_golden("krea2_keys.json")


def test_tiny_keeps_its_layout() -> None:
    assert layout(TINY.config) == read_golden("tiny_keys.json")


@pytest.mark.parametrize("name", ["tiny", "krea2"])
def test_configurations_of_format_2_are_read_and_written_without_loss(name: str) -> None:
    text = (GOLDEN / f"{name}_config.json").read_text()

    config, training, generator = config_from_json(text)

    assert generator == SPECS[name].name
    # nothing dropped, nothing added
    assert json.loads(config_to_json(config, training, SPECS[name])) == json.loads(text)
    assert config == SPECS[name].config


@pytest.mark.parametrize("name", ["tiny", "krea2"])
def test_configurations_of_format_1_equal_those_of_format_2(name: str) -> None:
    text = (GOLDEN / f"{name}_config_1.json").read_text()

    assert json.loads(text)["format"] == 1
    assert config_from_json(text) == (SPECS[name].config, {}, None)


def test_the_embedded_generator_has_the_tiny_layout() -> None:
    model, _ = load_generator(BUILT_IN.generator)

    assert layout(model.config) == layout(TINY.config)


def write_golden() -> None:
    (GOLDEN / "tiny_keys.json").write_text(json.dumps(layout(TINY.config), indent=1) + "\n")
    for name, spec in SPECS.items():
        text = json.dumps(json.loads(config_to_json(spec.config, spec=spec)), indent=1)
        (GOLDEN / f"{name}_config.json").write_text(text + "\n")


if __name__ == "__main__":
    write_golden()
