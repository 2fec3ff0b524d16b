"""Krea 2's published files load unchanged and compute what diffusers computes with them: pytest tests/contract/test_krea_2.py

diffusers has an independent implementation for the same weights, and a conversion from the published names to its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers as converted
from diffusers.pipelines.krea2.pipeline_krea2 import calculate_shift
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3VLConfig

from unifusion_core import zoo
from unifusion_core.checkpoints.generator_file import GeneratorContent, load_generator
from unifusion_core.checkpoints.safetensors_file import read_tensors
from unifusion_core.contracts import Features
from unifusion_core.errors import CheckpointError, VLMError
from unifusion_core.flow.schedule import build_schedule
from unifusion_core.models.dit import DiTConfig
from unifusion_core.models.lap import LAPConfig
from unifusion_core.models.layers import LayerFactory
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.sampling import sample
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.zoo.krea_2 import KREA_2

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# largest difference, relative to the largest value, in float32
PARITY = 1e-4
SMALL = replace(
    KREA_2.config,
    vlm=replace(KREA_2.config.vlm, hidden_size=60, num_layers=9, taps=(2, 5, 8)),
    lap=LAPConfig(num_heads=3, mlp_size=40),
    dit=DiTConfig(
        hidden_size=96,
        num_blocks=3,
        num_heads=6,
        num_kv_heads=2,
        mlp_size=72,
        latent_channels=5,
        time_size=20,
    ),
)
# any layer
EXAMPLE = "blocks.1.mlp.down"


def random_weights() -> dict[str, Tensor]:
    """Weights of a small Krea 2, none of them 0."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in UniFusion(SMALL).state_dict().items():
        std = value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3
        weights[name] = torch.randn(value.shape, generator=generator) * std
    return weights


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(
        tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, name: str = "krea2"
    ) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, str(path), metadata)
        return path

    return write


@pytest.fixture
def ours(weights: dict[str, Tensor], write: Callable[..., Path]) -> UniFusion:
    return load_generator(write(weights))[0]


@pytest.fixture
def theirs(weights: dict[str, Tensor]) -> Krea2Transformer2DModel:
    dit, lap, head = SMALL.dit, SMALL.lap, SMALL.dit.head_size
    model = Krea2Transformer2DModel(
        in_channels=dit.latent_channels * dit.patch_size**2,
        num_layers=dit.num_blocks,
        attention_head_dim=head,
        num_attention_heads=dit.num_heads,
        num_key_value_heads=dit.num_kv_heads,
        intermediate_size=dit.mlp_size,
        timestep_embed_dim=dit.time_size,
        text_hidden_dim=SMALL.vlm.hidden_size,
        num_text_layers=len(SMALL.vlm.taps),
        text_num_attention_heads=lap.num_heads,
        text_num_key_value_heads=lap.num_heads,
        text_intermediate_size=lap.mlp_size,
        axes_dims_rope=(4, 6, 6),
    )
    model.load_state_dict(converted(dict(weights)), strict=True)
    return model.eval().requires_grad_(False)


