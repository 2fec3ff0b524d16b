"""What the nodes declare, read from their files: no ComfyUI is needed to look at a promise."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Socket:
    """An input or output: its id (an output without one goes by its type), and whether a tooltip explains it."""

    id: str
    has_tooltip: bool


@dataclass(frozen=True)
class NodeSchema:
    """What a node says of itself in `define_schema`."""

    id: str
    display_name: str
    description: str
    search_aliases: list[str]
    inputs: list[Socket]
    outputs: list[Socket]


def _sockets(tree: ast.AST, kind: str) -> list[Socket]:
    """All calls such as `io.Int.Input("steps", ...)` in a piece of source."""
    found = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(f".{kind}"):
            named = [a.value for a in call.args[:1] if isinstance(a, ast.Constant)]
            of_type = ast.unparse(call.func).split(".")[-2].upper()
            found.append(
                Socket(named[0] if named else of_type, any(k.arg == "tooltip" for k in call.keywords))
            )
    return found


@pytest.fixture(scope="session")
def own_nodes() -> dict[str, NodeSchema]:
    """Every node of the pack by its id, read from the schemas in nodes/."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "nodes").glob("*.py"))]
    functions = {f.name: f for tree in trees for f in tree.body if isinstance(f, ast.FunctionDef)}
    found = {}
    for schema in (each for tree in trees for each in ast.walk(tree)):
        if isinstance(schema, ast.Call) and ast.unparse(schema.func).endswith("Schema"):
            values = {k.arg: k.value for k in schema.keywords}
            inputs = _sockets(values["inputs"], "Input")
            for call in ast.walk(values["inputs"]):  # inputs that several nodes share come from functions
                name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                if name.endswith("_input"):
                    own = _sockets(functions[name], "Input")
                    inputs += [each for each in own if each.id == name.removesuffix("_input")]
            named = {
                key: ast.literal_eval(values[key])
                for key in ("node_id", "display_name", "description", "search_aliases")
            }
            found[named["node_id"]] = NodeSchema(
                named["node_id"],
                named["display_name"],
                named["description"],
                named["search_aliases"],
                inputs,
                _sockets(values["outputs"], "Output"),
            )
    return found
