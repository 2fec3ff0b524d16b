"""Identities of classifier-free guidance: pytest tests/unit/flow/test_guidance.py"""

from __future__ import annotations

import pytest
import torch

from unifusion_core.flow.guidance import guide

POSITIVE, NEGATIVE, IMAGE = torch.randn(3, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_scale_one_is_the_positive_branch_and_zero_the_negative() -> None:
    torch.testing.assert_close(guide(POSITIVE, NEGATIVE, 1.0), POSITIVE)
    torch.testing.assert_close(guide(POSITIVE, NEGATIVE, 0.0), NEGATIVE)


def test_the_scale_is_one_more_than_in_kreas_code() -> None:
    krea = POSITIVE + 3.5 * (POSITIVE - NEGATIVE)

    torch.testing.assert_close(guide(POSITIVE, NEGATIVE, 4.5), krea)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_equal_scales_equal_guidance_without_the_image_branch(cfg: float) -> None:
    torch.testing.assert_close(guide(POSITIVE, NEGATIVE, cfg, IMAGE, cfg), guide(POSITIVE, NEGATIVE, cfg))


def test_the_image_scale_alone_guides_towards_the_images() -> None:
    torch.testing.assert_close(guide(POSITIVE, NEGATIVE, 0.0, IMAGE, 2.5), guide(IMAGE, NEGATIVE, 2.5))


def test_an_image_branch_equal_to_the_negative_has_no_effect() -> None:
    torch.testing.assert_close(guide(POSITIVE, NEGATIVE, 3.0, NEGATIVE, 9.0), guide(POSITIVE, NEGATIVE, 3.0))
