"""Requirements and verdicts."""

import random
from dataclasses import replace

from unifusion_core.shapes.world.requirements import ObjectRequirement, Requirement, check
from unifusion_core.shapes.world.scenes import Scene, SceneObject, sample_object, sample_scene

RED = SceneObject(shape="circle", color="red", size="big", cell=(0, 0))
BLUE = SceneObject(shape="circle", color="blue", size="small", cell=(1, 2))
SCENE = Scene(objects=(RED, BLUE), background="white")
CHANGES = {
    "shape": ("circle", "square"),
    "color": ("red", "green"),
    "size": ("big", "small"),
    "cell": ((0, 0), (2, 2)),
}


def test_a_scene_fulfils_what_it_fixes_in_any_order() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = sample_scene(rng, held_out=None, max_objects=4)
        shuffled = replace(scene, objects=tuple(rng.sample(scene.objects, len(scene.objects))))
        assert check(Requirement.of(scene), shuffled).exact


def test_every_single_change_is_noticed() -> None:
    rng = random.Random(1)
    for _ in range(300):
        scene = sample_scene(rng, held_out=None)
        requirement = Requirement.of(scene)
        i = rng.randrange(len(scene.objects))
        for attribute, (one, other) in CHANGES.items():
            value = other if getattr(scene.objects[i], attribute) == one else one
            if attribute == "cell" and value in {o.cell for o in scene.objects}:
                continue
            objects = list(scene.objects)
            objects[i] = replace(objects[i], **{attribute: value})
            assert not check(requirement, replace(scene, objects=tuple(objects))).exact


def test_extra_and_missing_objects_break_the_count_only() -> None:
    extra = replace(SCENE, objects=(*SCENE.objects, sample_object(random.Random(0), (2, 1))))
    verdict = check(Requirement.of(SCENE), extra)
    assert not verdict.exact
    assert not verdict.count
    assert all(verdict.shape + verdict.color + verdict.size + verdict.position)

    verdict = check(Requirement.of(SCENE), replace(SCENE, objects=(BLUE,)))
    assert not verdict.count
    assert verdict.color == (False, True)

    assert not check(Requirement.of(SCENE), replace(SCENE, objects=())).exact


def test_what_is_open_is_not_judged() -> None:
    verdict = check(
        Requirement(objects=(ObjectRequirement(shape="circle"), ObjectRequirement(color="red"))), SCENE
    )
    assert verdict.exact  # the red one stands for "red", although it is a circle and comes first
    assert verdict.background is None
    assert verdict.relations is None
    assert (verdict.shape, verdict.color, verdict.size, verdict.position) == ((True,), (True,), (), ())


def test_wrong_attributes_are_told_apart() -> None:
    wanted = Requirement.of(replace(SCENE, objects=(replace(RED, size="small"), BLUE), background="black"))
    verdict = check(wanted, SCENE)
    assert verdict.size == (False, True)
    assert verdict.shape == verdict.color == verdict.position == (True, True)
    assert verdict.background is False
    assert not verdict.exact


def test_relations_compare_columns_and_rows_strictly() -> None:
    objects = (ObjectRequirement(color="red"), ObjectRequirement(color="blue"))
    expected = {"left of": True, "right of": False, "above": True, "below": False}
    for name, holds in expected.items():
        assert check(Requirement(objects=objects, relations=((0, name, 1),)), SCENE).relations is holds
    same_row = replace(SCENE, objects=(RED, replace(BLUE, cell=(0, 2))))
    assert not check(Requirement(objects=objects, relations=((0, "above", 1),)), same_row).exact


def test_relations_choose_among_equal_objects() -> None:
    circles = Requirement(objects=(ObjectRequirement(shape="circle"),) * 2, relations=((0, "below", 1),))
    assert check(circles, SCENE).exact
