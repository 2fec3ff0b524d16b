"""Odd systems: it works, or ends in one sentence: pytest tests/unit/cli/test_odd_systems.py"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from unifusion_core.cli import main as main_module
from unifusion_core.cli.main import UNFORESEEN, main
from unifusion_core.images import read_record

BARE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
SYSTEMS = {
    "POSIX locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ASCII streams": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"},
    "no home": {"LC_ALL": "C.UTF-8"},
    "home that is not there": {"HOME": "/proc/nowhere", "LC_ALL": "C.UTF-8"},
}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "unifusion_core", *arguments],
        capture_output=True,
        env=BARE | environment,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="the environment of POSIX systems")
@pytest.mark.parametrize("system", SYSTEMS)
def test_names_and_words_of_any_script_work(
    random_weights: SimpleNamespace, tmp_path: Path, system: str
) -> None:
    folder = tmp_path / "Bilder ü 日本"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "ein.png")
    out = folder / "ö.png"
    call = [
        "generate",
        "mach es grün 日",
        "--image",
        str(folder / "ein.png"),
        "--out",
        str(out),
        "--steps",
        "1",
    ]
    done = run(SYSTEMS[system], *call, "--no-rewrite", "--max-tiles", "1", *random_weights.options)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    record = read_record(out)
    assert (record["prompt"], record["images"]) == ("mach es grün 日", [str(folder / "ein.png")])


@pytest.mark.skipif(os.name == "nt", reason="bytes as arguments")
def test_bytes_that_are_no_text_get_a_sentence() -> None:
    call = [sys.executable.encode(), b"-m", b"unifusion_core", b"generate", b"a \xff"]
    done = subprocess.run(call, capture_output=True, env=BARE, check=False)
    assert done.returncode == 2
    assert b"holds half a character at 2" in done.stderr


def test_a_reader_that_ends_early_is_no_error() -> None:
    call = f"{sys.executable} -m unifusion_core generate --help | head -n 1"
    done = subprocess.run(call, shell=True, capture_output=True, env=BARE | os.environ, check=False)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("odd\nthing"),
            "RuntimeError: odd thing. This is a defect of unifusion: call again with --verbose",
        ),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("CUDA out of memory. Tried ..."), "there is not enough memory"),
    ],
)
def test_what_nobody_foresaw_ends_in_a_sentence_too(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(main_module.inspect, "inspect", fail)
    assert main(["inspect", "tiny"]) == UNFORESEEN
    told = capsys.readouterr().err
    assert told.startswith("unifusion: ")
    assert sentence in told
    assert told.count("\n") == 1