def pipeline_of(transformer: Krea2Transformer2DModel | None, *, is_distilled: bool) -> Krea2Pipeline:
    """diffusers' pipeline for latents of 8 x 8 pixels, without VLM and VAE."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=6400,
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "transformer": transformer}
    pipeline = Krea2Pipeline(scheduler=scheduler, is_distilled=is_distilled, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def features(*lengths: int, padded_to: int = 0, seed: int = 0) -> Features:
    """Random states of prompts of these lengths. Padding has random states, too: they must have no effect."""
    length = max(*lengths, padded_to)
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), length, len(SMALL.vlm.taps), SMALL.vlm.hidden_size)
    states = torch.randn(shape, generator=generator)
    return Features(states=states, mask=mask, positions=torch.zeros(*mask.shape, 3))


def noise(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(count, SMALL.dit.latent_channels, height, width, generator=generator)


def packed(latents: Tensor) -> Tensor:
    return pipeline_of(None, is_distilled=False)._pack_latents(latents, *latents.shape)


def assert_close(given: Tensor, expected: Tensor) -> None:
    assert given.shape == expected.shape
    assert expected.std() > 0.1
    assert (given - expected).abs().max() <= PARITY * expected.abs().max()


# Parity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(7,), (5, 5), (9, 4), (1, 6, 3)])
@pytest.mark.parametrize("padded_to", [0, 16])
@pytest.mark.parametrize("size", [(8, 8), (4, 14)])
def test_one_step_is_that_of_diffusers(
    ours: UniFusion,
    theirs: Krea2Transformer2DModel,
    lengths: tuple[int, ...],
    padded_to: int,
    size: tuple[int, int],
) -> None:
    prompts, latents = features(*lengths, padded_to=padded_to), noise(len(lengths), *size)
    times = torch.linspace(0.95, 0.1, len(lengths))
    grid = (size[0] // 2, size[1] // 2)

    given = ours(latents, times, ours.prepare(ours.pool(prompts), grid))

    expected = theirs(
        hidden_states=packed(latents),
        encoder_hidden_states=prompts.states,
        timestep=times,
        position_ids=Krea2Pipeline.prepare_position_ids(prompts.mask.shape[1], *grid, device=latents.device),
        encoder_attention_mask=prompts.mask,
    ).sample
    assert_close(packed(given), expected)


@pytest.mark.parametrize(("name", "steps"), [("krea-2 raw", 5), ("krea-2 turbo", 4)])
@pytest.mark.parametrize("guided", [True, False])
def test_latents_are_those_of_diffusers_pipeline(
    ours: UniFusion, theirs: Krea2Transformer2DModel, name: str, steps: int, guided: bool
) -> None:
    """Not square. diffusers pads prompts to 512 tokens, and its guidance scale of 0 is off; here 1 is off."""
    height, width, scale = 8, 20, 1.5
    positive, negative, latents = features(11), features(4, seed=1), noise(1, height, width)
    schedule = build_schedule(name, steps, height * width // 4)
    prompts = [features(length, padded_to=512, seed=seed) for length, seed in ((11, 0), (4, 1))]
    for each, short in zip(prompts, (positive, negative), strict=True):
        each.states[:, : short.states.shape[1]] = short.states

    given = sample(
        ours,
        ours.pool(positive),
        latents,
        schedule,
        negative=ours.pool(negative) if guided else None,
        cfg=1 + scale if guided else 1.0,
    )

    expected = pipeline_of(theirs, is_distilled=name == "krea-2 turbo")(
        height=8 * height,
        width=8 * width,
        num_inference_steps=steps,
        guidance_scale=scale if guided else 0.0,
        latents=packed(latents),
        prompt_embeds=prompts[0].states,
        prompt_embeds_mask=prompts[0].mask,
        negative_prompt_embeds=prompts[1].states,
        negative_prompt_embeds_mask=prompts[1].mask,
        output_type="latent",
        return_dict=False,
    )[0]
    assert_close(packed(given), expected)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 6400])
@pytest.mark.parametrize("name", ["krea-2 raw", "krea-2 turbo"])
def test_schedules_are_the_published_ones(name: str, tokens: int) -> None:
    steps = zoo.sampling_for(KREA_2, name).steps
    pipeline = pipeline_of(None, is_distilled=name == "krea-2 turbo")
    mu = 1.15 if pipeline.config.is_distilled else calculate_shift(tokens, 256, 6400, 0.5, 1.15)
    pipeline.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)

    torch.testing.assert_close(build_schedule(name, steps, tokens), pipeline.scheduler.sigmas)


# Full size ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size() -> dict[str, Tensor]:
    """The tensors of Krea 2's file on the meta device, from the golden list of names and shapes."""
    found = {}
    for name, entry in json.loads((GOLDEN / "krea2_keys.json").read_text()).items():
        count = entry["count"] if "blocks.N" in name else 1
        for number in range(count):
            found[name.replace("blocks.N", f"blocks.{number}")] = torch.empty(entry["shape"], device="meta")
    return found


def test_a_file_of_full_size_is_recognised(full_size: dict[str, Tensor]) -> None:
    content = GeneratorContent(full_size, {}, "krea2.safetensors")

    assert (content.spec, content.config) == (KREA_2, KREA_2.config)
    assert content.tensors.keys() == content.module.state_dict().keys()
    assert content.num_parameters == sum(value.numel() for value in content.tensors.values())
    assert 12.8e9 < content.num_parameters < 13e9


