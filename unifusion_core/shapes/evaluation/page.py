"""The page of results, generated from the reports of suites: `unifusion shapes results`.

RESULTS.md has one table per suite, small counterparts of the paper's figures, and a verdict for each claim. A claim is a pair of
rows, the one that the paper finds better first; what a run contradicts is reported as it is. The headline numbers of the
repository's README come from here, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError
from ...evaluation.plots import Bar, Point, draw_bars, draw_curves, draw_shares
from .designs import PROPERTIES_INTERVAL, PROPERTIES_RIGHT
from .fusion import BIAS, BIAS_INTERVAL, NAMES
from .kept_marks import KEPT, OF_ANOTHER, WITHOUT

Rows = Sequence[Mapping[str, Any]]
Report = Mapping[str, Any]

RESULTS = Path(__file__).parents[1] / "results"
PAGE = "RESULTS.md"
RATES = ("exact", "readable", "count", "background", "shape", "color", "size", "position", "relations")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot: which rows of a suite, which of their numbers, and what the paper says about them.

    rows     by name, in this order; all of the suite if none is named
    value    the name of a rate, shown in per cent, or of a value
    spread   the value that is half of the interval's width; rates have their own
    claims   (better, worse) by the names of rows
    paired   whether `worse` has its difference from `better`, with an interval: more precise than two intervals
    kind     bars; curves over the value `along`, for rows "NAME, N samples"; shares, for rows whose name begins with `along`
    """

    title: str
    suite: str
    says: str
    rows: tuple[str, ...] = ()
    value: str = "exact"
    spread: str = ""
    claims: tuple[tuple[str, str], ...] = ()
    paired: bool = False
    kind: Literal["bars", "curves", "shares"] = "bars"
    along: str = ""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One number of the README: a row of a suite, and the exact rate or a value of it."""

    says: str
    suite: str
    row: str
    value: str = "exact"
    unit: str = ""


HEADLINES = (
    Headline(
        says="Text to image, pairs of colour and shape that were never trained, rewritten",
        suite="text-to-image",
        row="held-out pairs, rewritten",
    ),
    Headline(
        says="The same prompts as they are",
        suite="text-to-image",
        row="held-out pairs, prompt as it is",
    ),
    Headline(says="Indirect prompts with VERIFI", suite="verifi", row="indirect prompts, VERIFI on"),
    Headline(says="Indirect prompts without", suite="verifi", row="indirect prompts, VERIFI off"),
    Headline(says="Edits of one image", suite="edits", row="edits"),
    Headline(
        says="What an edit leaves alone",
        suite="edits",
        row="edits",
        value="PSNR outside dB",
        unit=" dB",
    ),
)
"""The numbers of the repository's README, in its order."""

