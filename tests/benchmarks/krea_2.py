"""Time of the denoising loop with Krea 2's layout, compared with diffusers' pipeline and ComfyUI's own model:

    python tests/benchmarks/krea_2.py [--repeats 5] [--steps 8] [--out FILE.json]

Medium size: 8 blocks of width 1024, 1024 latent tokens, prompts of 80 and 10 tokens, 8 steps, guided. All have the same random
weights. diffusers runs its pipeline: it pads both prompts to 512 tokens and computes LAP at every step. ComfyUI is found as in
tests/comfyui (COMFYUI_DIR, else ~/comfy/ComfyUI) and left out if there is none.

The contestants take turns, so that other load on the machine slows all of them. A ratio compares two medians of one run, by wall
clock and by processor time; other programs do not lengthen the latter.
"""

# ruff: noqa: E402  (ComfyUI parses its options before the rest of it may be imported)
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI").absolute()

parser = argparse.ArgumentParser(description="Denoising loop of Krea 2's layout: ratios of times.")
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--out", type=Path)
ARGUMENTS = parser.parse_args()

import torch

HAS_COMFYUI = (COMFYUI / "main.py").is_file()
if HAS_COMFYUI:
    device = [] if torch.cuda.is_available() else ["--cpu"]
    FOLDER = tempfile.mkdtemp()
    sys.argv = ["main.py", *device, "--base-directory", FOLDER]
    sys.path.insert(0, str(COMFYUI))
    (Path(FOLDER) / "custom_nodes").mkdir()
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.samplers
    import comfy.sd
    import comfy_extras.nodes_custom_sampler as custom_sampler

torch.set_grad_enabled(False)
spec = importlib.util.spec_from_file_location(
    "the_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
)
assert spec is not None
sys.modules["the_pack"] = importlib.util.module_from_spec(spec)

from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from the_pack.unifusion_core.checkpoints.generator_file import load_generator
from the_pack.unifusion_core.contracts import Features
from the_pack.unifusion_core.flow.schedule import build_schedule
from the_pack.unifusion_core.models.lap import LAPConfig
from the_pack.unifusion_core.models.unifusion import UniFusion
from the_pack.unifusion_core.sampling import sample
from the_pack.unifusion_core.zoo.krea_2 import KREA_2

# widths in about Krea 2's proportions; the MLPs' are those that ComfyUI's module computes from them
CONFIG = replace(
    KREA_2.config,
    vlm=replace(KREA_2.config.vlm, hidden_size=480),
    lap=LAPConfig(num_heads=20, mlp_size=1280),
    dit=replace(
        KREA_2.config.dit, hidden_size=1024, num_blocks=8, num_heads=8, num_kv_heads=2, mlp_size=2816
    ),
)
# tokens
PROMPT, EMPTY, PADDED = 80, 10, 512
# latent cells per axis: 32 x 32 tokens
SIDE = 64
STEPS, CFG = ARGUMENTS.steps, 5.5
SCHEDULE = "krea-2 raw"


def weights() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    found = {}
    for name, value in UniFusion(CONFIG).state_dict().items():
        std = value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1
        found[name] = torch.randn(value.shape, generator=random) * std
    return found


