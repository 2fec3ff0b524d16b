"""Mutated files end in one sentence, or load; no other error and no crash:

pytest tests/unit/checkpoints/test_mutated_files.py [-m slow -s]

The fast run mutates 200 files, the slow one 2000.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unifusion_core.checkpoints.adapter_file import merge_adapters
from unifusion_core.checkpoints.generator_file import GeneratorFile, load_generator, save_generator
from unifusion_core.errors import UniFusionError
from unifusion_core.models.unifusion import UniFusion

Mutation = Callable[[random.Random, bytearray], bytearray]
VALUES = (None, -1, 0, 1, 2**40, "", "x", "F8_E8M0", "I8", [], [0], [1, 2, 3], {}, {"format": "nvfp4"}, True)


def _header(content: bytearray) -> tuple[Any, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), bytes(content[8 + length :])


def _joined(header: Any, data: bytes) -> bytearray:
    text = json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data)


def flip_bytes(chance: random.Random, content: bytearray) -> bytearray:
    for _ in range(chance.randint(1, 20)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return content


def flip_bytes_of_the_header(chance: random.Random, content: bytearray) -> bytearray:
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(chance.randint(1, 5)):
        content[chance.randrange(end)] = chance.randrange(256)
    return content


def cut(chance: random.Random, content: bytearray) -> bytearray:
    return content[: chance.randrange(len(content))]


def lengthen(chance: random.Random, content: bytearray) -> bytearray:
    return content + bytes(chance.randint(1, 100))


def change_an_entry(chance: random.Random, content: bytearray) -> bytearray:
    header, data = _header(content)
    name = chance.choice([name for name in header if name != "__metadata__"])
    part = chance.choice(["dtype", "shape", "data_offsets", "whole"])
    if part == "whole":
        header[name] = chance.choice(VALUES)
    else:
        header[name][part] = chance.choice(VALUES)
    return _joined(header, data)


def rename(chance: random.Random, content: bytearray) -> bytearray:
    header, data = _header(content)
    names = [name for name in header if name != "__metadata__"]
    one, other = chance.sample(names, 2)
    if chance.random() < 0.5:
        header[one], header[other] = header[other], header[one]
    else:
        header[f"{one}.{chance.choice(['weight', 'comfy_quant', 'weight_scale', 'alpha'])}"] = header.pop(one)
    return _joined(header, data)


def change_the_metadata(chance: random.Random, content: bytearray) -> bytearray:
    header, data = _header(content)
    metadata = header.setdefault("__metadata__", {"format": "pt"})
    if not isinstance(metadata, dict):
        metadata = header["__metadata__"] = {}
    key = chance.choice([*metadata, "_quantization_metadata", "unifusion_config"])
    values = [
        *VALUES,
        "{}",
        '{"layers": 3}',
        '{"layers": {"blocks.0.attn.wq": 7}}',
        "[" * 5000,
        '{"format": 2}',
    ]
    metadata[key] = chance.choice(values)
    return _joined(header, data)


MUTATIONS: list[Mutation] = [
    flip_bytes,
    flip_bytes_of_the_header,
    cut,
    lengthen,
    change_an_entry,
    rename,
    change_the_metadata,
]


def quantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One layer in fp8, one in int8 per row."""
    stored = dict(tensors)
    for layer, kind, dtype, largest in (
        ("blocks.0.attn.wq", "float8_e4m3fn", torch.float8_e4m3fn, 448),
        ("blocks.1.mlp.up", "int8_tensorwise", torch.int8, 127),
    ):
        weight = tensors[f"{layer}.weight"]
        scale = weight.abs().amax(1, keepdim=True) / largest
        stored[f"{layer}.weight"] = (weight / scale).to(dtype)
        stored[f"{layer}.weight_scale"] = scale
        mark = json.dumps({"format": kind}).encode()
        stored[f"{layer}.comfy_quant"] = torch.tensor(list(mark), dtype=torch.uint8)
    return stored


@pytest.fixture
def files(build_model: Callable[..., UniFusion], tmp_path: Path) -> dict[str, bytes]:
    """The sound files: a generator, a quantised one, a LoRA."""
    model = build_model()
    save_generator(model, tmp_path / "plain.safetensors", {"recipe": "x"}, dtype=torch.float32)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    config = GeneratorFile(tmp_path / "plain.safetensors").metadata
    save_file(quantised(plain), tmp_path / "quantised.safetensors", config)
    lora = {"diffusion_model.blocks.1.attn.wq.lora_A.weight": torch.ones(3, 64)}
    lora |= {"diffusion_model.blocks.1.attn.wq.lora_B.weight": torch.ones(64, 3)}
    lora |= {"blocks.0.attn.wk.lokr_w1": torch.ones(4, 8), "blocks.0.attn.wk.lokr_w2": torch.ones(8, 8)}
    save_file(lora | {"blocks.0.attn.wk.alpha": torch.tensor(2.0)}, tmp_path / "lora.safetensors")
    return {path.stem: path.read_bytes() for path in tmp_path.glob("*.safetensors")}


def opened(kind: str, path: Path, model: UniFusion) -> str:
    """What became of a file."""
    try:
        if kind == "lora":
            merge_adapters(model, path)
        else:
            load_generator(path)
    except UniFusionError as error:
        return "refused" if str(error) and "\n" not in str(error) else "refused in no sentence"
    return "loaded"


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_mutated_file_is_refused_in_one_sentence_or_loads(
    count: int,
    files: dict[str, bytes],
    build_model: Callable[..., UniFusion],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes: Counter[str] = Counter()
    chance = random.Random(count)
    path = tmp_path / "mutated.safetensors"
    for number in range(count):
        kind = chance.choice(sorted(files))
        mutation = MUTATIONS[number % len(MUTATIONS)]
        path.write_bytes(mutation(chance, bytearray(files[kind])))
        try:
            outcomes[f"{kind}: {opened(kind, path, build_model())}"] += 1
        except Exception as error:
            pytest.fail(f"{mutation.__name__} number {number} of {kind}: {error!r}")
    assert not any("no sentence" in outcome for outcome in outcomes)
    with capsys.disabled():
        print(f"\n{count} mutated files: {dict(sorted(outcomes.items()))}")