# designs that the paper compares LAP with, and LAP without its refiner
OTHERS = ("last-layer", "key-value", "injection", "without-refiner")
FIGURES = (
    Figure(
        title="Ways to condition, on a real language model",
        suite="fusion",
        says="Pooling many layers per token (LAP) follows the prompt better than the last layer, than key-value fusion and than "
        "hidden-state injection (paper, table of fusion designs: 0.685 against 0.658, 0.629 and 0.646 on Llama 3.1 8B). Here the "
        "frozen encoder is SmolLM2-135M-Instruct, which never saw the world of shapes. All designs have the same captions, "
        "order, noise, steps and number of trained parameters; their DiT goes on from the shipped one, whose blocks are used to "
        "condition tokens of one vector each. Counted is the share of right properties on pairs that were never trained. "
        "Intervals are over repetitions and images; designs with one repetition (column *repetitions*) have those of images "
        "alone, and repetitions of LAP differ by four points. The DiT from scratch saw 2,940 captions, the others 1,920.",
        value=PROPERTIES_RIGHT,
        spread=PROPERTIES_INTERVAL,
        claims=tuple((NAMES["lap"], NAMES[other]) for other in OTHERS),
        paired=True,
    ),
    Figure(
        title="Position bias",
        suite="fusion",
        says="Causal attention favours early tokens, and the refiner undoes it (paper, section on the refiner). Three objects "
        "are asked for with all their properties: how many points more of them are right for the first than for the third.",
        rows=tuple(NAMES[design] for design in ("lap", "causal-refiner", "without-refiner")),
        value=BIAS,
        spread=BIAS_INTERVAL,
        claims=((NAMES["without-refiner"], NAMES["lap"]),),
    ),
    Figure(
        title="Learning curves",
        suite="fusion-curve",
        says="A new encoder before a DiT that was trained on another takes about a tenth of the samples of a training from "
        "scratch (report of the paper's followers). A new LAP before the shipped DiT reaches 85 % after 1,920 samples; with a "
        "new DiT as well it has 59 % after four times as many, so the tenth is neither contradicted nor measured to its end. "
        "The other designs go on from the shipped DiT. Bands are the repetitions.",
        value=PROPERTIES_RIGHT,
        kind="curves",
        along="samples",
    ),
    Figure(
        title="Layers that LAP attends to, by kind of word",
        suite="fusion-layers",
        says="Different tokens use different layers, and the last ones least (paper, figure of query-key norms): the attention "
        "that each layer of SmolLM2 receives inside LAP.",
        kind="shares",
        along="attention received: ",
    ),
    Figure(
        title="Rewriting by a small language model",
        suite="fusion-rewriting",
        says="A language model of 135 million parameters rewrites the prompts, with two examples in the style text. Where the "
        "rewrite fails, the prompt itself is used.",
        value=PROPERTIES_RIGHT,
        spread=PROPERTIES_INTERVAL,
        claims=tuple(
            (f"{kind} prompts rewritten", f"{kind} prompts as they are") for kind in ("full", "indirect")
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
        says="Pictures do not depend strongly on the first and the last of the layers (paper, study of layer dropout). Gains "
        "act on LAP's projector alone, and its blocks still see every layer: a picture that survives without a layer does not "
        "show that the layer is unused. The rows with the states of another caption do.",
    ),
    Figure(
        title="Tiles and marks",
        suite="kept-marks",
        says="What a thumbnail does not hold, tiles do (paper, section on images). Objects carry small discs that no wording "
        "mentions; counted is how many of them a reconstruction has at their place.",
        rows=tuple(f"reconstruction, {tiles} tiles" for tiles in (1, 5, 10)),
        value=KEPT,
        claims=(
            ("reconstruction, 5 tiles", "reconstruction, 1 tiles"),
            ("reconstruction, 10 tiles", "reconstruction, 5 tiles"),
        ),
    ),
    Figure(
        title="What image tokens carry into edits and references",
        suite="kept-marks",
        says="Features of the VLM alone carry an input picture (paper). The words of an edit name everything but marks, so what "
        "an edit keeps of them comes from the image tokens: its own, those of another image, or none. The generator was never "
        "trained on references to two images.",
        rows=tuple(
            title + tokens for title in ("edits", "two references") for tokens in ("", OF_ANOTHER, WITHOUT)
        ),
        value=KEPT,
        claims=tuple(
            (title, title + tokens)
            for title in ("edits", "two references")
            for tokens in (OF_ANOTHER, WITHOUT)
        ),
    ),
)


def read_reports(folder: Path) -> dict[str, Report]:
    """By suite: the report of a folder that has it, under the name of the suite. Raises ConfigError for a folder without reports,
    for a file that is none, or for one that lacks what a figure shows."""
    reports: dict[str, Report] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read ({error}): give what --out wrote") from error
        if (
            not isinstance(report, dict)
            or not isinstance(report.get("suites"), dict)
            or "samples" not in report
        ):
            raise ConfigError(f"{file} is no report: give what --out wrote")
        for name, rows in report["suites"].items():
            if name in reports:
                raise ConfigError(
                    f"{file} has the suite {name}, and so has another report of {folder}: keep one"
                )
            for figure in FIGURES:
                if figure.suite == name:
                    _read(figure, rows)
            reports[name] = report
    if not reports:
        raise ConfigError(
            f"there is no report in {folder}: make one, such as unifusion shapes evaluate --suite swap --out "
            f"{folder}/swap.json"
        )
    return reports


def write_results(folder: Path) -> Path:
    """Writes RESULTS.md and its plots (PNG) into a folder of reports; returns the page. Raises ConfigError as `read_reports`."""
    reports = read_reports(folder)
    for figure in FIGURES:
        if figure.suite in reports:
            _draw(figure, reports[figure.suite]["suites"][figure.suite], folder / _plot(figure))
    page = folder / PAGE
    page.write_text(results_page(reports), encoding="utf-8")
    return page


def results_page(reports: Mapping[str, Report]) -> str:
    """The page's text."""
    text = [
        "# Results of the embedded model",
        "",
        "Generated by `unifusion shapes results` from the reports (`*.json`) in this folder. Rates are per cent with Wilson's "
        "95 % interval. *Exact* = everything that the prompt fixes is right, and nothing else is in the picture.",
        "",
        "What was trained on what. The generator saw text, and edits and reconstructions of one image; it never saw two images. "
        "The VLM saw every pair, and was trained on instructions about two and three images. So the rows about references "
        "measure a generator that was never trained on them, behind a VLM that was. The VLM's rewrite carries most of what "
        "*exact* counts; only the unnamed traits (place, size, shade beside what is named) need image tokens. Held-out pairs of "
        "colour and shape were in no training of autoencoder and generator.",
        "",
        "Encoders. The suites fusion, fusion-curve, fusion-layers and fusion-rewriting use a real language model, "
        "SmolLM2-135M-Instruct, which never saw the world of shapes, as the paper's comparison used Llama 3.1 8B. All others use "
        "the embedded VLM, which was trained on this world: its states hold the answer in every layer.",
        "",
        "## Headlines",
        "",
        *headline_table(reports),
    ]
    for suite, report in reports.items():
        rows = report["suites"][suite]
        text += ["", f"## {suite}", "", f"{_conditions(report)} Command: `{command(suite, report)}`", ""]
        text += _table(rows)
        for figure in FIGURES:
            if figure.suite == suite:
                text += [
                    "",
                    f"### {figure.title}",
                    "",
                    figure.says,
                    "",
                    f"![{figure.title}]({_plot(figure)})",
                    "",
                ]
                text += [f"- {sentence}" for sentence in verdicts(figure, rows)]
    return "\n".join(text).rstrip() + "\n"


def headline_table(reports: Mapping[str, Report]) -> list[str]:
    """The README's table of numbers, line by line; a suite without a report is left out."""
    lines = ["| Measured on the embedded model | Result | Command |", "|---|---|---|"]
    for headline in HEADLINES:
        if headline.suite not in reports:
            continue
        report = reports[headline.suite]
        found = [row for row in report["suites"][headline.suite] if row["name"] == headline.row]
        if not found:
            raise ConfigError(
                f'the report of the suite {headline.suite} lacks the row "{headline.row}": run the suite again'
            )
        shown = (
            _rate(found[0]["rates"]["exact"])
            if headline.value == "exact"
            else f"{found[0]['values'][headline.value]:.1f}{headline.unit}"
        )
        lines.append(f"| {headline.says} | {shown} | `{command(headline.suite, report)}` |")
    return lines


def command(suite: str, report: Report) -> str:
    """The command that measured a suite."""
    group = "evaluate" if suite in ("speed", "vlm-speed") else "shapes evaluate"
    return f"unifusion {group} --suite {suite} --samples {report['samples']}"


def _conditions(report: Report) -> str:
    """When and by what a suite was measured."""
    known = {name: report.get(name, "unknown") for name in ("date", "torch", "threads")}
    return f"Measured on {known['date'][:10]} with torch {known['torch']}, {known['threads']} thread(s)."


def _table(rows: Rows) -> list[str]:
    """All rows of a suite: rates, then values."""
    # those that many suites have come first
    named = dict.fromkeys((*RATES, *(name for row in rows for name in row["rates"])))
    rates = [name for name in named if any(name in row["rates"] for row in rows)]
    values = list(dict.fromkeys(name for row in rows for name in row["values"]))
    lines = [f"| | {' | '.join([*rates, *values])} |", "|---" * (1 + len(rates) + len(values)) + "|"]
    for row in rows:
        cells = [
            _rate(row["rates"][name], short=name in RATES[1:]) if name in row["rates"] else ""
            for name in rates
        ]
        cells += ["" if row["values"].get(name) is None else f"{row['values'][name]:.2f}" for name in values]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def _rate(rate: Mapping[str, Any], *, short: bool = False) -> str:
    """For example "91 % (88-93) of 500"; short: "91"."""
    if short:
        return f"{100 * rate['share']:.0f}"
    low, high = rate["interval_95"]
    return f"{100 * rate['share']:.0f} % ({100 * low:.0f}-{100 * high:.0f}) of {rate['total']}"


def _plot(figure: Figure) -> str:
    """The file of a figure's plot."""
    return f"{FIGURES.index(figure) + 1}-{figure.suite}.png"


def read_bars(figure: Figure, rows: Rows) -> list[Bar]:
    """The figure's numbers out of a suite's rows. Raises ConfigError for a row or a number that is not there."""
    claimed = (name for claim in figure.claims for name in claim)
    with _named(figure):
        by_name = {row["name"]: row for row in rows}
        names = dict.fromkeys((*(figure.rows or by_name), *claimed))  # each once
        return [_bar(figure, by_name[name]) for name in names]


@contextmanager
def _named(figure: Figure) -> Iterator[None]:
    """Says which suite's report lacks what the figure shows."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f'the report of the suite {figure.suite} lacks {error}, which "{figure.title}" shows: run the suite again '
            f"(unifusion shapes evaluate --suite {figure.suite})"
        ) from error


def _bar(figure: Figure, row: Mapping[str, Any]) -> Bar:
    if rate := row["rates"].get(figure.value):
        low, high = rate["interval_95"]
        return Bar(name=row["name"], middle=100 * rate["share"], low=100 * low, high=100 * high)
    middle, reach = row["values"][figure.value], row["values"][figure.spread]
    if middle is None:
        raise KeyError(figure.value)
    reach = math.inf if reach is None else reach  # JSON has no infinity
    return Bar(name=row["name"], middle=middle, low=middle - reach, high=middle + reach)


def read_curves(figure: Figure, rows: Rows) -> dict[str, list[Point]]:
    """By name: the points of a figure of curves. Raises ConfigError as `read_bars`."""
    curves: dict[str, list[Point]] = {}
    with _named(figure):
        for row in rows:
            values = row["values"]
            point = Point(
                x=values[figure.along],
                middle=values[figure.value],
                low=values["lowest"],
                high=values["highest"],
            )
            curves.setdefault(row["name"].rpartition(",")[0], []).append(point)
        if not curves:
            raise KeyError(figure.along)
    return curves


def read_shares(figure: Figure, rows: Rows) -> dict[str, dict[str, float]]:
    """By name and part: the shares of a figure of shares. Raises ConfigError as `read_bars`."""
    with _named(figure):
        found = {
            row["name"].removeprefix(figure.along): {
                part: value for part, value in row["values"].items() if part != "words"
            }
            for row in rows
            if row["name"].startswith(figure.along)
        }
        if not found:
            raise KeyError(figure.along)
    return found


def _read(figure: Figure, rows: Rows) -> None:
    {"bars": read_bars, "curves": read_curves, "shares": read_shares}[figure.kind](figure, rows)


def _draw(figure: Figure, rows: Rows, path: Path) -> None:
    if figure.kind == "curves":
        draw_curves(read_curves(figure, rows), (figure.along, figure.value), path)
    elif figure.kind == "shares":
        draw_shares(read_shares(figure, rows), path)
    else:
        draw_bars(read_bars(figure, rows), figure.value if figure.spread else f"{figure.value}, %", path)


def verdicts(figure: Figure, rows: Rows) -> list[str]:
    """One sentence for each claim of the figure."""
    if not figure.claims:
        return []
    by_name = {bar.name: bar for bar in read_bars(figure, rows)}
    differences = {row["name"]: row["values"] for row in rows} if figure.paired else {}
    sentences = []
    for better, worse in figure.claims:
        one, other = by_name[better], by_name[worse]
        if figure.paired:
            # the worse row holds its own difference from the better one
            low, high = (differences[worse][end] for end in ("from", "to"))
            verdict = "shown" if high < 0 else "contradicted" if low > 0 else "not shown: within the interval"
            verdict = f"difference {-high:.1f} to {-low:.1f} points, **{verdict}**"
        else:
            verdict = (
                "**shown**"
                if one.low > other.high
                else "**contradicted**"
                if one.middle < other.middle
                else "**not shown: within the intervals**"
            )
        sentences.append(
            f"*{better}* above *{worse}*: {one.middle:.1f} against {other.middle:.1f}, {verdict}"
        )
    return sentences
