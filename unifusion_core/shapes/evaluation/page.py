"""The proof page: small counterparts of the paper's figures, with plots and verdicts, out of reports of `unifusion evaluate`.

A claim is a pair of rows, the one that the paper finds better first. What a run failed to show stands there as it is.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .designs import PROPERTIES_INTERVAL, PROPERTIES_RIGHT

Rows = Sequence[Mapping[str, Any]]
PAGE_SUITES = ("designs", "verifi", "edits", "edit-training", "layers")
PIXELS_PER_INCH = 110


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot: which rows of a suite, which of their numbers, and what the paper says about them."""

    title: str
    suite: str
    says: str
    rows: tuple[str, ...] = ()  # by name, in this order; all of the suite if none is named
    value: str = "exact"  # the exact rate in per cent, or the name of a value
    spread: str = ""  # the value that is half of the interval's width
    claims: tuple[tuple[str, str], ...] = ()  # (better, worse)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A number with its 95 % interval, whose ends are infinite where one sample told nothing of the spread."""

    name: str
    middle: float
    low: float
    high: float


FIGURES = (
    Figure(
        title="Ways to condition",
        suite="designs",
        says="Pooling many layers per token (LAP) follows the prompt better than the last layer, than key-value fusion and than "
        "hidden-state injection (paper, table of fusion designs). Every design was trained on about 20 thousand samples, too few "
        "for exact pictures: counted is which share of a picture's named properties is right. One run each, and intervals are "
        "over pictures: a design trained again may differ by several points (training/LOG.md).",
        value=PROPERTIES_RIGHT,
        spread=PROPERTIES_INTERVAL,
        claims=(
            ("LAP over five layers, prefix", "last layer alone, prefix"),
            ("LAP over five layers, prefix", "key-value fusion, prefix"),
            ("LAP over five layers, prefix", "hidden-state injection, prefix"),
        ),
    ),
    Figure(
        title="VERIFI on and off",
        suite="verifi",
        says="Rewriting inside the VLM, and reading its states while it writes, follows roundabout prompts that a raw prompt "
        "does not.",
        rows=(
            "indirect prompts, VERIFI on",
            "indirect prompts, VERIFI off",
            "full prompts, VERIFI on",
            "full prompts, VERIFI off",
        ),
        claims=(("indirect prompts, VERIFI on", "indirect prompts, VERIFI off"),),
    ),
    Figure(
        title="Tiles and detail",
        suite="edits",
        says="More tiles carry more detail of an input picture: its reconstruction comes nearer.",
        rows=tuple(f"reconstruction, {tiles} tiles" for tiles in (1, 5, 10)),
        value="PSNR dB",
        spread="PSNR interval dB",
        claims=(
            ("reconstruction, 5 tiles", "reconstruction, 1 tiles"),
            ("reconstruction, 10 tiles", "reconstruction, 5 tiles"),
        ),
    ),
    Figure(
        title="Edits, and references that were never trained",
        suite="edits",
        says="A generator trained on single pictures alone draws what instructions about two and three pictures ask for.",
        rows=("edits", "two references", "three references"),
    ),
    Figure(
        title="Edit training and text to image",
        suite="edit-training",
        says="Training on edits makes text to image better (paper, capability transfer; there edits come after text, here beside "
        "it). Two generators of equal budgets, about 20 thousand samples each; counted is which share of a picture's named "
        "properties is right.",
        value=PROPERTIES_RIGHT,
        spread=PROPERTIES_INTERVAL,
        claims=(("trained on text, edits and reconstructions", "trained on text alone"),),
    ),
    Figure(
        title="Layer dropout",
        suite="layers",
        says="Pictures do not depend strongly on the first and the last of the layers; without the middle ones the prompt "
        "is lost.",
    ),
)


def check_page(page: Path, suites: Iterable[str]) -> None:
    """Raises ConfigError if `page` is no Markdown file, or if none of these suites has a place on it: better before they run than
    after."""
    if page.suffix.lower() != ".md":
        raise ConfigError(f'the page is "{page}": it is written as Markdown, choose a name that ends in .md')
    if not set(PAGE_SUITES) & set(suites):
        raise ConfigError(
            f"the page shows the suites {', '.join(PAGE_SUITES)}: add some of them to --suite, or a report of them to --report"
        )


