"""Stock nodes and settings on the pack's MODEL, CLIP and CONDITIONING, each against ComfyUI's own Krea 2 on equal weights.

`python tests/comfyui/table_of_nodes.py` prints the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import comfy.samplers
import torch
from comfy_execution.utils import CurrentNodeContext
from server import PromptServer
from the_pack.unifusion_core.errors import UniFusionError
from torch import Tensor

from .case import PARITY, case
from .small_krea import FOLDER, krea_loras, krea_models, krea_states
from .small_unifusion import stock, tiny_clip

# the pack's model, and ComfyUI's
Pair = tuple[Any, Any]
# draws with one of the pair
Draw = Callable[[Any], Tensor]
LATENT = {"samples": torch.zeros(1, 16, 1, 8, 12)}
STEPS, CFG = 4, 2.5
# below, a setting counts as without effect
EFFECT = 1e-5
# in 16 bits, the attention that ComfyUI's own model and ours take on a CPU round differently
PARITY_IN_16_BITS = 2e-2


def call(node: str, **inputs: Any) -> Any:
    """The first output of a stock node; inputs that are not given have their defaults."""
    kind = stock.NODE_CLASS_MAPPINGS[node]
    declared = kind.INPUT_TYPES()
    defaults = {}
    for name, spec in declared.get("required", {}).items():
        options = spec[1] if len(spec) > 1 else {}
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        if "default" in options:
            defaults[name] = options["default"]
        elif choices:
            defaults[name] = choices[0]
    chosen = defaults | inputs
    if hasattr(kind, "define_schema"):
        done = kind.execute(**chosen)
        return (done if isinstance(done, tuple) else done.args)[0]
    return getattr(kind(), kind.FUNCTION)(**chosen)[0]


def positive() -> Any:
    return [[krea_states(12), {}]]


def negative() -> Any:
    return [[krea_states(12) * -0.7, {}]]


def sampled(model: Any, **changes: Any) -> Tensor:
    """By stock KSampler."""
    settings = {
        "seed": 7,
        "steps": STEPS,
        "cfg": CFG,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": positive(),
        "negative": negative(),
        "latent_image": LATENT,
        "denoise": 1.0,
    }
    return call("KSampler", model=model, **settings | changes)["samples"]


def custom(model: Any, *, guider: Any = None, **parts: Any) -> Tensor:
    """By stock SamplerCustomAdvanced."""
    settings = {
        "noise": call("RandomNoise", noise_seed=7),
        "guider": guider or call("CFGGuider", model=model, positive=positive(), negative=negative(), cfg=CFG),
        "sampler": call("KSamplerSelect", sampler_name="euler"),
        "sigmas": call("BasicScheduler", model=model, scheduler="simple", steps=STEPS),
        "latent_image": LATENT,
    }
    return call("SamplerCustomAdvanced", **settings | parts)["samples"]


# The table's rows ---------------------------------------------------------------------------------


def _sampling() -> Iterator[tuple[str, str, Draw]]:
    for name in comfy.samplers.KSAMPLER_NAMES:
        yield "KSampler", f"sampler {name}", lambda m, n=name: sampled(m, sampler_name=n)
    for name in comfy.samplers.SCHEDULER_NAMES:
        yield "KSampler", f"scheduler {name}", lambda m, n=name: sampled(m, scheduler=n)
    for denoise in (0.3, 0.7):
        yield "KSampler", f"denoise {denoise}", lambda m, d=denoise: sampled(m, denoise=d)
    yield "KSampler", "cfg 1", lambda m: sampled(m, cfg=1.0)
    batch = {"samples": torch.zeros(3, 16, 1, 6, 10)}
    yield "KSampler", "batch of 3", lambda m: sampled(m, latent_image=batch)
    odd = {"samples": torch.zeros(1, 16, 1, 7, 9)}
    yield "KSampler", "odd size", lambda m: sampled(m, latent_image=odd)
    unequal = [[krea_states(5), {}]]
    yield "KSampler", "prompts of unequal length", lambda m: sampled(m, negative=unequal)
    advanced = {"noise_seed": 7, "steps": STEPS, "cfg": CFG, "start_at_step": 1, "end_at_step": 3}
    for noise in ("enable", "disable"):
        yield (
            "KSamplerAdvanced",
            f"steps 1 to 3, add_noise {noise}",
            lambda m, n=noise: call(
                "KSamplerAdvanced",
                model=m,
                add_noise=n,
                positive=positive(),
                negative=negative(),
                latent_image={"samples": torch.ones(1, 16, 1, 8, 12)},
                return_with_leftover_noise="enable",
                **advanced,
            )["samples"],
        )
    for node in (
        "SamplerEulerAncestral",
        "SamplerEulerAncestralCFGPP",
        "SamplerLMS",
        "SamplerDPMPP_2M_SDE",
        "SamplerDPMPP_3M_SDE",
        "SamplerDPMPP_SDE",
        "SamplerDPMPP_2S_Ancestral",
        "SamplerDPMAdaptative",
        "SamplerER_SDE",
        "SamplerSEEDS2",
        "SamplerLCMUpscale",
    ):
        yield node, "defaults", lambda m, n=node: custom(m, sampler=call(n))
    yield (
        "SamplerSASolver",
        "defaults",
        lambda m: custom(m, sampler=call("SamplerSASolver", model=m, use_pece=True, simple_order_2=False)),
    )
    for node in (
        "KarrasScheduler",
        "ExponentialScheduler",
        "PolyexponentialScheduler",
        "LaplaceScheduler",
        "VPScheduler",
    ):
        sizes = {"steps": STEPS, "sigma_max": 1.0, "sigma_min": 0.01}
        given = {k: v for k, v in sizes.items() if node != "VPScheduler" or k == "steps"}
        yield node, "1 to 0.01", lambda m, n=node, g=given: custom(m, sigmas=call(n, **g).clamp(max=1.0))
    for node in ("SDTurboScheduler", "BetaSamplingScheduler"):
        yield node, "defaults", lambda m, n=node: custom(m, sigmas=call(n, model=m, steps=STEPS))
    yield "Flux2Scheduler", "defaults", lambda m: custom(m, sigmas=call("Flux2Scheduler", steps=STEPS))
    yield (
        "SplitSigmas",
        "low",
        lambda m: custom(m, sigmas=stock.NODE_CLASS_MAPPINGS["SplitSigmas"].execute(_sigmas(m), 2).args[1]),
    )
    yield "AddNoise", "then DisableNoise", _drawn_from_added_noise


def _sigmas(model: Any) -> Tensor:
    return call("BasicScheduler", model=model, scheduler="simple", steps=STEPS)


def _drawn_from_added_noise(model: Any) -> Tensor:
    noisy = call(
        "AddNoise",
        model=model,
        noise=call("RandomNoise", noise_seed=7),
        sigmas=_sigmas(model),
        latent_image=LATENT,
    )
    return custom(model, noise=call("DisableNoise"), latent_image=noisy)


def _guiders() -> Iterator[tuple[str, str, Draw]]:
    third = [[krea_states(12) * 0.4, {}]]
    yield (
        "BasicGuider",
        "",
        lambda m: custom(m, guider=call("BasicGuider", model=m, conditioning=positive())),
    )
    for style in ("regular", "nested"):
        yield (
            "DualCFGGuider",
            style,
            lambda m, s=style: custom(
                m,
                guider=call(
                    "DualCFGGuider",
                    model=m,
                    cond1=positive(),
                    cond2=third,
                    negative=negative(),
                    cfg_conds=2.0,
                    cfg_cond2_negative=1.5,
                    style=s,
                ),
            ),
        )
    yield (
        "PerpNegGuider",
        "",
        lambda m: custom(
            m,
            guider=call(
                "PerpNegGuider",
                model=m,
                positive=positive(),
                negative=negative(),
                empty_conditioning=third,
                cfg=2.0,
                neg_scale=1.0,
            ),
        ),
    )
    yield (
        "DualModelGuider",
        "",
        lambda m: custom(
            m,
            guider=call(
                "DualModelGuider",
                model=m,
                positive=positive(),
                cfg=2.0,
                model_negative=m,
                negative=negative(),
            ),
        ),
    )


PATCHES: list[tuple[str, dict[str, Any]]] = [
    ("ModelSamplingSD3", {"shift": 2.0}),
    ("ModelSamplingAuraFlow", {"shift": 2.0}),
    ("ModelSamplingFlux", {"max_shift": 1.0, "base_shift": 0.4}),
    ("ModelSamplingStableCascade", {}),
    ("ModelSamplingDiscrete", {"sampling": "eps"}),
    ("ModelSamplingDiscrete", {"sampling": "lcm"}),
    ("ModelSamplingContinuousEDM", {}),
    ("ModelSamplingContinuousV", {}),
    ("RescaleCFG", {}),
    ("CFGZeroStar", {}),
    ("CFGNorm", {}),
    ("CFGOverride", {"cfg": 4.0, "start_percent": 0.2, "end_percent": 0.9}),
    ("RenormCFG", {"cfg_trunc": 100.0, "renorm_cfg": 1.0}),
    ("APG", {}),
    ("TCFG", {}),
    ("Mahiro", {}),
    ("FreSca", {"scale_high": 1.5}),
    ("Epsilon Scaling", {"scaling_factor": 1.02}),
    ("TemporalScoreRescaling", {}),
    ("ModelNoiseScale", {"noise_scale": 0.9}),
    ("NAGuidance", {}),
    ("NAGuidance", {"nag_scale": 8.0, "nag_alpha": 0.9, "nag_tau": 3.0}),
    ("PerturbedAttentionGuidance", {}),
    ("SelfAttentionGuidance", {}),
    ("SkipLayerGuidanceSD3", {"layers": "1", "start_percent": 0.0, "end_percent": 1.0}),
    (
        "SkipLayerGuidanceDiT",
        {"double_layers": "", "single_layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    ),
    (
        "SkipLayerGuidanceDiT",
        {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0},
    ),
    ("SkipLayerGuidanceDiTSimple", {"double_layers": "", "single_layers": "1", "start_percent": 0.0}),
    ("FreeU", {}),
    ("FreeU_V2", {}),
    ("HyperTile", {}),
    ("TomePatchModel", {}),
    ("PatchModelAddDownscale", {}),
    ("UNetSelfAttentionMultiply", {"q": 1.2, "k": 0.8, "v": 1.1, "out": 0.9}),
    ("UNetCrossAttentionMultiply", {"q": 1.2}),
    ("UNetTemporalAttentionMultiply", {"self_structural": 1.2}),
    ("DifferentialDiffusion", {}),
    ("EasyCache", {"reuse_threshold": 3.0}),
    ("LazyCache", {"reuse_threshold": 3.0}),
    ("ContextWindowsManual", {"context_length": 1, "context_overlap": 0, "dim": 2}),
    ("ScaleROPE", {"scale_x": 0.5, "scale_y": 0.5}),
    ("FluxKVCache", {}),
    ("ModelComputeDtype", {"dtype": "bf16"}),
    ("ModelComputeDtype", {"dtype": "fp32"}),
    ("ModelAttentionBackend", {}),
    ("ChromaRadianceOptions", {}),
    ("HiDreamO1PatchSeamSmoothing", {}),
    ("LoraLoaderModelOnly", {"lora_name": "diffusers.safetensors", "strength_model": 0.7}),
    ("LoraLoaderModelOnly", {"lora_name": "kohya.safetensors", "strength_model": -0.5}),
    ("LoraLoaderBypassModelOnly", {"lora_name": "diffusers.safetensors", "strength_model": 0.7}),
    ("PerpNeg", {"empty_conditioning": "third", "neg_scale": 1.0}),
]


def _patches() -> Iterator[tuple[str, str, Draw]]:
    for node, settings in PATCHES:

        def draw(model: Any, node: str = node, settings: dict[str, Any] = settings) -> Tensor:
            given = dict(settings)
            if "empty_conditioning" in given:
                given["empty_conditioning"] = [[krea_states(12) * 0.4, {}]]
            return sampled(call(node, model=model, **given))

        yield node, ", ".join(f"{name} {value}" for name, value in settings.items()), draw


def _merges() -> Iterator[tuple[str, str, Draw]]:
    def other(model: Any) -> Any:
        return call("LoraLoaderModelOnly", model=model, lora_name="diffusers.safetensors", strength_model=1.5)

    for node, settings in (
        ("ModelMergeSimple", {"ratio": 0.4}),
        ("ModelMergeSubtract", {"multiplier": 0.3}),
        ("ModelMergeAdd", {}),
        ("ModelMergeBlocks", {"input": 0.2, "middle": 0.5, "out": 0.9}),
        ("ModelMergeKrea2", {"blocks.0.": 0.2, "blocks.1.": 0.8, "first.": 0.5}),
    ):
        yield (
            node,
            ", ".join(f"{name} {value}" for name, value in settings.items()),
            lambda m, n=node, s=settings: sampled(call(n, model1=m, model2=other(m), **s)),
        )


def _conditionings() -> Iterator[tuple[str, str, Draw]]:
    """Nodes on the positive."""
    third = [[krea_states(12) * 0.4, {}]]
    mask = torch.zeros(1, 64, 96)
    mask[:, :, :48] = 1
    reference = {"samples": torch.randn(1, 16, 1, 6, 8, generator=torch.Generator().manual_seed(3))}
    part = {"width": 48, "height": 32, "x": 16, "y": 8, "strength": 0.8}
    share = {"width": 0.5, "height": 0.5, "x": 0.2, "y": 0.1, "strength": 0.8}
    longer = [[krea_states(7), {}]]
    changes: list[tuple[str, str, Callable[[], Any]]] = [
        (
            "ConditioningCombine",
            "",
            lambda: call("ConditioningCombine", conditioning_1=positive(), conditioning_2=third),
        ),
        ("ConditioningAverage", "0.6", lambda: _averaged(third, 0.6)),
        ("ConditioningAverage", "of unequal length", lambda: _averaged(longer, 0.3)),
        (
            "ConditioningConcat",
            "",
            lambda: call("ConditioningConcat", conditioning_to=positive(), conditioning_from=longer),
        ),
        ("ConditioningSetArea", "", lambda: call("ConditioningSetArea", conditioning=positive(), **part)),
        (
            "ConditioningSetAreaPercentage",
            "",
            lambda: call("ConditioningSetAreaPercentage", conditioning=positive(), **share),
        ),
        (
            "ConditioningSetAreaStrength",
            "with an area",
            lambda: call(
                "ConditioningSetAreaStrength",
                conditioning=call("ConditioningSetArea", conditioning=positive(), **part),
                strength=0.4,
            ),
        ),
        *[
            (
                "ConditioningSetMask",
                bounds,
                lambda b=bounds: call(
                    "ConditioningSetMask", conditioning=positive(), mask=mask, strength=0.9, set_cond_area=b
                ),
            )
            for bounds in ("default", "mask bounds")
        ],
        ("ConditioningZeroOut", "", lambda: call("ConditioningZeroOut", conditioning=positive())),
        (
            "ConditioningSetTimestepRange",
            "0.2 to 0.8",
            lambda: call(
                "ConditioningCombine",
                conditioning_1=third,
                conditioning_2=call(
                    "ConditioningSetTimestepRange", conditioning=positive(), start=0.2, end=0.8
                ),
            ),
        ),
        ("FluxGuidance", "3.5", lambda: call("FluxGuidance", conditioning=positive(), guidance=3.5)),
        ("FluxDisableGuidance", "", lambda: call("FluxDisableGuidance", conditioning=positive())),
        ("ReferenceLatent", "", lambda: call("ReferenceLatent", conditioning=positive(), latent=reference)),
        *[
            (
                "FluxKontextMultiReferenceLatentMethod",
                method,
                lambda w=method: call(
                    "FluxKontextMultiReferenceLatentMethod",
                    conditioning=call("ReferenceLatent", conditioning=positive(), latent=reference),
                    reference_latents_method=w,
                ),
            )
            for method in ("offset", "index", "uxo/uno", "index_timestep_zero")
        ],
        (
            "unCLIPConditioning",
            "",
            lambda: call(
                "unCLIPConditioning",
                conditioning=positive(),
                clip_vision_output=object(),
                strength=1.0,
                noise_augmentation=0.0,
            ),
        ),
        (
            "CreateHookLora",
            "Set Hooks",
            lambda: call(
                "ConditioningSetProperties",
                cond_NEW=positive(),
                strength=1.0,
                set_cond_area="default",
                hooks=call(
                    "CreateHookLora", lora_name="diffusers.safetensors", strength_model=0.8, strength_clip=0.0
                ),
            ),
        ),
        (
            "PairConditioningSetProperties",
            "timesteps",
            lambda: stock.NODE_CLASS_MAPPINGS["PairConditioningSetProperties"]().set_properties(
                positive(),
                negative(),
                1.0,
                "default",
                timesteps=call("ConditioningTimestepsRange", start_percent=0.0, end_percent=0.9),
            )[0],
        ),
    ]
    for node, setting, make in changes:
        yield node, setting, lambda m, make=make: sampled(m, positive=make())


def _averaged(other: Any, strength: float) -> Any:
    return call(
        "ConditioningAverage",
        conditioning_to=positive(),
        conditioning_from=other,
        conditioning_to_strength=strength,
    )


def _latents() -> Iterator[tuple[str, str, Draw]]:
    image = {"samples": torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(5))}
    mask = torch.zeros(1, 64, 96)
    mask[:, 16:48, 24:72] = 1
    masked = call("SetLatentNoiseMask", samples=image, mask=mask)
    changes: list[tuple[str, str, Any, float]] = [
        ("SetLatentNoiseMask", "", masked, 0.8),
        ("RepeatLatentBatch", "2", call("RepeatLatentBatch", samples=image, amount=2), 0.6),
        ("LatentFlip", "", call("LatentFlip", samples=image), 0.6),
        ("LatentRotate", "180 degrees", call("LatentRotate", samples=image, rotation="180 degrees"), 0.6),
        (
            "LatentBlend",
            "",
            call("LatentBlend", samples1=image, samples2=call("LatentFlip", samples=image)),
            0.6,
        ),
    ]
    for node, setting, latent, denoise in changes:
        yield node, setting, lambda m, x=latent, d=denoise: sampled(m, latent_image=x, denoise=d)
    yield (
        "DifferentialDiffusion",
        "with a soft mask",
        lambda m: sampled(
            call("DifferentialDiffusion", model=m),
            latent_image=call("SetLatentNoiseMask", samples=image, mask=mask * 0.5),
            denoise=0.8,
        ),
    )
    for channels in (4, 32, 128):
        wrong = {"samples": torch.ones(1, channels, 1, 8, 12)}
        yield "KSampler", f"latent of {channels} channels", lambda m, x=wrong: sampled(m, latent_image=x)
    audio = {"samples": torch.ones(1, 16, 40)}
    yield "KSampler", "latent of audio", lambda m: sampled(m, latent_image=audio)
    none = {"samples": torch.ones(0, 16, 1, 8, 12)}
    yield "KSampler", "empty batch", lambda m: sampled(m, latent_image=none)
    wide = [[torch.randn(1, 12, 4096), {}]]
    yield "KSampler", "conditioning of another model", lambda m: sampled(m, positive=wide)


# CLIP: there is no other to compare with; a node draws no picture, or ends in a sentence
CLIP_NODES: list[tuple[str, dict[str, Any]]] = [
    ("CLIPTextEncode", {"text": "big red circle"}),
    ("CLIPTextEncode", {"text": ""}),
    ("CLIPTextEncode", {"text": "a (red:1.5) circle"}),
    ("CLIPTextEncode", {"text": "a cat"}),
    ("CLIPTextEncodeFlux", {"clip_l": "a", "t5xxl": "b"}),
    ("CLIPTextEncodeSD3", {"clip_l": "a", "clip_g": "b", "t5xxl": "c"}),
    ("CLIPTextEncodeSDXL", {"text_g": "a", "text_l": "b"}),
    ("CLIPTextEncodeSDXLRefiner", {"text": "a"}),
    ("CLIPTextEncodeHunyuanDiT", {"bert": "a", "mt5xl": "b"}),
    ("CLIPTextEncodeHiDream", {"clip_l": "a", "clip_g": "b", "t5xxl": "c", "llama": "d"}),
    ("CLIPTextEncodePixArtAlpha", {"text": "big red circle"}),
    ("CLIPTextEncodeLumina2", {"system_prompt": "superior", "user_prompt": "big red circle"}),
    ("CLIPSetLastLayer", {"stop_at_clip_layer": -2}),
    ("CLIPSave", {}),
    ("CLIPAttentionMultiply", {"q": 1.1}),
    ("CLIPMergeSimple", {"clip2": "same", "ratio": 0.5}),
    ("TextEncodeQwenImageEdit", {"prompt": "make it blue", "image": "image"}),
    ("TextEncodeQwenImageEditPlus", {"prompt": "make it blue", "image1": "image"}),
    ("TextGenerate", {"prompt": "a red ball", "max_length": 16, "sampling_mode": {"sampling_mode": "off"}}),
    (
        "TextGenerate",
        {"prompt": "a", "max_length": 8, "sampling_mode": {"sampling_mode": "off"}, "thinking": True},
    ),
]


# settings that ComfyUI's own Krea 2 does not survive, and why ours does
WRONG_IN_COMFYUI = {
    "ModelSamplingSD3": "the node sets times from 0 to 1000, which ComfyUI's own Krea 2 takes for 0 to 1",
    "SDTurboScheduler": "the node asks for the noise at times from 0 to 1000; ComfyUI's own Krea 2 has times from 0 to 1",
}

# Measuring ----------------------------------------------------------------------------------------


class _Row:
    """One node with one setting."""

    def __init__(self, node: str, setting: str) -> None:
        self.node, self.setting = node, setting
        self.difference: float | None = None
        self.effect: float | None = None
        self.said, self.verdict = "", ""

    def as_list(self) -> list[Any]:
        return [self.node, self.setting, self.difference, self.effect, self.verdict, self.said]


def _run(work: Callable[[], Any], number: int) -> tuple[Any, str, bool]:
    """The result or the error's sentence with what was shown in the browser, and whether an error was raw."""
    shown: list[str] = []

    class Server:
        def send_progress_text(self, text: str, node_id: str) -> None:
            shown[:] = [text]

        def __getattr__(self, name: str) -> Any:
            return lambda *given, **named: None

    plain, PromptServer.instance = getattr(PromptServer, "instance", None), Server()
    torch.manual_seed(0)
    try:
        with CurrentNodeContext(str(number), "1"):
            result = work()
    except UniFusionError as error:
        return None, str(error), False
    except Exception as error:
        return None, f"{type(error).__name__}: {error}", True
    finally:
        PromptServer.instance = plain
    return result, " ".join(shown), False


