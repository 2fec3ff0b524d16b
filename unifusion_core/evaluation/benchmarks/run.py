"""The steps of a run: draw what is missing, judge what is missing, score. In one process or in several (`accelerate launch`,
`torchrun`), with the same result.

Images are drawn in batches that depend on the items alone, and all questions about an image are asked together. So a run that was
interrupted, or split over processes, has the same images and answers as one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from accelerate import PartialState
from tqdm import tqdm

from ... import __version__, zoo
from ...checkpoints.generator_file import GeneratorFile
from ...contracts import Features, Request
from ...errors import ConfigError, PromptError
from ...images import size_for_image
from ...pipeline import Pipeline, SamplingSettings, batches
from ..drawing import encode_attempts
from ..subject import Subject
from .benchmark import NOT_DRAWN, Answers, Benchmark, Item, Judge, Key, Scores, Shown, Way
from .folder import RunFolder, answer_line

# processes wait for each other at the end of each step
PATIENCE = timedelta(days=7)
STEPS = ("draw", "judge")
REMEDY = "choose another --out, or remove this one"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What is run, and how.

    data      file or folder of the benchmark
    seeds     of the images of each prompt
    samples   number of prompts (of sources, where a source makes several items), evenly spread over the file; None = all
    sampling  size, steps, cfg and schedule; what is missing is the model's own
    only      "draw" or "judge"; "" = both
    images    folder of images that are drawn already
    """

    data: Path
    seeds: Sequence[int]
    samples: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    only: str = ""
    images: Path | None = None


def processes() -> PartialState:
    """This process among those of the run."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def read_items(benchmark: Benchmark, config: RunConfig) -> list[Item]:
    """The items of a run. Raises ConfigError for data without any, or with ids that are used twice or are no file names."""
    items = benchmark.read(config.data)
    if not items:
        raise ConfigError(f"{config.data} has no prompt: the suite {benchmark.name} needs {benchmark.source}")
    sources = list(dict.fromkeys(item.source or item.id for item in items))
    if config.samples is not None and config.samples < len(sources):
        chosen = {sources[number * len(sources) // config.samples] for number in range(config.samples)}
        items = [item for item in items if (item.source or item.id) in chosen]
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ConfigError(f'{config.data} has the id "{item.id}" twice: give each prompt its own')
        if not item.id or Path(item.id).name != item.id:
            raise ConfigError(f'{config.data} has the id "{item.id}", which cannot be a file name')
        seen.add(item.id)
    return items


def run(
    benchmark: Benchmark,
    config: RunConfig,
    out: Path,
    *,
    subject: Subject | None,
    judge: Callable[[], Judge] | None,
) -> tuple[Scores, dict[str, Any], list[Item], Answers] | None:
    """Draws, judges and scores; returns scores, conditions, items and answers, or None where nothing is scored: after `only`
    "draw", and in all processes but the first.

    subject   the model; None where images are drawn already
    judge     loads the judge, which is not done before it is needed

    Raises ConfigError for a folder of another run, for images that are missing, and for data that do not fit the benchmark.
    """
    state = processes()
    items = read_items(benchmark, config)
    folder = RunFolder(out, config.images)
    made_with = drawing_conditions(benchmark, config, subject)
    folder.check_settings("settings.json", made_with, "drawn", REMEDY, write=state.is_main_process)
    if benchmark.draws and config.only != "judge" and config.images is None:
        assert subject is not None
        draw(items, config, folder, subject, state)
        # the judge needs its memory
        subject.release()
        state.wait_for_everyone()
    if config.only == "draw":
        return None
    own = benchmark.own_judge()
    if own is None and judge is None:
        raise ConfigError(f"the suite {benchmark.name} needs --judge FOLDER, or --only draw")
    chosen = own or (judge() if judge else None)
    assert chosen is not None
    ask(benchmark, items, config, folder, chosen, state)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    answers = folder.merge_answers(items, config.seeds)
    conditions = {
        "suite": benchmark.name,
        **made_with,
        "judge": chosen.identity,
        "version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return benchmark.score(items, answers), conditions, items, answers


def drawing_conditions(benchmark: Benchmark, config: RunConfig, subject: Subject | None) -> dict[str, Any]:
    """What the images depend on."""
    of_model: dict[str, Any] = {"lora": []}
    if subject is not None:
        spec = GeneratorFile(subject.model).spec
        usual = zoo.sampling_for(spec, config.sampling.get("schedule"))
        files = [zoo.path_of(subject.model, "generator"), *subject.lora]
        of_model = {
            **{name: str(getattr(subject, name)) for name in ("model", "vlm", "vae")},
            "lora": [str(each) for each in subject.lora],
            # the names alone would not tell a file that was trained on
            "fingerprints": [_fingerprint(Path(file)) for file in files],
            "sampling": {"size": spec.size, **dataclasses.asdict(usual), **config.sampling},
            "rewrites": spec.rewrites,
        }
    return {
        "data": config.data.name,
        "data_sha256": _sha256(config.data),
        **of_model,
        "images": None if config.images is None else str(config.images),
        "samples": config.samples,
        "seeds": list(config.seeds),
        "of": getattr(benchmark, "conditions", None),
    }


def _sha256(data: Path) -> str:
    """Of a file; of a folder the names and sizes of its files."""
    if data.is_file():
        return hashlib.sha256(data.read_bytes()).hexdigest()
    files = sorted(path for path in data.rglob("*") if path.is_file())
    listed = "\n".join(f"{path.relative_to(data).as_posix()} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _fingerprint(file: Path) -> str:
    """Of a large file: much faster than sha256."""
    content = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while part := opened.read(1 << 24):
            content.update(part)
    return content.hexdigest()


# Drawing -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One image to draw."""

    item: Item
    seed: int
    size: tuple[int, int]

    @property
    def key(self) -> Key:
        return self.item.id, self.seed