def states(length: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(length)
    return torch.randn(1, length, len(CONFIG.vlm.taps), CONFIG.vlm.hidden_size, generator=random)


def features(length: int) -> Features:
    mask = torch.ones(1, length, dtype=torch.bool)
    return Features(
        states=states(length),
        mask=mask,
        positions=torch.zeros(1, length, 3),
    )


NOISE = torch.randn(1, CONFIG.dit.latent_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
TIMES = build_schedule(SCHEDULE, STEPS, SIDE * SIDE // 4)


def of_the_core(path: Path) -> Callable[[], torch.Tensor]:
    """The library, from VLM features to latents: pooled once, then the loop."""
    model = load_generator(path)[0]

    def run() -> torch.Tensor:
        positive, negative = (model.pool(features(length)) for length in (PROMPT, EMPTY))
        return sample(model, positive, NOISE, TIMES, negative=negative, cfg=CFG)

    return run


def of_diffusers() -> Callable[[], torch.Tensor]:
    dit, lap = CONFIG.dit, CONFIG.lap
    transformer = Krea2Transformer2DModel(
        num_layers=dit.num_blocks,
        num_attention_heads=dit.num_heads,
        num_key_value_heads=dit.num_kv_heads,
        intermediate_size=dit.mlp_size,
        text_hidden_dim=CONFIG.vlm.hidden_size,
        text_num_attention_heads=lap.num_heads,
        text_num_key_value_heads=lap.num_heads,
        text_intermediate_size=lap.mlp_size,
    )
    transformer.load_state_dict(convert_krea2_transformer_checkpoint_to_diffusers(weights()))
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=6400,
    )
    pipeline = Krea2Pipeline(
        scheduler=scheduler, transformer=transformer.eval(), vae=None, text_encoder=None, tokenizer=None
    )
    pipeline.set_progress_bar_config(disable=True)

    def prompt(length: int) -> tuple[torch.Tensor, torch.Tensor]:
        rest = PADDED - length
        return (
            torch.nn.functional.pad(states(length), (0, 0, 0, 0, 0, rest)),
            torch.arange(PADDED)[None] < length,
        )

    def run() -> torch.Tensor:
        positive, negative = prompt(PROMPT), prompt(EMPTY)
        patches = pipeline(
            height=8 * SIDE,
            width=8 * SIDE,
            num_inference_steps=STEPS,
            guidance_scale=CFG - 1,
            latents=pipeline._pack_latents(NOISE, *NOISE.shape),
            prompt_embeds=positive[0],
            prompt_embeds_mask=positive[1],
            negative_prompt_embeds=negative[0],
            negative_prompt_embeds_mask=negative[1],
            output_type="latent",
        ).images
        return pipeline._unpack_latents(patches, 8 * SIDE, 8 * SIDE)[:, :, 0]

    return run


class FixedNoise:
    """`NOISE` as a noise object of ComfyUI, for the stock SamplerCustomAdvanced."""

    seed = 0

    def generate_noise(self, latent: Any) -> torch.Tensor:
        return NOISE[:, :, None]


def of_comfyui(model: Any) -> Callable[[], torch.Tensor]:
    """A ComfyUI MODEL, sampled by stock nodes."""
    prompts = [[[states(length).flatten(2), {}]] for length in (PROMPT, EMPTY)]
    guider = custom_sampler.CFGGuider.execute(model, *prompts, CFG).args[0]
    euler = comfy.samplers.sampler_object("euler")

    def run() -> torch.Tensor:
        latent = {"samples": torch.zeros_like(NOISE[:, :, None])}
        done = custom_sampler.SamplerCustomAdvanced.execute(FixedNoise(), guider, euler, TIMES, latent)
        return model.get_model_object("latent_format").process_in(done.args[0]["samples"])[:, :, 0]

    return run


def main() -> None:
    path = Path(tempfile.mkdtemp()) / "krea2.safetensors"
    save_file(weights(), str(path))
    contestants = {"core": of_the_core(path), "diffusers": of_diffusers()}
    ratios = [("core", "diffusers", 0.8)]
    if HAS_COMFYUI:
        from the_pack.nodes.comfy.loading import load_model

        contestants["MODEL"] = of_comfyui(load_model(path))
        contestants["ComfyUI's Krea 2"] = of_comfyui(comfy.sd.load_diffusion_model(str(path)))
        ratios.append(("MODEL", "ComfyUI's Krea 2", 0.97))
    else:
        print(f"no ComfyUI in {COMFYUI}: left out")

    clock: dict[str, list[float]] = {name: [] for name in contestants}
    processor: dict[str, list[float]] = {name: [] for name in contestants}
    latents = {}
    for _ in range(ARGUMENTS.repeats):
        for name, run in contestants.items():
            started, used = time.perf_counter(), time.process_time()
            latents[name] = run()
            clock[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
            print(f"{name:18} {clock[name][-1]:7.2f} s, processor {processor[name][-1]:7.2f} s", flush=True)
    core = latents["core"]
    differences = {n: float((each - core).abs().max() / core.abs().max()) for n, each in latents.items()}
    print(
        "differences from the core:", ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    )
    report: dict[str, Any] = {
        "differences": differences,
        "clock": clock,
        "processor": processor,
        "ratios": {},
    }
    for own, other, goal in ratios:
        name, (by_clock, by_processor) = (
            f"{own} / {other}",
            (statistics.median(times[own]) / statistics.median(times[other]) for times in (clock, processor)),
        )
        report["ratios"][name] = {"clock": by_clock, "processor": by_processor}
        print(f"{name}: {by_clock:.3f}, by processor time {by_processor:.3f} (goal: at most {goal})")
    if ARGUMENTS.out is not None:
        report |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "steps": STEPS}
        ARGUMENTS.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
