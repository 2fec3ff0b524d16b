"""Train-time heads on the DiT's blocks, and their labels.

The patch head names what is in each patch. Near t = 1 only the text can tell, so the head teaches the blocks before it to use
the text. It is a close relative of representation alignment (REPA), with the scene in place of an encoder. The trait heads must
predict the unnamed traits, and the mark heads the marks, which only image tokens carry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...models.autoencoder import DOWNSCALE
from ..world.render import mark_geometry, object_geometry
from ..world.scenes import BACKGROUNDS, COLORS, NUM_TRAITS, SHAPES, SIZES, Scene

# classes of shape, colour, size (0 = no object) and background
PATCH_LABELS = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, len(BACKGROUNDS))
# the label that cross_entropy ignores
IGNORED = -100
MARK_NONE, MARK_LIGHTER, MARK_DARKER = range(3)
# of the three in the losses of the mark heads: one area in a hundred has a mark
MARK_WEIGHTS = (1.0, 10.0, 10.0)


def build_heads(width: int) -> dict[str, nn.Module]:
    """The patch head, the two trait heads and the two mark heads, on tokens of `width`."""
    patch_head = nn.Linear(width, sum(PATCH_LABELS))
    trait_heads = nn.ModuleList(nn.Linear(width, NUM_TRAITS) for _ in range(2))
    mark_heads = nn.ModuleList(nn.Linear(width, len(MARK_WEIGHTS) + 2) for _ in range(2))
    return {"patch_head": patch_head, "trait_heads": trait_heads, "mark_heads": mark_heads}


def naming_loss(head: nn.Module, tokens: Float[Tensor, "B L D"], labels: Int[Tensor, "B N 4"]) -> Tensor:
    """Mean cross entropy of the four labels of each patch; the last N tokens are those of the patches."""
    guesses = head(tokens[:, -labels.shape[1] :]).split(PATCH_LABELS, -1)
    losses = [F.cross_entropy(g.flatten(0, 1), labels[..., i].flatten()) for i, g in enumerate(guesses)]
    return cast(Tensor, sum(losses)) / len(PATCH_LABELS)


def trait_loss(
    heads: nn.ModuleList, tokens: Sequence[Float[Tensor, "B L D"]], traits: Float[Tensor, "B N 6"]
) -> Tensor:
    """Squared error of the known (not NaN) traits, summed over the heads, each on its block's tokens."""
    known = ~traits.isnan()
    guesses = [
        head(F.rms_norm(each[:, -traits.shape[1] :], each.shape[-1:]))[known]
        for head, each in zip(heads, tokens, strict=True)
    ]
    return cast(Tensor, sum((each - traits[known]).square().sum() for each in guesses)) / max(1, known.sum())


def mark_loss(
    heads: nn.ModuleList,
    tokens: Sequence[Float[Tensor, "B L D"]],
    marks: Int[Tensor, "B N"],
    places: Float[Tensor, "B N 2"],
) -> tuple[Tensor, Tensor]:
    """Cross entropy of what mark each patch has, and squared error of its place, each the mean of the heads."""
    errors = []
    for head, each in zip(heads, tokens, strict=True):
        guesses = head(F.rms_norm(each[:, -marks.shape[1] :], each.shape[-1:]))
        errors.append(mark_errors(guesses.flatten(0, 1), marks.flatten(), places.flatten(0, 1)))
    kinds, off = zip(*errors, strict=True)
    return torch.stack(kinds).mean(), torch.stack(off).mean()


def mark_errors(
    guesses: Float[Tensor, "P 5"], marks: Int[Tensor, " P"], places: Float[Tensor, "P 2"]
) -> tuple[Tensor, Tensor]:
    """Cross entropy of which mark is where (`MARK_NONE`, ...), and the mean squared error of its place where there is one."""
    kinds, place = guesses.split((len(MARK_WEIGHTS), 2), 1)
    there = marks > MARK_NONE
    weights = torch.tensor(MARK_WEIGHTS, device=kinds.device, dtype=kinds.dtype)
    entropy = F.cross_entropy(kinds, marks, weights)
    # a batch may have no mark
    off = (place[there] - places[there]).square().sum() / max(1, 2 * int(there.sum()))
    return entropy, off


