"""A generator file is opened once and its module built once: pytest tests/unit/checkpoints/test_opened_once.py"""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import torch

from unifusion_core import zoo
from unifusion_core.checkpoints.generator_file import GeneratorFile
from unifusion_core.cli.main import main
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.pipeline import Pipeline

# Python's `open` is also that of pathlib, under its own name
OPENERS = (builtins.open, safetensors.safe_open)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`opened`: resolved paths of all files that are opened from now on. `built`: the device of every `UniFusion`."""
    found = SimpleNamespace(opened=[], built=[])

    def watched(opener: Callable[..., Any]) -> Callable[..., Any]:
        def watch(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | Path):
                found.opened.append(Path(path).resolve())
            return opener(path, *arguments, **options)

        return watch

    for opener in OPENERS:
        holders = [
            (module, name)
            for module in list(sys.modules.values())
            if module in (builtins, io) or module.__name__.startswith(("safetensors", "unifusion_core"))
            for name, value in list(vars(module).items())
            if value is opener
        ]
        for module, name in holders:
            monkeypatch.setattr(module, name, watched(opener))

    build = UniFusion.__init__

    def built(self: UniFusion, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **options)
        found.built.append(self.first.weight.device.type)

    monkeypatch.setattr(UniFusion, "__init__", built)
    return found


def assert_once(counted: SimpleNamespace, path: str | Path) -> None:
    file = zoo.path_of(path, "generator").resolve()
    assert counted.opened.count(file) == 1
    assert counted.built == ["meta"]


def test_every_way_to_open_a_file_is_counted(
    counted: SimpleNamespace, random_weights: SimpleNamespace
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    counted.opened.clear()
    path = random_weights.model

    path.open("rb").close()
    path.read_bytes()
    open(path, "rb").close()  # noqa: PTH123  (the function itself)
    load_file(path)
    with safe_open(path, "pt"):
        pass

    assert counted.opened.count(path.resolve()) == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_generator_file_is_opened_and_built_once(
    random_weights: SimpleNamespace, counted: SimpleNamespace, dtype: torch.dtype
) -> None:
    file = GeneratorFile(random_weights.model)
    assert counted.built == ["meta"]

    model = file.load(dtype=dtype)

    assert_once(counted, random_weights.model)
    assert model is file.module
    assert all(p.device.type == "cpu" and p.dtype == dtype for p in model.parameters())


def test_a_pipeline_opens_and_builds_its_generator_once(counted: SimpleNamespace) -> None:
    Pipeline.load("tiny", device="cpu")

    assert_once(counted, "tiny")


def test_a_pipeline_does_not_open_an_opened_file_again(counted: SimpleNamespace) -> None:
    Pipeline.load(GeneratorFile("tiny"), device="cpu")

    assert_once(counted, "tiny")


def test_the_command_opens_and_builds_its_generator_once(counted: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "a.png"

    assert main(["generate", "a red circle", "--steps", "1", "--no-rewrite", "--out", str(out)]) == 0

    assert out.is_file()
    assert_once(counted, "tiny")
