"""Suite "marks": how much the VLM's frozen states hold about a mark, at 1, 5 and 10 tiles, read by a linear probe.

A mark is a small disc on an object that no wording mentions (world/marks.py). What no probe can read, no generator behind these
states can draw. Each image has one object; half of them carry a mark. The probe is a ridge regression on the tapped states of the
image tokens whose centres lie in the object's cell.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...contracts import Request, TokenRole, VLMSpec
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...vlm.backbone import VLMBackbone
from ...zoo.tiny import TINY
from ..world.marks import NEAR, sample_mark
from ..world.render import mark_geometry, object_geometry, render_tensor
from ..world.scenes import Scene, SceneObject, sample_scene

TILES = (1, 5, 10)
BATCH = 16
SIDE = 128
# scenes that the probe learns from, per scene that it is tried on
LEARNED = 4
# of those, the share that chooses the ridge
HELD_BACK = 0.2
# in units of the mean square length of a row
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """States and the truth about each scene.

    states    N F   of the tokens in the object's cell
    present   N     1 with a mark, -1 without
    place     N 2   the mark's centre (x, y) from the object's, in pixels; 0 without a mark
    """

    states: Float[Tensor, "N F"]
    present: Float[Tensor, " N"]
    place: Float[Tensor, "N 2"]


def evaluate_marks(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` scenes for each number of tiles, the same in all; the probe learns from four times as many others."""
    rng = sampling.rng("marks")
    learned = [sample_marked(rng) for _ in range(LEARNED * sampling.samples)]
    tried = [sample_marked(rng) for _ in range(sampling.samples)]
    for tiles in TILES:
        sets = [probed(subject.backbone, TINY.config.vlm, scenes, tiles) for scenes in (learned, tried)]
        yield probe_row(f"{tiles} tiles", *sets)


def sample_marked(rng: random.Random) -> Scene:
    """A scene of one object, with a mark in half of the cases."""
    scene = sample_scene(rng, num_objects=1, held_out=None)
    marked = rng.random() < 0.5
    (obj,) = scene.objects
    return replace(scene, objects=(replace(obj, mark=sample_mark(rng, obj) if marked else None),))


@torch.no_grad()
def probed(backbone: VLMBackbone, spec: VLMSpec, scenes: Sequence[Scene], tiles: int) -> Probed:
    """The states about each scene's object, and what is true of its mark."""
    states = []
    for group in chunks(scenes, BATCH):
        requests = [Request(prompt="", images=[render_tensor(scene, SIDE, SIDE)]) for scene in group]
        features = backbone.encode(backbone.prepare(requests, spec.template, tiles), spec)
        for row, scene in enumerate(group):
            _, y, x = features.positions[row].unbind(-1)
            row_of_cell, column = scene.objects[0].cell
            in_cell = (
                (features.token_info.roles[row] == TokenRole.IMAGE)
                & ((3 * y).floor() == row_of_cell)
                & ((3 * x).floor() == column)
            )
            states.append(features.states[row, in_cell].flatten().double().cpu())
    objects = [scene.objects[0] for scene in scenes]
    return Probed(
        states=torch.stack(states),
        present=torch.tensor([1.0 if obj.mark else -1.0 for obj in objects], dtype=torch.float64),
        place=torch.tensor([place_on_object(obj) for obj in objects], dtype=torch.float64),
    )


def place_on_object(obj: SceneObject) -> tuple[float, float]:
    """The mark's centre (x, y) from the object's, in pixels of 128; (0, 0) without a mark."""
    found = mark_geometry(obj, SIDE, SIDE)
    if found is None:
        return 0.0, 0.0
    x, y, _ = object_geometry(obj, SIDE, SIDE)
    return found[0] - x, found[1] - y


def probe_row(name: str, learned: Probed, tried: Probed) -> Row:
    """What a probe that learned from one set finds in the other. The place is learned and tried where there is a mark."""
    said = ridge(learned.states, learned.present[:, None], tried.states)[:, 0]
    with_mark, has_mark = learned.present > 0, tried.present > 0
    place = ridge(learned.states[with_mark], learned.place[with_mark], tried.states[has_mark])
    truth = tried.place[has_mark]
    off = (place - truth).norm(dim=1)
    guess = (truth - learned.place[with_mark].mean(0)).norm(dim=1)
    return Row(
        name=name,
        rates={
            "present or not": Rate(int(((said > 0) == has_mark).sum()), len(said)),
            f"place within {NEAR:g} px": Rate(int((off <= NEAR).sum()), len(off)),
            "the same without states": Rate(int((guess <= NEAR).sum()), len(guess)),
        },
        values={
            "error of place, px": float(off.mean()),
            # 1 = as if nothing was known
            "error left, share": float(off.square().mean() / guess.square().mean()),
        },
    )


def ridge(
    x: Float[Tensor, "N F"], y: Float[Tensor, "N P"], asked: Float[Tensor, "Q F"]
) -> Float[Tensor, "Q P"]:
    """Linear predictions for `asked`, learned from x and y. The ridge is the one that predicts held-back rows best."""
    middle, spread = x.mean(0), x.std(0).clamp_min(1e-6)
    x, asked = (x - middle) / spread, (asked - middle) / spread
    held = max(1, round(HELD_BACK * len(x)))
    errors = {
        each: (_solve(x[held:], y[held:], x[:held], each) - y[:held]).square().mean() for each in RIDGES
    }
    return _solve(x, y, asked, min(errors, key=lambda each: float(errors[each])))


def _solve(
    x: Float[Tensor, "N F"], y: Float[Tensor, "N P"], asked: Float[Tensor, "Q F"], strength: float
) -> Float[Tensor, "Q P"]:
    # by rows, of which there are fewer than features
    products = x @ x.T
    products += strength * products.diagonal().mean() * torch.eye(len(x), dtype=x.dtype)
    mean = y.mean(0)
    return asked @ (x.T @ torch.linalg.solve(products, y - mean)) + mean
