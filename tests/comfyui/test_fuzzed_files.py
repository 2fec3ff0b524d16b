"""Seeded mutations of model files, VLM folders, LoRAs and images: no crash, no HTTP 500, and every refusal is one sentence.

pytest tests/comfyui/test_fuzzed_files.py -m slow -s     (prints the table of what became of them)

300 of them, or as many as COMFYUI_COUNT says. tests/unit/checkpoints/test_mutated_files.py does the same to the library alone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from unifusion_core import errors
from unifusion_core.zoo.tiny import BUILT_IN

if TYPE_CHECKING:
    from conftest import Comfy, Graph, RunResult

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

COUNT, GOOD_EVERY = int(os.environ.get("COMFYUI_COUNT", "300")), 50
EXAMPLE = Path(__file__).parents[2] / "workflows" / "input" / "unifusion_circle_and_star.png"
VALUES = (None, -1, 0, 1, 0.5, 2**40, "", "x", "F16", [], [0], [3, 1, 2], {}, {"format": "nvfp4"}, True)
# patterns of four and two bytes: not a number, infinity, and numbers whose products overflow
BROKEN_NUMBERS = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\xff\x7b\xff\x7b")
# where a file may be opened by a node of others, whose words are not ours
STOCK_READERS = {"LoadImage"}
# the first bytes of a file, which every reader looks at
HEAD = 200

Mutation = Callable[[random.Random, bytes], bytes]


# Mutations ------------------------------------------------------------------------------------------


def flip_anywhere(chance: random.Random, content: bytes) -> bytes:
    return flipped(chance, content, len(content))


def flip_at_the_start(chance: random.Random, content: bytes) -> bytes:
    return flipped(chance, content, min(HEAD, len(content)))


def flipped(chance: random.Random, content: bytes, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 20)):
        changed[chance.randrange(end)] = chance.randrange(256)
    return bytes(changed)


def cut(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def lengthen(chance: random.Random, content: bytes) -> bytes:
    return content + chance.randbytes(chance.randint(1, 100))


def change_the_json(chance: random.Random, content: bytes) -> bytes:
    """Another value, or none, at some place of a JSON file, or of the header of a safetensors file."""
    if content.startswith(b"{"):
        return changed_json(chance, content)
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{":
        # an image
        return flip_at_the_start(chance, content)
    header = changed_json(chance, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def changed_json(chance: random.Random, text: bytes) -> bytes:
    tree: Any = json.loads(text)
    place = tree
    # deeper with each step, so that single numbers are hit as often as whole parts
    while True:
        key = chance.choice([*place] if isinstance(place, dict) else range(len(place)))
        below = place[key]
        if not isinstance(below, (dict, list)) or not below or chance.random() < 0.2:
            break
        place = below
    if isinstance(below, str) and below.startswith("{") and chance.random() < 0.7:
        place[key] = changed_json(chance, below.encode()).decode()
    elif chance.random() < 0.3:
        del place[key]
    else:
        place[key] = chance.choice(VALUES)
    return json.dumps(tree).encode()


def break_numbers(chance: random.Random, content: bytes) -> bytes:
    """Weights that are no numbers, or huge ones."""
    start = 8 + int.from_bytes(content[:8], "little")
    if content[8:9] != b"{":
        return flip_anywhere(chance, content)
    at = start + 4 * chance.randrange((len(content) - start) // 4)
    pattern = chance.choice(BROKEN_NUMBERS) * chance.choice((1, 100, 10_000))
    return content[:at] + pattern[: len(content) - at] + content[at + len(pattern) :]


MUTATIONS: tuple[Mutation, ...] = (
    flip_anywhere,
    flip_at_the_start,
    cut,
    lengthen,
    change_the_json,
    change_the_json,
    break_numbers,
)


# The files ------------------------------------------------------------------------------------------


def small_lora() -> bytes:
    """A LoRA for two layers of the embedded generator, in two layouts."""
    with safe_open(BUILT_IN.generator, "pt") as file:
        rows, columns = file.get_slice("blocks.1.attn.wq.weight").get_shape()
    random_numbers = torch.Generator().manual_seed(0)
    tensors = {
        f"{prefix}blocks.{number}.attn.wq.lora_{side}.weight": torch.randn(shape, generator=random_numbers)
        for number, prefix in enumerate(("diffusion_model.", ""))
        for side, shape in (("A", (3, columns)), ("B", (rows, 3)))
    }
    return save(tensors | {"diffusion_model.blocks.0.attn.wq.alpha": torch.tensor(2.0)})


SOUND = {
    "generator": BUILT_IN.generator.read_bytes(),
    "LoRA": small_lora(),
    "image": EXAMPLE.read_bytes(),
    **{f"VLM, {path.name}": path.read_bytes() for path in sorted(BUILT_IN.vlm.iterdir())},
}
# the record of the training, and settings of transformers' own decoding: the pack reads neither
del SOUND["VLM, training.json"], SOUND["VLM, generation_config.json"]


@pytest.fixture
def place(comfy: Comfy) -> Iterator[Callable[[str, bytes, str], str]]:
    """`place(kind, content, name)`: puts a file where ComfyUI finds it, in place of the one before, and returns its entry."""
    placed: list[Path] = []

    def remove() -> None:
        for path in placed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        placed.clear()

    def put(kind: str, content: bytes, name: str) -> str:
        remove()
        if kind.startswith("VLM"):
            folder = comfy.models_dir / "vlm" / name
            folder.mkdir(parents=True)
            placed.append(folder)
            changed = kind.removeprefix("VLM, ")
            for path in BUILT_IN.vlm.iterdir():
                if path.name != changed:
                    (folder / path.name).symlink_to(path)
            (folder / changed).write_bytes(content)
            return name
        parent, ending = {
            "generator": (comfy.models_dir / "diffusion_models", "safetensors"),
            "LoRA": (comfy.models_dir / "loras", "safetensors"),
            "image": (comfy.input_dir, "png"),
        }[kind]
        parent.mkdir(exist_ok=True)
        path = parent / f"{name}.{ending}"
        path.write_bytes(content)
        placed.append(path)
        return path.name

    yield put
    remove()


def graph_of(new_graph: Callable[[], Graph], kind: str, entry: str) -> Graph:
    """An edit of one step that uses the file, with the embedded parts in the other places."""
    graph = new_graph()
    model = graph.load_model(entry) if kind == "generator" else graph.load_model()
    if kind == "LoRA":
        model = graph.add("UniFusionLoraLoader", model=model, lora=entry, strength=1.0)
    clip = graph.load_clip(model, entry) if kind.startswith("VLM") else graph.load_clip(model)
    image = graph.add("LoadImage", image=entry if kind == "image" else EXAMPLE.name)
    features = graph.add(
        "UniFusionImageEncode", clip=clip, prompt="red circle", max_tiles=1, pictures__picture_1=image
    )
    pooled = graph.add("UniFusionLAPPool", model=model, features=features, layer_gains="")
    graph.save_picture(graph.sample(model, pooled, pooled, steps=1, cfg=1.0))
    return graph


def faults(graph: Graph, result: RunResult) -> list[str]:
    """What is wrong with the server's answer."""
    if result.status == "success":
        return []
    if result.status == "refused":
        return [] if (result.error.get("error") or {}).get("message") else [f"no word: {result.error}"]
    error = result.error
    kind, words = error.get("exception_type", ""), error.get("exception_message", "").strip()
    node = graph[error["node_id"]]["class_type"]
    if node not in STOCK_READERS and not hasattr(errors, kind):
        return [f"{node} failed with {kind}: {words}"]
    return [] if words and "\n" not in words else [f"{node} failed in no sentence: {words!r}"]


