"""Generator files are saved and loaded without loss, or refused with a sentence:

pytest tests/unit/checkpoints/test_generator_file.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unifusion_core import zoo
from unifusion_core.checkpoints.generator_file import (
    CONFIG_KEY,
    GeneratorFile,
    config_from_json,
    config_to_json,
    load_generator,
    save_generator,
)
from unifusion_core.checkpoints.safetensors_file import read_tensors
from unifusion_core.checkpoints.vae_file import load_autoencoder
from unifusion_core.errors import CheckpointError
from unifusion_core.models.autoencoder import Autoencoder
from unifusion_core.models.unifusion import UniFusion, UniFusionConfig
from unifusion_core.zoo.krea_2 import KREA_2
from unifusion_core.zoo.tiny import BUILT_IN, TINY

RECORD = {"recipe": "tiny", "steps": 12}


@pytest.fixture
def model(build_model: Callable[..., UniFusion]) -> UniFusion:
    return build_model()


@pytest.fixture
def file(model: UniFusion, tmp_path: Path) -> Path:
    path = tmp_path / "generator.safetensors"
    save_generator(model, path, RECORD, dtype=torch.float32)
    return path


def assert_same(loaded: UniFusion, model: UniFusion) -> None:
    assert loaded.config == model.config
    weights = model.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


def test_a_saved_generator_comes_back_bit_for_bit(model: UniFusion, file: Path) -> None:
    loaded, record = load_generator(file)

    assert_same(loaded, model)
    assert record == RECORD
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_16_bit_files_hold_the_rounded_weights(model: UniFusion, tmp_path: Path) -> None:
    save_generator(model, tmp_path / "half.safetensors")

    loaded, _ = load_generator(tmp_path / "half.safetensors")

    assert_same(loaded, model.half().float())


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_files_written_by_comfyui_are_read(model: UniFusion, file: Path, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "model_save.safetensors"
    tensors = {prefix + name: value for name, value in load_file(file).items()}
    # ModelSave drops foreign metadata; the configuration's tensor remains
    save_file(tensors, path, {"prompt": "{}"})

    loaded, record = load_generator(path)

    assert_same(loaded, model)
    assert record == RECORD


def test_the_configuration_survives_json(small_config: UniFusionConfig) -> None:
    config = replace(small_config, trained_sizes=((128, 128), (160, 112)))

    assert config_from_json(config_to_json(config, RECORD)) == (config, RECORD, None)


def change(small_config: UniFusionConfig, where: str, value: Any) -> str:
    data = json.loads(config_to_json(small_config))
    *parents, name = where.split(".")
    part = data
    for parent in parents:
        part = part[parent]
    if value is None:
        del part[name]
    else:
        part[name] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("config.surprise", 1, r"config: unknown \['surprise'\]"),
        ("config.dit.num_blocks", None, r"config.dit: .* missing \['num_blocks'\]"),
        ("config.vlm.taps", "013", r"config.vlm.taps is '0' and a value of type int is needed"),
        ("config.vlm.taps", [0, 9], "tap 9 does not exist: the VLM has 5 layers; choose from 0..4"),
        ("config.vlm.taps", [3, 1], "ascending"),
        ("config.trained_sizes", [[128, 128, 3]], "trained_sizes"),
        ("config.trained_sizes", [[128]], "trained_sizes"),
        ("config.dit", [1, 2], "unknown"),
        ("config.dit.hidden_size", 63, "head size must be a multiple of 16"),
        ("config", None, "config"),
        ("format", 3, "format 3, this version reads formats 1 to 2: update the pack"),
        ("format", None, "not UniFusion JSON"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_name(
    small_config: UniFusionConfig, where: str, value: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_json(change(small_config, where, value))


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not UniFusion JSON"):
        config_from_json("{")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_is_refused(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(CheckpointError, match=r"generator.safetensors is damaged, cut short .* again"):
        load_generator(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_renamed_pickle_is_refused_unopened(file: Path, zipped: bool) -> None:
    torch.save({"weights": torch.ones(3)}, file, _use_new_zipfile_serialization=zipped)

    with pytest.raises(CheckpointError, match=r"PyTorch pickle, which may run code: only safetensors"):
        load_generator(file)


def test_other_kinds_of_files_are_named(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(
        CheckpointError, match=r"GGUF file, which is not read here: use .* Load Diffusion Model \(GGUF\)"
    ):
        load_generator(file)

    save_file({"lora.up": torch.ones(2)}, file)
    with pytest.raises(
        CheckpointError,
        match="no UniFusion configuration and is not a Krea 2 file: it is another kind of model; choose",
    ):
        load_generator(file)

    with pytest.raises(CheckpointError, match=r"there is no file .*absent\.safetensors: check the name"):
        load_generator(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="is a folder, such as diffusers saves, and one file is needed"):
        load_generator(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.1.attn.wq.weight", None, r"1 weights missing \['blocks.1.attn.wq.weight'\]"),
        ("blocks.1.attn.wq.bias", torch.ones(3), r"1 unknown \['blocks.1.attn.wq.bias'\]"),
        (
            "first.weight",
            torch.ones(5, 7),
            r"1 of another shape .*first.weight is \(5, 7\), \(64, 12\) is needed.*again",
        ),
    ],
)
def test_weights_that_do_not_fit_their_configuration_are_named(
    file: Path, name: str, value: torch.Tensor | None, message: str
) -> None:
    tensors = load_file(file)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, file)

    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_generator(file)


@pytest.mark.parametrize("length", [0x80, 0x280, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    """A safetensors file begins with its header's length: these lengths are how pickles and zip files begin."""
    path = tmp_path / "odd.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + b"\7")

    tensors, _ = read_tensors(path)

    assert tensors["a"].tolist() == [7]


