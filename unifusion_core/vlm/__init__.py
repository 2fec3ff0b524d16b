"""The frozen vision-language model: requests in, hidden states of chosen layers and rewrites out.

The only place in the package that imports `transformers`. `tiling` cuts pictures, `prompts` lays out chats,
`families` holds what differs between VLMs, `backbone` loads and runs them.
"""

from .backbone import VLMBackbone, load_vlm
from .prompts import VLMInputs, kept_features

__all__ = ["VLMBackbone", "VLMInputs", "kept_features", "load_vlm"]
