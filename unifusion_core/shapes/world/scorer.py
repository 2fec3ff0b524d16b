"""Read an image back into a scene, from its pixels alone.

The scorer sees no model, no prompt and no target. It segments what differs from the background, fits the six shapes to each
blob, renders its own answer, and counts the pixels that this leaves unexplained. It tolerates a decoder's softness (blur, noise,
slightly wrong colours). Anything doubtful makes an image unreadable, and an unreadable image is never exact.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import numpy as np
from scipy import ndimage

from .marks import FoundMark, at_object, find_mark
from .render import DISTANCES, object_geometry, shape_coverage
from .scenes import (
    BACKGROUNDS,
    CELL_CENTERS,
    COLORS,
    MAX_SHADE,
    POSITION_NAMES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    Traits,
)

Array = np.ndarray
# centre x, centre y and radius, in pixels
Place = tuple[float, float, float]

# Lengths are in pixels at 128 px (scaled for larger images) and colours in levels 0..255, unless noted otherwise.

# from the background; half of the weakest contrast of named colours (purple on gray, about 65)
MIN_CONTRAST = 30
# Two objects whose soft edges meet are separated along a gap narrower than GAP (scenes leave at least 1.6), if the contrast
# inside drops below VALLEY of what encloses it and both parts have a core of MIN_CORE pixels (the smallest star has 140, its legs
# have 10).
GAP = 5
VALLEY = 0.7
MIN_CORE = 40
# area of a mark with its soft edge
MAX_HOLE = 80
# within this distance of a fitted outline, any colour is accepted
SOFT_EDGE = 2
# farther away, a pixel that differs this much from the rendered answer is unexplained
MAX_RESIDUAL = 40
# number of unexplained pixels that are tolerated
MAX_LEFTOVER = 12
# IoU with the best template: an outline half a pixel off passes, a mix of two shapes does not
MIN_MATCH = 0.87
# of that IoU over the second best; between clean shapes it is at least 0.13 (square, circle)
MIN_LEAD = 0.08
# a lead at the first guess that refinement cannot reverse
CLEAR_LEAD = 0.25
# blur that a decoder may add: each template is tried with all of them
SOFTNESS = (0.0, 0.7, 1.2)
# per channel, from the named colour: the shade and a decoder's error
MAX_COLOR_ERROR = MAX_SHADE + 25
# per channel, from the named background, which has no shade
MAX_BACKGROUND_ERROR = 30
# mean deviation of background pixels from their median
MAX_BACKGROUND_SPREAD = 12
# distance to the nearest name / distance to the next one; 1 = halfway between two names
MAX_DOUBT = 0.85
# from the cell's centre, share of the shorter side; 0.167 = halfway between two cells
MAX_PLACE_ERROR = 0.06
# further blobs are ignored, so that noise does not take long
MAX_BLOBS = 9
# share of the shorter side
RADIUS_RANGE = (0.08, 0.17)
SIZE_BORDER = sum(SIZES.values()) / len(SIZES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the scorer found in an image.

    scene             the best guess, reliable only if `readable`; objects in raster order, traits and marks as measured
    matches           IoU of the best template, per object
    leftover          share of the pixels that the guess does not explain
    background_clean  the background is flat and close to a named one
    problems          why the image is not readable, in words
    """

    scene: Scene
    matches: tuple[float, ...]
    leftover: float
    background_clean: bool
    problems: tuple[str, ...]

    @property
    def readable(self) -> bool:
        return not self.problems

    def shows(self, scene: Scene) -> bool:
        """True if the image is exact: readable, and equal to `scene` in every named property."""
        return self.readable and named(self.scene) == named(scene)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitError:
    """Difference of one object's unnamed traits from the reference.

    place   distance, share of the shorter side
    radius  relative
    shade   levels 0..255, mean over channels
    """

    place: float
    radius: float
    shade: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitErrors:
    """Errors of the objects that both scenes have, in the reference's order, and the number of the others.

    missing  objects of the reference without a partner
    extra    objects of the image without a partner
    """

    matched: tuple[TraitError, ...]
    missing: int
    extra: int


@dataclass(frozen=True, slots=True)
class _Fit:
    """The best template for one blob, in pixels of the image; `match` and `runner_up` have the IoU of the best two shapes."""

    shape: str
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]
    match: float
    runner_up: tuple[float, str]


