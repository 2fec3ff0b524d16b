"""The same benchmark drawn in several ways from the same noise: with rewriting and without (`verifi`), or without one of the
tapped layers (`layers`). Differences are taken per prompt, against the first way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .benchmark import Answers, Benchmark, Item, Judge, Key, Scores, Way
from .bootstrap import mean_interval
from .soft_tifa import by_prompt

REWRITTEN, AS_IT_IS, STYLED, SYSTEM = "rewritten", "as-it-is", "styled", "other-system"


class Ways(Benchmark):
    """A benchmark in several ways. Each item is drawn once per way, under the id ID.WAY."""

    def __init__(self, name: str, base: Benchmark, ways: Mapping[str, Way]) -> None:
        if not base.draws:
            raise ConfigError(f"the suite {base.name} draws nothing that {name} could compare")
        self.name, self.base, self.ways = name, base, ways
        self.source, self.seeds, self.licence = base.source, base.seeds, base.licence

    @property
    def conditions(self) -> dict[str, Any]:
        """What a report says of the ways."""
        own = getattr(self.base, "conditions", {})
        return {"suite": self.base.name, **own, "ways": {name: str(way) for name, way in self.ways.items()}}

    def read(self, data: Path) -> list[Item]:
        return [
            replace(
                item, id=f"{item.id}.{name}", source=item.source or item.id, way=self._combined(item.way, way)
            )
            for item in self.base.read(data)
            for name, way in self.ways.items()
        ]

    def _combined(self, own: Way, way: Way) -> Way:
        """The way, with the item's own tiles, and its own choice of rewriting where the way leaves it open."""
        rewriting = own.rewriting if way.rewriting is None else way.rewriting
        return replace(way, max_tiles=own.max_tiles, rewriting=rewriting)

    def own_judge(self) -> Judge | None:
        return self.base.own_judge()

    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        scores = {name: self._score_way(name, items, answers) for name in self.ways}
        first = next(iter(scores))
        headline = next(iter(scores[first].values))
        values = {f"{headline}, {name}": own.values[headline] for name, own in scores.items()}
        intervals = {
            f"{headline}, {name}": own.intervals[headline]
            for name, own in scores.items()
            if headline in own.intervals
        }
        for name, own in scores.items():
            if name != first:
                title = f"{name} minus {first}"
                values[title], intervals[title] = paired_difference(own.of_images, scores[first].of_images)
        return Scores(
            values=values,
            intervals=intervals,
            tables={"way": {name: own.values for name, own in scores.items()}},
            of_images={
                (f"{key[0]}.{n}", key[1]): v for n, own in scores.items() for key, v in own.of_images.items()
            },
            notes=tuple(dict.fromkeys(note for own in scores.values() for note in own.notes)),
        )

    def _score_way(self, name: str, items: Sequence[Item], answers: Answers) -> Scores:
        """The base's scores of one way, under the base's ids."""
        end = f".{name}"
        own = [replace(item, id=item.id.removesuffix(end)) for item in items if item.id.endswith(end)]
        ids = {item.id for item in own}
        of_way = {
            (key[0].removesuffix(end), key[1]): given
            for key, given in answers.items()
            if key[0].endswith(end) and key[0].removesuffix(end) in ids
        }
        return self.base.score(own, of_way)


def verifi(base: Benchmark, style: str = "", system: str = "") -> Ways:
    """With rewriting, without, and with rewriting in another style or by another system text where one is given."""
    ways = {REWRITTEN: Way(rewriting=True), AS_IT_IS: Way(rewriting=False)}
    if style:
        ways[STYLED] = Way(rewriting=True, style=style)
    if system:
        ways[SYSTEM] = Way(rewriting=True, system=system)
    return Ways("verifi", base, ways)


def layers(base: Benchmark, taps: Sequence[int]) -> Ways:
    """All taps, and each of them left out of LAP's sum (paper, study of layer dropout)."""
    ways = {"all-layers": Way()}
    for left_out in taps:
        gains = tuple(float(tap != left_out) for tap in taps)
        ways[f"without-{left_out}"] = Way(layer_gains=gains)
    return Ways("layers", base, ways)


def paired_difference(
    one: Mapping[Key, float], other: Mapping[Key, float]
) -> tuple[float, tuple[float, float]]:
    """Mean difference over the images that both have, and its 95 % interval over prompts. NaN if they share none."""
    shared = [key for key in one if key in other]
    if not shared:
        return float("nan"), (float("nan"), float("nan"))
    images = [(Item(id=key[0], prompt=""), key) for key in shared]
    differences = by_prompt(images, {key: one[key] - other[key] for key in shared})
    return sum(differences) / len(differences), mean_interval(differences)
