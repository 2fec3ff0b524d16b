"""Runs of equal budgets are compared on the same questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unifusion_core.errors import ConfigError
from unifusion_core.evaluation.subject import Sampling, Subject
from unifusion_core.shapes.evaluation import designs
from unifusion_core.zoo.tiny import BUILT_IN


def test_edit_training_draws_the_same_captions_by_both_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(designs, "RUNS", tmp_path)
    subject, sampling = Subject(), Sampling(samples=3)
    with pytest.raises(ConfigError, match="train it first with `unifusion shapes train tiny-short`"):
        next(designs.evaluate_edit_training(subject, sampling))
    for number, recipe in enumerate(designs.EDIT_TRAINING):
        (tmp_path / recipe).mkdir()
        shutil.copy(BUILT_IN.generator, tmp_path / recipe / "generator.safetensors")
        (tmp_path / recipe / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": number}) + "\n")
    text, mixed = designs.evaluate_edit_training(subject, sampling)
    assert [text.name, mixed.name] == list(designs.EDIT_TRAINING.values())
    assert [text.values.pop("loss"), mixed.values.pop("loss")] == [0, 1]
    assert (text.rates, text.values) == (mixed.rates, mixed.values)  # both are the same weights here
    assert text.rates["exact"].total == 3
    assert text.values[designs.PROPERTIES_RIGHT] > 80
