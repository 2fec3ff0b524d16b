"""Reports of runs: JSON with everything needed to repeat them, tables for a terminal, a contact sheet, and one page with
plots."""

from __future__ import annotations

import base64
import html
import json
import math
import tempfile
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ...errors import ConfigError
from ..plots import Bar, draw_bars
from .benchmark import Answers, Benchmark, Item, Key, Scores, images_of
from .folder import RunFolder
from .ways import Ways, paired_difference

# columns of a terminal
WIDTH = 100
NAME_WIDTH = 34
COLUMN_WIDTH = 16
# of each: best and worst images in the contact sheet
SHEET_IMAGES = 8
SHEET_COLUMNS = 8
CELL, LABEL_HEIGHT, LETTERS_PER_LINE = 160, 64, 26
REPORT, SHEET, PAGE = "report.json", "sheet.png", "page.html"


def write_reports(
    benchmark: Benchmark,
    done: tuple[Scores, dict[str, Any], list[Item], Answers],
    out: Path,
    *,
    images: Path | None = None,
    against: Path | None = None,
    page: bool = False,
) -> tuple[str, list[Path]]:
    """Writes report.json, sheet.png and, if asked for, page.html; returns the tables as text and the files.

    images    folder of the images, if they are not those of the run
    against   `--out` of another run, for the difference
    """
    scores, conditions, items, answers = done
    folder = RunFolder(out, images)
    report = as_report(benchmark, conditions, scores, items, answers, folder)
    if against is not None:
        report["against"] = compare(benchmark, report, answers, against, scores)
    files = [out / REPORT]
    files[0].write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if benchmark.draws and write_sheet(out / SHEET, items, scores, folder):
        files.append(out / SHEET)
    if page:
        write_page(out / PAGE, report, scores, out / SHEET)
        files.append(out / PAGE)
    return text_of(report, scores), files


def as_report(
    benchmark: Benchmark,
    conditions: Mapping[str, Any],
    scores: Scores,
    items: Sequence[Item],
    answers: Answers,
    folder: RunFolder,
) -> dict[str, Any]:
    """The report as JSON: conditions, the benchmark's own scores by name, intervals, tables, notes, and the score of each
    image."""
    images = images_of(items, answers)
    not_drawn = [key for _, key in images if folder.failure(key).exists()] if benchmark.draws else []
    return _finite(
        {
            **conditions,
            **scores.values,
            "intervals_95": {name: list(bounds) for name, bounds in scores.intervals.items()},
            "tables": scores.tables,
            "notes": [*scores.notes, *_notes(benchmark, not_drawn)],
            "prompts": len({item.source or item.id for item in items}),
            "images": len(images),
            "not_drawn": [f"{name}-{seed}" for name, seed in not_drawn],
            "of_images": {f"{name}-{seed}": value for (name, seed), value in scores.of_images.items()},
        }
    )


def _notes(benchmark: Benchmark, not_drawn: Sequence[Key]) -> list[str]:
    notes = [f"{benchmark.licence}."] if benchmark.licence else []
    if not_drawn:
        notes.append(
            f"{len(not_drawn)} images could not be drawn and count as wrong; images/ID-SEED.txt says why."
        )
    return notes


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


# Against another run -------------------------------------------------------------------------------


