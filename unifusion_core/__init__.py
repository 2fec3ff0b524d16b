"""UniFusion: pictures from prompts and pictures, all read by one frozen vision-language model.

Importing this imports neither torch nor transformers. The whole way from a prompt to a picture is `pipeline.Pipeline`;
the parts are `vlm.folder.load_vlm`, `checkpoint.load_generator`, `checkpoint.load_autoencoder` and `sampling.sample`; what
travels between them is in `contracts`. ARCHITECTURE.md beside this file is the map.
"""

from .errors import (
    CheckpointError,
    ConfigError,
    PromptError,
    ShapeError,
    TrainingError,
    UniFusionError,
    VLMError,
)

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "PromptError",
    "ShapeError",
    "TrainingError",
    "UniFusionError",
    "VLMError",
]