def _apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))


def _compared(row: _Row, draw: Draw, models: Pair, plain: Pair, number: int) -> None:
    """Fills a row by drawing with both models."""
    ours, row.said, raw = _run(lambda: draw(models[0]), number)
    theirs, their_error, _ = _run(lambda: draw(models[1]), number)
    if ours is None:
        if not raw:
            row.verdict = "refused with a sentence"
        elif theirs is None:
            row.verdict = "ends as in ComfyUI's own Krea 2"
        else:
            row.verdict = "WRONG: raw exception"
        return
    row.effect = _apart(ours, plain[0])
    if theirs is None:
        row.verdict, row.said = "right where ComfyUI's own ends", row.said or their_error
        return
    row.difference = _apart(ours, theirs)
    has_effect = row.effect > EFFECT
    if row.difference <= (PARITY_IN_16_BITS if "bf16" in row.setting else PARITY):
        row.verdict = "right" if has_effect or not row.said else "without effect, and said"
        if not has_effect and not row.said:
            row.verdict = "without effect, as in ComfyUI's own"
    elif row.said:
        row.verdict = "differs, and said"
    elif has_effect and _apart(theirs, plain[1]) <= PARITY:
        row.verdict = "has its effect here alone"
    elif row.node in WRONG_IN_COMFYUI:
        row.verdict, row.said = "right here alone", WRONG_IN_COMFYUI[row.node]
    else:
        row.verdict = "WRONG: differs"