def compare(
    benchmark: Benchmark, report: Mapping[str, Any], answers: Answers, other: Path, scores: Scores
) -> dict[str, Any]:
    """The paired difference of this run's headline from another run's, over the images that both have, and how often the judges
    gave the same answer. Raises ConfigError for a folder without a report, or with one of another suite or data."""
    theirs = read_report(other)
    for name in ("suite", "data_sha256"):
        if theirs.get(name) != report[name]:
            raise ConfigError(
                f"{other} has {name} {str(theirs.get(name))[:40]} and this run has {str(report[name])[:40]}: compare runs of the "
                "same suite on the same data"
            )
    of_images = {_key(name): value for name, value in theirs["of_images"].items() if value is not None}
    difference, bounds = paired_difference(scores.of_images, of_images)
    pairs: dict[str, list[tuple[str, str]]] = {"all": []}
    for key, given in RunFolder(other).read_answers().items():
        for question, answer in answers.get(key, {}).items():
            if question in given:
                pair = answer.text.lower(), given[question].text.lower()
                pairs["all"].append(pair)
                # where items are drawn in several ways, each apart
                if isinstance(benchmark, Ways):
                    pairs.setdefault(key[0].rpartition(".")[2], []).append(pair)
    headline = next(iter(scores.values))
    compared = {
        "run": str(other),
        "its_model": theirs.get("model"),
        "its_judge": theirs["judge"],
        f"its_{headline}": theirs.get(headline),
        "difference": difference,
        "difference_interval_95": list(bounds),
        "images": len([key for key in of_images if key in scores.of_images]),
        "answers": {name: agreement(own) for name, own in pairs.items()},
    }
    if theirs["judge"] != report["judge"]:
        compared["note"] = (
            f"The two runs were judged by different judges ({theirs['judge']['name']}, {report['judge']['name']}): the "
            "difference is "
            "one of judges, too."
        )
    return _finite(compared)