def named(scene: Scene) -> tuple[str, tuple[tuple[tuple[int, int], str, str, str], ...]]:
    """The named properties in raster order: equal for two scenes that no prompt can distinguish."""
    return scene.background, tuple(sorted((o.cell, o.color, o.shape, o.size) for o in scene.objects))


def read_picture(pixels: Array, colors: dict[str, tuple[int, int, int]] = COLORS) -> Reading:
    """The scene in an image, (height, width, 3) uint8. `colors`: the names that objects may have."""
    height, width = pixels.shape[:2]
    short = min(width, height)
    unit = max(1, round(short / 128))
    # channels first
    image = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    ground = _border_color(image, unit)
    cores, owners = _segment(_contrast(image, ground), unit)
    marks = _find_marks(image, ground, cores, owners, short / 128)
    if marks:
        # the rest is read as if the objects were plain
        for mark, rgb in marks:
            image[:, mark.pixels] = rgb[:, None]
        cores, owners = _segment(_contrast(image, ground), unit)
    windows = ndimage.find_objects(cores)
    fits = [
        _fit_blob(image, ground, cores, owners, index, window, unit)
        for index, window in enumerate(windows[:MAX_BLOBS], start=1)
    ]

    problems: list[str] = [f"{len(windows)} blobs"] if len(windows) > MAX_BLOBS else []
    objects = [_name_object(fit, width, height, problems, colors) for fit in fits]
    for mark, _ in marks if fits else ():
        at = min(range(len(fits)), key=lambda i: math.hypot(fits[i].x - mark.x, fits[i].y - mark.y))
        fit = fits[at]
        objects[at] = replace(objects[at], mark=at_object(mark, fit.x, fit.y, fit.radius, short))
    order = sorted(range(len(objects)), key=lambda i: objects[i].cell)
    if not objects:
        problems.append("no object")
    problems += [
        f"{count} objects at the {POSITION_NAMES[cell]}"
        for cell, count in Counter(o.cell for o in objects).items()
        if count > 1
    ]
    background, ground_problem = _name_color(ground, BACKGROUNDS)
    unexplained, spread = _compare_with_fits(image, ground, fits, unit)
    if np.abs(ground - BACKGROUNDS[background]).max() > MAX_BACKGROUND_ERROR:
        ground_problem = f"background is not quite {background}"
    if spread > MAX_BACKGROUND_SPREAD:
        ground_problem = "background is not flat"
    if ground_problem:
        problems.append(ground_problem)
    if unexplained > MAX_LEFTOVER * unit**2:
        problems.append(f"{unexplained} pixels are unexplained")
    return Reading(
        scene=Scene(objects=tuple(objects[i] for i in order), background=background),
        matches=tuple(fits[i].match for i in order),
        leftover=unexplained / (width * height),
        background_clean=not ground_problem,
        problems=tuple(problems),
    )


def _border_color(image: Array, unit: int) -> Array:
    """The median colour of the border, which no object of a scene touches."""
    edges = (image[:, :unit], image[:, -unit:], image[:, :, :unit], image[:, :, -unit:])
    return np.median(np.concatenate([edge.reshape(3, -1) for edge in edges], axis=1), axis=1)


def _contrast(image: Array, ground: Array) -> Array:
    """Distance of each pixel from the background's colour."""
    return np.sqrt(np.square(_minus(image, ground)).sum(0))


def _find_marks(
    image: Array, ground: Array, cores: Array, owners: Array, unit: float
) -> list[tuple[FoundMark, Array]]:
    """The marks in an image, at most one on each blob, with the colour around each."""
    found = []
    visible = _contrast(image, ground) > MIN_CONTRAST
    for index, window in enumerate(ndimage.find_objects(cores)[:MAX_BLOBS], start=1):
        margin = round(8 * unit)
        top, left = (max(0, s.start - margin) for s in window)
        crop = (slice(top, window[0].stop + margin), slice(left, window[1].stop + margin))
        rgb = np.median(image[:, *crop][:, cores[crop] == index], axis=1)
        mark = find_mark(image[:, *crop], rgb, visible[crop] & (owners[crop] == index), unit)
        if mark is not None:
            pixels = np.zeros(visible.shape, bool)
            pixels[crop] = mark.pixels & visible[crop]
            found.append((replace(mark, x=left + mark.x, y=top + mark.y, pixels=pixels), rgb))
    return found


