"""The page of results says what its reports say: pytest tests/unit/shapes/evaluation/test_page.py"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unifusion_core.cli.main import main
from unifusion_core.errors import ConfigError
from unifusion_core.evaluation.rates import Rate
from unifusion_core.evaluation.report import as_report, write_report
from unifusion_core.evaluation.subject import Row
from unifusion_core.shapes.evaluation.page import (
    FIGURES,
    HEADLINES,
    PAGE,
    RESULTS,
    draw_bars,
    headline_table,
    read_bars,
    read_reports,
    results_page,
    verdicts,
    write_results,
)

SUITES = tuple(dict.fromkeys(figure.suite for figure in FIGURES))


def report(right: dict[str, int] | None = None) -> dict[str, Any]:
    """Every row of every figure with 50 right of 100, but for those given."""
    given = right or {}
    suites: dict[str, list[Row]] = {name: [] for name in SUITES}
    for figure in FIGURES:
        if figure.kind == "curves":
            values = {figure.along: 480.0, figure.value: 50.0, "lowest": 45.0, "highest": 55.0}
            suites[figure.suite].append(Row(name=f"LAP, 480 {figure.along}", values=values))
            continue
        if figure.kind == "shares":
            suites[figure.suite].append(
                Row(name=f"{figure.along}colour", values={"words": 9, "layer 2": 0.7, "layer 5": 0.3})
            )
            continue
        names = (
            figure.rows or tuple({name: None for claim in figure.claims for name in claim}) or ("all layers",)
        )
        present = {row.name: row for row in suites[figure.suite]}
        for name in names:
            values = {figure.value: float(given.get(name, 20)), figure.spread: 1.0} if figure.spread else {}
            if figure.paired:
                values |= {"from": values[figure.value] - 21.0, "to": values[figure.value] - 19.0}
            for headline in HEADLINES:
                if headline.suite == figure.suite and headline.row == name and headline.value != "exact":
                    values[headline.value] = 30.4
            rates = {"exact": Rate(given.get(name, 50), 100)}
            if not figure.spread:
                rates[figure.value] = rates["exact"]
            if name in present:
                # a row that two figures show
                present[name].values.update(values)
            else:
                suites[figure.suite].append(Row(name=name, rates=rates, values=values))
    for figure in FIGURES:
        for row in suites[figure.suite] if figure.spread and not figure.rows else ():
            # shown by a figure of all rows
            row.values.setdefault(figure.value, 20.0)
            row.values.setdefault(figure.spread, 1.0)
    return as_report({"samples": 100}, suites)


def page_of(folder: Path, given: dict[str, Any]) -> str:
    write_report(folder / "a.json", given)
    return write_results(folder).read_text()


def test_a_claim_is_shown_only_beyond_the_intervals(tmp_path: Path) -> None:
    given = report(
        {
            "last layer": 10,
            "key-value fusion": 20,
            "hidden-state injection": 40,
            "reconstruction, 5 tiles": 30,
        }
    )
    lines = [line for line in page_of(tmp_path, given).splitlines() if line.startswith("- *")]
    # by the paired difference from LAP, which has 20
    (last, value, injection, _) = (
        line for line in lines if line.startswith("- *LAP over every third layer* above")
    )
    assert "20.0 against 10.0, difference 9.0 to 11.0 points, **shown**" in last
    assert "20.0 against 20.0, difference -1.0 to 1.0 points, **not shown: within the interval**" in value
    assert "20.0 against 40.0, difference -21.0 to -19.0 points, **contradicted**" in injection
    # the suite edits comes before kept-marks
    first, second, *_ = (line for line in lines if line.startswith("- *reconstruction"))
    assert "30.0 against 20.0, **shown**" in first
    assert "20.0 against 30.0, **contradicted**" in second


def test_a_claim_about_another_rate_than_exact_is_judged_by_it(tmp_path: Path) -> None:
    text = page_of(tmp_path, report({"edits": 60, "edits, without image tokens": 2}))
    assert "*edits* above *edits, without image tokens*: 60.0 against 2.0, **shown**" in text
    assert (
        "*reconstruction, 10 tiles* above *reconstruction, 5 tiles*: 50.0 against 50.0, **not shown" in text
    )
    (head,) = (line for line in text.splitlines() if line.startswith("| |") and "mark within 2 px" in line)
    assert head.startswith("| | exact | mark within 2 px |")
    # both with their intervals
    assert "| edits | 60 % (50-69) of 100 | 60 % (50-69) of 100 |" in text


def test_every_plot_of_the_page_is_a_picture_beside_it(tmp_path: Path) -> None:
    text = page_of(tmp_path, report())
    plots = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(plots) == len(FIGURES)
    for plot in plots:
        with Image.open(tmp_path / plot) as image:
            assert min(image.size) > 50


def test_a_folder_without_reports_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no report in .*: make one, such as unifusion shapes"):
        write_results(tmp_path)


def test_a_suite_in_two_reports_is_refused(tmp_path: Path) -> None:
    write_report(tmp_path / "a.json", report())
    write_report(tmp_path / "b.json", report())
    with pytest.raises(ConfigError, match=r"b\.json has the suite fusion, and so has another .*: keep one"):
        read_reports(tmp_path)


def test_one_sample_has_no_end_of_its_interval_and_shows_nothing(tmp_path: Path) -> None:
    given = report({"reconstruction, 5 tiles": 30})
    for row in given["suites"]["edits"]:
        if "PSNR interval dB" in row["values"]:
            # as infinity is written
            row["values"]["PSNR interval dB"] = None
    (figure,) = (figure for figure in FIGURES if figure.value == "PSNR dB")
    bars = read_bars(figure, given["suites"]["edits"])
    assert {(bar.low, bar.high) for bar in bars} == {(-math.inf, math.inf)}
    assert (
        "30.0 against 20.0, **not shown: within the intervals**"
        in verdicts(figure, given["suites"]["edits"])[0]
    )
    draw_bars(bars, figure.value, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    # of the intervals: all across the plot
    lines = (pixels < 100).sum(1)
    assert (lines > pixels.shape[1] / 2).sum() >= len(bars)


@pytest.mark.parametrize(
    ("suite", "damage"),
    [
        ("verifi", lambda rows: rows.pop()),
        ("fusion", lambda rows: rows.pop(1)),
        ("fusion-curve", lambda rows: rows.clear()),
        ("fusion-layers", lambda rows: rows.clear()),
        ("layers", lambda rows: rows[0]["rates"].clear()),
        ("edits", lambda rows: rows[0]["values"].pop("PSNR interval dB")),
        ("edits", lambda rows: rows[0]["values"].update({"PSNR dB": None})),
    ],
)
def test_a_report_that_lacks_something_is_refused_when_it_is_read(
    tmp_path: Path, suite: str, damage: Callable[[list[Any]], object]
) -> None:
    given = report()
    damage(given["suites"][suite])
    write_report(tmp_path / "a.json", given)
    with pytest.raises(ConfigError, match=f"the report of the suite {suite} lacks .*: run the suite again"):
        read_reports(tmp_path)
    with pytest.raises(ConfigError, match=f"the report of the suite {suite} lacks .*: run the suite again"):
        write_results(tmp_path)


def test_a_page_is_made_of_several_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = report()
    for number, name in enumerate(SUITES):
        parts = whole | {"samples": 10 + number, "suites": {name: whole["suites"][name]}}
        write_report(tmp_path / f"{name}.json", parts)
    assert main(["shapes", "results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / PAGE)
    assert f"--suite {SUITES[2]} --samples 12" in (tmp_path / PAGE).read_text()
    (tmp_path / f"{SUITES[0]}.json").write_text('{"suites": []}')
    with pytest.raises(ConfigError, match="is no report: give what --out wrote"):
        read_reports(tmp_path)


def test_the_page_in_the_repository_is_what_its_reports_make() -> None:
    reports = read_reports(RESULTS)
    assert (RESULTS / PAGE).read_text(encoding="utf-8") == results_page(reports)
    assert {headline.suite for headline in HEADLINES} <= set(reports)
    assert len(headline_table(reports)) == len(HEADLINES) + 2


def test_another_number_in_a_report_is_another_number_on_the_page(tmp_path: Path) -> None:
    for file in RESULTS.glob("*.json"):
        shutil.copy(file, tmp_path)
    before = results_page(read_reports(tmp_path))
    changed = json.loads((tmp_path / "swap.json").read_text())
    changed["suites"]["swap"][0]["rates"]["exact"]["share"] = 0.01
    (tmp_path / "swap.json").write_text(json.dumps(changed))
    assert results_page(read_reports(tmp_path)) != before
