"""What a prompt fixes about a scene, and whether a scene fulfils it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

from .scenes import Scene, SceneObject

Cell = tuple[int, int]
Relation = tuple[int, str, int]

RELATIONS: dict[str, Callable[[Cell, Cell], bool]] = {
    "left of": lambda a, b: a[1] < b[1],
    "right of": lambda a, b: a[1] > b[1],
    "above": lambda a, b: a[0] < b[0],
    "below": lambda a, b: a[0] > b[0],
}
ATTRIBUTES = ("shape", "color", "size", "cell")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRequirement:
    """What is fixed about one object; None = open."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    cell: Cell | None = None

    @classmethod
    def of(cls, obj: SceneObject) -> ObjectRequirement:
        return cls(shape=obj.shape, color=obj.color, size=obj.size, cell=obj.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """Exactly these objects, `relations` (i, name, j) between them, and a background or None for any."""

    objects: tuple[ObjectRequirement, ...]
    relations: tuple[Relation, ...] = ()
    background: str | None = None

    @classmethod
    def of(cls, scene: Scene) -> Requirement:
        """All named properties of the scene, fixed."""
        return cls(objects=tuple(ObjectRequirement.of(o) for o in scene.objects), background=scene.background)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Which parts of a requirement hold. Tuples have one entry per required object that fixes the attribute.

    count                  the scene has exactly the required number of objects
    background, relations  None if the requirement leaves them open
    """

    exact: bool
    count: bool
    background: bool | None
    shape: tuple[bool, ...]
    color: tuple[bool, ...]
    size: tuple[bool, ...]
    position: tuple[bool, ...]
    relations: bool | None

    @property
    def properties(self) -> float:
        """Share of the named properties that hold, 0..1; relations are not counted."""
        answers = [self.count, *self.shape, *self.color, *self.size, *self.position]
        if self.background is not None:
            answers.append(self.background)
        return sum(answers) / len(answers)


def check(requirement: Requirement, scene: Scene) -> Verdict:
    """Compare under the assignment of required objects to objects of the scene that fulfils the most."""
    wanted = requirement.objects
    candidates: list[SceneObject | None] = [*scene.objects]
    candidates += [None] * (len(wanted) - len(candidates))
    best = max(
        permutations(candidates, len(wanted)), key=lambda assigned: _num_fulfilled(requirement, assigned)
    )

    count = len(wanted) == len(scene.objects)
    background = None if requirement.background is None else requirement.background == scene.background
    relations = all(_holds(r, best) for r in requirement.relations) if requirement.relations else None
    shape, color, size, position = (_fulfilled(wanted, best, attribute) for attribute in ATTRIBUTES)
    exact = (
        count and background is not False and relations is not False and all(shape + color + size + position)
    )
    return Verdict(
        exact=exact,
        count=count,
        background=background,
        shape=shape,
        color=color,
        size=size,
        position=position,
        relations=relations,
    )


def _num_fulfilled(requirement: Requirement, assigned: Sequence[SceneObject | None]) -> int:
    attributes = sum(sum(_fulfilled(requirement.objects, assigned, attribute)) for attribute in ATTRIBUTES)
    return attributes + sum(_holds(relation, assigned) for relation in requirement.relations)


def _fulfilled(
    wanted: Sequence[ObjectRequirement], assigned: Sequence[SceneObject | None], attribute: str
) -> tuple[bool, ...]:
    return tuple(
        obj is not None and getattr(obj, attribute) == value
        for want, obj in zip(wanted, assigned, strict=True)
        if (value := getattr(want, attribute)) is not None
    )


def _holds(relation: Relation, assigned: Sequence[SceneObject | None]) -> bool:
    i, name, j = relation
    a, b = assigned[i], assigned[j]
    return a is not None and b is not None and RELATIONS[name](a.cell, b.cell)