def test_diffusers_model_of_full_size_has_exactly_these_weights(full_size: dict[str, Tensor]) -> None:
    with init_empty_weights():
        expected = Krea2Transformer2DModel().state_dict()

    given = converted(dict(full_size))

    assert {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in expected.items()}


# Files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_files_load_unchanged(
    weights: dict[str, Tensor], write: Callable[..., Path], prefix: str, dtype: torch.dtype
) -> None:
    model, record = load_generator(write({prefix + k: v.to(dtype) for k, v in weights.items()}))

    assert model.config == SMALL
    assert record == {}
    assert all(torch.equal(v, weights[k].to(dtype).float()) for k, v in model.state_dict().items())


def in_8_bits(weights: dict[str, Tensor], layout: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) with the layers of all blocks quantised, in ComfyUI's current layout ("marked") or an earlier one."""
    tensors, metadata, formats = dict(weights), {}, {}
    kind = "float8_e5m2" if layout == "listed" else "float8_e4m3fn"
    dtype = getattr(torch, kind)
    for name, value in weights.items():
        if name.startswith("blocks.") and name.endswith(".weight"):
            layer, scale = name.removesuffix(".weight"), value.abs().max() / torch.finfo(dtype).max
            tensors[name] = (value / scale).to(dtype)
            if layout == "old":
                tensors |= {f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.ones(())}
                continue
            tensors |= {f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.ones(())}
            formats[layer] = {"format": kind}
    if layout == "old":
        tensors["scaled_fp8"] = torch.empty(2).to(dtype)
    elif layout == "listed":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": formats})
    else:
        for layer, entry in formats.items():
            tensors[f"{layer}.comfy_quant"] = torch.tensor(
                list(json.dumps(entry).encode()), dtype=torch.uint8
            )
    return tensors, metadata


