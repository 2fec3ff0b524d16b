"""Suite "kept-marks": marks of input images in what is drawn, by reconstructions, edits and references.

No wording mentions a mark (world/marks.py), so only image tokens can bring it. Every image of an edit is drawn three times from
the same noise: with its image tokens, with those of another image, and without any. Counted are objects that the instruction does
not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from ...contracts import Features, Request, TokenRole
from ...evaluation.drawing import encode_attempts, without_pictures
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...images import Pixels
from ...pipeline import Pipeline
from ...vlm.rewrite import Rewrite
from ..world import edits
from ..world.edit_wordings import Edit
from ..world.marks import NEAR, with_marks
from ..world.render import render_tensor
from ..world.scenes import Scene, SceneObject, sample_scene
from ..world.scorer import read_picture
from .edits import BATCH, REFERENCES, SIZE, TILE_COUNTS
from .marks import place_on_object

# what each row of an edit is drawn with
OF_ANOTHER = ", tokens of another image"
WITHOUT = ", without image tokens"
CONDITIONS = ("", OF_ANOTHER, WITHOUT)
# the rate that counts
KEPT = f"mark within {NEAR:g} px"


@dataclass
class Kept:
    """Objects that should look as in their input image.

    near     of those with a mark: it is there and at its place
    present  of those with a mark: it is there
    false    of those without one: there is a mark
    """

    near: list[bool] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    false: list[bool] = field(default_factory=list)

    def add(self, objects: Sequence[SceneObject], picture: Pixels | None) -> None:
        """One image and the objects that it should show; without an image none of them is there."""
        seen = {} if picture is None else {obj.cell: obj for obj in read_picture(picture).scene.objects}
        for obj in objects:
            found = seen.get(obj.cell)
            there = found is not None and found.mark is not None
            if obj.mark is None:
                self.false.append(there)
                continue
            self.present.append(there)
            # from the object's centre, because an object that is put into another cell has no exact place
            self.near.append(
                found is not None
                and there
                and math.dist(place_on_object(found), place_on_object(obj)) <= NEAR
            )

    def row(self, name: str) -> Row:
        return Row(
            name=name,
            rates={
                KEPT: Rate(sum(self.near), len(self.near)),
                "mark present": Rate(sum(self.present), len(self.present)),
                "mark where there is none": Rate(sum(self.false), len(self.false)),
            },
        )


def evaluate_kept_marks(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Reconstructions at 1, 5 and 10 tiles, the same scenes and noise in all; then `samples` edits and two references each, whose
    targets have a held-out pair. The VLM rewrites the instructions at 10 tiles."""
    pipeline = subject.pipeline
    rng = sampling.rng("kept marks reconstruction")
    scenes = [with_marks(rng, sample_scene(rng, held_out=True)) for _ in range(sampling.samples)]
    for tiles in TILE_COUNTS:
        yield reconstructed(pipeline, scenes, tiles).row(f"reconstruction, {tiles} tiles")
    for title, kinds in {"edits": edits.EDIT_KINDS, "two references": REFERENCES["two references"]}.items():
        rng = sampling.rng(f"kept marks {title}")
        # one kind after the other, so that the images of a batch are as many for all
        instructions = [
            edits.with_marked_sources(rng, edits.sample_instruction(rng, kind, True))
            for number, kind in enumerate(kinds)
            for _ in range(number, sampling.samples, len(kinds))
        ]
        for condition, kept in edited(pipeline, instructions).items():
            yield kept.row(title + condition)


def reconstructed(pipeline: Pipeline, scenes: Sequence[Scene], tiles: int) -> Kept:
    """Images drawn from their own image tokens alone."""
    kept, settings = Kept(), pipeline.settings(max_tiles=tiles)
    for part in chunks(list(enumerate(scenes)), BATCH):
        features = pipeline.encode(
            [Request(prompt="", images=[render_tensor(scene, *SIZE)]) for _, scene in part], tiles
        )
        pictures = pipeline.sample(features, [seed for seed, _ in part], settings)
        for (_, scene), picture in zip(part, pictures, strict=True):
            kept.add(scene.objects, picture)
    return kept


def edited(pipeline: Pipeline, instructions: Sequence[Edit]) -> Mapping[str, Kept]:
    """What each of `CONDITIONS` keeps; number i is drawn from seed i."""
    kept = {condition: Kept() for condition in CONDITIONS}
    settings = pipeline.settings()
    bar = tqdm(total=len(instructions), desc="marks", leave=False, disable=None)
    for part in chunks(list(enumerate(instructions)), BATCH):
        requests = [
            Request(prompt=e.instruction, images=[render_tensor(s, *SIZE) for s in e.sources])
            for _, e in part
        ]
        rewrites = encode_attempts(pipeline, requests, rewriting=True, max_tiles=settings.max_tiles)
        good = [
            (seed, edit, each.features)
            for (seed, edit), each in zip(part, rewrites, strict=True)
            if isinstance(each, Rewrite)
        ]
        # without an image nothing is kept
        for (_, edit), each in zip(part, rewrites, strict=True):
            if not isinstance(each, Rewrite):
                for each_kept in kept.values():
                    each_kept.add(edit.untouched, None)
        if good:
            features = Features.cat([each for *_, each in good])
            given = (features, with_pictures_of_another(features), without_pictures(features))
            for condition, drawn_from in zip(CONDITIONS, given, strict=True):
                if condition == OF_ANOTHER and len(good) == 1:
                    # there is no other
                    continue
                pictures = pipeline.sample(drawn_from, [seed for seed, *_ in good], settings)
                for (_, edit, _), picture in zip(good, pictures, strict=True):
                    kept[condition].add(edit.untouched, picture)
        bar.update(len(part))
    bar.close()
    return kept


def with_pictures_of_another(features: Features) -> Features:
    """The features with the states of each chat's image tokens in the next chat, and of the last in the first.

    All chats must have the same number of image tokens.
    """
    image = features.mask & (features.token_info.roles == TokenRole.IMAGE)
    states = features.states.clone()
    own = states[image].unflatten(0, (len(image), -1))
    states[image] = own.roll(1, 0).flatten(0, 1)
    return replace(features, states=states)