def _minus(colors: Array, color: Array) -> Array:
    return colors - color.astype(np.float32)[:, None, None]


def _segment(contrast: Array, unit: int) -> tuple[Array, Array]:
    """The cores of all blobs, labelled 1..n (0 elsewhere), and the label of the nearest core for each pixel."""
    enclosing = ndimage.grey_closing(contrast, size=(GAP - 1) * unit + 1)
    mask = contrast > MIN_CONTRAST
    parted = _without_holes(mask & (contrast > VALLEY * enclosing), unit)
    cores, count = _label(ndimage.minimum_filter(parted, size=2 * unit + 1), np.ones((3, 3)))
    if count < 2:
        return cores, np.full_like(cores, count)
    blobs, num_blobs = _label(mask)
    blob_of = cast("Array", ndimage.maximum(blobs, cores, range(count + 1))).astype(int)
    areas = np.bincount(cores.ravel())
    areas[0] = 0
    largest = np.zeros(num_blobs + 1, areas.dtype)
    np.maximum.at(largest, blob_of, areas)
    keep = (areas > 0) & ((areas >= MIN_CORE * unit**2) | (areas == largest[blob_of]))
    cores = np.where(keep, np.cumsum(keep), 0)[cores]
    nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    return cores, cores[tuple(cast("Array", nearest))]


def _without_holes(mask: Array, unit: int) -> Array:
    """The mask with its small holes filled: a mark may be as faint as a gap."""
    holes, count = _label(cast("Array", ndimage.binary_fill_holes(mask)) & ~mask)
    small = np.bincount(holes.ravel(), minlength=count + 1) <= MAX_HOLE * unit**2
    small[0] = False
    return mask | small[holes]


def _label(mask: Array, structure: Array | None = None) -> tuple[Array, int]:
    """Connected parts labelled from 1, and their number."""
    return cast("tuple[Array, int]", ndimage.label(mask, structure))


def _fit_blob(  # noqa: PLR0917  (one caller)
    image: Array,
    ground: Array,
    cores: Array,
    owners: Array,
    index: int,
    window: tuple[slice, slice],
    unit: int,
) -> _Fit:
    """Fit every shape by its moments, refine the best ones, and return the best fit."""
    # a star's core lacks its tips
    margin = 8 * unit
    top, left = (max(0, s.start - margin) for s in window)
    crop = (slice(top, window[0].stop + margin), slice(left, window[1].stop + margin))
    colors, owned = image[:, *crop], owners[crop] == index

    rgb = np.median(colors[:, cores[crop] == index], axis=1)
    alpha = _alpha(colors, ground, rgb, owned)
    guesses = {shape: _guess_by_moments(alpha, shape) for shape in SHAPES}
    first, second = _two_best({shape: _overlap(alpha, shape, place) for shape, place in guesses.items()})
    inside = (_distance(first[1], guesses[first[1]], alpha.shape) < -SOFT_EDGE * unit) & owned
    # the core of a small object contains part of its soft edge: measure the colour again without it
    if inside.any():
        rgb = np.median(colors[:, inside], axis=1)
        alpha = _alpha(colors, ground, rgb, owned)

    candidates = (first, second) if first[0] - second[0] < CLEAR_LEAD else (first,)
    places = guesses | {shape: _refine(alpha, shape, guesses[shape]) for _, shape in candidates}
    matches = {s: max(_overlap(alpha, s, places[s], blur * unit) for blur in SOFTNESS) for _, s in candidates}
    (match, shape), runner_up = _two_best({second[1]: second[0]} | matches)
    x, y, radius = places[shape]
    return _Fit(shape, left + x, top + y, radius, tuple(rgb.tolist()), match, runner_up)


def _two_best(matches: dict[str, float]) -> tuple[tuple[float, str], tuple[float, str]]:
    first, second, *_ = sorted(((match, shape) for shape, match in matches.items()), reverse=True)
    return first, second


def _alpha(colors: Array, ground: Array, rgb: Array, owned: Array) -> Array:
    """Position of each pixel between the background (0) and the object's colour (1)."""
    way = rgb - ground
    share = np.tensordot(way / max(float(way @ way), 1.0), _minus(colors, ground), 1)
    return np.clip(share, 0, 1) * owned


