"""ComfyUI's face of UniFusion: one node per file, no mathematics.

`host` and the files `comfy_*` are the adapter to ComfyUI; the other files hold a node each.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host
from .encode import UniFusionImageEncode
from .load_model import UniFusionModelLoader
from .load_vlm import UniFusionVLMLoader
from .pool import UniFusionLAPPool
from .reference_latent import UniFusionLatentFromReference
from .rewrite import UniFusionVerifiRewrite
from .sample import UniFusionSampler
from .schedule import UniFusionSchedule


class UniFusionExtension(ComfyExtension):
    """All nodes of the pack, in the order of the data's way."""

    async def on_load(self) -> None:
        host.register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            UniFusionModelLoader,
            UniFusionVLMLoader,
            UniFusionImageEncode,
            UniFusionVerifiRewrite,
            UniFusionLAPPool,
            UniFusionLatentFromReference,
            UniFusionSchedule,
            UniFusionSampler,
        ]
