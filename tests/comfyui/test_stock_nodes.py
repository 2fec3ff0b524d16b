"""ComfyUI's own nodes work with the pack's MODEL, CLIP and VAE, unchanged.

pytest tests/comfyui/test_stock_nodes.py
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from unifusion_core.shapes.world.render import render
from unifusion_core.shapes.world.scenes import sample_scene
from unifusion_core.shapes.world.scorer import psnr

if TYPE_CHECKING:
    from conftest import Comfy, Graph, RunResult

pytestmark = pytest.mark.comfyui

PROMPT = "big red circle at top left, small blue star at bottom right, white background."
Wire = list[Any]


@pytest.fixture
def model(graph: Graph) -> Wire:
    return graph.load_model()


@pytest.fixture
def clip(graph: Graph, model: Wire) -> Wire:
    return graph.load_clip(model)


@pytest.fixture
def positive(graph: Graph, clip: Wire) -> Wire:
    return graph.add("CLIPTextEncode", text=PROMPT, clip=clip)


@pytest.fixture
def negative(graph: Graph, clip: Wire) -> Wire:
    return graph.add("CLIPTextEncode", text="", clip=clip)


@pytest.fixture
def drawn(comfy: Comfy, graph: Graph) -> Callable[[Wire], np.ndarray]:
    """`drawn(samples)`: runs the graph up to these latents and returns them."""

    def draw(samples: Wire) -> np.ndarray:
        graph.save_latent(samples)
        (latent,) = comfy.latents(comfy.successful(graph))
        graph.popitem()
        return latent

    return draw


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())


# Samplers -------------------------------------------------------------------------------------------


def test_all_samplers_draw_the_same(
    graph: Graph, model: Wire, positive: Wire, negative: Wire, drawn: Callable[[Wire], np.ndarray]
) -> None:
    """KSampler, UniFusion Sampler, SamplerCustom and SamplerCustomAdvanced, with pooled and with flattened conditions."""
    latent = graph.empty_latent()
    expected = drawn(graph.sample(model, positive, negative, latent_image=latent))
    schedule = graph.add("UniFusionSchedule", model=model, latent=latent, steps=4, schedule="automatic")
    euler = graph.add("KSamplerSelect", sampler_name="euler")
    pooled = []
    for text in (PROMPT, ""):
        features = graph.add("UniFusionImageEncode", clip=["2", 0], prompt=text, max_tiles=10)
        pooled.append(graph.add("UniFusionLAPPool", model=model, features=features))
    own = graph.add(
        "UniFusionSampler",
        model=model,
        positive=pooled[0],
        negative=pooled[1],
        latent=latent,
        seed=1,
        steps=4,
        cfg=2.5,
        image_cfg=1.0,
        schedule="shift 3",
    )
    custom = graph.add(
        "SamplerCustom",
        model=model,
        add_noise=True,
        noise_seed=1,
        cfg=2.5,
        positive=positive,
        negative=negative,
        sampler=euler,
        sigmas=schedule,
        latent_image=latent,
    )
    guider = graph.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=2.5)
    noise = graph.add("RandomNoise", noise_seed=1)
    advanced = graph.add(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=guider,
        sampler=euler,
        sigmas=schedule,
        latent_image=latent,
    )
    for samples in (own, custom, advanced):
        assert apart(drawn(samples), expected) <= 1e-4


def test_model_sampling_sd3_shifts_the_schedule(
    graph: Graph, model: Wire, positive: Wire, negative: Wire, drawn: Callable[[Wire], np.ndarray]
) -> None:
    plain = drawn(graph.sample(model, positive, negative))
    neutral, shifted = (graph.add("ModelSamplingSD3", model=model, shift=shift) for shift in (3.0, 1.0))
    assert apart(drawn(graph.sample(neutral, positive, negative)), plain) <= 1e-5
    assert apart(drawn(graph.sample(shifted, positive, negative)), plain) > 1e-2


def test_easy_cache_skips_steps(
    comfy: Comfy,
    graph: Graph,
    model: Wire,
    positive: Wire,
    negative: Wire,
    drawn: Callable[[Wire], np.ndarray],
) -> None:
    cached = graph.add(
        "EasyCache", model=model, reuse_threshold=3.0, start_percent=0.1, end_percent=0.95, verbose=False
    )
    assert np.isfinite(drawn(graph.sample(cached, positive, negative, steps=10))).all()
    skipped = re.findall(r"EasyCache - skipped (\d+)/10 steps", comfy.log())
    assert int(skipped[-1]) > 0


def test_a_skipped_layer_counts(
    graph: Graph, model: Wire, positive: Wire, negative: Wire, drawn: Callable[[Wire], np.ndarray]
) -> None:
    plain = drawn(graph.sample(model, positive, negative))
    options = {"scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0}
    skipping = graph.add(
        "SkipLayerGuidanceDiT", model=model, double_layers="", single_layers="2, 3", **options
    )
    assert apart(drawn(graph.sample(skipping, positive, negative)), plain) > 1e-2


def test_conditioning_nodes_work(
    graph: Graph, model: Wire, positive: Wire, negative: Wire, drawn: Callable[[Wire], np.ndarray]
) -> None:
    """Their numbers are tested in process; here they run in a graph as a user builds it."""
    joined = graph.add("ConditioningConcat", conditioning_to=positive, conditioning_from=negative)
    mixed = graph.add(
        "ConditioningAverage",
        conditioning_to=joined,
        conditioning_from=positive,
        conditioning_to_strength=0.5,
    )
    early = graph.add("ConditioningSetTimestepRange", conditioning=mixed, start=0.0, end=0.6)
    area = {"width": 64, "height": 64, "x": 32, "y": 32, "strength": 1.0}
    part = graph.add("ConditioningSetArea", conditioning=positive, **area)
    both = graph.add("ConditioningCombine", conditioning_1=early, conditioning_2=positive)
    both = graph.add("ConditioningCombine", conditioning_1=both, conditioning_2=part)
    zero = graph.add("ConditioningZeroOut", conditioning=negative)
    assert np.isfinite(drawn(graph.sample(model, both, zero))).all()


# Sizes, masks, pictures -----------------------------------------------------------------------------


def test_odd_sizes_and_batches_are_drawn(
    comfy: Comfy, graph: Graph, model: Wire, positive: Wire, negative: Wire
) -> None:
    latent = graph.empty_latent(136, 112, batch_size=3)
    graph.save_picture(graph.sample(model, positive, negative, latent_image=latent))
    pictures = comfy.images(comfy.successful(graph))
    assert [picture.shape for picture in pictures] == [(112, 136, 3)] * 3
    # the warning about sizes
    assert "136x112" in comfy.log()


def picture_wire(comfy: Comfy, graph: Graph) -> tuple[Wire, np.ndarray]:
    """The node that loads a picture of coloured shapes, and that picture."""
    pixels = render(sample_scene(random.Random(5)), 128, 128)
    Image.fromarray(pixels).save(comfy.input_dir / "scene.png")
    return graph.add("LoadImage", image="scene.png"), pixels


def test_stock_vae_nodes_return_a_picture(comfy: Comfy, graph: Graph) -> None:
    image, pixels = picture_wire(comfy, graph)
    vae = graph.add("VAELoader", vae_name="unifusion-tiny-1-vae.safetensors")
    graph.save_picture(graph.add("VAEEncode", pixels=image, vae=vae))
    (rewrite,) = comfy.images(comfy.successful(graph))
    assert rewrite.shape == pixels.shape
    assert psnr(rewrite, pixels) > 25


def test_a_picture_is_drawn_over(
    comfy: Comfy,
    graph: Graph,
    model: Wire,
    positive: Wire,
    negative: Wire,
    drawn: Callable[[Wire], np.ndarray],
) -> None:
    """Image to image: with a denoise of 0.3 the latents stay nearer to the source than with 1."""
    image, _ = picture_wire(comfy, graph)
    vae = graph.add("VAELoader", vae_name="unifusion-tiny-1-vae.safetensors")
    source = graph.add("VAEEncode", pixels=image, vae=vae)
    kept = drawn(source)
    near, far = (
        drawn(graph.sample(model, positive, negative, latent_image=source, denoise=denoise))
        for denoise in (0.3, 1.0)
    )
    assert np.abs(near - kept).mean() < np.abs(far - kept).mean()


def test_an_inpaint_mask_keeps_the_rest(
    comfy: Comfy,
    graph: Graph,
    model: Wire,
    positive: Wire,
    negative: Wire,
    drawn: Callable[[Wire], np.ndarray],
) -> None:
    image, _ = picture_wire(comfy, graph)
    vae = graph.add("VAELoader", vae_name="unifusion-tiny-1-vae.safetensors")
    source = graph.add("VAEEncode", pixels=image, vae=vae)
    nothing = graph.add("SolidMask", value=0.0, width=128, height=128)
    half = graph.add("SolidMask", value=1.0, width=64, height=128)
    mask = graph.add("MaskComposite", destination=nothing, source=half, x=0, y=0, operation="add")
    masked = graph.add("SetLatentNoiseMask", samples=source, mask=mask)
    kept = drawn(source)
    new = drawn(graph.sample(model, positive, negative, latent_image=masked))
    assert apart(new[..., 8:], kept[..., 8:]) <= 1e-5
    assert apart(new[..., :8], kept[..., :8]) > 1e-2


# Weights --------------------------------------------------------------------------------------------


def test_a_lora_changes_the_picture(
    comfy: Comfy,
    graph: Graph,
    model: Wire,
    clip: Wire,
    positive: Wire,
    negative: Wire,
    drawn: Callable[[Wire], np.ndarray],
) -> None:
    """On a block of the DiT and on one of LAP, with keys that begin with `diffusion_model.`."""
    numbers = np.random.default_rng(0)
    names = {"blocks.1.attn.wq": (192, 192), "txtfusion.layerwise_blocks.0.mlp.up": (384, 160)}
    plain = drawn(graph.sample(model, positive, negative))
    (comfy.models_dir / "loras").mkdir(exist_ok=True)
    for number, (name, (rows, columns)) in enumerate(names.items()):
        lora = {"lora_A": numbers.normal(size=(4, columns)), "lora_B": numbers.normal(size=(rows, 4))}
        weights = {f"diffusion_model.{name}.{k}.weight": v.astype(np.float32) for k, v in lora.items()}
        save_file(weights, str(comfy.models_dir / "loras" / f"lora-{number}.safetensors"))
        patched = graph.add(
            "LoraLoader",
            model=model,
            clip=clip,
            lora_name=f"lora-{number}.safetensors",
            strength_model=0.1,
            strength_clip=0.1,
        )
        assert apart(drawn(graph.sample(patched, positive, negative)), plain) > 1e-3
    assert "lora key not loaded" not in comfy.log()


def test_a_saved_model_draws_the_same(
    comfy: Comfy,
    graph: Graph,
    model: Wire,
    positive: Wire,
    negative: Wire,
    drawn: Callable[[Wire], np.ndarray],
) -> None:
    graph.add("ModelSave", model=model, filename_prefix="diffusion_models/saved")
    expected = drawn(graph.sample(model, positive, negative))
    (saved,) = (comfy.base / "output" / "diffusion_models").glob("saved*.safetensors")
    folder = comfy.models_dir / "diffusion_models"
    folder.mkdir(exist_ok=True)
    shutil.move(saved, folder / "saved-again.safetensors")
    again = graph.load_model("saved-again.safetensors")
    assert np.array_equal(drawn(graph.sample(again, positive, negative)), expected)


# Text, previews, cancelling -------------------------------------------------------------------------


def test_text_is_generated(comfy: Comfy, graph: Graph, clip: Wire) -> None:
    image, _ = picture_wire(comfy, graph)
    written = graph.add(
        "TextGenerate",
        clip=clip,
        prompt="describe the picture",
        image=image,
        max_length=16,
        sampling_mode="on",
        **{"sampling_mode.temperature": 0.5, "sampling_mode.top_k": 64, "sampling_mode.top_p": 0.95},
        **{"sampling_mode.min_p": 0.05, "sampling_mode.repetition_penalty": 1.05, "sampling_mode.seed": 1},
    )
    graph.add("PreviewAny", source=written)
    result = comfy.successful(graph)
    (text,) = [out["text"][0] for out in result.outputs.values() if "text" in out]
    assert isinstance(text, str)


def test_tiles_can_be_looked_at(comfy: Comfy, graph: Graph, clip: Wire) -> None:
    """Two images of at most five tiles each, including thumbnails."""
    image, _ = picture_wire(comfy, graph)
    features = graph.add(
        "UniFusionImageEncode",
        clip=clip,
        prompt="the same",
        max_tiles=5,
        pictures__picture_1=image,
        pictures__picture_2=image,
    )
    graph.add("PreviewImage", images=[features[0], 1])
    tiles = comfy.images(comfy.successful(graph))
    assert len(tiles) == 10
    assert {tile.shape for tile in tiles} == {(48, 48, 3)}


def test_previews_and_progress_arrive(
    comfy: Comfy, graph: Graph, trained: bool, model: Wire, positive: Wire, negative: Wire
) -> None:
    samples = graph.sample(model, positive, negative, steps=10)
    graph.save_picture(samples)
    result = comfy.successful(graph)
    assert result.of_type("progress")
    assert result.previews
    assert {preview.node for preview in result.previews} == {samples[0]}
    # an untrained model has no colours to compare
    if trained:
        (picture,) = comfy.images(result)
        coarse = [
            np.asarray(Image.fromarray(i).resize((16, 16))) for i in (picture, result.previews[-1].image)
        ]
        assert np.abs(coarse[0].astype(float) - coarse[1]).mean() < 30


def test_cancelling_stops_within_a_step(
    comfy: Comfy, graph: Graph, model: Wire, positive: Wire, negative: Wire
) -> None:
    graph.save_latent(graph.sample(model, positive, negative, steps=1000))

    def cancel(event: dict[str, Any]) -> None:
        if event["type"] == "progress":
            comfy.interrupt()

    result: RunResult = comfy.run(graph, on_event=cancel)
    assert result.status == "interrupted"
    assert len(result.of_type("progress")) < 100


@pytest.mark.slow
def test_cancelling_stops_a_compiled_model_and_the_next_run_is_right(
    comfy: Comfy, new_graph: Callable[[], Graph]
) -> None:
    """TorchCompileModel, whose first step compiles."""

    def sampled(steps: int, *, compiled: bool) -> Graph:
        graph = new_graph()
        model = graph.load_model()
        clip = graph.load_clip(model)
        positive, negative = (graph.add("CLIPTextEncode", text=text, clip=clip) for text in (PROMPT, ""))
        if compiled:
            model = graph.add("TorchCompileModel", model=model, backend="inductor")
        graph.save_latent(graph.sample(model, positive, negative, steps=steps))
        return graph

    def cancel(event: dict[str, Any]) -> None:
        if event["type"] == "progress":
            comfy.interrupt()

    result = comfy.run(sampled(1000, compiled=True), on_event=cancel, timeout=1200)
    assert result.status == "interrupted"
    assert len(result.of_type("progress")) < 100

    (expected,) = comfy.latents(comfy.successful(sampled(4, compiled=False)))
    (given,) = comfy.latents(comfy.successful(sampled(4, compiled=True), timeout=1200))
    assert apart(given, expected) < 1e-3
