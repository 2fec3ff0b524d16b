"""Measures between images with known differences: pytest tests/unit/evaluation/benchmarks/test_pixels_and_drift.py"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from unifusion_core.errors import ConfigError
from unifusion_core.evaluation.benchmarks.benchmark import NOT_DRAWN, Answer, Item, Shown
from unifusion_core.evaluation.benchmarks.drift import (
    OUTSIDE,
    SCALE,
    SHIFT,
    Displacement,
    Drift,
    displacements_between,
    fit,
    phase_correlation,
    psnr_outside,
    scale_of,
    shift_of,
)
from unifusion_core.evaluation.benchmarks.pixels import PixelJudge, psnr, ssim, why_no_lpips
from unifusion_core.evaluation.benchmarks.reconstruct import Reconstruct

SIZE = 160


def textured(size: int = SIZE) -> np.ndarray:
    """Gray values in 0..1 with detail at several scales."""
    rng = np.random.default_rng(0)
    layers = [ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma) * sigma for sigma in (1.5, 4, 9)]
    image = sum(layers)
    return (image - image.min()) / (image.max() - image.min())


def moved(image: np.ndarray, rows: float, columns: float, scale: float = 1.0) -> np.ndarray:
    """The image with its content moved by (rows, columns) and made `scale` times as large around the middle."""
    middle = (np.array(image.shape) - 1) / 2
    matrix = np.eye(2) / scale
    offset = middle - matrix @ (middle + np.array([rows, columns]))
    return ndimage.affine_transform(image, matrix, offset, order=3, mode="reflect")


def nothing_masked() -> np.ndarray:
    return np.zeros((SIZE, SIZE), dtype=bool)


# Pixels -------------------------------------------------------------------------------------------


def test_psnr_of_a_known_error() -> None:
    one = torch.full((3, 8, 9), 0.5)
    assert psnr(one, one + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr(one, one) == 100.0
    keep = torch.zeros(8, 9, dtype=torch.bool)
    keep[:2] = True
    other = one.clone()
    other[:, 2:] = 0
    assert psnr(one, other, keep) == 100.0


def test_ssim_by_hand_and_at_its_ends() -> None:
    flat, brighter = torch.full((3, 16, 16), 0.4), torch.full((3, 16, 16), 0.6)
    # without variance only the means count: (2 x 0.4 x 0.6 + C1) / (0.4^2 + 0.6^2 + C1)
    assert ssim(flat, brighter) == pytest.approx((0.48 + 1e-4) / (0.52 + 1e-4), rel=1e-6)
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(noise, noise) == pytest.approx(1.0)
    assert ssim(noise, noise.flip(-1)) < 0.2
    assert math.isnan(ssim(noise[:, :8], noise[:, :8]))


def test_ssim_has_a_gaussian_window() -> None:
    """Against scipy's filter with the same window (sigma 1.5, 11 pixels), on whole windows."""
    one, other = torch.rand(2, 1, 24, 30, generator=torch.Generator().manual_seed(1)).double()
    a, b = one[0].numpy(), other[0].numpy()

    def blurred(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    means = blurred(a), blurred(b)
    variances = [blurred(x * x) - m * m for x, m in zip((a, b), means, strict=True)]
    both = blurred(a * b) - means[0] * means[1]
    top = (2 * means[0] * means[1] + 1e-4) * (2 * both + 9e-4)
    expected = (top / ((means[0] ** 2 + means[1] ** 2 + 1e-4) * (sum(variances) + 9e-4))).mean()
    assert ssim(one, other) == pytest.approx(expected, rel=1e-6)


def test_lpips_that_cannot_be_measured_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    items = Reconstruct().read(tmp_path)
    if why_no_lpips():
        assert [q.text for q in items[0].questions] == ["PSNR dB", "SSIM"]
    answers = {(i.id, 0): {q.text: Answer(text="0.5") for q in i.questions} for i in items}
    notes = Reconstruct().score(items, answers).notes
    assert any("LPIPS is not measured" in note for note in notes) == bool(why_no_lpips())
    assert any("compare how they fall" in note for note in notes)


def test_reconstruction_is_scored_per_number_of_tiles(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    benchmark = Reconstruct()
    items = benchmark.read(tmp_path)
    assert [(i.way.max_tiles, i.way.rewriting) for i in items[:3]] == [(1, False), (5, False), (10, False)]
    answers = {
        (item.id, 0): {
            "PSNR dB": Answer(text=str(20 + item.labels["tiles"] + (item.source == "b"))),
            "SSIM": Answer(text="0.5"),
        }
        for item in items
    }
    answers[("a-10-tiles", 0)] = dict.fromkeys(("PSNR dB", "SSIM"), NOT_DRAWN)
    scores = benchmark.score(items, answers)
    assert scores.values["PSNR dB, 1 tiles"] == pytest.approx(21.5)
    assert scores.values["PSNR dB, 10 tiles"] == pytest.approx(31)
    assert scores.tables["tiles"]["10 tiles"]["images"] == 1
    assert scores.tables["tiles"]["5 tiles"]["paper LPIPS"] == 0.775


def test_images_that_differ_in_their_ending_alone_keep_apart(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg")
    assert len({item.id for item in Reconstruct().read(tmp_path)}) == 6


# Drift --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [(0, 0), (3, -5), (2.25, 0.6), (-0.4, 4.7)])
def test_phase_correlation_finds_a_shift_to_a_tenth_of_a_pixel(way: tuple[float, float]) -> None:
    image = textured()
    here = slice(40, 104), slice(40, 104)
    found = phase_correlation(image[here], moved(image, *way)[here])
    # a window that shows other content at its edges is a little off; `displacements_between` cuts it anew
    assert found == pytest.approx(way, abs=0.25)


@pytest.mark.parametrize(
    ("way", "scale"),
    [((0, 0), 1.0), ((1.5, -2.5), 1.0), ((0, 0), 1.03), ((-3.2, 2.0), 0.98), ((6.5, 0.0), 1.01)],
)
def test_shift_and_scale_are_told_apart(way: tuple[float, float], scale: float) -> None:
    image = textured()
    shift, growth = fit(displacements_between(image, moved(image, *way, scale), nothing_masked()))
    assert shift == pytest.approx(way, abs=0.1)
    assert growth == pytest.approx(scale - 1, abs=0.002)


def test_what_the_mask_lets_change_has_no_effect() -> None:
    image = textured()
    may_change = nothing_masked()
    may_change[:90, :90] = True
    edited = moved(image, 2.0, -1.0)
    edited[:90, :90] = moved(image, 0, 30)[:90, :90]
    found = displacements_between(image, edited, may_change)
    assert all(block.way == pytest.approx((2.0, -1.0), abs=0.15) for block in found)
    without_mask = displacements_between(image, edited, nothing_masked())
    assert any(block.way != pytest.approx((2.0, -1.0), abs=5) for block in without_mask)


def test_without_texture_nothing_is_known() -> None:
    flat = np.full((SIZE, SIZE), 0.5)
    assert displacements_between(flat, flat, nothing_masked()) == []
    (row, _), scale = fit([])
    assert math.isnan(row)
    assert math.isnan(scale)
    # one block has a shift, and no scale
    shift, scale = fit([Displacement((4.0, 2.0), (1.0, 0.5))])
    assert shift == (1.0, 0.5)
    assert math.isnan(scale)


def test_a_block_that_was_mistaken_for_another_is_left_out() -> None:
    places = [(float(row), float(column)) for row in (-40, 0, 40) for column in (-40, 0, 40)]
    right = [Displacement(place, (1.0 + 0.02 * place[0], -2.0 + 0.02 * place[1])) for place in places]
    shift, scale = fit([*right, Displacement((20.0, 20.0), (31.0, -17.0))])
    assert shift == pytest.approx((1.0, -2.0))
    assert scale == pytest.approx(0.02)


def write_edit(folder: Path, mask: np.ndarray) -> Item:
    gray = (255 * textured()).astype(np.uint8)
    Image.fromarray(np.stack([gray] * 3, -1)).save(folder / "1.png")
    Image.fromarray((255 * mask).astype(np.uint8)).save(folder / "1-mask.png")
    line = {"id": "a", "prompt": "make it blue", "images": ["1.png"], "mask": "1-mask.png"}
    (folder / "edits.jsonl").write_text(json.dumps(line) + "\n")
    (item,) = Drift().read(folder)
    return item


def test_a_drawn_image_is_measured_in_its_own_pixels(tmp_path: Path) -> None:
    mask = nothing_masked()
    mask[:20, :20] = True
    item = write_edit(tmp_path, mask)
    source = item.read_images()
    gray = moved(source[0][0].double().numpy(), 1.0, 2.0)
    output = torch.from_numpy(np.stack([gray] * 3)).float().clamp(0, 1)
    shown = Shown(item=item, output=output, inputs=source)
    assert shift_of(shown) == pytest.approx(math.hypot(1, 2), abs=0.15)
    assert scale_of(shown) == pytest.approx(0, abs=0.3)
    same = Shown(item=item, output=source[0], inputs=source)
    assert (shift_of(same), psnr_outside(same)) == (0.0, 100.0)
    answers = PixelJudge(Drift().own_judge().measures).answer(same, item.questions)
    assert [float(answer.text) for answer in answers] == [0.0, 0.0, 100.0]


def test_drift_scores_take_the_size_of_a_change_of_scale() -> None:
    items = [Item(id=name, prompt="") for name in "abc"]
    measured = {"a": ("1.0", "2.0", "30"), "b": ("3.0", "-2.0", "20"), "c": ("nan", "nan", "40")}
    answers = {
        (name, 0): dict(zip((SHIFT, SCALE, OUTSIDE), (Answer(text=t) for t in texts), strict=True))
        for name, texts in measured.items()
    }
    scores = Drift().score(items, answers)
    assert scores.values[SHIFT] == 2.0
    assert scores.values[SCALE] == 2.0
    assert scores.values[OUTSIDE] == 30.0
    assert "1 of 3 images have no texture" in scores.notes[0]


def test_masks_and_lines_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    item = write_edit(tmp_path, nothing_masked()[:80])
    (source,) = item.read_images()
    with pytest.raises(ConfigError, match=r"1-mask\.png is 160x80 and its image is 160x160"):
        shift_of(Shown(item=item, output=source, inputs=[source]))
    (tmp_path / "edits.jsonl").write_text(
        '{"id": "a", "prompt": "b", "images": ["2.png"], "mask": "1.png"}\n'
    )
    with pytest.raises(ConfigError, match=r"line 1: there is no image .*2\.png"):
        Drift().read(tmp_path)
    (tmp_path / "edits.jsonl").write_text('{"id": "a", "prompt": "b"}\n')
    with pytest.raises(ConfigError, match='lacks "images"'):
        Drift().read(tmp_path)
