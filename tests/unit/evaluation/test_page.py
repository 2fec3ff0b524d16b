"""The proof page says what its numbers say: pytest tests/unit/evaluation/test_page.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unifusion_core.command_line import main
from unifusion_core.errors import ConfigError
from unifusion_core.evaluation.page import FIGURES, PAGE_SUITES, check_page, read_reports, write_page
from unifusion_core.evaluation.report import as_report, write_report
from unifusion_core.evaluation.suite import Row
from unifusion_core.evaluation.tally import Rate


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


def test_a_page_without_any_of_its_suites_is_refused_before_they_run() -> None:
    check_page(["verifi", "speed"])
    with pytest.raises(ConfigError, match="shows the suites designs, verifi, edits, layers: add some"):
        check_page(["speed"])


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
