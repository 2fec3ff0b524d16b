"""Damaged settings in a VLM folder end in one sentence: pytest tests/unit/vlm/test_folder.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unifusion_core.errors import VLMError
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.zoo.tiny import BUILT_IN, TINY


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        *(
            ("preprocessor_config.json", name, value)
            for name in ("image_mean", "image_std")
            for value in ([], [0.5, 0.5], [0.5, 0.5, None], "x", None, {}, True, [[0.5], 0.5, 0.5])
        ),
        ("preprocessor_config.json", "image_std", [0.5, 0.0, 0.5]),
        ("tokenizer_config.json", "model_max_length", "x"),
        ("tokenizer_config.json", "model_max_length", [1]),
        ("config.json", "image_token_id", "x"),
        ("config.json", "downsample_ratio", {}),
        ("config.json", "tie_word_embeddings", ""),
    ],
)
def test_a_damaged_setting_is_refused_in_one_sentence(
    tmp_path: Path, file: str, name: str, value: Any
) -> None:
    for path in BUILT_IN.vlm.iterdir():
        (tmp_path / path.name).symlink_to(path)
    settings = json.loads((tmp_path / file).read_text(encoding="utf-8"))
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(json.dumps(settings | {name: value}), encoding="utf-8")

    with pytest.raises(VLMError) as raised:
        load_vlm(tmp_path, spec=TINY.config.vlm)

    said = str(raised.value)
    assert name in said
    assert "copy" in said
    assert "\n" not in said
