"""Prompt files: every line stands for itself, nothing is lost, nothing is drawn twice.

pytest tests/unit/cli/test_prompt_files.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unifusion_core.cli.main import main
from unifusion_core.cli.prompts import PromptFile, check_id
from unifusion_core.errors import PromptError

QUICK = ["--steps", "1", "--size", "16x16", "--no-rewrite"]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines))
    return path


def drawn_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "no JSON"),
        (b"\xff\xff", "no UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"id": "b", "prompt": "x", "seed": NaN}', "NaN is no number of JSON"),
        (b'{"id": "b", "prompt": "x", "seed": 1' + b"0" * 5000 + b"}", "no JSON"),
        (b"[]", '"id" and "prompt" are needed'),
        ({"prompt": "x"}, '"id" and "prompt" are needed'),
        ({"id": "b", "prompt": "x", "sede": 1}, 'the key "sede" is unknown, did you mean "seed"?'),
        ({"id": "b", "prompt": 3}, '"prompt" is 3, a value of type str is needed'),
        ({"id": 3, "prompt": "x"}, '"id" is 3, a value of type str is needed'),
        ({"id": "../b", "prompt": "x"}, "cannot be a file name: leave out /"),
        ({"id": "a\u0000", "prompt": "x"}, "leave out U+0000"),
        (b'{"id": "\\ud800", "prompt": "x"}', "holds half a character"),
        (b'{"id": "b", "prompt": "\\ud800"}', "holds half a character"),
        ({"id": "A", "prompt": "x"}, 'the id "A" is used twice, first in line 1'),
        ({"id": "b", "prompt": "x", "rewrite_text": " "}, '"rewrite_text" is empty'),
        ({"id": "b", "prompt": "x", "seed": -1}, "a whole number from 0 to 2^63 - 1"),
        ({"id": "b", "prompt": "x", "seed": True}, "a whole number from 0"),
        ({"id": "b", "prompt": "x", "size": "big"}, '"big" is no size'),
        ({"id": "b", "prompt": "x", "steps": 0}, "a whole number from 1 to 10000"),
        ({"id": "b", "prompt": "x", "cfg": -2}, "a number from 0 to 100"),
        ({"id": "b", "prompt": "x", "images": "c.png"}, "a list of file names"),
        ({"id": "b", "prompt": "x", "style": "ters"}, 'did you mean "terse"?'),
        ({"id": "b", "prompt": "x", "size": "20x20"}, "near are 16x16 and 16x24"),
        ({"id": "b", "prompt": "x", "images": ["nowhere.png"]}, "There is no picture nowhere.png"),
        ({"id": "b", "prompt": "x", "mask": "m.png"}, "--mask is about input images"),
        ({"id": "b", "prompt": "x " * 5000}, "tokens"),
    ],
)
def test_a_line_that_fails_is_named_and_the_others_are_drawn(
    random_weights: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: Any,
    sentence: str,
) -> None:
    good = [{"id": "a", "prompt": "a red circle"}, {"id": "z", "prompt": "a blue star"}]
    file = write_lines(tmp_path / "lines.jsonl", [good[0], line, good[1]])
    out = tmp_path / "out"
    assert main(["generate", "--prompts", str(file), "--out", str(out), *QUICK, *random_weights.options]) == 1
    told = capsys.readouterr().err
    assert drawn_in(out) == ["a.png", "z.png"]
    assert [each for each in told.splitlines() if sentence in each and "lines.jsonl, line 2" in each]
    assert "2 drawn, 1 failed" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "name",
    [
        "con",
        "NUL.txt",
        "com1",
        "lpt9",
        "a.",
        "a ",
        " a",
        "a:b",
        "a?b",
        "a|b",
        "a\tb",
        "..",
        "x" * 300,
        "é" * 130,
    ],
)
def test_ids_that_some_file_system_refuses_are_refused(name: str) -> None:
    with pytest.raises(PromptError, match="the id"):
        check_id(name)


@pytest.mark.parametrize(
    "name", ["a", "-1", "v1.2", "über", "日本", "a b", "console", "com10", "x" * 200, ".a"]
)
def test_other_ids_are_file_names(name: str, tmp_path: Path) -> None:
    check_id(name)
    (tmp_path / f"{name}.png").write_text("")


def test_any_legal_json_is_read(tmp_path: Path) -> None:
    lines = [
        b"\xef\xbb\xbf" + json.dumps({"id": "bom", "prompt": "x"}).encode() + b"\r",
        b"",
        b' {"seed": 7.0, "prompt": "\\u00fc\\ud83d\\ude00", "id": "escaped", "size": [16, 24]}\t\r',
        '{"id": "separator", "prompt": "a\u2028b"}'.encode(),
        b'{"id": "exponent", "prompt": "x", "seed": 1e3, "cfg": 3, "id": "last wins"}',
    ]
    file = PromptFile(write_lines(tmp_path / "lines.jsonl", lines))
    assert file.bad == []
    read = {line.id: line for line in file.lines()}
    assert list(read) == ["bom", "escaped", "separator", "last wins"]
    assert read["escaped"].prompt == "ü😀"
    assert read["escaped"].options == {"seed": 7, "size": (16, 24)}
    assert read["separator"].prompt == "a\u2028b"
    assert read["last wins"].options == {"seed": 1000, "cfg": 3.0}


def test_a_file_of_another_encoding_or_without_lines_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, sentence in (
        (b"\xff\xfe{\x00", "UTF-16"),
        (b"\n \n", "has no lines"),
        (b"", "has no lines"),
    ):
        (tmp_path / "p.jsonl").write_bytes(content)
        assert main(["generate", "--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out")]) == 2
        assert sentence in capsys.readouterr().err


def test_a_line_sets_its_own_size_steps_and_guidance(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    lines = [
        {
            "id": "own",
            "prompt": "x",
            "size": "24x16",
            "steps": 2,
            "cfg": 3,
            "schedule": "uniform",
            "negative": "y",
        },
        {"id": "call", "prompt": "x"},
    ]
    file = write_lines(tmp_path / "lines.jsonl", lines)
    call = ["generate", "--prompts", str(file), "--out", str(tmp_path), *QUICK, "--seed", "5"]
    assert main([*call, *random_weights.options]) == 0
    records = {
        name: json.loads(Image.open(tmp_path / f"{name}.png").text["unifusion"]) for name in ("own", "call")
    }
    own, usual = records["own"]["settings"], records["call"]["settings"]
    assert [own[key] for key in ("size", "steps", "cfg", "schedule", "negative")] == [
        [24, 16],
        2,
        3.0,
        "uniform",
        "y",
    ]
    assert [usual[key] for key in ("size", "steps", "cfg", "negative")] == [[16, 16], 1, 2.0, ""]
    assert records["call"]["seed"] == 5


def test_the_same_call_again_draws_what_is_missing(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"id": name, "prompt": f"a {name} circle"} for name in ("red", "blue", "green")]
    file, out = write_lines(tmp_path / "lines.jsonl", lines), tmp_path / "out"
    call = ["generate", "--prompts", str(file), "--out", str(out), *QUICK, *random_weights.options]
    assert main(call) == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    (out / "blue.png").unlink()
    capsys.readouterr()
    assert main(call) == 0
    told = capsys.readouterr()
    assert told.out == f"{out / 'blue.png'}\n"
    assert "1 drawn, 2 kept" in told.err
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    assert {p: d for p, (_, d) in after.items()} == {p: d for p, (_, d) in before.items()}
    assert [p.name for p in out.iterdir() if after[p] != before[p]] == ["blue.png"]

    # another prompt for a picture that is there is told, and drawn on request
    write_lines(file, [{"id": "red", "prompt": "a star"}])
    assert main(call) == 0
    assert "drawn from other words" in capsys.readouterr().err
    assert main([*call, "--overwrite"]) == 0
    assert json.loads(Image.open(out / "red.png").text["unifusion"])["prompt"] == "a star"


def test_images_are_read_when_their_turn_comes(
    random_weights: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "in.png")
    lines = [{"id": f"{n}", "prompt": "make it red", "images": ["in.png"]} for n in range(20)]
    file = write_lines(tmp_path / "lines.jsonl", lines)
    drawn_before: list[int] = []
    from unifusion_core import images

    real = images.read_image_file

    def read(path: Path) -> Any:
        drawn_before.append(len(list((tmp_path / "out").glob("*.png"))))
        return real(path)

    monkeypatch.setattr("unifusion_core.images.read_image_file", read)
    monkeypatch.setattr("unifusion_core.cli.generate.READ_AHEAD_BYTES", 7.5 * 3 * 16 * 16 * 4)
    call = ["generate", "--prompts", str(file), "--out", str(tmp_path / "out"), *QUICK, "--max-tiles", "1"]
    assert main([*call, *random_weights.options]) == 0
    assert len(drawn_before) == 20
    # as many as fit into the bound are read ahead
    assert drawn_before == [number // 8 * 8 for number in range(20)]


def test_rewrites_are_written_as_they_are_made_and_a_half_line_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"id": f"{n}", "prompt": "x", "rewrite_text": f"words {n}"} for n in range(5)]
    file, out = write_lines(tmp_path / "in.jsonl", [*lines[:2], b"{", *lines[2:]]), tmp_path / "out.jsonl"
    call = ["rewrite", "--prompts", str(file), "--out", str(out)]
    assert main(call) == 1
    assert "5 rewritten, 1 failed" in capsys.readouterr().err
    whole = out.read_bytes()
    # as a killed call leaves it
    out.write_bytes(whole[: len(whole) // 2])
    assert main(call) == 1
    assert out.read_bytes() == whole
    # lines of something else are not overwritten
    other = write_lines(tmp_path / "other.jsonl", [{"id": "q", "prompt": "x", "rewrite_text": "y"}])
    assert main(["rewrite", "--prompts", str(other), "--out", str(out)]) == 2
    assert "line 1 is no rewrite of a line of this prompt file" in capsys.readouterr().err
    assert main(["rewrite", "--prompts", str(other), "--out", str(out), "--overwrite"]) == 0
    assert json.loads(out.read_text()) == {"id": "q", "prompt": "x", "rewrite_text": "y"}


def run(*arguments: str, processes: int = 1, **more: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *start, "-m", "unifusion_core", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **more,
    )


def test_two_processes_share_the_lines(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    lines: list[Any] = [{"id": f"{n}", "prompt": "a red circle"} for n in range(9)]
    file, out = write_lines(tmp_path / "lines.jsonl", [*lines, b"{"]), tmp_path / "out"
    call = ["generate", "--prompts", str(file), "--out", str(out), *QUICK, *random_weights.options]
    process = run(*call, processes=2)
    printed, told = process.communicate(timeout=300)
    assert drawn_in(out) == [f"{n}.png" for n in range(9)], told
    assert len(printed.splitlines()) == 9
    assert told.count("no JSON") == 1
    assert "9 drawn, 1 failed" in told
    assert process.returncode != 0

    rewrites = [{"id": f"{n}", "prompt": "x", "rewrite_text": f"{n}" * 5000} for n in range(9)]
    write_lines(file, rewrites)
    process = run("rewrite", "--prompts", str(file), "--out", str(tmp_path / "r.jsonl"), processes=2)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    written = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert sorted(written, key=lambda line: line["id"]) == rewrites


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_run_leaves_whole_files_and_goes_on(
    random_weights: SimpleNamespace, tmp_path: Path
) -> None:
    lines = [{"id": f"{n}", "prompt": "a red circle"} for n in range(60)]
    file, out = write_lines(tmp_path / "lines.jsonl", lines), tmp_path / "out"
    call = [
        "generate",
        "--prompts",
        str(file),
        "--out",
        str(out),
        "--steps",
        "2",
        "--no-rewrite",
        "--size",
        "64x64",
    ]
    call += random_weights.options
    printed: list[str] = []
    for sign in (signal.SIGINT, signal.SIGKILL):
        process = run(*call)
        before = len(list(out.glob("*.png"))) if out.exists() else 0
        while process.poll() is None and (not out.exists() or len(list(out.glob("*.png"))) < before + 5):
            time.sleep(0.02)
        process.send_signal(sign)
        output, told = process.communicate(timeout=60)
        printed += output.splitlines()
        assert "Traceback" not in told
        for path in out.glob("*.png"):
            Image.open(path).load()
    process = run(*call)
    output, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert {p.name for p in out.glob("*.png")} == {f"{n}.png" for n in range(60)}
    # nothing was drawn twice
    printed += output.splitlines()
    assert len(printed) == len(set(printed))