@pytest.mark.parametrize("layout", ["marked", "listed", "old"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_8_bit_files_are_scaled_back(
    weights: dict[str, Tensor], write: Callable[..., Path], layout: str, prefix: str
) -> None:
    tensors, metadata = in_8_bits(weights, layout)
    metadata = {k: v.replace('"blocks.', f'"{prefix}blocks.') for k, v in metadata.items()}

    model, _ = load_generator(write({prefix + k: v for k, v in tensors.items()}, metadata))

    # relative rounding error of floats with a mantissa of 2 and 3 bits
    coarseness = 2**-3 if layout == "listed" else 2**-4
    assert model.config == SMALL
    for name, value in model.state_dict().items():
        if tensors[name].dtype.itemsize == 1:
            scale = weights[name].abs().max()
            assert ((value - weights[name]).abs() <= coarseness * weights[name].abs() + scale * 1e-4).all(), (
                name
            )
            assert not torch.equal(value, weights[name])
        else:
            assert torch.equal(value, weights[name]), name


def test_weights_that_nothing_reads_are_left_out(
    weights: dict[str, Tensor], write: Callable[..., Path]
) -> None:
    """Some repacks of Krea 2 have two layers that no published code of the model has."""
    extra = {"last.down.weight": torch.ones(4, 64), "last.up.weight": torch.ones(64, 4)}

    model, _ = load_generator(write(weights | extra))

    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_8_bit_weights_without_scales_are_not_scaled(
    weights: dict[str, Tensor], write: Callable[..., Path]
) -> None:
    rounded = {k: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for k, v in weights.items()}

    model, _ = load_generator(write(rounded))

    assert all(torch.equal(v, rounded[k].float()) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks.1.attn.wq.weight": None},
            r"layout of krea-2: 1 weights missing \['blocks.1.attn.wq.weight'\]",
        ),
        ({"last.linear.bias": None}, "'last.linear.bias' is missing"),
        ({"vision.weight": torch.ones(2)}, r"1 unknown \['vision.weight'\]"),
        (
            {"blocks.1.mlp.up.weight": torch.ones(3, 3)},
            r"blocks.1.mlp.up.weight is \(3, 3\), \(72, 96\) is needed",
        ),
        ({"blocks.0.attn.qknorm.qnorm.scale": torch.ones(7)}, "another shape|not those of Krea 2"),
        ({"blocks.7.mod.lin": torch.ones(576)}, r"weights missing \['blocks.3"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(
    weights: dict[str, Tensor], write: Callable[..., Path], changes: dict[str, Tensor | None], message: str
) -> None:
    tensors = {k: v for k, v in (weights | changes).items() if v is not None}

    with pytest.raises(CheckpointError, match=f"(?s)krea2.safetensors.*({message})"):
        load_generator(write(tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{EXAMPLE}.weight_scale": None}, f"{EXAMPLE} is stored as float8_e4m3fn and has no weight_scale"),
        (
            {f"{EXAMPLE}.weight_scale": torch.ones(97)},
            f"{EXAMPLE} is .* with a weight_scale of 97 numbers, and one number or 96",
        ),
        ({f"{EXAMPLE}.weight_scale_2": torch.ones(())}, rf"1 unknown \['{EXAMPLE}.weight_scale_2'\]"),
        ({f"{EXAMPLE}.comfy_quant": b'{"format": "nvfp4"}'}, f"{EXAMPLE} is marked as nvfp4 and has"),
        ({"blocks.1.mlp.none.comfy_quant": b'{"format": "float8_e4m3fn"}'}, "none is .* and has no weight"),
    ],
)
def test_8_bit_files_that_do_not_fit_are_refused_by_name(
    weights: dict[str, Tensor], write: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    tensors = in_8_bits(weights, "marked")[0] | {
        k: torch.tensor(list(v), dtype=torch.uint8) if isinstance(v, bytes) else v for k, v in changes.items()
    }

    with pytest.raises(CheckpointError, match=f"(?s)krea2.safetensors.*{message}"):
        load_generator(write({k: v for k, v in tensors.items() if v is not None}))


def test_other_forms_of_krea_2_say_what_is_supported(
    weights: dict[str, Tensor], write: Callable[..., Path], tmp_path: Path
) -> None:
    supported = "supported are safetensors files of UniFusion, and of Krea 2 as one file"
    part = write({k: v for k, v in weights.items() if "blocks" in k[:7]}, name="model-00001-of-00002")
    for path, message in (
        (
            write(converted(dict(weights)), name="diffusers"),
            "diffusers' layout, as part of a diffusers folder",
        ),
        (part, "is one part of a model that is split into several files"),
        (tmp_path, "is a folder, such as diffusers saves"),
    ):
        with pytest.raises(CheckpointError, match=f"(?s){message}.*{supported}"):
            load_generator(path)


def test_a_shard_cut_short_is_refused(weights: dict[str, Tensor], write: Callable[..., Path]) -> None:
    path = write(weights, name="krea2-00001-of-00003")
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(CheckpointError, match=r"krea2-00001-of-00003\.safetensors is damaged, cut short"):
        load_generator(path)


def test_a_vlm_of_another_size_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    """Qwen3-VL-8B, where Krea 2 needs 4B; the folder has no weights at all."""
    Qwen3VLConfig(text_config={"hidden_size": 4096, "num_hidden_layers": 36}).save_pretrained(tmp_path)

    with pytest.raises(VLMError, match=r"its hidden size is 4096, 2560 is needed. Load the VLM that"):
        load_vlm(tmp_path, spec=KREA_2.config.vlm)


def memory_of_our_own() -> int:
    """Bytes of this process's memory that are not pages of a file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_a_file_is_mapped_and_not_read_into_memory(write: Callable[..., Path]) -> None:
    config = replace(SMALL, dit=replace(SMALL.dit, hidden_size=1536, num_heads=12, mlp_size=8192))
    tensors = {
        k: torch.ones(v.shape, dtype=torch.bfloat16)
        for k, v in UniFusion(config, LayerFactory(device="meta")).state_dict().items()
    }
    path, size = write(tensors), sum(v.nbytes for v in tensors.values())
    del tensors
    assert size > 200e6
    before = memory_of_our_own()

    read, _ = read_tensors(path)
    model, _ = load_generator(path, dtype=torch.bfloat16)
    total = sum(float(v.sum(dtype=torch.float32)) for v in (*read.values(), *model.state_dict().values()))

    # two sums of ones of 2 bytes: all pages have been read
    assert total == pytest.approx(size, rel=1e-3)
    assert memory_of_our_own() - before < size / 4
