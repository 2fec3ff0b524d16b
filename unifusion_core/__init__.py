"""UniFusion: text-to-image and image editing with one frozen vision-language model (VLM) as the only encoder (arXiv 2510.12789).

    from unifusion_core import Pipeline
    pipe = Pipeline.load()
    image = pipe("a big red circle at the top left, white background", seed=7)

Importing this package imports neither torch nor transformers; a public name imports what it needs when it is first used.
ARCHITECTURE.md beside this file is the map.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    ConfigError,
    NumericsError,
    PromptError,
    ShapeError,
    TrainingError,
    UniFusionError,
    VLMError,
)

if TYPE_CHECKING:
    from .checkpoints.generator_file import load_generator
    from .checkpoints.vae_file import load_vae
    from .contracts import Conditioning, Features, Request, RewriteSettings
    from .pipeline import Pipeline, SamplingSettings
    from .vlm.folder import load_vlm
    from .vlm.rewrite import Rewrite

__version__ = "0.2.0"

__all__ = [
    "CheckpointError",
    "Conditioning",
    "ConfigError",
    "Features",
    "NumericsError",
    "Pipeline",
    "PromptError",
    "Request",
    "Rewrite",
    "RewriteSettings",
    "SamplingSettings",
    "ShapeError",
    "TrainingError",
    "UniFusionError",
    "VLMError",
    "load_generator",
    "load_vae",
    "load_vlm",
]

_HOMES = {
    "Conditioning": "contracts",
    "Features": "contracts",
    "Pipeline": "pipeline",
    "Request": "contracts",
    "Rewrite": "vlm.rewrite",
    "RewriteSettings": "contracts",
    "SamplingSettings": "pipeline",
    "load_generator": "checkpoints.generator_file",
    "load_vae": "checkpoints.vae_file",
    "load_vlm": "vlm.folder",
}


def __getattr__(name: str) -> Any:
    """A public name, imported from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
