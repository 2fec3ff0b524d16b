"""A VLM family, a generator, a suite, a benchmark and a schedule are one file each, and at most one line in a registry.

pytest tests/contract/test_extensions.py

Each file is written into a temporary folder and used from the command line, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from safetensors.torch import save_file

from unifusion_core.checkpoints.safetensors_file import read_tensors

GENERATOR = '''
"""A generator of somebody else: the embedded one's layout, told by a weight of its own."""

from dataclasses import replace

from .spec import GeneratorSpec, SamplingDefaults
from .tiny import TINY as _TINY


_CONFIG = replace(_TINY.config, trained_sizes=((64, 64),))


def _recognize(shapes):
    return _CONFIG if shapes.get("first.weight") == (192, 64) else None


DUMMY = GeneratorSpec(
    name="dummy",
    title="Dummy generator",
    config=_CONFIG,
    recognize=_recognize,
    sampling={"fast": SamplingDefaults(schedule="uniform", steps=2, cfg=1.0)},
    size=(64, 64),
    rewrites=False,
    max_new_tokens=9,
    trained_on_rewrites=False,
    vae_hint="any",
    limits=("It is a dummy.",),
)
'''
SCHEDULE = '''
"""Times that fall by squares."""

import torch


def squares(steps, num_tokens):
    return torch.linspace(1, 0, steps + 1) ** 2
'''
SUITE = '''
"""Counts parameters."""

from unifusion_core.evaluation.subject import Row


def evaluate_size(subject, sampling):
    count = sum(p.numel() for p in subject.pipeline.model.parameters())
    yield Row(name="parameters", values={"millions": count / 1e6})
'''
BENCHMARK = '''
"""One prompt per line of a text file; right if the judge sees a circle."""

from statistics import fmean

from unifusion_core.evaluation.benchmarks.benchmark import Benchmark, Item, Scores
from unifusion_core.evaluation.benchmarks.soft_tifa import one_word_question


class Circles(Benchmark):
    name = "circles"
    source = "a text file"

    def read(self, data):
        asked = (one_word_question("Is there a circle in the image?", "yes"),)
        return [Item(id=str(n), prompt=line, questions=asked) for n, line in enumerate(data.read_text().splitlines())]

    def score(self, items, answers):
        of_images = {key: fmean(a.probability for a in given.values()) for key, given in answers.items()}
        return Scores(values={"circles": fmean(of_images.values())}, of_images=of_images)
'''
FAMILY = '''
"""InternVL under another name, with a template of its own."""

from dataclasses import replace

from unifusion_core.vlm.families.internvl import INTERNVL

