"""ComfyUI's EasyCache and LazyCache on the embedded model: the value that its warning names draws right images."""

from __future__ import annotations

import random
from typing import Any

import comfy.sample
import comfy.sd
import comfy.utils
import comfy_extras.nodes_easycache as easycache
import torch
from comfy_execution.utils import CurrentNodeContext
from the_pack.nodes.comfy.clip import load_clip
from the_pack.nodes.comfy.loading import load_model
from the_pack.unifusion_core.shapes.world.captions import caption
from the_pack.unifusion_core.shapes.world.scenes import sample_scene
from the_pack.unifusion_core.shapes.world.scorer import read_picture
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY

from .case import case
from .small_unifusion import messages_of, stock

SCENES = 6


@case()
def step_reuse() -> dict[str, Any]:
    """Exact images of six scenes, and what is said: without reuse, EasyCache by default and as the warning says, LazyCache."""
    model = load_model(BUILT_IN.generator)
    clip = load_clip(BUILT_IN.vlm, model.model.model_config.unifusion.vlm, TINY)
    weights, metadata = comfy.utils.load_torch_file(str(BUILT_IN.vae), return_metadata=True)
    vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    encode = stock.CLIPTextEncode().encode
    (negative,) = encode(clip, "")
    scenes = [sample_scene(random.Random(seed)) for seed in range(SCENES)]

    def exact(used: Any) -> int:
        count = 0
        for seed, scene in enumerate(scenes):
            latent = torch.zeros(1, 16, 16, 16)
            (positive,) = encode(clip, caption(scene))
            noise = comfy.sample.prepare_noise(latent, seed)
            latents = comfy.sample.sample(
                used,
                noise,
                20,
                2.0,
                "euler",
                "simple",
                positive,
                negative,
                latent,
                disable_pbar=True,
                seed=seed,
            )
            pixels = (vae.decode(latents)[0].clamp(0, 1) * 255).round().byte().numpy()
            count += read_picture(pixels).shows(scene)
        return count

    def cached(node: Any, threshold: float) -> Any:
        return node.execute(model, threshold, 0.15, 0.95, False).args[0]

    models = {
        "plain": model,
        "default": cached(easycache.EasyCacheNode, 0.2),
        "advised": cached(easycache.EasyCacheNode, TINY.comfy_easy_cache or 0.0),
        "lazy": cached(easycache.LazyCacheNode, 0.2),
    }
    found = {}
    for name, used in models.items():
        with messages_of("nodes.comfy.host") as said, CurrentNodeContext(name, "1"):
            found[name] = [exact(used), len(said), "0.01" in "".join(said)]
    return found


@step_reuse.check
def _(found: dict[str, Any]) -> None:
    plain, advised, lazy, default = (found[name] for name in ("plain", "advised", "lazy", "default"))
    assert plain[0] >= SCENES - 2
    assert advised == plain
    assert lazy == plain
    assert plain[1] == 0
    # the picture that the warning is about
    assert default[0] < plain[0]
    assert default[1:] == [1, True]
