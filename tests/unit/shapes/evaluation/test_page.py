"""The proof page says what its numbers say: pytest tests/unit/evaluation/test_page.py"""

from __future__ import annotations

import math
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
    PAGE_SUITES,
    check_page,
    draw_bars,
    read_bars,
    read_reports,
    verdicts,
    write_page,
)


def report(right: dict[str, int] | None = None) -> dict[str, Any]:
    """Every row of the page with 50 right of 100, but for those given."""
    given = right or {}
    suites: dict[str, list[Row]] = {name: [] for name in PAGE_SUITES}
    for figure in FIGURES:
        names = (
            figure.rows or tuple({name: None for claim in figure.claims for name in claim}) or ("all layers",)
        )
        for name in names:
            values = {figure.value: float(given.get(name, 20)), figure.spread: 1.0} if figure.spread else {}
            rates = {"exact": Rate(given.get(name, 50), 100)}
            suites[figure.suite].append(Row(name=name, rates=rates, values=values))
    return as_report({"samples": 100}, suites)


def test_a_claim_is_shown_only_beyond_the_intervals(tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    write_page(
        [
            report(
                {
                    "LAP over five layers, prefix": 60,
                    "last layer alone, prefix": 20,
                    "key-value fusion, prefix": 59,
                    "hidden-state injection, prefix": 90,
                    "reconstruction, 5 tiles": 30,
                }
            )
        ],
        page,
    )
    lines = [line for line in page.read_text().splitlines() if line.startswith("- *")]
    assert "60.0 against 20.0, **shown**" in lines[0]
    assert "60.0 against 59.0, **not shown: within the intervals**" in lines[1]
    assert "60.0 against 90.0, **not shown: the other way round**" in lines[2]
    assert "30.0 against 20.0, **shown**" in lines[4]
    assert "20.0 against 30.0, **not shown: the other way round**" in lines[5]


def test_every_plot_of_the_page_is_a_picture_beside_it(tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    write_page([report()], page)
    plots = [
        line.partition("](")[2].rstrip(")") for line in page.read_text().splitlines() if line.startswith("![")
    ]
    assert len(plots) == len(FIGURES)
    for plot in plots:
        with Image.open(tmp_path / plot) as image:
            assert min(image.size) > 50


def test_a_page_that_cannot_be_made_is_refused_before_suites_run() -> None:
    check_page(Path("PAGE.md"), ["verifi", "speed"])
    with pytest.raises(
        ConfigError, match="shows the suites designs, verifi, edits, edit-training, layers: add some"
    ):
        check_page(Path("PAGE.md"), ["speed"])
    with pytest.raises(ConfigError, match=r'the page is "proof": .* choose a name that ends in \.md'):
        check_page(Path("proof"), ["verifi"])


def test_one_sample_has_no_end_of_its_interval_and_shows_nothing(tmp_path: Path) -> None:
    given = report({"reconstruction, 5 tiles": 30})
    for row in given["suites"]["edits"]:
        if "PSNR interval dB" in row["values"]:
            row["values"]["PSNR interval dB"] = None  # as infinity is written
    (figure,) = (figure for figure in FIGURES if figure.value == "PSNR dB")
    bars = read_bars(figure, given["suites"]["edits"])
    assert {(bar.low, bar.high) for bar in bars} == {(-math.inf, math.inf)}
    assert "30.0 against 20.0, **not shown: within the intervals**" in verdicts(figure, bars)[0]
    draw_bars(bars, figure.value, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    lines = (pixels < 100).sum(1)  # of the intervals: all across the plot
    assert (lines > pixels.shape[1] / 2).sum() >= len(bars)


@pytest.mark.parametrize(
    ("suite", "damage"),
    [
        ("verifi", lambda rows: rows.pop()),
        ("designs", lambda rows: rows.pop(1)),
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
        read_reports([tmp_path / "a.json"])
    with pytest.raises(ConfigError, match=f"the report of the suite {suite} lacks .*: run the suite again"):
        write_page([given], tmp_path / "PAGE.md")


def test_a_page_is_made_of_several_reports(tmp_path: Path) -> None:
    whole = report()
    parts = []
    for number, name in enumerate(PAGE_SUITES):
        file = tmp_path / f"{name}.json"
        write_report(file, whole | {"samples": 10 + number, "suites": {name: whole["suites"][name]}})
        parts.append(file)
    page = tmp_path / "PAGE.md"
    assert main(["evaluate", "--report", *map(str, parts), "--page", str(page)]) == 0
    assert f"--suite {PAGE_SUITES[2]} --samples 12" in page.read_text()
    assert "Not measured" not in page.read_text()
    write_page(read_reports(parts[:3]), page)
    assert page.read_text().count("Not measured yet: `unifusion evaluate --suite layers`") == 1
    parts[0].write_text('{"suites": []}')
    with pytest.raises(ConfigError, match="is no report: give what --out wrote"):
        read_reports(parts)