def agreement(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """How often two judges gave the same answer, and Cohen's kappa: the same beyond what their habits alone would give (0 = none,
    1 = always)."""
    if not pairs:
        return {"same": math.nan, "kappa": math.nan, "answers": 0}
    same = sum(one == other for one, other in pairs) / len(pairs)
    habits = [Counter(side) for side in zip(*pairs, strict=True)]
    by_chance = sum(habits[0][text] * habits[1][text] for text in habits[0]) / len(pairs) ** 2
    kappa = (same - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan
    return {"same": same, "kappa": kappa, "answers": len(pairs)}


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a run. Raises ConfigError if there is none."""
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give the --out of a finished run") from error
    if not isinstance(report, dict) or "of_images" not in report:
        raise ConfigError(f"{path} is no report of a benchmark: give the --out of a finished run")
    return report


def _key(written: str) -> Key:
    name, _, seed = written.rpartition("-")
    return name, int(seed)


# Tables --------------------------------------------------------------------------------------------


def text_of(report: Mapping[str, Any], scores: Scores) -> str:
    """The scores as tables of at most 100 columns."""
    lines = [
        f"{report['suite']}: {report['prompts']} prompts, {report['images']} images, judged by {report['judge']['name']}",
        "",
    ]
    for name, value in scores.values.items():
        bounds = scores.intervals.get(name)
        shown = f" ({_number(bounds[0])} - {_number(bounds[1])})" if bounds else ""
        lines.append(f"{_cut(name, NAME_WIDTH):{NAME_WIDTH}} {_number(value):>10}{shown}")
    for title, rows in scores.tables.items():
        lines += ["", *table(title, rows)]
    lines.append("")
    for note in report["notes"]:
        lines += textwrap.wrap(note, WIDTH)
    if "against" in report:
        other = report["against"]
        low, high = other["difference_interval_95"]
        lines += [
            "",
            *textwrap.wrap(f"Against {other['run']}, {other['images']} images that both have:", WIDTH),
            f"{'difference':{NAME_WIDTH}} {_number(other['difference']):>10} ({_number(low)} - {_number(high)})",
            *table("answers", other["answers"]),
            *textwrap.wrap(other.get("note", ""), WIDTH),
        ]
    return "\n".join(lines)


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Rows of numbers; columns that do not fit beside each other continue below."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    fitting = (WIDTH - NAME_WIDTH) // (COLUMN_WIDTH + 1)
    lines: list[str] = []
    for start in range(0, len(columns), fitting):
        part = columns[start : start + fitting]
        heads = " ".join(f"{_cut(name, COLUMN_WIDTH):>{COLUMN_WIDTH}}" for name in part)
        lines.append(f"{_cut(title, NAME_WIDTH):{NAME_WIDTH}} {heads}"[:WIDTH])
        for name, row in rows.items():
            cells = " ".join(f"{_number(row.get(column)):>{COLUMN_WIDTH}}" for column in part)
            lines.append(f"{_cut(name, NAME_WIDTH):{NAME_WIDTH}} {cells}"[:WIDTH])
    return lines


def _number(value: float | None) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"


# Images --------------------------------------------------------------------------------------------


def write_sheet(path: Path, items: Sequence[Item], scores: Scores, folder: RunFolder) -> bool:
    """The best and the worst images with their prompts and scores, best first. Images that were not drawn are left out; False if
    none is left."""
    prompts = {item.id: item.prompt for item in items}
    ranked = sorted(scores.of_images, key=lambda key: -scores.of_images[key])
    shown = [key for key in ranked if folder.image(key).exists()]
    if len(shown) > 2 * SHEET_IMAGES:
        shown = [*shown[:SHEET_IMAGES], *shown[-SHEET_IMAGES:]]
    if not shown:
        return False
    num_rows = -(-len(shown) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * CELL, num_rows * (CELL + LABEL_HEIGHT)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, key in enumerate(shown):
        left, top = number % SHEET_COLUMNS * CELL, number // SHEET_COLUMNS * (CELL + LABEL_HEIGHT)
        with Image.open(folder.image(key)) as image:
            image.thumbnail((CELL - 8, CELL - 8))
            sheet.paste(image, (left + 4, top + 4))
        words = textwrap.wrap(prompts[key[0]], LETTERS_PER_LINE, max_lines=3, placeholder=" ...")
        label = "\n".join([f"{scores.of_images[key]:.3f}  {key[0]}"[:LETTERS_PER_LINE], *words])
        pen.multiline_text((left + 4, top + CELL), label, fill="black", spacing=1)
    sheet.save(path)
    return True


# Page ----------------------------------------------------------------------------------------------


def write_page(path: Path, report: Mapping[str, Any], scores: Scores, sheet: Path) -> None:
    """One HTML file without references to others: scores with plots, tables, the contact sheet, and how to repeat the run."""
    how = {
        name: value
        for name, value in report.items()
        if name not in {*scores.values, "tables", "of_images", "intervals_95", "notes", "against"}
    }
    parts = [
        f"<h1>{html.escape(str(report['suite']))}</h1>",
        f"<p>{report['prompts']} prompts, {report['images']} images, judged by {html.escape(report['judge']['name'])}.</p>",
        *(f"<p>{html.escape(note)}</p>" for note in report["notes"]),
        _plot(
            [_bar(name, value, scores.intervals.get(name)) for name, value in scores.values.items()], "score"
        ),
    ]
    for title, rows in scores.tables.items():
        column = next(iter(next(iter(rows.values()))), None) if rows else None
        if column is None:
            continue
        parts.append(f"<h2>by {html.escape(title)}</h2>")
        parts.append(
            _plot([_bar(name, row.get(column, math.nan), None) for name, row in rows.items()], column)
        )
        parts.append(_html_table(title, rows))
    if "against" in report:
        parts.append(f"<h2>against another run</h2><pre>{_json(report['against'])}</pre>")
    if sheet.exists():
        parts.append(f"<h2>best and worst images</h2>{_picture(sheet)}")
    parts.append(f"<h2>how it was measured</h2><pre>{_json(how)}</pre>")
    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}td,th{padding:.2em .8em;text-align:right}"
    path.write_text(
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(str(report['suite']))}</title><style>{style}"
        f"th:first-child,td:first-child{{text-align:left}}img{{max-width:100%}}</style>{''.join(parts)}\n",
        encoding="utf-8",
    )


def _bar(name: str, value: float, bounds: tuple[float, float] | None) -> Bar:
    low, high = bounds or (value, value)
    return Bar(name=name, middle=value, low=low, high=high)


def _plot(bars: Sequence[Bar], axis: str) -> str:
    bars = [bar for bar in bars if math.isfinite(bar.middle)]
    if not bars:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        draw_bars(bars, axis, path)
        return _picture(path)


def _picture(path: Path) -> str:
    return f"<p><img alt='' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'></p>"


def _html_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (title, *columns))
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{_number(row.get(column))}</td>" for column in columns)
        + "</tr>"
        for name, row in rows.items()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _json(value: object) -> str:
    return html.escape(json.dumps(value, indent=1, ensure_ascii=False))
