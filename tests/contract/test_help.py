"""Every node has tooltips, search words, and a help page with a picture.

pytest tests/contract/test_help.py    (tests/comfyui/test_registered.py tests the same in a real ComfyUI)
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from unifusion_core.shapes.evaluation.help_pictures import PICTURES

if TYPE_CHECKING:
    from conftest import NodeSchema

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "nodes" / "web" / "docs"
# bytes of all pictures together
MAX_PICTURES = 400_000
SECTIONS = ("Inputs", "Outputs", "Example", "Limits and errors")

Nodes = dict[str, "NodeSchema"]


def page(node: str) -> str:
    return (DOCS / f"{node}.md").read_text()


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def texts_in_sources() -> list[str]:
    """Every string in the sources, adjacent literals joined, values of f-strings left out."""
    found = []
    for folder in ("nodes", "unifusion_core"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                constants = [part.value for part in parts if isinstance(part, ast.Constant)]
                found.append("".join(text for text in constants if isinstance(text, str)))
    return found


def first_column(table: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_comfyui_finds_the_pages() -> None:
    source = (ROOT / "__init__.py").read_text()

    assert re.search(r'^WEB_DIRECTORY = "\./nodes/web"', source, re.MULTILINE)
    # ComfyUI runs all that it finds
    assert [path.name for path in DOCS.parent.rglob("*") if path.suffix in (".js", ".mjs")] == [
        "earlier_graphs.js"
    ]


def test_every_node_has_a_page_and_every_page_a_node(own_nodes: Nodes) -> None:
    assert {path.stem for path in DOCS.glob("*.md")} == set(own_nodes)


def test_pages_have_all_sections_under_the_nodes_own_name(own_nodes: Nodes) -> None:
    for node in own_nodes.values():
        text = page(node.id)
        assert text.splitlines()[0] == f"# {node.display_name}"
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(SECTIONS), node.id
        assert [title for title in SECTIONS if not section(text, title).strip()] == [], node.id
        assert section(text, "Limits and errors").count("\n- ") >= 2, node.id


def test_pages_explain_every_input_and_output(own_nodes: Nodes) -> None:
    for node in own_nodes.values():
        text = page(node.id)
        assert set(first_column(section(text, "Inputs"))) == {socket.id for socket in node.inputs}, node.id
        assert first_column(section(text, "Outputs")) == [socket.id for socket in node.outputs], node.id


def test_each_page_shows_its_own_picture(own_nodes: Nodes) -> None:
    for node in own_nodes:
        pictures = re.findall(r"!\[(.+)\]\((.+)\)", page(node))
        assert [path for _, path in pictures] == [f"pictures/{node}.webp"]
        assert f"(pictures/{node}.webp)" in section(page(node), "Example")
        assert Image.open(DOCS / pictures[0][1]).width >= 100
    assert {path.stem for path in (DOCS / "pictures").iterdir()} == set(own_nodes)
    assert sum(path.stat().st_size for path in (DOCS / "pictures").iterdir()) <= MAX_PICTURES


def test_quoted_errors_are_those_of_the_code(own_nodes: Nodes) -> None:
    sources = texts_in_sources()
    for node in own_nodes:
        quotes = re.findall(r'\*"([^"]+)"\*', section(page(node), "Limits and errors"))
        assert [quote for quote in quotes if not any(quote in text for text in sources)] == [], node


def test_one_command_draws_all_pictures(own_nodes: Nodes) -> None:
    assert set(PICTURES) == set(own_nodes)


def test_every_node_is_described_and_found_by_many_words(own_nodes: Nodes) -> None:
    for node in own_nodes.values():
        assert node.description, node.id
        assert "unifusion" in node.search_aliases
        assert len(set(node.search_aliases)) == len(node.search_aliases) >= 4, node.id


def test_every_input_and_output_has_a_tooltip(own_nodes: Nodes) -> None:
    for node in own_nodes.values():
        assert node.inputs, node.id
        assert node.outputs, node.id
        assert [socket.id for socket in [*node.inputs, *node.outputs] if not socket.has_tooltip] == [], (
            node.id
        )
