"""Names that others may rely on are there: pytest tests/contract/test_public_api.py"""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

import unifusion_core
from unifusion_core import errors

PUBLIC = {
    "checkpoint": (
        "config_from_json",
        "config_to_json",
        "load_autoencoder",
        "load_generator",
        "save_generator",
    ),
    "contracts": ("ChatTemplate", "Conditioning", "TokenRole", "VLMFeatures", "VLMRequest", "VLMSpec"),
    "command_line": ("main",),
    "flow.guidance": ("guide",),
    "flow.path": ("clean_from_velocity", "interpolate", "velocity"),
    "flow.schedule": ("SCHEDULES", "build_schedule"),
    "flow.solver": ("SOLVERS", "find_solver"),
    "models.autoencoder": ("Autoencoder",),
    "models.unifusion": ("PreparedCondition", "UniFusion", "UniFusionConfig", "initialize"),
    "pipeline": ("Pipeline",),
    "presets": ("KREA_2.config", "TINY.config"),
    "rewriting": ("rewrite",),
    "sampling": ("draw_noise", "sample"),
    "strength": ("with_strength",),
    "vlm.backbone": ("VLMBackbone",),
    "vlm.base": ("BaseVLM", "Written"),
    "vlm.folder": ("load_vlm",),
    "vlm.prompts": ("VLMInputs", "kept_features"),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist(module: str) -> None:
    loaded = importlib.import_module(f"unifusion_core.{module}")

    assert [name for name in PUBLIC[module] if not hasattr(loaded, name)] == []


def test_the_package_itself_lists_all_errors_sorted() -> None:
    raised = [name for name, value in vars(errors).items() if inspect.isclass(value)]

    assert unifusion_core.__all__ == sorted(raised)


def test_every_error_is_a_unifusion_error_and_says_when() -> None:
    for name in unifusion_core.__all__:
        error = getattr(unifusion_core, name)
        assert issubclass(error, errors.UniFusionError)
        assert error.__doc__
        assert name in (errors.__doc__ or "")  # the tree


def test_version_is_semantic() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", unifusion_core.__version__)