def read_reports(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Reports that `unifusion evaluate --out` wrote. Raises ConfigError for a file that is none, or that lacks what the page
    shows."""
    reports = []
    for file in files:
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read ({error}): give what --out wrote") from error
        whole = isinstance(report, dict) and {"suites", "samples"} <= set(report)
        if not whole or not isinstance(report["suites"], dict):
            raise ConfigError(f"{file} is no report: give what --out wrote")
        for figure in FIGURES:
            if figure.suite in report["suites"]:
                read_bars(figure, report["suites"][figure.suite])
        reports.append(report)
    return reports


def write_page(reports: Sequence[Mapping[str, Any]], page: Path) -> None:
    """Write `page` (Markdown) and its plots (PNG, in a folder named after it) out of reports; a figure whose suite is in none of
    them is named as not measured. Raises ConfigError if that is true of all, or if a suite lacks what its figure shows."""
    measured = {
        name: (rows, report["samples"]) for report in reports for name, rows in report["suites"].items()
    }
    check_page(page, measured)
    folder = page.with_name(page.stem.lower())
    folder.mkdir(parents=True, exist_ok=True)
    text = [
        "# What the small model shows of the paper's claims",
        "",
        "Made by `unifusion evaluate --page`. Bars are 95 % intervals. A claim is *shown* if the intervals do not touch, "
        "*not shown* otherwise.",
    ]
    for number, figure in enumerate(FIGURES, start=1):
        text += ["", f"## {figure.title}", ""]
        if figure.suite not in measured:
            text += [f"{figure.says} Not measured yet: `unifusion evaluate --suite {figure.suite}`."]
            continue
        rows, samples = measured[figure.suite]
        bars = read_bars(figure, rows)
        plot = folder / f"{number}-{figure.suite}.png"
        draw_bars(bars, "exact, %" if figure.value == "exact" else figure.value, plot)
        command = f"`unifusion evaluate --suite {figure.suite} --samples {samples}`"
        text += [f"{figure.says} ({command})", ""]
        text += [f"![{figure.title}]({os.path.relpath(plot, page.parent)})", ""]
        text += [f"- {sentence}" for sentence in verdicts(figure, bars)]
    page.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def read_bars(figure: Figure, rows: Rows) -> list[Bar]:
    """The figure's numbers out of a suite's rows. Raises ConfigError for a row or a number that is not there."""
    claimed = (name for claim in figure.claims for name in claim)
    try:
        by_name = {row["name"]: row for row in rows}
        names = dict.fromkeys((*(figure.rows or by_name), *claimed))  # each once
        return [_bar(figure, by_name[name]) for name in names]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f'the report of the suite {figure.suite} lacks {error}, which "{figure.title}" shows: run the suite again '
            f"(unifusion evaluate --suite {figure.suite})"
        ) from error


def _bar(figure: Figure, row: Mapping[str, Any]) -> Bar:
    if figure.value == "exact":
        rate = row["rates"]["exact"]
        low, high = rate["interval_95"]
        return Bar(name=row["name"], middle=100 * rate["share"], low=100 * low, high=100 * high)
    middle, reach = row["values"][figure.value], row["values"][figure.spread]
    if middle is None:
        raise KeyError(figure.value)
    reach = math.inf if reach is None else reach  # JSON has no infinity
    return Bar(name=row["name"], middle=middle, low=middle - reach, high=middle + reach)


def verdicts(figure: Figure, bars: Sequence[Bar]) -> list[str]:
    """One sentence for each claim of the figure."""
    by_name = {bar.name: bar for bar in bars}
    sentences = []
    for better, worse in figure.claims:
        one, other = by_name[better], by_name[worse]
        verdict = (
            "shown"
            if one.low > other.high
            else "not shown: the other way round"
            if one.middle < other.middle
            else "not shown: within the intervals"
        )
        sentences.append(
            f"*{better}* above *{worse}*: {one.middle:.1f} against {other.middle:.1f}, **{verdict}**"
        )
    return sentences


def draw_bars(bars: Sequence[Bar], axis: str, path: Path) -> None:
    """Horizontal bars with their intervals; those without an end go beyond the plot."""
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  (only the page needs it)

    canvas = Canvas(figsize=(7, 0.8 + 0.38 * len(bars)), dpi=PIXELS_PER_INCH, layout="constrained")
    plot = canvas.add_subplot()
    places = range(len(bars), 0, -1)
    ends = [end for bar in bars for end in (bar.middle, bar.low, bar.high) if math.isfinite(end)]
    left, right = 1.05 * min([0.0, *ends]), 1.05 * max([1e-3, *ends])
    beyond = 2 * (right - left)  # an infinite line would not be drawn at all
    reach = [
        [min(bar.middle - bar.low, beyond) for bar in bars],
        [min(bar.high - bar.middle, beyond) for bar in bars],
    ]
    plot.barh(places, [bar.middle for bar in bars], xerr=reach, color="#7a9cc6", ecolor="#333333", capsize=3)
    plot.set_yticks(list(places), [bar.name for bar in bars])
    plot.set_xlim(left, right)
    plot.set_xlabel(axis)
    plot.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path)
