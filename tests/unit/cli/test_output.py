"""Where pictures are written, and what they carry: pytest tests/unit/cli/test_output.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unifusion_core.cli.main import main
from unifusion_core.images import read_record

QUICK = ["--steps", "1", "--size", "16x16", "--no-rewrite", "--quiet"]


def draw(weights: SimpleNamespace, *options: str) -> int:
    return main(["generate", "a red circle", *QUICK, *weights.options, *options])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "PNG"),
        ("A.PNG", "PNG"),
        ("a.jpg", "JPEG"),
        ("a.JPEG", "JPEG"),
        ("a.webp", "WEBP"),
        ("v1.2", "PNG"),
        ("plain", "PNG"),
        ("ü ö.png", "PNG"),
        ("new/folder/.a.png", "PNG"),
    ],
)
def test_the_path_that_was_asked_is_written_in_the_format_of_its_ending(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    path = tmp_path / name
    assert draw(random_weights, "--out", str(path), "--seed", "3") == 0
    assert capsys.readouterr().out == f"{path}\n"
    with Image.open(path) as image:
        assert image.format == kind
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    record = read_record(path)
    assert (record["prompt"], record["seed"], record["settings"]["steps"]) == ("a red circle", 3, 1)


def test_a_folder_takes_the_next_free_number(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert draw(random_weights, "--out", str(tmp_path)) == 0
    assert draw(random_weights, "--out", f"{tmp_path}/new/") == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "unifusion-0001.png"),
        str(tmp_path / "unifusion-0002.png"),
        str(tmp_path / "new" / "unifusion-0001.png"),
    ]


def test_runs_at_once_take_different_names(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    call = [
        sys.executable,
        "-m",
        "unifusion_core",
        "generate",
        "x",
        *QUICK,
        "--batch",
        "2",
        *random_weights.options,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    runs = [
        subprocess.Popen(call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = [name for run in runs for name in run.communicate(timeout=300)[0].split()]
    assert len(printed) == len(set(printed)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(printed)
    assert all(Image.open(tmp_path / name).size == (16, 16) for name in printed)


def test_stdout_gets_the_picture_and_nothing_else(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    call = [
        sys.executable,
        "-m",
        "unifusion_core",
        "generate",
        "x",
        "--steps",
        "1",
        "--size",
        "16x16",
        "--no-rewrite",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [*call, "--out", "-", *random_weights.options], capture_output=True, env=environment, check=True
    )
    (tmp_path / "a.png").write_bytes(done.stdout)
    assert Image.open(tmp_path / "a.png").size == (16, 16)
    assert done.stdout.endswith(b"IEND\xaeB`\x82")


def test_what_was_done_is_told(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a.png")
    call = ["generate", "x", "--steps", "1", "--size", "16x16", "--out", out, *random_weights.options]
    text = ["--rewrite-text", "a big red circle"]
    assert main([*call, *text, "--seed", "7"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    for words in ("16x16, 1 steps, cfg 2, shift 3", "rewrite: a big red circle", "seed 7, "):
        assert words in told.err
    assert "replaced" not in told.err
    assert main([*call, *text]) == 0
    assert f"replaced {out}, which was there" in capsys.readouterr().err
    assert main([*call, *text, "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert all(line.startswith("warning: ") for line in told.err.splitlines())


def test_strict_makes_warnings_errors(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["generate", "a red dog", "--steps", "1", "--no-rewrite", "--out", str(tmp_path / "a.png")]
    assert main([*call, "--strict", *random_weights.options]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert 'unifusion: This model does not know "dog"' in told
    assert not (tmp_path / "a.png").exists()
    call[1] = "a red star"
    assert main([*call, "--strict", *random_weights.options]) == 0


def test_a_picture_is_drawn_again_from_its_record(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 24, 3), 200, np.uint8)).save(tmp_path / "in.png")
    first = [
        "generate",
        "a red star",
        "--image",
        str(tmp_path / "in.png"),
        "--max-tiles",
        "1",
        "--steps",
        "2",
    ]
    first += [
        "--rewrite-text",
        "big red star",
        "--cfg",
        "3",
        "--seed",
        "9",
        "--negative",
        "blue",
        "--denoise",
        "0.5",
    ]
    for name in ("a.png", "a.webp"):
        assert main([*first, "--out", str(tmp_path / name), *random_weights.options]) == 0
        again = ["generate", "--like", str(tmp_path / name), "--out", str(tmp_path / "b.png")]
        assert main([*again, *random_weights.options]) == 0
        pictures = [np.asarray(Image.open(tmp_path / each)) for each in (name, "b.png")]
        assert np.array_equal(*pictures)
        records = [read_record(tmp_path / each) for each in (name, "b.png")]
        assert records[0] == records[1]
    # options of the call win
    assert main([*again, "--seed", "10", "--cfg", "2", *random_weights.options]) == 0
    record = read_record(tmp_path / "b.png")
    assert (record["seed"], record["settings"]["cfg"], record["settings"]["steps"]) == (10, 2.0, 2)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert main(["generate", "--like", str(tmp_path / "plain.png")]) == 2


def test_a_grid_joins_a_batch(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    assert draw(random_weights, "--batch", "3", "--grid", "--out", str(out)) == 0
    with Image.open(out) as image:
        sheet = np.asarray(image)
        assert [each["seed"] for each in json.loads(image.text["unifusion"])["grid"]] == [0, 1, 2]
    assert sheet.shape == (32, 32, 3)
    assert (sheet[16:, 16:] == 255).all()
    assert draw(random_weights, "--seed", "1", "--out", str(tmp_path / "one.png")) == 0
    single = np.asarray(Image.open(tmp_path / "one.png")).astype(int)
    assert abs(sheet[:16, 16:].astype(int) - single).max() <= 1


def test_outside_of_a_mask_every_pixel_stays(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    given = rng.integers(0, 255, (32, 40, 3), np.uint8)
    Image.fromarray(given).save(tmp_path / "in.png")
    mask = np.zeros((32, 40), np.uint8)
    mask[:, 20:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    call = ["generate", "x", "--image", str(tmp_path / "in.png"), "--mask", str(tmp_path / "mask.png")]
    call += ["--steps", "2", "--no-rewrite", "--max-tiles", "1", "--out", str(tmp_path / "a.png")]
    assert main([*call, *random_weights.options]) == 0
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(drawn[:, :20], given[:, :20])
    assert not np.array_equal(drawn[:, 20:], given[:, 20:])
    Image.fromarray(mask[:, :10]).save(tmp_path / "mask.png")
    assert main([*call, *random_weights.options]) == 2


def test_the_prompt_may_follow_the_images(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("a.png", "b"):
        Image.new("RGB", (16, 16)).save(tmp_path / name, "PNG")
    images = [str(tmp_path / "a.png"), str(tmp_path / "b")]
    out = str(tmp_path / "out.png")
    for order in (["--image", *images, "make it blue."], ["make it blue.", "--image", *images]):
        assert main(["generate", "--out", out, *QUICK, *random_weights.options, *order]) == 0
        record = read_record(Path(out))
        assert (record["prompt"], record["images"]) == ("make it blue.", images)