# Formats and names of generators --------------------------------------------------------------------


def with_json(file: Path, change: Callable[[dict[str, Any]], None], *, in_metadata: bool = True) -> Path:
    """The file again, with another JSON: in its metadata and in its tensor, or in its tensor alone."""
    tensors = load_file(file)
    data = json.loads(bytes(tensors[CONFIG_KEY].tolist()))
    change(data)
    text = json.dumps(data)
    tensors[CONFIG_KEY] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    path = file.with_name("changed.safetensors")
    save_file(tensors, path, {CONFIG_KEY: text} if in_metadata else None)
    return path


def to_format_1(data: dict[str, Any]) -> None:
    """The JSON under the field names and values of format 1."""
    config = data["config"]
    vlm, template = config["vlm"], config["vlm"]["template"]
    for part in ("prefix", "token", "suffix"):
        template[f"picture_{part}"] = template.pop(f"image_{part}")
    vlm["kept_tokens"] = {"rewrite": "decoded", "prompt": "after_prefix"}[vlm.pop("token_selection")]
    config["picture_positions"] = config.pop("image_positions")
    data["format"] = 1
    del data["generator"]


@pytest.mark.parametrize("in_metadata", [True, False])
@pytest.mark.parametrize("selection", ["rewrite", "prompt"])
def test_a_file_of_format_1_is_the_same_as_one_of_format_2(
    build_model: Callable[..., UniFusion],
    small_config: UniFusionConfig,
    tmp_path: Path,
    selection: str,
    in_metadata: bool,
) -> None:
    vlm = replace(small_config.vlm, token_selection=selection)
    model, path = build_model(vlm=vlm, image_positions="zero"), tmp_path / "generator.safetensors"
    save_generator(model, path, RECORD, dtype=torch.float32)

    earlier = with_json(path, to_format_1, in_metadata=in_metadata)

    assert '"kept_tokens"' in bytes(load_file(earlier)[CONFIG_KEY].tolist()).decode()
    for each in (path, earlier):
        loaded, record = load_generator(each)
        assert_same(loaded, model)
        assert record == RECORD
    assert GeneratorFile(earlier).spec == GeneratorFile(path).spec


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("config", "picture_positions", "image_positions"),
        ("config.vlm", "kept_tokens", "token_selection"),
        ("config.vlm.template", "picture_token", "image_token"),
    ],
)
def test_names_of_format_1_are_unknown_in_format_2(file: Path, where: str, old: str, new: str) -> None:
    def rename(data: dict[str, Any]) -> None:
        part = data
        for name in where.split("."):
            part = part[name]
        part[old] = part.pop(new)

    with pytest.raises(CheckpointError, match=rf"changed.safetensors: .* {where}: unknown \['{old}'\]"):
        GeneratorFile(with_json(file, rename))


