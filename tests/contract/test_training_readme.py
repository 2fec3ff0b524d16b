"""The commands of training/README.md: they exist with their options, and the tutorial does what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unifusion_core.training.config import SourceConfig, TrainConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "unifusion_core" / "training"
README = (TRAINING / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((TRAINING / "recipes").glob("*.yaml"))


def commands_of(section: str) -> list[str]:
    """The lines that call `unifusion` in a section of the README."""
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("unifusion ")]


TUTORIAL = commands_of("Teach the embedded model a style")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the tutorial's paths lead to its recipe."""
    shutil.copytree(TRAINING / "recipes", tmp_path / "unifusion_core" / "training" / "recipes")
    return tmp_path


def run(line: str, folder: Path) -> str:
    command = [sys.executable, "-m", "unifusion_core", *shlex.split(line)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # the copied recipes' folder must not hide the package
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"PYTHONSAFEPATH": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tutorial_runs_with_few_steps(folder: Path) -> None:
    examples, train, generate, evaluate = TUTORIAL

    run(f"{examples} --count 4", folder)
    run(f"{train} --set steps=2 sample_every=0 samples=[]", folder)
    run(f"{generate} --steps 2", folder)
    assert (folder / "style.png").is_file()
    assert "the style is named" in run(evaluate.replace("60", "1"), folder)


def test_the_colour_and_the_edit_run_with_few_steps(folder: Path) -> None:
    lines = commands_of("Teach it a colour, or an edit")
    for examples, train, evaluate in (lines[:3], lines[3:]):
        run(f"{re.sub(' --count .*', '', examples)} --count 4", folder)
        run(f"{train} --set steps=2", folder)
        assert "exact" in run(evaluate.replace("60", "1"), folder)


@pytest.mark.slow
def test_the_tutorial_teaches_the_style_word_by_word(folder: Path) -> None:
    for line in TUTORIAL[:-1]:
        run(line, folder)
    run(f"{TUTORIAL[-1]} --out style.json", folder)

    rows = {
        row["name"]: row["rates"]
        for row in json.loads((folder / "style.json").read_text())["suites"]["style"]
    }
    assert rows["the style is named"]["background"]["right"] >= 54
    assert rows["the style is named"]["exact"]["right"] >= 36


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_valid_configuration(recipe: Path) -> None:
    assert load_config(recipe).steps > 0


def test_every_key_of_data_and_every_option_is_documented() -> None:
    kinds = ("folder", "jsonl", "webdataset", "dataset")
    assert all(f"| `{kind}` |" in README for kind in kinds)
    assert set(kinds) <= SourceConfig.model_fields.keys()
    for option in ("--dry-run", "--prepare", "--resume", "--overwrite", "--set", "--schema"):
        assert f"`{option}" in README


def test_every_key_has_a_description_or_a_name_that_says_it() -> None:
    plain = {"rewrite", "dropout", "cache", "learning_rate", "weight_decay", "seed"}
    missing = [
        name for name, f in TrainConfig.model_fields.items() if not f.description and name not in plain
    ]
    assert missing == []
