"""The probe of marks: pytest tests/unit/shapes/evaluation/test_marks_suite.py"""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from unifusion_core.evaluation.subject import Sampling, Subject
from unifusion_core.shapes.evaluation import marks
from unifusion_core.shapes.evaluation.marks import (
    Probed,
    place_on_object,
    probe_row,
    probed,
    ridge,
    sample_marked,
)
from unifusion_core.shapes.world.scenes import Mark, SceneObject
from unifusion_core.zoo.tiny import TINY


def planted(count: int, noise: float, seed: int) -> Probed:
    """States that hold the truth in three of their forty directions, under noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    present = torch.where(normal(count) > 0, 1.0, -1.0).double()
    place = 5 * normal(count, 2) * (present > 0)[:, None]
    told = torch.cat([present[:, None], place / 5], dim=1)
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)).double())[0]
    states = torch.cat([told + noise * normal(count, 3), normal(count, 37)], dim=1) @ rotation
    return Probed(states=states, present=present, place=place)


def test_what_states_hold_is_read_and_what_they_do_not_hold_is_not() -> None:
    rows = {
        noise: probe_row("x", planted(800, noise, 1), planted(800, noise, 2)) for noise in (0.0, 1.0, 1000.0)
    }
    clear, dim, nothing = rows.values()
    assert clear.rates["present or not"].share > 0.99
    assert clear.rates["place within 2 px"].share > 0.99
    assert clear.values["error left, share"] < 0.01
    assert 0.6 < dim.rates["present or not"].share < 0.99
    assert 0.4 < nothing.rates["present or not"].share < 0.6
    assert nothing.values["error left, share"] == pytest.approx(1, abs=0.15)


def test_ridge_recovers_a_line() -> None:
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    asked = torch.tensor([[0.25], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(ridge(x, 3 * x + 1, asked), 3 * asked + 1, atol=0.02, rtol=0)


def test_a_place_is_told_in_pixels_from_the_object() -> None:
    obj = SceneObject(shape="circle", color="red", size="small", cell=(2, 0))
    assert place_on_object(obj) == (0.0, 0.0)
    marked = SceneObject(
        shape="circle",
        color="red",
        size="small",
        cell=(2, 0),
        mark=Mark(dx=0.5, dy=-0.25, radius=0.03, level=45),
    )
    assert place_on_object(marked) == pytest.approx((6.4, -3.2))


def test_a_probe_sees_the_tokens_of_the_objects_cell_alone(random_weights: SimpleNamespace) -> None:
    subject = Subject(vlm=random_weights.vlm)
    rng = random.Random("probe")
    scenes = [sample_marked(rng) for _ in range(3)]
    spec = TINY.config.vlm
    width = spec.hidden_size * len(spec.taps)
    # of a 3 x 3 grid of cells: one token of the thumbnail, and 2 x 2 or 3 x 3 of the tiles
    for tiles, tokens in ((1, 1), (5, 5), (10, 10)):
        found = probed(subject.backbone, spec, scenes, tiles)
        assert found.states.shape == (3, tokens * width)
        assert [each > 0 for each in found.present.tolist()] == [
            s.objects[0].mark is not None for s in scenes
        ]


def test_a_row_for_each_number_of_tiles(
    random_weights: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "TILES", (1, 5))
    rows = list(marks.evaluate_marks(Subject(vlm=random_weights.vlm), Sampling(samples=6)))
    assert [row.name for row in rows] == ["1 tiles", "5 tiles"]
    assert rows[0].rates["present or not"].total == 6
