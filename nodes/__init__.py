"""The ComfyUI nodes, one per file. `comfy/` is the adapter to ComfyUI; all computation is in `unifusion_core`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .comfy import host, messages
from .comfy.earlier_graphs import read_earlier_graphs
from .encode import UniFusionImageEncode
from .features_to_krea2 import UniFusionFeaturesToKrea2
from .image_strength import UniFusionPictureStrength
from .inspect_layers import UniFusionLAPInspect
from .latent_from_reference import UniFusionLatentFromReference
from .load_lora import UniFusionLoraLoader
from .load_model import UniFusionModelLoader
from .load_vlm import UniFusionVLMLoader
from .pool import UniFusionLAPPool
from .rewrite import UniFusionVerifiRewrite
from .sample import UniFusionSampler
from .schedule import UniFusionSchedule


class UniFusionExtension(ComfyExtension):
    """All nodes of the pack, in the order of the data flow."""

    async def on_load(self) -> None:
        host.register_folders()
        host.offer_example_images()
        messages.show_on_nodes()
        messages.show_errors_by_name()
        read_earlier_graphs()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            UniFusionModelLoader,
            UniFusionVLMLoader,
            UniFusionLoraLoader,
            UniFusionImageEncode,
            UniFusionVerifiRewrite,
            UniFusionPictureStrength,
            UniFusionLAPPool,
            UniFusionFeaturesToKrea2,
            UniFusionLAPInspect,
            UniFusionLatentFromReference,
            UniFusionSchedule,
            UniFusionSampler,
        ]
