"""Records what fixed calls of the command line compute, and compares it with what was recorded before.

    python tests/golden/calls.py record FILE.json      # every call, on this machine
    python tests/golden/calls.py compare FILE.json     # 0 differences, bit by bit, or a list of them

Two commits compute the same if the record of one compares equal in the other's checkout on the same machine. Each call keeps a
hash of every tensor on its way (VLM features, pooled condition, each step's velocity, decoded picture, all in fp32) and a few
of its numbers, so that test_golden_calls.py can compare within a tolerance on any machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 16  # numbers kept of each tensor
WATCHED = ("TextFusion", "UniFusion", "Autoencoder", "QwenImageAutoencoder")

Record = dict[str, Any]


def pictures(folder: Path) -> None:
    """The input pictures of all calls, drawn without the package."""
    for name, size, background, parts in (
        ("one", (128, 128), (255, 255, 255), [("ellipse", (10, 50, 45, 85), (220, 30, 30))]),
        ("two", (160, 112), (10, 10, 10), [("rectangle", (100, 20, 130, 50), (40, 70, 230))]),
        ("three", (112, 160), (255, 190, 205), [("ellipse", (60, 100, 90, 130), (245, 220, 40))]),
    ):
        image = Image.new("RGB", size, background)
        for shape, box, color in parts:
            getattr(ImageDraw.Draw(image), shape)(box, fill=color)
        image.save(folder / f"{name}.png")
    lines = [
        {"id": "a", "prompt": "a red circle"},
        {"id": "b", "prompt": "make it blue", "images": ["one.png"], "seed": 3},
        {"id": "c", "prompt": "a star", "rewrite_text": "big cyan star at center, black background."},
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def small_krea_2(folder: Path) -> None:
    """Krea 2 in small with random weights: its own file, one in fp8 with scales, one of ours, VLM and VAE."""
    from diffusers import AutoencoderKLQwenImage
    from safetensors.torch import load_file, save_file

    sys.path.insert(0, str(ROOT / "tests" / "comfyui"))
    import test_krea2 as small

    small.save_generators(folder)
    (folder / small.STOCK).rename(folder / "krea.safetensors")
    (folder / small.OURS).rename(folder / "ours.safetensors")
    small.save_vlm(folder / "qwen", width=small.SMALL.vlm.hidden_size)
    quantised = {}
    for name, value in load_file(folder / "krea.safetensors").items():
        if name.startswith("blocks.") and value.ndim == 2 and name.endswith("weight"):
            scale = value.abs().max() / 448
            quantised[name] = (value / scale).to(torch.float8_e4m3fn)
            quantised[name.replace(".weight", ".weight_scale")] = scale
            mark = json.dumps({"format": "float8_e4m3fn"}).encode()
            quantised[name.replace(".weight", ".comfy_quant")] = torch.tensor(list(mark), dtype=torch.uint8)
        else:
            quantised[name] = value
    save_file(quantised, folder / "krea-fp8.safetensors")
    torch.manual_seed(0)
    AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1).save_pretrained(folder / "vae")


def calls() -> dict[str, list[str]]:
    """Every recorded call by its name: the words behind `unifusion`; pictures and files lie in the working folder."""
    draw = ["generate", "a big red circle at the top left, white background"]
    krea = [*("--vlm", "qwen"), *("--vae", "vae"), *("--size", "64x48"), *("--steps", "3")]
    two = [*("--image", "one.png", "two.png"), *("--size", "128x128")]
    three = [*("--image", "one.png", "two.png", "three.png"), *("--size", "128x128")]
    edit = ["generate", "make the circle blue", "--image", "one.png"]
    return {
        "text": draw,
        "text-seed": [*draw, "--seed", "12345"],
        "text-batch": [*draw, "--batch", "3", "--seed", "5"],
        "as-it-is": [*draw, "--no-rewrite"],
        "locked": [*draw, "--rewrite-text", "small green star at center, black background."],
        "style": [*draw, "--style", "terse"],
        "own-style": [*draw, "--style", "make everything red."],
        "indirect": ["generate", "a ball the colour of a tomato in the snow", "--seed", "2"],
        "german": ["generate", "ein roter kreis", "--style", "translate to english."],
        "empty": ["generate", ""],
        "wide": [*draw, "--size", "160x112"],
        "high": [*draw, "--size", "112x160"],
        "untrained-size": [*draw, "--size", "96x72"],
        "no-guidance": [*draw, "--cfg", "1"],
        "strong-guidance": [*draw, "--cfg", "4.5"],
        "shift-2": [*draw, "--schedule", "shift 2", "--steps", "7"],
        "uniform": [*draw, "--schedule", "uniform", "--steps", "5"],
        "edit": edit,
        "edit-1-tile": [*edit, "--max-tiles", "1"],
        "edit-5-tiles": [*edit, "--max-tiles", "5", "--seed", "9"],
        "edit-as-it-is": [*edit, "--no-rewrite"],
        "edit-locked": [*edit, "--rewrite-text", "big blue circle at left, white background."],
        "edit-apart": [*edit, "--image-cfg", "1.5"],
        "edit-keep": [*edit, "--style", "keep everything else"],
        "edit-wide": ["generate", "make the square red", "--image", "two.png"],
        "picture-alone": ["generate", "", "--image", "three.png"],
        "two-references": ["generate", "the object of picture one on the background of picture two", *two],
        "three-references": [
            "generate",
            "the object of picture one on the background of picture three",
            *three,
        ],
        "lines": ["generate", "--prompts", "lines.jsonl", "--out", "pictures"],
        "lines-as-they-are": ["generate", "--prompts", "lines.jsonl", "--out", "pictures", "--no-rewrite"],
        "rewrite": ["rewrite", "a ball the colour of a tomato"],
        "rewrite-seed": ["rewrite", "three stars", "--seed", "4"],
        "rewrite-edit": ["rewrite", "make the circle blue", "--image", "one.png"],
        "rewrite-two": [
            "rewrite",
            "the object of picture one into picture two",
            "--image",
            "one.png",
            "two.png",
        ],
        "rewrite-lines": ["rewrite", "--prompts", "lines.jsonl", "--out", "rewritten.jsonl"],
        "krea": ["generate", "a red ball", "--model", "krea.safetensors", *krea],
        "krea-raw": [
            "generate",
            "a red ball",
            "--model",
            "krea.safetensors",
            *krea,
            "--schedule",
            "krea-2 raw",
        ],
        "krea-ours": ["generate", "a red ball", "--model", "ours.safetensors", *krea, "--seed", "8"],
        "krea-fp8": ["generate", "a red ball", "--model", "krea-fp8.safetensors", *krea],
        "krea-picture": [
            "generate",
            "a red ball",
            "--model",
            "krea.safetensors",
            *krea,
            "--image",
            "one.png",
        ],
        "krea-locked": [
            "generate",
            "a red ball",
            "--model",
            "krea.safetensors",
            *krea,
            "--rewrite-text",
            "a ball as red as a tomato",
        ],
    }


def summary(values: Tensor) -> Record:
    """Hash of all numbers, shape, and a few numbers evenly spread."""
    values = values.detach().cpu().float().contiguous()
    flat = values.flatten()
    places = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat))).long()
    return {
        "sha256": hashlib.sha256(flat.numpy().tobytes()).hexdigest(),
        "shape": list(values.shape),
        "numbers": [float(f"{number:.7g}") for number in flat[places].tolist()],
    }


@contextlib.contextmanager
def watching(found: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Every output of the modules that matter; of `TextFusion` also what it reads, the VLM's features."""

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = type(module).__name__
        if name in WATCHED and isinstance(output, Tensor):
            if name == "TextFusion":
                found.append(("features", inputs[0].detach().float().cpu()))
            found.append((name, output.detach().float().cpu()))

    handle = nn.modules.module.register_module_forward_hook(seen)
    try:
        yield
    finally:
        handle.remove()


