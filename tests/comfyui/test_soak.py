"""300 prompts in a row on one server: memory, open files, threads and times do not grow.

pytest tests/comfyui/test_soak.py -m slow -s     (prints the table)
"""

from __future__ import annotations

import copy
import json
import random
import statistics
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

WORKFLOWS = Path(__file__).parents[2] / "workflows" / "api"
# those that need nothing but the pack
API_GRAPHS = [
    path for path in sorted(WORKFLOWS.glob("*.json")) if "(built in)" in path.read_text(encoding="utf-8")
]
NUM_PROMPTS, WARM_UP = 300, 20
MEMORY_GROWTH, TIME_GROWTH = 1.05, 1.10


def state(process_id: int) -> dict[str, int]:
    """Resident memory in MiB, open files and threads of a process."""
    process = Path(f"/proc/{process_id}")
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "memory": int(fields["VmRSS"].split()[0]) // 1024,
        "files": len(list((process / "fd").iterdir())),
        "threads": int(fields["Threads"]),
    }


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc, which only Linux has")
def test_three_hundred_prompts(comfy: Comfy) -> None:
    graphs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in API_GRAPHS}
    names = sorted(graphs)
    rng = random.Random("soak")
    seconds: dict[str, list[float]] = defaultdict(list)
    states: list[dict[str, int]] = []
    for number in range(NUM_PROMPTS):
        name = names[number % len(names)] if number < WARM_UP else rng.choice(names)
        seconds[name].append(comfy.successful(with_seed(graphs[name], number)).seconds)
        states.append(state(comfy.process_id))
    warm, end = states[WARM_UP], states[-1]
    print(f"\nafter {WARM_UP} prompts {warm}, after {NUM_PROMPTS} {end}")
    growth = {}
    for name, times in seconds.items():
        half = len(times) // 2
        # the lower quartile, because other processes only make times longer
        first, last = (statistics.quantiles(part)[0] for part in (times[1:half], times[half:]))
        growth[name] = last / first
        print(f"  {name}: {len(times)} prompts, {first:.2f} s in the first half, {last:.2f} s in the second")
    assert end["memory"] <= MEMORY_GROWTH * warm["memory"]
    assert end["files"] <= warm["files"]
    assert end["threads"] <= warm["threads"]
    assert statistics.median(growth.values()) <= TIME_GROWTH


def with_seed(graph: dict[str, Any], seed: int) -> dict[str, Any]:
    """The workflow with another seed, so that it runs again."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] = seed
    return graph
