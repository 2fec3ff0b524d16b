"""Styles that change scenes, and prompts in German."""

import random

import pytest

from unifusion_core.shapes.world.captions import parse_caption
from unifusion_core.shapes.world.german import german_prompt
from unifusion_core.shapes.world.lexicon import INDIRECT
from unifusion_core.shapes.world.requirements import Requirement, check
from unifusion_core.shapes.world.restyle import RESTYLE_KINDS, restyle, restyled
from unifusion_core.shapes.world.scenes import sample_scene


@pytest.mark.parametrize("kind", RESTYLE_KINDS)
def test_a_style_sets_one_thing_of_the_whole_scene(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(100):
        scene = sample_scene(rng, held_out=None)
        text, changes = restyle(rng, kind)
        changed = restyled(scene, changes)
        ((name, value),) = changes.items()
        assert name == kind
        assert value in text or any(phrase in text for phrase in INDIRECT.get(value, ()))
        assert {
            changed.background if kind == "background" else getattr(o, kind) for o in changed.objects
        } == {value}
        assert restyled(changed, changes) == changed
        assert check(restyled(Requirement.of(scene), changes), changed).exact


def test_german_bends_its_adjectives() -> None:
    scene = parse_caption("big red star at top left, small orange diamond at center, black background.")
    assert scene is not None
    texts = {german_prompt(random.Random(seed), scene) for seed in range(400)}
    assert (
        "ein großer roter stern oben links, eine kleine orange raute in der mitte, schwarzer hintergrund"
        in texts
    )
    assert (
        "großer roter stern oben links und kleine orange raute in der mitte auf schwarzem hintergrund"
        in texts
    )


def test_every_scene_has_its_own_german() -> None:
    rng = random.Random(0)
    scenes = {sample_scene(rng, num_objects=1) for _ in range(300)}
    named = {
        (s.objects[0].shape, s.objects[0].color, s.objects[0].size, s.objects[0].cell, s.background)
        for s in scenes
    }
    assert len({german_prompt(random.Random(1), scene) for scene in scenes}) == len(named)