def test_the_embedded_generator_is_of_format_1_and_opens() -> None:
    with safe_open(BUILT_IN.generator, "pt") as stored:
        data = json.loads(stored.metadata()[CONFIG_KEY])

    file = GeneratorFile("tiny")

    assert data["format"] == 1
    assert data["config"]["vlm"]["kept_tokens"] == "decoded"
    vlm = replace(TINY.config.vlm, fingerprint=data["config"]["vlm"]["fingerprint"])
    lap = replace(TINY.config.lap, tap_scales=tuple(data["config"]["lap"]["tap_scales"]))
    assert file.config == replace(TINY.config, vlm=vlm, lap=lap)
    assert file.spec is TINY
    assert file.training == data["training"]


@pytest.mark.parametrize("in_metadata", [True, False])
def test_a_file_of_a_later_format_is_refused(file: Path, in_metadata: bool) -> None:
    later = with_json(file, lambda data: data.update(format=3), in_metadata=in_metadata)

    with pytest.raises(
        CheckpointError, match=r"changed.safetensors: .*format 3, .* reads formats 1 to 2: update the pack"
    ):
        GeneratorFile(later)


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("cousin", "cousin"),
        ("tiny", "tiny"),
        # the first in the zoo that has the latent format
        (None, "tiny"),
        ("of a later version", "tiny"),
        # known, but with other latents
        ("krea-2", "tiny"),
    ],
)
def test_the_file_names_its_generator(
    model: UniFusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str | None, found: str
) -> None:
    cousin = replace(TINY, name="cousin", size=(64, 32))
    known = {spec.name: spec for spec in (KREA_2, TINY, cousin)}
    monkeypatch.setattr(zoo, "specs", lambda: list(known.values()))
    path = tmp_path / "generator.safetensors"
    save_generator(model, path, spec=stored and replace(TINY, name=stored))

    assert json.loads(GeneratorFile(path).metadata[CONFIG_KEY])["generator"] == stored
    assert GeneratorFile(path).spec is known[found]


def test_latents_of_an_unknown_format_are_refused(file: Path) -> None:
    unknown = with_json(file, lambda data: data["config"].update(latent_format="of a later version"))

    with pytest.raises(
        CheckpointError,
        match=r'changed.safetensors: .*"of a later version", this version knows qwen-image, unifusion-tiny: update',
    ):
        GeneratorFile(unknown)


def test_the_configuration_is_stored_twice(file: Path) -> None:
    tensors = load_file(file)

    text = bytes(tensors[CONFIG_KEY].tolist()).decode()

    assert tensors[CONFIG_KEY].dtype == torch.uint8
    assert config_from_json(text)[1] == RECORD


def test_an_autoencoder_comes_back_and_others_are_refused(file: Path, tmp_path: Path) -> None:
    vae, path = Autoencoder(latent_channels=5), tmp_path / "vae.safetensors"
    save_file(vae.state_dict(), path)
    pixels = torch.rand(1, 3, 16, 24)

    torch.testing.assert_close(load_autoencoder(path).encode(pixels), vae.encode(pixels))

    with pytest.raises(CheckpointError, match="not an autoencoder in the TAESD layout"):
        load_autoencoder(file)
    save_file({k: v for k, v in vae.state_dict().items() if k != "vae_scale"}, path)
    with pytest.raises(CheckpointError, match=r"vae_scale.*choose another VAE"):
        load_autoencoder(path)


def without_configuration(source: Path, path: Path) -> Path:
    """The weights of a generator file as a program saves them that knows no configuration."""
    save_file({k: v for k, v in load_file(source).items() if k != CONFIG_KEY}, path)
    return path


def test_the_embedded_model_without_its_configuration_is_no_krea_2(tmp_path: Path) -> None:
    path = without_configuration(BUILT_IN.generator, tmp_path / "lost.safetensors")

    with pytest.raises(
        CheckpointError, match=r"lost.safetensors: .*embedded model and no configuration, .*no Krea 2"
    ):
        load_generator(path)


def test_a_generator_of_other_sizes_without_its_configuration_is_told(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = without_configuration(file, tmp_path / "lost.safetensors")

    content = GeneratorFile(path)

    assert content.spec.name == "krea-2"
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("lost.safetensors has no configuration")
    assert "krea-2 in other sizes" in told
    caplog.clear()
    GeneratorFile(file)
    assert not caplog.records
