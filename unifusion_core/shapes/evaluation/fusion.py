"""The paper's comparison of fusion designs on a real, frozen language model, from finished runs of `fusion-DESIGN-SEED`.

Properties are counted, because models of small budgets draw few exact images. Intervals are over repetitions and images: both are
drawn again together (two-level bootstrap), and differences from LAP are taken on the same captions and seeds.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import xxhash

from ...contracts import Features, Request, RewriteSettings, TokenRole
from ...errors import ConfigError, PromptError
from ...evaluation.benchmarks.bootstrap import BOUNDS, RESAMPLES
from ...evaluation.subject import Row, Sampling, Subject
from ...files import write_whole
from ...inspection.reading import read_layers
from ...models.autoencoder import Autoencoder
from ...models.unifusion import UniFusion
from ...vlm.backbone import VLMBackbone
from ...vlm.features import encode_chat
from ...vlm.rewrite import attempt_rewrites
from ..training.fusion import (
    BATCH_SIZE,
    DESIGNS,
    ENCODER,
    NOISES,
    RUN,
    draw,
    encode_texts,
    features_of,
    held_out_captions,
    load_encoder,
    three_objects,
)
from ..world import prompts
from ..world.lexicon import NUMBERS, PLACES, SIZE_WORDS
from ..world.requirements import Verdict
from ..world.scenes import BACKGROUNDS, COLORS, SHAPES, sample_scene
from .designs import PROPERTIES_INTERVAL, PROPERTIES_RIGHT, load_design
from .judging import Judgement, Tally, judge_picture
from .layers import with_states_of

RUNS = Path("runs")
LAP = "lap"
NAMES = {
    "lap": "LAP over every third layer",
    "last-layer": "last layer",
    "key-value": "key-value fusion",
    "injection": "hidden-state injection",
    "without-refiner": "LAP without refiner",
    "causal-refiner": "LAP with a causal refiner",
    "middle-layer": "layer 14 alone",
    "mean": "mean of layers",
    "three-layers": "three layers concatenated",
    "ten-layers": "ten layers concatenated",
    "embeddings": "LAP with the embeddings",
    "unscaled": "LAP without scales of taps",
    "from-scratch": "LAP, DiT from scratch",
}
BIAS, BIAS_INTERVAL = "first minus third, points", "its interval, points"
TIMED = 3
# a few examples in the style text, since a language model of this size does not know what is wanted
EXAMPLES = (
    "Rewrite the request as one plain caption of a picture. Examples. Request: draw me a ball the colour of grass in the snow. "
    "Caption: a green circle, white background. Request: a tiny box coloured like the sky, upper left, at night. Caption: small "
    "blue square at top left, black background. Request:"
)


# Runs ---------------------------------------------------------------------------------------------


def finished_runs(designs: Sequence[str] = tuple(DESIGNS)) -> dict[str, dict[int, Path]]:
    """By design and seed: the files of finished runs. Raises ConfigError if there is none of LAP."""
    found = {
        design: {
            seed: file
            for seed in (1, 2, 3)
            if (file := RUNS / RUN.format(design=design, seed=seed) / "generator.safetensors").exists()
        }
        for design in designs
    }
    if not found.get(LAP):
        raise ConfigError(
            "there is no finished run of LAP on a language model: train it first with `unifusion shapes train fusion-lap-1`"
        )
    return {design: files for design, files in found.items() if files}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Judgements of one set of captions by repetition, each list in the order of the captions."""

    by_seed: Mapping[int, Sequence[Judgement]]

    def shares(self, seeds: Sequence[int]) -> np.ndarray:
        """Share of right properties, repetitions x captions."""
        return np.array([[each.verdict.properties for each in self.by_seed[seed]] for seed in seeds])

    def tally(self) -> Tally:
        """All judgements together."""
        return Tally(tuple(each for judged in self.by_seed.values() for each in judged))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of repetitions x captions, both drawn again. Repeatable."""
    rng = np.random.default_rng(0)
    repetitions, captions = values.shape
    means = [
        values[rng.integers(repetitions, size=repetitions)][:, rng.integers(captions, size=captions)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, BOUNDS)
    return float(low), float(high)


# The table ----------------------------------------------------------------------------------------


def evaluate_fusion(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Every finished design on held-out pairs, on held-out wordings, and by an object's place in the prompt.

    Raises ConfigError if there is no run of LAP, or no language model.
    """
    runs = finished_runs()
    count = sampling.samples
    captions = {
        "pairs": held_out_captions(count, f"pairs-{sampling.seed}"),
        "wordings": held_out_captions(count, f"wordings-{sampling.seed}", wording=True),
        "places": three_objects(count, f"places-{sampling.seed}"),
    }
    backbone = load_encoder(ENCODER)
    states = {
        name: encode_texts(backbone, [each.text for each in wordings]) for name, wordings in captions.items()
    }
    empty = encode_texts(backbone, [""])
    judged: dict[str, dict[str, Judged]] = {}
    seconds = _seconds_per_sample(
        {design: next(iter(files.values())) for design, files in runs.items()}, states
    )
    for design, files in runs.items():
        by_set: dict[str, dict[int, list[Judgement]]] = {name: {} for name in captions}
        for seed, file in files.items():
            for name, wordings in captions.items():
                kept = kept_judgements(file, name, sampling)
                found = read_judgements(kept, wordings)
                if found is None:
                    model = load_design(file)
                    taps = model.config.vlm.taps
                    given, nothing = features_of(states[name], taps), features_of(empty, taps)
                    found = judge(model, subject, given, nothing, wordings)
                    write_whole(kept, json.dumps([judgement_as_json(each) for each in found]).encode())
                by_set[name][seed] = found
        judged[design] = {name: Judged(by_seed=by_seed) for name, by_seed in by_set.items()}
        yield _row(design, files, judged, seconds)


