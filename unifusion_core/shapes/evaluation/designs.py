"""Comparisons of ways to train on images and to give them to the DiT: equal small budgets, and a recipe for each.

They read the embedded VLM, which was trained on the world of shapes; `fusion` compares designs on a real language model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

from ...checkpoints.generator_file import CONFIG_KEY, config_from_json
from ...checkpoints.safetensors_file import read_tensors
from ...contracts import Request
from ...errors import ConfigError
from ...evaluation.drawing import generate_as_is
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...models.fusion_designs import FUSIONS
from ...models.unifusion import UniFusion
from ...pipeline import Pipeline
from ...zoo.tiny import TINY
from ..world import captions, edits
from ..world.requirements import Requirement
from .edits import generate_group, reconstruct
from .judging import Tally, score_pictures
from .vlm import draw_scene

# last steps whose mean is a run's loss
AVERAGED = 50
# where `unifusion shapes train` writes
RUNS = Path("runs")
# recipe -> name of the row
EDIT_TRAINING = {
    "tiny-short": "trained on text alone",
    "tiny-short-edits": "trained on text, edits and reconstructions",
}
PICTURE_DESIGNS = {
    "tiny-short-edits": "one LAP, picture tokens at their place",
    "tiny-short-edits-no-positions": "one LAP, picture tokens without a place",
    "tiny-short-edits-lap-per-modality": "a LAP for each modality, picture tokens at their place",
}
PROPERTIES_RIGHT, PROPERTIES_INTERVAL = "properties right, %", "properties interval, %"
BATCH = 16


def evaluate_edit_training(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """The effect of training on images on text to image, for two generators.

    Both had the same number of steps. One was trained on text alone, the other on text in two of five batches.
    Raises ConfigError if a run is missing.
    """
    pipelines = {recipe: _pipeline(subject, recipe) for recipe in EDIT_TRAINING}
    yield from _generate_captions(pipelines, EDIT_TRAINING, sampling)


def _generate_captions(
    pipelines: dict[str, Pipeline], names: dict[str, str], sampling: Sampling
) -> Iterator[Row]:
    """Captions with held-out pairs as rewrites; every recipe has the same scenes and seeds."""
    rng = sampling.rng("designs")
    scenes = [draw_scene(rng, "full", 1 + i % 3, held_out=True) for i in range(sampling.samples)]
    requests = [Request(prompt="", rewrite=captions.caption(scene)) for scene in scenes]
    for recipe, pipeline in pipelines.items():
        pictures = []
        for group in chunks(list(enumerate(requests)), BATCH):
            pictures += generate_as_is(
                pipeline, [request for _, request in group], [seed for seed, _ in group]
            )
        tally = score_pictures(pictures, [Requirement.of(scene) for scene in scenes])
        values = {"loss": _last_loss(recipe)} | properties_of(tally)
        yield Row(name=names[recipe], rates=tally.rates(), values=values)


def evaluate_picture_designs(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Ways to give images to the DiT: edits of all kinds, and reconstruction at 10 tiles.

    Every design has the same edits and seeds. Raises ConfigError if a run is missing.
    """
    rng = sampling.rng("picture designs")
    kinds = edits.EDIT_KINDS
    instructions = [
        edits.sample_instruction(rng, kinds[i % len(kinds)], True) for i in range(sampling.samples)
    ]
    scenes = [edit.sources[0] for edit in instructions]
    for recipe, name in PICTURE_DESIGNS.items():
        pipeline = _pipeline(subject, recipe)
        group = generate_group(pipeline, instructions)
        row = group.row(name)
        reconstruction, _ = reconstruct(pipeline, scenes, tiles=10)
        tally = Tally(tuple(side.judgement for side in group.seeing))
        values = {"loss": _last_loss(recipe), **properties_of(tally), **row.values}
        likeness = {f"reconstruction {key}": value for key, value in reconstruction.values.items()}
        yield replace(row, values=values | likeness)


def properties_of(tally: Tally) -> dict[str, float]:
    """Mean share of right properties in %; models of small budgets generate too few exact images to be compared by them."""
    share, reach = tally.properties()
    return {PROPERTIES_RIGHT: 100 * share, PROPERTIES_INTERVAL: 100 * reach}


def _pipeline(subject: Subject, recipe: str) -> Pipeline:
    file = RUNS / recipe / "generator.safetensors"
    if not file.exists():
        raise ConfigError(f"there is no {file}: train it first with `unifusion shapes train {recipe}`")
    return Pipeline(load_design(file).to(subject.device), subject.backbone, subject.autoencoder, spec=TINY)


def load_design(file: Path) -> UniFusion:
    """The generator of a training run with the fusion that its record names; `load_generator` supports LAP alone."""
    tensors, metadata = read_tensors(file)
    config, training, _ = config_from_json(metadata[CONFIG_KEY])
    model = FUSIONS[training["phases"][-1]["task"]["fusion"]](config)
    model.load_state_dict({k: v.float() for k, v in tensors.items() if k != CONFIG_KEY})
    return model.eval().requires_grad_(False)


def _last_loss(recipe: str) -> float:
    lines = (RUNS / recipe / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [values["loss"] for line in lines if "loss" in (values := json.loads(line))]
    return mean(losses[-AVERAGED:])