DUMMY = replace(INTERNVL, template=replace(INTERNVL.template, prefix="<dummy>"))
'''


def run(folder: Path, prepare: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command after `prepare`, which registers what lies in the folder."""
    code = f"import sys\nsys.path.insert(0, {str(folder)!r})\n{prepare}\nfrom unifusion_core.cli.main import main\n"
    return subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(main(sys.argv[1:]))", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


@pytest.fixture
def bare_file(random_weights: SimpleNamespace, tmp_path: Path) -> Path:
    """The weights of a generator without a configuration."""
    tensors, _ = read_tensors(random_weights.model)
    path = tmp_path / "bare.safetensors"
    save_file({name: value for name, value in tensors.items() if name != "unifusion_config"}, path)
    return path


IN_THE_ZOO = "import unifusion_core.zoo as zoo; zoo.__path__.append({folder!r})"


def test_a_generator_is_one_file(random_weights: SimpleNamespace, bare_file: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "dummy.py").write_text(GENERATOR)
    prepare = IN_THE_ZOO.format(folder=str(tmp_path / "zoo"))

    told = run(tmp_path, prepare, "inspect", str(bare_file))
    assert told.returncode == 0, told.stderr
    for words in ("Dummy generator", "fast: uniform, 2 steps, cfg 1", "64x64", "It is a dummy."):
        assert words in told.stdout

    parts = ["--vlm", str(random_weights.vlm), "--vae", str(random_weights.vae), "--out", "a.png"]
    drawn = run(tmp_path, prepare, "generate", "a red circle", "--model", str(bare_file), *parts)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "a.png") as image:
        made = json.loads(image.text["unifusion"])
        assert image.size == (64, 64)
    assert made["rewrite"] is None
    assert made["settings"]["steps"] == 2

    # without it the weights are taken for Krea 2's, whose layout all share
    without = run(tmp_path, "", "inspect", str(bare_file))
    assert "Dummy generator" not in without.stdout


def test_a_zoo_file_that_cannot_be_loaded_names_itself_and_leaves_the_others_working(
    random_weights: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "broken.py").write_text("import nothing_of_that_name")
    prepare = IN_THE_ZOO.format(folder=str(tmp_path / "zoo"))

    told = run(tmp_path, prepare, "inspect", "tiny")
    assert told.returncode == 0, told.stderr
    assert "UniFusion generator" in told.stdout
    assert "zoo/broken.py cannot be loaded (No module named 'nothing_of_that_name')" in told.stderr

    foreign = run(tmp_path, prepare, "generate", "x", "--model", str(random_weights.vae))
    assert foreign.returncode == 2
    assert "another kind of model" in foreign.stderr
    assert "zoo/broken.py could not be loaded (ModuleNotFoundError" in foreign.stderr


def test_a_schedule_is_a_function_and_a_line(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "by_squares.py").write_text(SCHEDULE)
    prepare = (
        "import by_squares; from unifusion_core.flow.schedule import SCHEDULES; "
        'SCHEDULES["squares"] = by_squares.squares'
    )
    words = ["generate", "x", "--schedule", "squares", "--steps", "2", "--no-rewrite", "--size", "32x32"]
    drawn = run(tmp_path, prepare, *words, "--out", "a.png", *random_weights.options)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.text["unifusion"])["settings"]["schedule"] == "squares"
    assert run(tmp_path, "", *words, *random_weights.options).returncode == 2


def test_a_suite_is_a_function_and_a_line(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "size_suite.py").write_text(SUITE)
    prepare = (
        "import size_suite; from unifusion_core.evaluation.suites import SUITES; "
        'SUITES["size"] = size_suite.evaluate_size'
    )
    words = ["evaluate", "--suite", "size", "--out", "report.json", *random_weights.options]
    measured = run(tmp_path, prepare, *words)
    assert measured.returncode == 0, measured.stderr
    assert "parameters" in measured.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["suites"]["size"][0]["values"]["millions"] > 1
    assert run(tmp_path, "", *words).returncode == 2


def test_a_benchmark_is_a_class_and_a_line(tmp_path: Path) -> None:
    (tmp_path / "circles.py").write_text(BENCHMARK)
    (tmp_path / "prompts.txt").write_text("a big red circle\na big blue star\n")
    prepare = (
        "import circles; from unifusion_core.evaluation.suites import BENCHMARKS; "
        'BENCHMARKS["circles"] = circles.Circles'
    )
    words = ["evaluate", "--suite", "circles", "--data", "prompts.txt", "--out", "run", "--judge", "exact"]
    measured = run(tmp_path, prepare, *words)
    assert measured.returncode == 0, measured.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["of_images"] == {"0-0": 1.0, "1-0": 0.0}
    assert report["circles"] == 0.5
    compared = [*words[:2], "verifi", "--of", "circles", *words[3:-4], "--out", "ways", "--judge", "exact"]
    assert run(tmp_path, prepare, *compared).returncode == 0
    assert run(tmp_path, "", *words).returncode == 2


def test_a_vlm_family_is_one_value_and_a_line(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "dummy_family.py").write_text(FAMILY)
    prepare = (
        "import dummy_family, unifusion_core.vlm.families as families; "
        'families.FAMILIES["internvl"] = dummy_family.DUMMY\n'
        "from unifusion_core.vlm.folder import load_vlm\n"
        f"assert load_vlm({str(random_weights.vlm)!r}).template.prefix == '<dummy>'"
    )
    words = ["generate", "x", "--no-rewrite", "--size", "32x32", "--steps", "1", "--out", "a.png"]
    drawn = run(tmp_path, prepare, *words, *random_weights.options)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "a.png").exists()