def area_marks(
    scene: Scene, size: tuple[int, int], centres: Float[Tensor, "P 2"], extents: Float[Tensor, "P 2"]
) -> tuple[Int[Tensor, " P"], Float[Tensor, "P 2"]]:
    """Of each area of an image the mark whose middle it covers, and that middle's place in it, -0.5..0.5 (y, x); NaN without.

    centres, extents  of the areas (y, x), in pixels
    """
    marks = torch.full((len(centres),), MARK_NONE)
    places = torch.full((len(centres), 2), math.nan)
    for obj in scene.objects:
        if obj.mark is None or (geometry := mark_geometry(obj, *size)) is None:
            continue
        offsets = (torch.tensor([geometry[1], geometry[0]]) - centres) / extents
        covers = (offsets.abs() <= 0.5).all(1)
        marks[covers] = MARK_LIGHTER if obj.mark.level > 0 else MARK_DARKER
        places[covers] = offsets[covers]
    return marks, places


def patch_marks(
    scene: Scene, size: tuple[int, int], patch_size: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, "N 2"]]:
    """What mark each patch has, and where in it: see `area_marks`."""
    side = DOWNSCALE * patch_size
    y, x = patch_centres(size, patch_size)
    centres = torch.stack([y, x], -1).flatten(0, 1)
    return area_marks(scene, size, centres, torch.full_like(centres, side))


def patch_labels(
    scene: Scene, size: tuple[int, int], patch_size: int, *, colors_named: bool = True
) -> Int[Tensor, "N 4"]:
    """Shape, colour and size (0 = none) of the object whose bounding box has a patch's centre inside, and the background.

    colors_named  False: the colours of objects are ignored
    """
    distances = distances_from_patches(scene, size, patch_size)
    labels = torch.zeros(*distances.shape[1:], 4, dtype=torch.long)
    labels[..., 3] = list(BACKGROUNDS).index(scene.background)
    for obj, distance in zip(scene.objects, distances, strict=True):
        names = (SHAPES.index(obj.shape), list(COLORS).index(obj.color), list(SIZES).index(obj.size))
        labels[..., :3] = torch.where(distance[..., None] <= 0, torch.tensor(names) + 1, labels[..., :3])
    if not colors_named:
        labels[..., 1] = torch.where(labels[..., 1] > 0, IGNORED, labels[..., 1])
    return labels.flatten(0, 1)


def patch_traits(
    scene: Scene, size: tuple[int, int], patch_size: int, *, image_shown: bool, colors_named: bool = True
) -> Float[Tensor, "N 6"]:
    """Traits (`Traits.relative`) of the object whose bounding box overlaps a patch; NaN = unknown.

    image_shown   False: all traits are unknown, since the condition has no image to take them from
    colors_named  False: shades are unknown, since a free colour is not a shade of a named one
    """
    distances = distances_from_patches(scene, size, patch_size)
    traits = torch.full((*distances.shape[1:], NUM_TRAITS), math.nan)
    if image_shown:
        for obj, distance in zip(scene.objects, distances, strict=True):
            traits[distance <= DOWNSCALE * patch_size / 2] = torch.tensor(obj.traits.relative)
    if not colors_named:
        traits[..., 3:] = math.nan
    return traits.flatten(0, 1)


def distances_from_patches(
    scene: Scene, size: tuple[int, int], patch_size: int
) -> Float[Tensor, "objects rows columns"]:
    """Distance of each patch's centre from the bounding box of each object, along the farther axis, in pixels; <= 0 inside."""
    width, height = size
    y, x = patch_centres(size, patch_size)
    distances = []
    for obj in scene.objects:
        center_x, center_y, radius = object_geometry(obj, width, height)
        distances.append(torch.maximum((x - center_x).abs(), (y - center_y).abs()) - radius)
    return torch.stack(distances) if distances else torch.zeros(0, *x.shape)


def patch_centres(
    size: tuple[int, int], patch_size: int
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
    """y and x of each patch's centre in pixels, for an image of this width and height."""
    side = DOWNSCALE * patch_size
    rows, columns = ((torch.arange(length // side) + 0.5) * side for length in reversed(size))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return y, x