def _sharpen(alpha: Array) -> Array:
    """Steepen soft edges about their middle, so that blur costs little and a half-transparent area still counts half."""
    return np.clip(3 * alpha - 1, 0, 1)


def _coverage(shape: str, place: Place, size: tuple[int, ...]) -> Array:
    x, y, radius = place
    return shape_coverage(shape, radius=radius, center=(x, y), size=(size[1], size[0]))


def _distance(shape: str, place: Place, size: tuple[int, ...]) -> Array:
    """Signed distance of each pixel from the outline, in pixels."""
    x, y, radius = place
    rows, columns = np.mgrid[: size[0], : size[1]]
    return DISTANCES[shape]((columns + 0.5 - x) / radius, (rows + 0.5 - y) / radius) * radius


def _overlap(alpha: Array, shape: str, place: Place, blur: float = 0.0) -> float:
    """Soft IoU of the measured alpha and a template."""
    cover = _coverage(shape, place, alpha.shape)
    seen, template = _sharpen(alpha), _sharpen(ndimage.gaussian_filter(cover, blur) if blur else cover)
    shared = float(np.minimum(seen, template).sum())
    return shared / max(float(seen.sum() + template.sum()) - shared, 1.0)


@cache
def _moments(shape: str) -> tuple[float, float, float]:
    """Area and centroid (x, y) of a shape of radius 1."""
    scale, side = 50, 128
    cover = _coverage(shape, (side / 2, side / 2, scale), (side, side))
    area = float(cover.sum())
    axis = np.arange(side) + 0.5 - side / 2
    x, y = float(cover.sum(0) @ axis), float(cover.sum(1) @ axis)
    return area / scale**2, x / area / scale, y / area / scale


def _guess_by_moments(alpha: Array, shape: str) -> Place:
    """Centre and radius at which a shape has the area and the centroid of the measured alpha."""
    seen = _sharpen(alpha)
    total = max(float(seen.sum()), 1.0)
    area, dx, dy = _moments(shape)
    radius = (total / area) ** 0.5
    x = float(seen.sum(0) @ (np.arange(seen.shape[1]) + 0.5)) / total
    y = float(seen.sum(1) @ (np.arange(seen.shape[0]) + 0.5)) / total
    return x - dx * radius, y - dy * radius, radius


def _refine(alpha: Array, shape: str, place: Place, steps: int = 4) -> Place:
    """Gauss-Newton least squares over centre and radius; the derivatives come from the template's gradient."""
    x, y, radius = place
    for _ in range(steps):
        cover = _coverage(shape, (x, y, radius), alpha.shape)
        by_row, by_column = np.gradient(cover)
        columns = (np.arange(alpha.shape[1]) + 0.5 - x) / radius
        rows = (np.arange(alpha.shape[0]) + 0.5 - y)[:, None] / radius
        slopes = -np.stack([by_column, by_row, columns * by_column + rows * by_row]).reshape(3, -1)
        normal = slopes @ slopes.T + 1e-3 * np.eye(3)
        dx, dy, dr = np.clip(np.linalg.solve(normal, slopes @ (alpha - cover).ravel()), -2, 2).tolist()
        x, y, radius = x + dx, y + dy, max(radius + dr, 2.0)
        if max(abs(dx), abs(dy), abs(dr)) < 0.01:
            break
    return x, y, radius


def _name_color(rgb: Array, names: dict[str, tuple[int, int, int]]) -> tuple[str, str]:
    """The nearest name, and a problem (or "") if the next name is almost as near."""
    distances = sorted(
        (float(np.linalg.norm(np.subtract(rgb, color))), name) for name, color in names.items()
    )
    (near, name), (far, other) = distances[:2]
    return name, f"a colour between {name} and {other}" if near > MAX_DOUBT * far else ""