def rows() -> list[list[Any]]:
    """The table: node, setting, difference from ComfyUI's own Krea 2, effect, verdict, what was said."""
    asyncio.run(stock.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    from safetensors.torch import save_file

    folder = FOLDER / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lora in krea_loras().items():
        save_file(lora, str(folder / f"{name}.safetensors"))
    models = krea_models()
    found = []
    plain = sampled(models[0]), sampled(models[1])
    groups = (_sampling(), _guiders(), _patches(), _merges(), _conditionings(), _latents())
    number = 0
    for group in groups:
        for node, setting, draw in group:
            number += 1
            row = _Row(node, setting)
            _compared(row, draw, models, plain, number)
            found.append(row.as_list())
    clip = tiny_clip()
    image = torch.rand(1, 64, 96, 3)
    for node, settings in CLIP_NODES:
        number += 1
        given = {k: clip if v == "same" else image if v == "image" else v for k, v in settings.items()}
        clip_input = "clip1" if node == "CLIPMergeSimple" else "clip"
        row = _Row(node, ", ".join(f"{name} {value}" for name, value in settings.items()))
        result, row.said, raw = _run(lambda n=node, g=given, c=clip_input: call(n, **{c: clip} | g), number)
        row.verdict = "right" if result is not None else "refused with a sentence"
        if raw:
            row.verdict = "WRONG: raw exception"
        elif result is not None and row.said:
            row.verdict = "runs, and said"
        found.append(row.as_list())
    return found


@case()
def stock_nodes() -> list[list[Any]]:
    return rows()


@stock_nodes.check
def _(found: list[list[Any]]) -> None:
    assert len(found) >= 120
    wrong = [row for row in found if row[4].startswith("WRONG")]
    assert not wrong, wrong
