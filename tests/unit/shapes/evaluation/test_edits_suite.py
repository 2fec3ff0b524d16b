"""The suite of edits judges what changes and what stays."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from unifusion_core.contracts import Features, TokenRole
from unifusion_core.evaluation import drawing
from unifusion_core.evaluation.subject import Sampling, Subject
from unifusion_core.images import Pixels
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.evaluation import edits as suite
from unifusion_core.shapes.world import edits, references
from unifusion_core.shapes.world.render import render
from unifusion_core.shapes.world.scenes import Scene, sample_traits


def drawn(scene: Scene) -> Pixels:
    return render(scene, *suite.SIZE)


def redrawn(scene: Scene, rng: random.Random) -> Scene:
    """The same scene with other unnamed traits."""
    return replace(scene, objects=tuple(replace(o, traits=sample_traits(rng)) for o in scene.objects))


@pytest.mark.parametrize("kind", [*edits.EDIT_KINDS, *references.REFERENCE_KINDS])
def test_a_faithful_drawing_keeps_traits_and_surroundings_and_a_new_one_does_not(kind: str) -> None:
    rng = random.Random(kind)
    group = suite.Group()
    for _ in range(12):
        edit = edits.sample_instruction(rng, kind, True)
        group.seeing.append(suite.judge(edit, drawn(edit.target)))
        group.blind.append(suite.judge(edit, drawn(redrawn(edit.target, rng))))
    row = group.row(kind)
    assert row.rates["exact"].share == 1.0
    assert row.values["exact without pictures %"] == 100.0
    if any(side.traits for side in group.seeing):
        assert row.values["error of traits / without pictures"] < 0.35
    if kind in edits.EDIT_KINDS and kind != "background":
        assert row.values["PSNR outside dB"] > 60
    else:
        assert "PSNR outside dB" not in row.values


def test_the_source_itself_is_no_edit_and_nothing_drawn_is_all_wrong() -> None:
    rng = random.Random(0)
    for kind in edits.EDIT_KINDS:
        edit = edits.sample_instruction(rng, kind, True)
        assert not suite.judge(edit, drawn(edit.sources[0])).judgement.exact
        nothing = suite.judge(edit, None)
        assert not nothing.judgement.exact
        assert (nothing.traits, nothing.outside) == ((), None)


def test_outside_of_objects_is_where_nothing_of_them_is_drawn() -> None:
    scene = edits.sample_instruction(random.Random(1), "recolor", False).sources[0]
    mask = suite.outside_of(set(scene.objects))
    picture = drawn(scene)
    assert (picture[mask] == picture[0, 0]).all()
    assert 0.3 < mask.mean() < 1


def test_the_suite_draws_every_kind_with_and_without_pictures(
    random_weights: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(
        model=random_weights.model, vlm=random_weights.vlm, vae=random_weights.vae, device="cpu"
    )
    masks: list[bool] = []
    sample, settings = Pipeline.sample, Pipeline.settings

    def watched(self: Pipeline, features: Features, *rest: object, **more: object) -> list[Pixels]:
        masks.append(bool((features.token_info.roles[features.mask] == TokenRole.IMAGE).any()))
        return sample(self, features, *rest, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Pipeline, "sample", watched)
    monkeypatch.setattr(drawing, "attempt_rewrites", _locked)
    monkeypatch.setattr(Pipeline, "settings", lambda self, **how: settings(self, **{"steps": 1} | how))
    monkeypatch.setattr(edits, "EDIT_KINDS", ("recolor", "move"))
    rows = {row.name: row for row in suite.evaluate_edits(subject, Sampling(samples=2))}
    assert rows["edits"].rates["exact"].total == 2
    assert rows["  move"].rates["exact"].total == 1
    assert rows["two references"].rates["exact"].total == rows["three references"].rates["exact"].total == 2
    one, ten = (rows[f"reconstruction, {n} tiles"].values for n in (1, 10))
    assert ten["dB above 1 tile"] == pytest.approx(ten["PSNR dB"] - one["PSNR dB"])
    assert "dB above 1 tile" not in one
    # one blind image for each kind
    assert masks.count(False) == 5
    assert masks.count(True) == 5 + 3


def _locked(
    backbone: object, spec: object, requests: list, *_: object, **__: object
) -> list[drawing.Rewrite]:
    """Fixed rewrites, since random weights never end one."""
    from unifusion_core.vlm.rewrite import encode_requests

    done = [replace(request, rewrite="big red star at top, white background.") for request in requests]
    return [
        drawing.Rewrite(request=r, features=encode_requests(backbone, spec, [r], states="one_pass"))
        for r in done
    ]  # pyright: ignore[reportArgumentType]
