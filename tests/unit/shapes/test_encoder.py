"""A real language model as a VLM folder: pytest tests/unit/shapes/test_encoder.py (with the extra `llm`)"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from unifusion_core.errors import ConfigError, VLMError
from unifusion_core.shapes import encoder


def test_without_the_package_one_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "PACKAGE", "a-package-that-is-not-there")

    with pytest.raises(ConfigError, match=r'which is not installed: pip install -e "\.\[llm\]"'):
        encoder.write_encoder(tmp_path / "vlm")


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(ConfigError, match="has files already"):
        encoder.write_encoder(tmp_path)


def test_weights_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / encoder.WEIGHTS
    other.write_bytes(b"other")
    monkeypatch.setattr(encoder, "_find_weights", lambda: other)

    with pytest.raises(VLMError, match=r"has the checksum .* b179c9523d0e is needed"):
        encoder.write_encoder(tmp_path / "vlm")


def installed() -> bool:
    try:
        importlib.metadata.version("gguf")
        return bool(importlib.metadata.version(encoder.PACKAGE))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="the extra llm is not installed")
def test_the_language_model_reads_and_writes_as_a_vlm(tmp_path: Path) -> None:
    from unifusion_core.contracts import Request
    from unifusion_core.vlm.folder import load_vlm

    vlm = load_vlm(encoder.write_encoder(tmp_path / "vlm"))
    assert (vlm.family_name, vlm.hidden_size, vlm.num_layers) == ("internvl", 576, 30)
    chats = vlm.prepare([Request(prompt="What is the capital of France? Answer in one word.")])
    (answer,) = vlm.generate(chats, max_new_tokens=12)
    assert "Paris" in answer
    again = load_vlm(encoder.write_encoder(tmp_path / "again"))
    assert again.fingerprint == vlm.fingerprint
