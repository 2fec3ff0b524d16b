"""The suites of fusion designs: finished runs, kept judgements, places in the prompt, learning curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unifusion_core.errors import ConfigError
from unifusion_core.evaluation.subject import Sampling, Subject
from unifusion_core.shapes.evaluation import fusion
from unifusion_core.shapes.evaluation.designs import PROPERTIES_RIGHT
from unifusion_core.shapes.evaluation.fusion import Judged, by_place, judgement_as_json, read_judgements
from unifusion_core.shapes.evaluation.judging import Judgement
from unifusion_core.shapes.training.fusion import held_out_captions, three_objects
from unifusion_core.shapes.world.requirements import check


def judgements(count: int) -> tuple[list, list[Judgement]]:
    """Captions of three objects; in every second image the third object is missing."""
    wordings = three_objects(count, "suite test")
    found = []
    for number, wording in enumerate(wordings):
        scene = wording.target
        if number % 2:
            scene = type(scene)(objects=scene.objects[:2], background=scene.background)
        found.append(
            Judgement(
                requirement=wording.requirement, verdict=check(wording.requirement, scene), readable=True
            )
        )
    return wordings, found


def test_kept_judgements_are_read_as_they_were(tmp_path: Path) -> None:
    wordings, found = judgements(6)
    path = tmp_path / "kept.json"
    assert read_judgements(path, wordings) is None
    path.write_text(json.dumps([judgement_as_json(each) for each in found]))
    assert read_judgements(path, wordings) == found
    assert [each.exact for each in found] == [True, False] * 3


def test_properties_are_counted_by_the_objects_place_in_the_prompt() -> None:
    _, found = judgements(6)
    places = by_place(Judged(by_seed={1: found, 2: found}), [1, 2])
    assert places.shape == (3, 2, 6)
    assert places[0].mean() == places[1].mean() == 1
    assert places[2].mean() == 0.5
    np.testing.assert_array_equal(places[2][0], [1, 0] * 3)


def test_shares_are_in_the_order_of_repetitions_and_captions() -> None:
    _, found = judgements(4)
    shares = Judged(by_seed={1: found, 3: found[::-1]}).shares([1, 3])
    assert shares.shape == (2, 4)
    # count, and four properties of the third object, of fourteen
    np.testing.assert_allclose(shares[0], [1, 1 - 5 / 14] * 2)
    np.testing.assert_allclose(shares[1], shares[0][::-1])


def test_the_judgements_of_other_weights_are_not_taken(tmp_path: Path) -> None:
    file, sampling = tmp_path / "generator.safetensors", Sampling(samples=3)
    file.write_bytes(b"one")
    first = fusion.kept_judgements(file, "pairs", sampling)
    file.write_bytes(b"two")
    assert fusion.kept_judgements(file, "pairs", sampling) != first
    assert fusion.kept_judgements(file, "pairs", Sampling(samples=4)) != first


def test_without_a_run_of_lap_the_command_to_train_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "RUNS", tmp_path)
    for suite in (fusion.evaluate_fusion, fusion.evaluate_fusion_curve, fusion.evaluate_fusion_layers):
        with pytest.raises(ConfigError, match="unifusion shapes train fusion-lap-1"):
            next(suite(Subject(), Sampling(samples=1)))


def test_curves_have_the_mean_of_the_repetitions_that_were_evaluated_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "RUNS", tmp_path)
    for seed, points in ((1, {40: 0.3, 80: 0.6}), (2, {80: 0.8})):
        run = tmp_path / f"fusion-lap-{seed}"
        run.mkdir()
        (run / "generator.safetensors").touch()
        lines = [{"step": step, "properties": right} for step, right in points.items()]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"loss": 1}, *lines]))
    first, row = fusion.evaluate_fusion_curve(Subject(), Sampling(samples=1))
    assert first.values == pytest.approx({"samples": 480, PROPERTIES_RIGHT: 30, "lowest": 30, "highest": 30})
    assert row.name == "LAP over every third layer, 960 samples"
    assert row.values == pytest.approx({"samples": 960, PROPERTIES_RIGHT: 70, "lowest": 60, "highest": 80})


def test_every_held_out_caption_can_be_judged() -> None:
    for wording in held_out_captions(12, "suite test", wording=True):
        assert check(wording.requirement, wording.target).exact
