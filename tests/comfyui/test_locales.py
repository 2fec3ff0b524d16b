"""Names and tooltips of all nodes in every language of locales/translations.json, and ComfyUI's files of them:

pytest tests/comfyui/test_locales.py [--write-locales]

The source is one file: English text -> its translation by language. A text that changes in a node is missing there until it is
translated again. ComfyUI reads locales/LANGUAGE/nodeDefs.json, which --write-locales writes anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = pytest.mark.comfyui

LOCALES = Path(__file__).parents[2] / "locales"
SOURCE: dict[str, dict[str, str]] = json.loads((LOCALES / "translations.json").read_text(encoding="utf-8"))
LANGUAGES = ("ko", "zh")
# ComfyUI translates its own types
OWN_TYPES = re.compile(r"[A-Z_]+")
# what stays as it is in every language: names of nodes' values, which a user types or chooses
QUOTED = re.compile(r"'([^']+)'|`([^`]+)`")

Texts = dict[str, Any]


def texts_of(node: dict[str, Any]) -> Texts:
    """The English texts of a node in the form of nodeDefs.json."""
    inputs: Texts = {}
    for group in node["input"].values():
        for name, (_, options) in group.items():
            inputs[name] = {"name": name, "tooltip": options["tooltip"]}
            template = options.get("template", {})
            for each, (_, own) in template.get("input", {}).get("required", {}).items():
                # ComfyUI asks for "pictures.picture_1" with underscores
                inputs |= {
                    f"{name}_{numbered}": {"name": each, "tooltip": own["tooltip"]}
                    for numbered in template["names"]
                }
    outputs: Texts = {}
    for index, (name, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True)):
        named = {} if OWN_TYPES.fullmatch(name) else {"name": name}
        outputs[str(index)] = named | {"tooltip": tooltip}
    texts = {"display_name": node["display_name"], "description": node["description"]}
    return texts | {"inputs": inputs, "outputs": outputs}


def leaves(texts: Any) -> Iterator[str]:
    if isinstance(texts, str):
        yield texts
    else:
        for each in texts.values():
            yield from leaves(each)


def translated(texts: Any, language: str) -> Any:
    if isinstance(texts, str):
        return SOURCE[texts][language]
    found = {}
    for name, each in texts.items():
        found[name] = translated(each, language)
        if (numbered := re.search(r"_(\d+)$", name)) and isinstance(each, dict):
            found[name]["name"] += f" {numbered[1]}"
    return found


@pytest.fixture(scope="module")
def nodes(comfy: Comfy) -> dict[str, Texts]:
    own = {name: node for name, node in comfy.object_info().items() if name.startswith("UniFusion")}
    return {name: texts_of(node) for name, node in sorted(own.items())}


def test_every_text_is_translated_and_no_translation_is_left_over(nodes: dict[str, Texts]) -> None:
    texts = set(leaves(nodes))

    assert sorted(texts - SOURCE.keys()) == []
    assert sorted(SOURCE.keys() - texts) == []
    for english, by_language in SOURCE.items():
        assert tuple(by_language) == LANGUAGES, english
        assert all(text.strip() for text in by_language.values()), english


def test_sentences_are_in_their_language_and_keep_what_a_user_types() -> None:
    letters = {"ko": re.compile("[가-힣]"), "zh": re.compile("[一-鿿]")}
    for english, by_language in SOURCE.items():
        if " " not in english:
            continue
        quoted = {one or other for one, other in QUOTED.findall(re.sub(r"(?<=\w)'(?=\w)", "", english))}
        for language, text in by_language.items():
            assert letters[language].search(text), (language, english)
            assert [each for each in quoted if each not in text] == [], (language, english)


@pytest.mark.parametrize("language", LANGUAGES)
def test_comfyui_has_the_translations(
    comfy: Comfy, nodes: dict[str, Texts], language: str, request: pytest.FixtureRequest
) -> None:
    expected = translated(nodes, language)
    path = LOCALES / language / "nodeDefs.json"
    if request.config.getoption("--write-locales"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    assert json.loads(path.read_text(encoding="utf-8")) == expected, "run with --write-locales"
    served = comfy.request("GET", "/i18n")[1][language]["nodeDefs"]
    assert {name: served[name] for name in expected} == expected
