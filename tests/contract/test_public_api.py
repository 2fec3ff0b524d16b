"""Names that others may rely on are there: pytest tests/contract/test_public_api.py"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import unifusion_core
from unifusion_core import errors

PUBLIC = {
    "checkpoints.generator_file": (
        "GeneratorFile",
        "config_from_json",
        "config_to_json",
        "load_generator",
        "save_generator",
    ),
    "checkpoints.vae_file": ("load_autoencoder", "load_vae"),
    "contracts": (
        "ChatTemplate",
        "Conditioning",
        "Features",
        "Request",
        "RewriteSettings",
        "TokenInfo",
        "TokenRole",
        "VLMSpec",
    ),
    "cli.main": ("main",),
    "flow.guidance": ("guide",),
    "flow.path": ("clean_from_velocity", "interpolate", "velocity"),
    "flow.schedule": ("SCHEDULES", "build_schedule"),
    "flow.solver": ("SOLVERS", "find_solver"),
    "images": ("read_image_file", "to_tensor", "write_image_file"),
    "models.autoencoder": ("Autoencoder",),
    "models.unifusion": ("PreparedCondition", "UniFusion", "UniFusionConfig", "initialize"),
    "pipeline": ("Pipeline", "SamplingSettings"),
    "zoo.krea_2": ("KREA_2",),
    "zoo.tiny": ("TINY",),
    "zoo.spec": ("GeneratorSpec", "SamplingDefaults"),
    "vlm.rewrite": ("encode_requests", "rewrite"),
    "sampling": ("make_noise", "sample"),
    "vlm.image_strength": ("with_strength",),
    "vlm.backbone": ("VLMBackbone",),
    "vlm.base": ("BaseVLM", "Written"),
    "vlm.folder": ("load_vlm",),
    "vlm.chat": ("VLMInputs",),
    "vlm.features": ("encode_chat", "select_tokens"),
}
ERRORS = [name for name, value in vars(errors).items() if inspect.isclass(value)]
LIBRARY = [
    module.name
    for module in pkgutil.walk_packages(unifusion_core.__path__, "unifusion_core.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist(module: str) -> None:
    loaded = importlib.import_module(f"unifusion_core.{module}")

    assert [name for name in PUBLIC[module] if not hasattr(loaded, name)] == []


def test_the_package_itself_lists_its_public_names_sorted_and_has_them_all() -> None:
    assert unifusion_core.__all__ == sorted(unifusion_core.__all__)
    assert set(ERRORS) < set(unifusion_core.__all__) <= set(dir(unifusion_core))
    assert [name for name in unifusion_core.__all__ if not hasattr(unifusion_core, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'Pipe'"):
        _ = unifusion_core.Pipe


def test_every_error_is_a_unifusion_error_and_says_when() -> None:
    for name in ERRORS:
        error = getattr(unifusion_core, name)
        assert issubclass(error, errors.UniFusionError)
        assert error.__doc__
        assert name in (errors.__doc__ or "")  # the tree


@pytest.mark.parametrize("name", LIBRARY)
def test_every_public_class_and_function_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    bare = [] if module.__doc__ else [name]
    for key, value in vars(module).items():
        own = getattr(value, "__module__", None) == name and not key.startswith("_")
        if own and (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value):
            bare.append(key)
    assert bare == []


def test_version_is_semantic() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", unifusion_core.__version__)
