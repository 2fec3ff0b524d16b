"""What is drawn and what new weights are depends on the seed alone, not on the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from unifusion_core.checkpoints.vae_file import load_autoencoder
from unifusion_core.shapes.training import autoencoder, generator, vlm
from unifusion_core.training.loop import Task
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.zoo.tiny import BUILT_IN, TINY

# Prints one line for each stream of random samples: its name and the hash of its first samples.
STREAMS = """
import hashlib, random, re
from pathlib import Path
import torch
from unifusion_core.shapes.training import autoencoder, generator, vlm
from unifusion_core.shapes.world import edits, prompts, references, restyle
from unifusion_core.shapes.world.scenes import ASPECT_SIZES, sample_scene
from unifusion_core.zoo.tiny import BUILT_IN

torch.set_printoptions(profile="full")

def show(name, draw, count=40):
    text = "\\n".join(repr(draw(random.Random(f"{name}-{i}"))) for i in range(count))
    # functions are shown by their address
    text = re.sub(" at 0x[0-9a-f]+", "", text)
    print(name, hashlib.sha256(text.encode()).hexdigest())

for kind in (*edits.EDIT_KINDS, *references.REFERENCE_KINDS, *references.LOOK_KINDS):
    for held_out in (False, True, None):
        if held_out and kind in references.LOOK_KINDS:
            continue
        show(f"{kind} {held_out}", lambda rng: edits.sample_instruction(rng, kind, held_out))
show("edit into", lambda rng: edits.sample_edit_into(rng, sample_scene(rng)))
show("corpus", lambda rng: list(edits.corpus(rng, 10)))
show("any words", lambda rng: prompts.word_any(rng, sample_scene(rng)))
show("tokenizer", lambda rng: list(vlm.tokenizer_texts(rng.randrange(1000)))[:50], 2)
for kind in vlm.REWRITE_SHARES:
    show(f"rewrite {kind}", lambda rng: vlm.sample_rewrite(rng, kind))
show("style", lambda rng: vlm.with_random_style(rng, vlm.sample_rewrite(rng, "full")))
show("restyle", lambda rng: restyle.restyle(rng, rng.choice(restyle.RESTYLE_KINDS)))
show("text chat", lambda rng: generator.GeneratorTask.sample_request(rng, sample_scene(rng)))
for task in generator.PICTURE_CHATS:
    show(task, lambda rng: generator.GeneratorTask.sample_image_request(rng, sample_scene(rng), task, ASPECT_SIZES[0]), 8)
crops = autoencoder.AutoencoderTask(seed=1, crop=16, object_share=0.5, free_color_share=0.5)
show("crops", lambda rng: crops.item(rng.randrange(1000)))
"""


def test_the_same_samples_are_drawn_under_every_hash_seed() -> None:
    def drawn(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", STREAMS]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    first, second = drawn("0").splitlines(), drawn("1").splitlines()

    assert len(first) > 50
    assert [a for a, b in zip(first, second, strict=True) if a != b] == []


def new_generator() -> Task:
    return generator.GeneratorTask(
        generator.GeneratorSettings(seed=1, pool_size=1),
        batch_size=1,
        config=TINY.config,
        backbone=load_vlm(BUILT_IN.vlm),
        autoencoder=load_autoencoder(BUILT_IN.vae),
        pool_path=BUILT_IN.vae.with_name("absent.safetensors"),
    )


def new_vlm() -> Task:
    return vlm.VLMTask(seed=1, batch_size=1, mix={"rewrite": 1.0}, start=BUILT_IN.vlm, tokenizer=BUILT_IN.vlm)


@pytest.mark.parametrize(
    "build", [lambda: autoencoder.AutoencoderTask(seed=1), new_generator, new_vlm], ids=["vae", "dit", "vlm"]
)
def test_a_task_built_twice_starts_from_the_same_weights(build: Callable[[], Task[nn.Module]]) -> None:
    torch.manual_seed(0)
    first = build().model.state_dict()
    torch.manual_seed(1)
    second = build().model.state_dict()

    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