def draw(
    items: Sequence[Item], config: RunConfig, folder: RunFolder, subject: Subject, state: PartialState
) -> None:
    """Draws what is missing. A prompt that cannot be drawn is noted and loses its own image only."""
    wanted = [item for item in items if any(not folder.is_drawn((item.id, s)) for s in config.seeds)]
    if not wanted:
        return
    pipeline = subject.pipeline
    groups = list(_batches(items, config, pipeline))
    mine = groups[state.process_index :: state.num_processes]
    mine = [group for group in mine if not all(folder.is_drawn(job.key) for job in group)]
    for group in tqdm(mine, desc="drawing", leave=False, disable=None):
        how = pipeline.settings(
            **{**config.sampling, "size": group[0].size, "max_tiles": group[0].item.way.max_tiles}
        )
        _draw_group(group, folder, pipeline, how)


def _batches(items: Sequence[Item], config: RunConfig, pipeline: Pipeline) -> Iterator[list[_Job]]:
    """Images of one size that are drawn in one way, as many as are drawn at once."""
    usual = config.sampling.get("size")
    own = [pipeline.spec.size, *pipeline.model.config.trained_sizes]
    most = max(width * height for width, height in own)
    groups: dict[tuple[tuple[int, int], Way], list[_Job]] = {}
    for item in items:
        size = usual or pipeline.spec.size
        if item.images and usual is None:
            size = size_for_image(item.read_images()[0], most)
        for seed in config.seeds:
            groups.setdefault((size, item.way), []).append(_Job(item=item, seed=seed, size=size))
    for (size, _), jobs in groups.items():
        for part in batches(len(jobs), size):
            yield jobs[part]


def _draw_group(group: Sequence[_Job], folder: RunFolder, pipeline: Pipeline, how: SamplingSettings) -> None:
    way = group[0].item.way
    rewriting = pipeline.spec.rewrites if way.rewriting is None else way.rewriting
    requests = [
        pipeline.spec.with_style(
            Request(prompt=job.item.prompt, images=job.item.read_images(), system=way.system),
            way.style if rewriting else "",
        )
        for job in group
    ]
    attempts = encode_attempts(pipeline, requests, rewriting=rewriting, max_tiles=how.max_tiles)
    good = {i: each for i, each in enumerate(attempts) if not isinstance(each, PromptError)}
    drawn = {}
    if good:
        features = Features.cat([each.features for each in good.values()])
        seeds = [group[i].seed for i in good]
        pixels = pipeline.sample(features, seeds, how, layer_gains=way.layer_gains)
        drawn = dict(zip(good, pixels, strict=True))
    for i, job in enumerate(group):
        attempt = attempts[i]
        if folder.is_drawn(job.key):
            continue
        if isinstance(attempt, PromptError):
            folder.write_failure(job.key, str(attempt))
            continue
        record = {
            "prompt": job.item.prompt,
            "rewrite": attempt.request.rewrite,
            **({"system": way.system} if way.system else {}),
            "seed": job.seed,
            "settings": dataclasses.asdict(how),
            "version": __version__,
        }
        folder.write_image(job.key, drawn[i], record)


# Judging -------------------------------------------------------------------------------------------


def ask(
    benchmark: Benchmark,
    items: Sequence[Item],
    config: RunConfig,
    folder: RunFolder,
    judge: Judge,
    state: PartialState,
) -> None:
    """Asks what is not answered yet. Raises ConfigError for images that are missing: answers of the others are kept."""
    judge.check([question for item in items for question in item.questions])
    remedy = "choose another --out, or remove its answers*.jsonl and judge.json"
    folder.check_settings("judge.json", judge.identity, "judged", remedy, write=state.is_main_process)
    known = folder.read_answers()
    # all have read before anyone writes
    state.wait_for_everyone()
    images = [(item, (item.id, seed)) for item in items for seed in config.seeds]
    left = [
        (item, key)
        for item, key in images
        if any(question.text not in known.get(key, {}) for question in item.questions)
    ]
    if benchmark.draws:
        missing = [key for _, key in left if not folder.is_drawn(key)]
        if missing:
            raise ConfigError(
                f"{len(missing)} of {len(images)} images are missing, the first is {folder.image(missing[0])}: draw them (the "
                "same command without --only judge); answers so far are kept"
            )
    # by the place among all images, so that a resumed run splits as the first did
    places = {key: place for place, (_, key) in enumerate(images)}
    mine = [(item, key) for item, key in left if places[key] % state.num_processes == state.process_index]
    if not mine:
        return
    with folder.open_part(state.process_index).open("a", encoding="utf-8") as part:
        for item, key in tqdm(mine, desc="judging", leave=False, disable=None):
            if benchmark.draws and not folder.image(key).exists():
                answers = [
                    NOT_DRAWN if question.accepted else replace(NOT_DRAWN, probability=None)
                    for question in item.questions
                ]
            else:
                inputs = item.read_images()
                output = folder.read_image(key) if benchmark.draws else inputs.pop()
                answers = judge.answer(Shown(item=item, output=output, inputs=inputs), item.questions)
            for question, answer in zip(item.questions, answers, strict=True):
                part.write(answer_line(key, question.text, answer))
            part.flush()