def run(words: list[str], main: Callable[[list[str]], int], folder: Path) -> Record:
    """One call: the tensors on its way, the pictures that it wrote, the texts that it printed or wrote."""
    found: list[tuple[str, Tensor]] = []
    printed = io.StringIO()
    for old in [*folder.glob("unifusion-*.png"), folder / "rewritten.jsonl"]:
        old.unlink(missing_ok=True)
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    with watching(found), contextlib.redirect_stdout(printed):
        status = main(words)
    tensors = {
        name: summary(torch.cat([values.flatten() for of, values in found if of == name]))
        for name in dict.fromkeys(of for of, _ in found)
    }
    record: Record = {"status": status, "tensors": tensors, "pictures": {}}
    for path in sorted([*folder.glob("unifusion-*.png"), *folder.glob("pictures/*.png")]):
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.asarray(image).astype(np.float32))
            record["pictures"][path.name] = summary(pixels) | {
                "rewrite": json.loads(image.text["unifusion"])["rewrite"]
            }
    if words[0] == "rewrite":
        written = folder / "rewritten.jsonl"
        record["text"] = written.read_text() if written.exists() else printed.getvalue()
    return record


def record_all() -> dict[str, Record]:
    """Every call of `calls`, in a folder of its own."""
    main = command()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        pictures(folder)
        small_krea_2(folder)
        return {name: run(words, main, folder) for name, words in calls().items()}


def command() -> Callable[[list[str]], int]:
    """The command of this checkout."""
    sys.path.insert(0, str(ROOT))
    from unifusion_core.cli.main import main

    return main


def differences(now: dict[str, Record], before: dict[str, Record]) -> list[str]:
    """The calls whose records are not equal, and what of them."""
    return [
        f"{name}: {part}"
        for name in sorted(now.keys() | before.keys())
        for part in ("status", "tensors", "pictures", "text")
        if now.get(name, {}).get(part) != before.get(name, {}).get(part)
    ]


if __name__ == "__main__":
    verb, file = sys.argv[1:]
    recorded = record_all()
    if verb == "record":
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in recorded.items())
        Path(file).write_text("{\n" + lines + "\n}\n")
        print(f"{len(recorded)} calls recorded")
    else:
        found = differences(recorded, json.loads(Path(file).read_text()))
        print("\n".join([*found, f"{len(found)} differences over {len(recorded)} calls"]))
        sys.exit(1 if found else 0)