def kept_judgements(file: Path, name: str, sampling: Sampling) -> Path:
    """Where the judgements of a run's weights are kept, so that the suite goes on where it stopped, and adds new runs."""
    weights = xxhash.xxh3_64(file.read_bytes()).hexdigest()
    return file.parent / "judged" / f"{name}-{sampling.samples}-{sampling.seed}-{weights}.json"


def judgement_as_json(judgement: Judgement) -> dict[str, Any]:
    """What `read_judgements` reads."""
    return {"readable": judgement.readable, "verdict": asdict(judgement.verdict)}


def read_judgements(path: Path, wordings: Sequence[prompts.Wording]) -> list[Judgement] | None:
    """Kept judgements of these captions; None if there are none."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for each, wording in zip(kept, wordings, strict=True):
        # JSON has no tuples
        verdict: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in each["verdict"].items()
        }
        found.append(
            Judgement(requirement=wording.requirement, verdict=Verdict(**verdict), readable=each["readable"])
        )
    return found


def judge(
    model: UniFusion,
    subject: Subject,
    features: Features,
    empty: Features,
    wordings: Sequence[prompts.Wording],
    gains: Sequence[float] | None = None,
) -> list[Judgement]:
    """Images for features, judged; number i from seed i. `gains` of the layers as in `UniFusion.pool`."""
    images = draw(model, cast(Autoencoder, subject.autoencoder), features, empty, gains)
    return [judge_picture(image, each.requirement) for image, each in zip(images, wordings, strict=True)]


def _row(
    design: str,
    files: Mapping[int, Path],
    judged: Mapping[str, Mapping[str, Judged]],
    seconds: Mapping[str, float],
) -> Row:
    own, lap = judged[design], judged[LAP]
    seeds = list(files)
    pairs = own["pairs"].shares(seeds)
    low, high = interval(pairs)
    values = {
        "repetitions": len(seeds),
        PROPERTIES_RIGHT: 100 * pairs.mean(),
        PROPERTIES_INTERVAL: 50 * (high - low),
        "held-out wordings, %": 100 * own["wordings"].shares(seeds).mean(),
        "its interval, %": 50 * float(np.diff(interval(own["wordings"].shares(seeds)))[0]),
    }
    if design != LAP and (common := [seed for seed in seeds if seed in lap["pairs"].by_seed]):
        difference = pairs[[seeds.index(seed) for seed in common]] - lap["pairs"].shares(common)
        low, high = interval(difference)
        values |= {
            "points above LAP": 100 * difference.mean(),
            "from": 100 * low,
            "to": 100 * high,
        }
    places = by_place(own["places"], seeds)
    values |= {f"object {place}, %": 100 * places[place - 1].mean() for place in (1, 2, 3)}
    low, high = interval(places[0] - places[2])
    values |= {BIAS: 100 * (places[0] - places[2]).mean(), BIAS_INTERVAL: 50 * (high - low)}
    model = load_design(next(iter(files.values())))
    values["parameters, M"] = sum(p.numel() for p in model.parameters()) / 1e6
    values["time per sample"] = seconds[design] / seconds[LAP]
    return Row(name=NAMES[design], rates=own["pairs"].tally().rates(), values=values)


def by_place(judged: Judged, seeds: Sequence[int]) -> np.ndarray:
    """Places in the prompt x repetitions x captions: share of an object's properties that are right."""
    shares = []
    for seed in seeds:
        verdicts = (each.verdict for each in judged.by_seed[seed])
        shares.append([np.mean([v.shape, v.color, v.size, v.position], 0) for v in verdicts])
    return np.moveaxis(np.array(shares), 2, 0)


