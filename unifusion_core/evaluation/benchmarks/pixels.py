"""Measures between two images, and a judge that answers with them instead of asking a VLM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...vlm.tiling import resize
from .benchmark import NOT_DRAWN, Answer, Question, Shown

# of images that are equal, instead of infinity
MOST_DB = 100.0
# SSIM (Wang et al. 2004): width of the Gaussian window in pixels, and the constants for values in 0..1
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2

Image = Float[Tensor, "3 H W"]
Measure = Callable[[Shown], float]


@dataclass(frozen=True)
class PixelJudge:
    """Answers each question with the measure of its name."""

    measures: Mapping[str, Measure]

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "pixels", "measures": list(self.measures)}

    def check(self, questions: Iterable[Question]) -> None:
        """Every question is a measure: the benchmark makes both."""

    def answer(self, shown: Shown, questions: Sequence[Question]) -> list[Answer]:
        return [Answer(text=repr(float(self.measures[question.text](shown)))) for question in questions]


def measured(answer: Answer) -> float:
    """The number of an answer; NaN for an image that could not be drawn or measured."""
    return math.nan if answer.text == NOT_DRAWN.text else float(answer.text)


def same_size(source: Image, output: Image) -> Image:
    """The source in the size of the output."""
    return source if source.shape == output.shape else resize(source, *output.shape[1:])


def psnr(one: Image, other: Image, keep: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of values in 0..1, over the pixels of `keep` (H W) if given; at most `MOST_DB`."""
    squares = (one - other).square().mean(0)
    error = float(squares.mean() if keep is None else squares[keep].mean())
    return min(MOST_DB, -10 * math.log10(max(error, 1e-12)))


def ssim(one: Image, other: Image) -> float:
    """Structural similarity (Wang et al. 2004), Gaussian window, mean over channels and whole windows; 1 = equal. Images smaller
    than a window have none (NaN)."""
    if min(one.shape[1:]) < SSIM_WINDOW:
        return math.nan
    place = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    line = torch.exp(-place.square() / (2 * SSIM_SIGMA**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blurred(image: Tensor) -> Tensor:
        return F.conv2d(image[:, None], window)[:, 0]

    a, b = one.double(), other.double()
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + SSIM_C1) * (2 * both + SSIM_C2)
    bottom = (mean_a**2 + mean_b**2 + SSIM_C1) * (var_a + var_b + SSIM_C2)
    return float((top / bottom).mean())


def why_no_lpips() -> str:
    """Why LPIPS cannot be measured here; "" if it can. Its AlexNet is not downloaded."""
    if find_spec("lpips") is None or find_spec("torchvision") is None:
        return "LPIPS is not measured: the packages lpips and torchvision are not installed."
    weights = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(weights.glob("alexnet-*.pth")):
        return f"LPIPS is not measured: AlexNet's weights (alexnet-owt-7be5be79.pth) are not in {weights}."
    return ""


@cache
def _lpips_model() -> Any:
    import lpips  # noqa: PLC0415  (optional)

    return lpips.LPIPS(net="alex", verbose=False).eval()


@torch.no_grad()
def lpips(one: Image, other: Image) -> float:
    """Learned perceptual distance (Zhang et al. 2018, AlexNet); 0 = equal. Needs `why_no_lpips()` to be empty."""
    return float(_lpips_model()(one[None] * 2 - 1, other[None] * 2 - 1))
