"""Help pages in other languages say all that the English ones say:

pytest tests/contract/test_help_translated.py [--write-locales]

The sources are the English page and locales/help_pages.json: English paragraph, cell or point -> its translation by language.
What is there in locales/translations.json is not repeated. A sentence that changes in English is missing until it is translated
again. ComfyUI reads nodes/web/docs/NODE/LANGUAGE.md, which --write-locales writes anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "nodes" / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LANGUAGES = {"ko": re.compile("[가-힣]")}
OF_PAGES: dict[str, dict[str, str]] = json.loads(
    (ROOT / "locales" / "help_pages.json").read_text(encoding="utf-8")
)
OF_NODES: dict[str, dict[str, str]] = json.loads(
    (ROOT / "locales" / "translations.json").read_text(encoding="utf-8")
)
# cells with the name of an input, and the line below a table's head
NAME = re.compile(r"`[^`]+`|-+")
# what a user types or sees in English: code, and quoted errors
KEPT = re.compile(r'`[^`]+`|\*"[^"]+"\*')


def with_texts(page: str, change: Callable[[str], str]) -> str:
    """A page with each of its texts changed; a text is a title, a paragraph, a cell, a point or the description of a picture."""
    return "\n\n".join(_block(block, change) for block in page.strip().split("\n\n")) + "\n"


def _block(block: str, change: Callable[[str], str]) -> str:
    if heading := re.fullmatch(r"(#+ )(.+)", block):
        return heading[1] + change(heading[2])
    if picture := re.fullmatch(r"!\[(.+)\](\(.+\))", block, re.DOTALL):
        return f"![{change(_joined(picture[1]))}]{picture[2]}"
    if block.startswith("|---") or block.startswith("| "):
        return "\n".join(_row(row, change) for row in block.splitlines())
    if block.startswith("- "):
        return "\n".join("- " + change(_joined(point[2:])) for point in re.split(r"\n(?=- )", block))
    return change(_joined(block))


def _row(row: str, change: Callable[[str], str]) -> str:
    if set(row) <= set("|-"):
        return row
    cells = [cell.strip() for cell in row.strip().strip("|").split(" | ")]
    return "| " + " | ".join(cell if NAME.fullmatch(cell) else change(cell) for cell in cells) + " |"


def _joined(lines: str) -> str:
    return " ".join(lines.split())


def texts_of(page: str) -> list[str]:
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    with_texts(page, keep)
    return found


def translation(text: str, language: str) -> str:
    known = OF_PAGES.get(text) or OF_NODES.get(text) or {}
    return known.get(language, text)


def all_texts() -> Iterator[str]:
    for path in PAGES:
        yield from texts_of(path.read_text(encoding="utf-8"))


def test_every_text_is_translated_and_no_translation_is_left_over() -> None:
    texts = set(all_texts())

    assert sorted(texts - OF_PAGES.keys() - OF_NODES.keys()) == []
    assert sorted(OF_PAGES.keys() - texts) == []
    assert sorted(OF_PAGES.keys() & OF_NODES.keys()) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_in_their_language_and_keep_what_a_user_types(language: str) -> None:
    for english in set(all_texts()):
        text = translation(english, language)
        assert LANGUAGES[language].search(text), english
        assert sorted(KEPT.findall(text)) == sorted(KEPT.findall(english)), english


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_comfyui_has_the_page(path: Path, language: str, request: pytest.FixtureRequest) -> None:
    expected = with_texts(path.read_text(encoding="utf-8"), lambda text: translation(text, language))
    written = DOCS / path.stem / f"{language}.md"
    if request.config.getoption("--write-locales"):
        written.parent.mkdir(exist_ok=True)
        written.write_text(expected, encoding="utf-8")

    assert written.read_text(encoding="utf-8") == expected, "run with --write-locales"


def test_every_translated_page_has_an_english_one() -> None:
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.glob("*/*.md")}

    assert written == {f"{path.stem}/{language}.md" for path in PAGES for language in LANGUAGES}