def _name_object(
    fit: _Fit, width: int, height: int, problems: list[str], colors: dict[str, tuple[int, int, int]]
) -> SceneObject:
    """The object of a fitted blob with its measured traits; doubts about it are added to `problems`."""
    short = min(width, height)
    color, complaint = _name_color(np.array(fit.rgb), colors)
    row, dy = _nearest_cell(fit.y, height, short)
    column, dx = _nearest_cell(fit.x, width, short)
    size = "small" if fit.radius / short < SIZE_BORDER else "big"
    red, green, blue = (round(seen - base) for seen, base in zip(fit.rgb, colors[color], strict=True))
    shade = (red, green, blue)
    traits = Traits(dx=dx, dy=dy, scale=fit.radius / short / SIZES[size], shade=shade)
    obj = SceneObject(shape=fit.shape, color=color, size=size, cell=(row, column), traits=traits)
    where = f"at the {obj.position}"
    if complaint:
        problems.append(f"{complaint} {where}")
    elif max(map(abs, shade)) > MAX_COLOR_ERROR:
        problems.append(f"not quite {color} {where}")
    if fit.match < MIN_MATCH:
        problems.append(f"hardly a {fit.shape} {where} (IoU {fit.match:.2f})")
    elif fit.match - fit.runner_up[0] < MIN_LEAD:
        problems.append(f"something between {fit.shape} and {fit.runner_up[1]} {where}")
    if max(abs(dx), abs(dy)) > MAX_PLACE_ERROR:
        problems.append(f"not quite {where}")
    if not RADIUS_RANGE[0] <= fit.radius / short <= RADIUS_RANGE[1]:
        problems.append(f"not quite {size} {where}")
    return obj


def _nearest_cell(at: float, length: int, short: int) -> tuple[int, float]:
    """Index of the nearest cell along one axis, and the offset from its centre, share of the shorter side."""
    index = min(range(len(CELL_CENTERS)), key=lambda i: abs(at - CELL_CENTERS[i] * length))
    return index, (at - CELL_CENTERS[index] * length) / short


def _compare_with_fits(image: Array, ground: Array, fits: list[_Fit], unit: int) -> tuple[int, float]:
    """The number of pixels that the rendered fits do not explain, and the spread of the background."""
    residual = np.abs(_minus(image, ground)).max(0)
    behind = np.ones(residual.shape, bool)
    soft = SOFT_EDGE * unit
    for fit in fits:
        reach = fit.radius + 2 * soft
        top, left = max(0, int(fit.y - reach)), max(0, int(fit.x - reach))
        window = (slice(top, int(fit.y + reach) + 1), slice(left, int(fit.x + reach) + 1))
        outside = residual[window]
        distance = _distance(fit.shape, (fit.x - left, fit.y - top, fit.radius), outside.shape)
        inside = np.abs(_minus(image[:, *window], np.array(fit.rgb))).max(0)
        residual[window] = np.where(distance > soft, outside, np.where(distance < -soft, inside, 0))
        behind[window] &= distance > soft
    spread = float(residual[behind].mean()) if behind.any() else 0.0
    return int((residual > MAX_RESIDUAL).sum()), spread


def trait_errors(reading: Scene, reference: Scene, *, size: tuple[int, int] = (128, 128)) -> TraitErrors:
    """Differences of unnamed traits, each object paired with the nearest one of the same shape and colour.

    `size` (width, height) matters only for objects in different cells.
    """
    short = min(size)

    def geometry(obj: SceneObject) -> Array:
        return np.array(object_geometry(obj, *size)) / short

    pairs = sorted(
        (float(np.hypot(*(geometry(seen) - geometry(meant))[:2])), i, j)
        for i, meant in enumerate(reference.objects)
        for j, seen in enumerate(reading.objects)
        if (seen.shape, seen.color) == (meant.shape, meant.color)
    )
    partners: dict[int, tuple[float, int]] = {}
    taken: set[int] = set()
    for place, i, j in pairs:
        if i not in partners and j not in taken:
            partners[i] = place, j
            taken.add(j)
    matched = []
    for i, (place, j) in sorted(partners.items()):
        seen, meant = reading.objects[j], reference.objects[i]
        matched.append(
            TraitError(
                place=place,
                radius=abs(float(geometry(seen)[2] / geometry(meant)[2]) - 1),
                shade=float(np.abs(np.subtract(seen.rgb, meant.rgb)).mean()),
            )
        )
    return TraitErrors(
        matched=tuple(matched),
        missing=len(reference.objects) - len(matched),
        extra=len(reading.objects) - len(matched),
    )


def psnr(a: Array, b: Array, mask: Array | None = None) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB, within `mask` (height, width) if given."""
    squares = np.square(a.astype(np.float64) - b.astype(np.float64))
    error = float((squares if mask is None else squares[mask.astype(bool)]).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