def _seconds_per_sample(
    files: Mapping[str, Path], states: Mapping[str, Sequence[torch.Tensor]]
) -> dict[str, float]:
    """Median time of a training pass; the designs take turns, so that a busy machine slows all equally."""
    from ...training.objective import FlowBatch, FlowMatching  # noqa: PLC0415  (needs the trainer's packages)

    taken: dict[str, list[float]] = {design: [] for design in files}
    generator = torch.Generator().manual_seed(0)
    some = states["pairs"][:BATCH_SIZE]
    shape = (len(some), NOISES, 16, 16, 16)
    noise, t = torch.randn(shape, generator=generator), torch.rand(shape[:2], generator=generator)
    for _ in range(TIMED + 1):
        for design, file in files.items():
            model = load_design(file).requires_grad_(True)
            batch = FlowBatch(
                features=features_of(some, model.config.vlm.taps), latents=noise[:, 0], noise=noise, t=t
            )
            objective = FlowMatching(model)
            started = time.process_time()
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = objective(batch)
            loss.backward()
            taken[design].append((time.process_time() - started) / len(some))
    return {design: statistics.median(times[1:]) for design, times in taken.items()}


# Learning curves ----------------------------------------------------------------------------------


def evaluate_fusion_curve(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Right properties while training, by the number of samples: a new LAP before the shipped DiT against a new DiT as well, and
    the other designs. Read from the runs' records."""
    runs = finished_runs()
    for design, files in runs.items():
        curves = [_curve(file.parent) for file in files.values()]
        for samples in sorted(set().union(*curves)):
            # not every repetition was evaluated as often
            right = [curve[samples] for curve in curves if samples in curve]
            yield Row(
                name=f"{NAMES[design]}, {samples} samples",
                values={
                    "samples": samples,
                    PROPERTIES_RIGHT: 100 * statistics.fmean(right),
                    "lowest": 100 * min(right),
                    "highest": 100 * max(right),
                },
            )


def _curve(run: Path) -> dict[int, float]:
    """By samples: share of right properties at a run's evaluations."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"] * BATCH_SIZE: line["properties"] for line in lines if "properties" in line}


# Layers -------------------------------------------------------------------------------------------

KINDS_OF_WORDS: dict[str, frozenset[str]] = {
    "colour": frozenset(COLORS),
    "shape": frozenset(SHAPES),
    "size": frozenset(word for words in SIZE_WORDS.values() for word in words),
    "place": frozenset(re.findall(r"[a-z]+", " ".join(str(places) for places in PLACES.values())))
    - {"at", "the", "in", "of", "on"},
    "number": frozenset(word for words in NUMBERS.values() for word in words),
    "background": frozenset(BACKGROUNDS) | {"grey", "background"},
    "function word": frozenset(
        {"a", "an", "the", "of", "in", "on", "at", "and", "with", "is", "to", "that", "which"}
    ),
}


def evaluate_fusion_layers(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """LAP's attention to layers by kind of word; then images with a layer left out of the sum, with groups of layers left out as
    in the paper's figure, and with one layer's states taken from another caption."""
    file = next(iter(finished_runs()[LAP].values()))
    model, backbone = load_design(file), load_encoder(ENCODER)
    taps = model.config.vlm.taps
    wordings = held_out_captions(sampling.samples, f"layers-{sampling.seed}")
    others = held_out_captions(sampling.samples, f"other-layers-{sampling.seed}")
    yield from _attention_rows(model, backbone, [*wordings, *_counting(sampling)])
    features, of_others, empty = (
        features_of(encode_texts(backbone, texts), taps)
        for texts in ([each.text for each in wordings], [each.text for each in others], [""])
    )

    def row(name: str, given: Features, gains: Sequence[float] | None = None) -> Row:
        return _properties_row(name, judge(model, subject, given, empty, wordings, gains))

    yield row("all layers", features)
    for tap in taps:
        yield row(f"without layer {tap}", features, [float(each != tap) for each in taps])
    # the paper's figure drops the first and the last of ten, then one more, then all between
    ends = {taps[0], taps[-1], taps[-2]}
    groups = {"first and last": ends, "one more": {*ends, taps[-3]}, "all between": set(taps) - ends}
    for name, left_out in groups.items():
        listed = ", ".join(str(tap) for tap in sorted(left_out))
        yield row(f"without {listed} ({name})", features, [float(tap not in left_out) for tap in taps])
    for index, tap in enumerate(taps):
        yield row(f"layer {tap} of another caption", with_states_of(features, of_others, index))


def _counting(sampling: Sampling) -> list[prompts.Wording]:
    """Captions with numbers ("two red circles"), which are read, not drawn: no design is trained on them."""
    rng = sampling.rng("fusion layers, numbers")
    scenes = (sample_scene(rng, num_objects=2 + number % 2) for number in range(sampling.samples))
    return [prompts.word_scene(rng, prompts.with_equal_objects(rng, scene), "count") for scene in scenes]


def _attention_rows(
    model: UniFusion, backbone: VLMBackbone, wordings: Sequence[prompts.Wording]
) -> Iterator[Row]:
    taps = model.config.vlm.taps
    attention: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS_OF_WORDS}
    shares: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS_OF_WORDS}
    for wording in wordings:
        inputs = backbone.prepare([Request(prompt=wording.text)], model.config.vlm.template)
        features = encode_chat(backbone, model.config.vlm, inputs)
        reading = read_layers(model, features.to("cpu", torch.float32))
        ids, roles = features.token_info.ids[0].tolist(), features.token_info.roles[0].tolist()
        for place, (token, role) in enumerate(zip(ids, roles, strict=True)):
            word = str(backbone.tokenizer.decode([token])).strip(" ,.;:").lower()
            kind = next((kind for kind, words in KINDS_OF_WORDS.items() if word in words), None)
            if kind and role == TokenRole.PROMPT:
                attention[kind].append(reading.attention[0][place])
                shares[kind].append(reading.shares[place])
    for title, found in (("attention received", attention), ("share of the sum", shares)):
        for kind, values in found.items():
            if values:
                mean = torch.stack(values).mean(0).tolist()
                yield Row(
                    name=f"{title}: {kind}",
                    values={
                        "words": len(values),
                        **{f"layer {tap}": value for tap, value in zip(taps, mean, strict=True)},
                    },
                )


# Rewriting ----------------------------------------------------------------------------------------


def evaluate_fusion_rewriting(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Prompts as they are, and rewritten by the language model with examples in the style text and encoded again as prompts."""
    file = next(iter(finished_runs()[LAP].values()))
    model, backbone = load_design(file), load_encoder(ENCODER)
    spec = model.config.vlm
    empty = features_of(encode_texts(backbone, [""]), spec.taps)
    for kind in ("full", "indirect"):
        wordings = []
        for number in range(sampling.samples):
            rng = sampling.rng(f"fusion rewriting {kind} {number}")
            wordings.append(
                prompts.word_scene(rng, sample_scene(rng, num_objects=1 + number % 3, held_out=True), kind)
            )
        plain = encode_texts(backbone, [each.text for each in wordings])
        judged = judge(model, subject, features_of(plain, spec.taps), empty, wordings)
        yield _properties_row(f"{kind} prompts as they are", judged)
        settings = RewriteSettings(max_new_tokens=64, states="reencode", cut_off="whole sentences")
        requests = [Request(prompt=each.text, style=EXAMPLES) for each in wordings]
        written = attempt_rewrites(backbone, spec, requests, settings)
        texts = [
            wording.text if isinstance(each, PromptError) else (each.request.rewrite or wording.text)
            for wording, each in zip(wordings, written, strict=True)
        ]
        failed = sum(isinstance(each, PromptError) for each in written)
        rewritten = encode_texts(backbone, texts)
        judged = judge(model, subject, features_of(rewritten, spec.taps), empty, wordings)
        values = {"failed rewrites, %": 100 * failed / len(texts)}
        repeated = (
            not isinstance(each, PromptError) and text.strip().lower() == wording.text.strip().lower()
            for each, text, wording in zip(written, texts, wordings, strict=True)
        )
        values["repeated word by word, %"] = 100 * statistics.fmean(repeated)
        yield _properties_row(f"{kind} prompts rewritten", judged, values)


def _properties_row(name: str, judged: Sequence[Judgement], more: Mapping[str, Any] | None = None) -> Row:
    tally = Tally(tuple(judged))
    share, reach = tally.properties()
    values = {PROPERTIES_RIGHT: 100 * share, PROPERTIES_INTERVAL: 100 * reach}
    return Row(name=name, rates=tally.rates(), values=values | dict(more or {}))
