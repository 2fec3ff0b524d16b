"""A run on coloured shapes with the embedded model: drawing, judging, going on, several processes, and what users do to it.

pytest tests/unit/evaluation/benchmarks/test_run.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from unifusion_core.cli.main import main
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.benchmarks import write_benchmark
from unifusion_core.shapes.evaluation.judges import ExactJudge

ROOT = Path(__file__).parents[4]
# few steps, small images in number: the images need not be good here
QUICK = ["--steps", "1"]


def evaluate(suite: str, data: Path, out: Path, *options: str) -> int:
    return main(["evaluate", "--suite", suite, "--data", str(data), "--out", str(out), *options])


def report_of(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark("geneval2", tmp_path_factory.mktemp("data"), 20)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one go, in one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert evaluate("geneval2", data, out, *QUICK, "--judge", "exact", "--page") == 0
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def test_a_run_leaves_images_answers_a_report_a_sheet_and_a_page(whole: Path) -> None:
    images = sorted(path.name for path in (whole / "images").iterdir())
    assert images == [f"{number:04d}-0.png" for number in range(1, 21)]
    with Image.open(whole / "images" / images[0]) as image:
        assert json.loads(image.text["unifusion"])["settings"]["steps"] == 1
    lines = [json.loads(line) for line in (whole / "answers.jsonl").read_text().splitlines()]
    assert [*lines[0]] == ["id", "seed", "question", "answer", "probability"]
    assert {(line["id"], line["seed"]) for line in lines} == {(f"{n:04d}", 0) for n in range(1, 21)}
    report = report_of(whole)
    assert 0 <= report["geometric_mean"] <= report["arithmetic_mean"] <= 1
    assert report["judge"] == {"name": "exact"}
    assert report["sampling"] == {"size": [128, 128], "schedule": "shift 3", "steps": 1, "cfg": 2.0}
    assert report["model"] == "tiny"
    assert report["seeds"] == [0]
    assert report["torch"]
    assert report["intervals_95"]["geometric_mean"][0] <= report["geometric_mean"]
    assert len(report["of_images"]) == 20
    page = (whole / "page.html").read_text()
    assert "data:image/png;base64" in page
    assert "geometric_mean" in page
    assert "src='http" not in page
    assert Image.open(whole / "sheet.png").width == 8 * 160


def test_tables_have_at_most_100_columns(whole: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("geneval2", data, whole, *QUICK, "--judge", "exact")
    printed = capsys.readouterr().out
    assert "geometric_mean" in printed
    assert max(map(len, printed.splitlines()[:-4])) <= 100


def test_drawing_and_judging_apart_give_the_same_report(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert evaluate("geneval2", data, out, *QUICK, "--only", "draw") == 0
    assert not (out / "report.json").exists()
    assert evaluate("geneval2", data, out, *QUICK, "--only", "judge", "--judge", "exact") == 0
    assert report_of(out) == report_of(whole)


def test_an_interrupted_run_goes_on_to_the_same_report(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sample, answer = tmp_path / "run", Pipeline.sample, ExactJudge.answer
    arguments = (data, out, *QUICK, "--judge", "exact")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def in_turn(calls: Iterator[Callable]) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            return next(calls)(*arguments, **options)

        return call

    # in the second batch of images
    monkeypatch.setattr(Pipeline, "sample", in_turn(iter([sample, interrupt])))
    assert evaluate("geneval2", *arguments) == 130
    assert len(list((out / "images").glob("*.png"))) == 16
    before = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    # one of the first batch vanished, and is drawn again as part of its batch
    (out / "images" / "0003-0.png").unlink()
    monkeypatch.setattr(Pipeline, "sample", sample)
    # in the judging of the eighth image
    monkeypatch.setattr(ExactJudge, "answer", in_turn(iter([answer] * 7 + [interrupt])))
    assert evaluate("geneval2", *arguments) == 130
    kept = (out / "answers-0.jsonl").read_text()
    assert len({json.loads(line)["id"] for line in kept.splitlines()}) == 7
    # the end of the last line was lost
    (out / "answers-0.jsonl").write_text(kept[:-20])
    monkeypatch.setattr(ExactJudge, "answer", answer)
    assert evaluate("geneval2", *arguments) == 0
    assert report_of(out) == report_of(whole)
    assert (out / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    after = {path: path.stat().st_mtime_ns for path in before if path.name != "0003-0.png"}
    assert all(before[path] == when for path, when in after.items())
    for path in (whole / "images").iterdir():
        assert (out / "images" / path.name).read_bytes() == path.read_bytes()


def test_two_processes_give_the_report_of_one(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["evaluate", "--suite", "geneval2", "--data", str(data), "--out", str(out), *QUICK]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29611",
    ]
    done = subprocess.run(
        [*command, "-m", "unifusion_core", *arguments, "--judge", "exact"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # by the first process alone
    assert done.stdout.count("geneval2: 20 prompts") == 1
    assert (out / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    assert report_of(out) == report_of(whole)
    assert not list(out.glob("answers-*.jsonl"))


# What users do ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "3", "--judge", "exact"], 'was drawn with sampling {"size"'),
        (["--steps", "1", "--judge", "exact", "--seed", "1"], "was drawn with seeds [0], and [1] is asked"),
        (["--steps", "1", "--judge", "tiny"], 'was judged with name "exact", and "tiny" is asked for now'),
    ],
)
def test_a_folder_of_another_run_is_refused(
    copied: Path, data: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copied / "answers.jsonl").read_bytes()
    assert evaluate("geneval2", data, copied, *options) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert "choose another --out" in told
    assert (copied / "answers.jsonl").read_bytes() == before


def test_a_missing_picture_is_named_and_answers_are_kept(
    copied: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (copied / "answers.jsonl").read_text().splitlines(keepends=True)
    (copied / "answers.jsonl").write_text("".join(line for line in lines if '"0002"' not in line))
    (copied / "images" / "0002-0.png").unlink()
    # already judged: its image is not needed
    (copied / "images" / "0003-0.png").unlink()
    command = ("geneval2", data, copied, *QUICK, "--judge", "exact")
    assert evaluate(*command, "--only", "judge") == 2
    told = capsys.readouterr().err
    assert "1 of 20 images are missing" in told
    assert "0002-0.png" in told
    assert evaluate(*command) == 0
    assert (copied / "answers.jsonl").read_text() == "".join(lines)


def test_a_damaged_line_is_told_and_its_question_is_asked_again(
    copied: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (copied / "answers.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    lines[3] = lines[3][:25] + "\n"
    (copied / "answers.jsonl").write_text("".join(lines))
    assert evaluate("geneval2", data, copied, *QUICK, "--judge", "exact") == 0
    assert "1 lines of the answers" in capsys.readouterr().err
    assert (copied / "answers.jsonl").read_text() == text


def test_a_prompt_that_is_too_long_loses_its_own_image_only(data: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in data.read_text().splitlines()[:3]]
    lines[1]["prompt"] = "a red circle and " * 400
    longer = tmp_path / "geneval2_data.jsonl"
    longer.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "run"
    assert evaluate("geneval2", longer, out, *QUICK, "--judge", "exact") == 0
    assert "tokens" in (out / "images" / "0002-0.txt").read_text()
    report = report_of(out)
    assert report["not_drawn"] == ["0002-0"]
    assert report["of_images"]["0002-0"] == 0
    assert any("1 images could not be drawn and count as wrong" in note for note in report["notes"])
    assert (out / "images" / "0003-0.png").exists()


@pytest.mark.parametrize(
    ("suite", "options", "sentence"),
    [
        ("geneval2", ["--data", "nowhere.jsonl", "--judge", "exact"], "there is no nowhere.jsonl"),
        ("geneval2", ["--judge", "exact"], "the suite geneval2 needs --data"),
        ("verifi", ["--data", "x"], "the suite verifi needs --of"),
        ("geneval2", ["--data", "x", "--images", "y", "--only", "draw"], "are drawn already"),
    ],
)
def test_options_that_are_missing_or_contradict_are_told(
    suite: str, options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--suite", suite, "--out", str(tmp_path / "run"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_judge_is_needed_and_must_know_the_questions(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("geneval2", data, tmp_path / "a", "--images", str(whole / "images")) == 2
    assert "needs --judge FOLDER" in capsys.readouterr().err
    line = json.loads(data.read_text().splitlines()[0])
    line["vqa_list"][0][0] = "Is there a dog in the image?"
    (tmp_path / "geneval2_data.jsonl").write_text(json.dumps(line) + "\n")
    assert evaluate("geneval2", tmp_path, tmp_path / "b", *QUICK, "--judge", "exact") == 2
    assert 'the judge exact cannot answer "Is there a dog in the image?"' in capsys.readouterr().err


def test_images_of_others_are_judged_and_compared(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--images", str(whole / "images"), "--judge", "tiny", "--against", str(whole))
    assert evaluate("geneval2", data, out, *options) == 0
    report = report_of(out)
    assert "model" not in report
    against = report["against"]
    assert against["images"] == 20
    assert against["difference"] == pytest.approx(
        report["geometric_mean"] - report_of(whole)["geometric_mean"], abs=1e-5
    )
    assert 0.5 < against["answers"]["all"]["same"] <= 1
    assert "different judges (exact, tiny)" in against["note"]


def test_runs_of_other_data_are_not_compared(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_benchmark("geneval2", tmp_path / "data", 2, seed=1)
    options = (*QUICK, "--judge", "exact", "--against", str(whole))
    assert evaluate("geneval2", other, tmp_path / "run", *options) == 2
    assert "compare runs of the same suite on the same data" in capsys.readouterr().err


def test_samples_are_spread_over_the_file(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert evaluate("geneval2", data, out, *QUICK, "--judge", "exact", "--samples", "4") == 0
    assert sorted(report_of(out)["of_images"]) == ["0001-0", "0006-0", "0011-0", "0016-0"]