def drawn_from_a_broken_file(kind: str, content: bytes, picture: np.ndarray, folder: Path) -> list[str]:
    """What a file has that no picture should have been drawn from, by the readers of others."""
    found = []
    if SOUND[kind][8:9] == b"{":
        path = folder / "drawn.safetensors"
        path.write_bytes(content)
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except SafetensorError as error:
            found.append(f"drawn from a file that safetensors refuses: {error}")
    elif kind.endswith(".json"):
        try:
            json.loads(content)
        except ValueError as error:
            found.append(f"drawn from JSON that is none: {error}")
    if picture.std() == 0:
        found.append(f"drawn in one colour: {picture[0, 0]}")
    return found


def test_mutated_files(
    comfy: Comfy,
    new_graph: Callable[[], Graph],
    place: Callable[[str, bytes, str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in SOUND}
    wrong: list[str] = []
    good = graph_of(new_graph, "", "")
    (expected,) = comfy.images(comfy.successful(good))
    beside = set(comfy.base.parent.iterdir())
    for number in range(COUNT):
        chance = random.Random(f"files-{number}")
        kind, mutation = chance.choice(list(SOUND)), chance.choice(MUTATIONS)
        content = mutation(chance, SOUND[kind])
        if content == SOUND[kind]:
            continue
        graph = graph_of(new_graph, kind, place(kind, content, f"mutated-{number}"))
        # raises if the server has crashed or answers with anything but JSON
        result = comfy.run(graph)
        what = {"success": "drawn", "error": "ended in a sentence", "refused": "refused before it ran"}
        outcomes[kind][what.get(result.status, result.status)] += 1
        found = faults(graph, result)
        if result.status == "success":
            (picture,) = comfy.images(result)
            found += drawn_from_a_broken_file(kind, content, picture, tmp_path)
        wrong += [f"{number} ({mutation.__name__} of {kind}): {fault}" for fault in found]
        if number % GOOD_EVERY == GOOD_EVERY - 1:
            # the models of the files before
            comfy.request("POST", "/free", {"unload_models": True, "free_memory": True})
            (picture,) = comfy.images(comfy.successful(good))
            assert np.array_equal(picture, expected), f"another picture after mutation {number}"
    with capsys.disabled():
        print(f"\n{COUNT} mutated files, {len(wrong)} badly answered")
        for kind, counts in outcomes.items():
            print(f"  {kind}: {dict(sorted(counts.items()))}")
    outside = set(comfy.base.parent.iterdir()) - beside
    assert not outside, f"written outside of the server's folders: {outside}"
    assert not wrong, "\n".join(wrong)
