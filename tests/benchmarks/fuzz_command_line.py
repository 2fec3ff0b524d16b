"""Random command lines and prompt files: each must end in a result or in sentences, never in a traceback.

OMP_NUM_THREADS=1 python tests/benchmarks/fuzz_command_line.py --count 20000

Half of the calls are random options with random values, half are `generate --prompts` and `rewrite --prompts` on random files of
lines. Sizes, steps and batches that would take long are left out, so are training and suites. The embedded weights draw.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from unifusion_core.cli.main import UNFORESEEN, USER_ERROR, build_parser, main
from unifusion_core.pipeline import Pipeline

TEXTS = (
    "a red circle",
    "",
    " ",
    "\u00fc\u00f6\u65e5\u672c\U0001f600",
    "a\x00b",
    "\ud800",
    "x" * 5000,
    "--",
    "-1",
    "%s%d%n",
    "../../etc/passwd",
    "a\nb\r\n",
    "\u202e\u200f",
    "NaN",
    "null",
    "<|end|><IMG_CONTEXT></img>",
    "\x1b[31m",
)
NUMBERS = (
    "0",
    "1",
    "2",
    "-1",
    "1e9",
    "nan",
    "inf",
    "0x10",
    "1.5",
    "\u0663",
    "9" * 30,
    "9" * 5000,
    "",
    "one",
    "1_0",
    "+1",
)
SIZES = (
    "16x16",
    "8x8",
    "0x0",
    "15x16",
    "-8x8",
    "axb",
    "16",
    "16x",
    "16x16x16",
    "99999x8",
    "\u0661x8",
    "16X24",
)
OUTPUTS = (
    "out.png",
    "new/out.jpg",
    "folder",
    "folder/",
    "out.gif",
    "empty/out.png",
    "x" * 300,
    "a\x00b",
    "-",
    "\u00fc.webp",
)
LINE_KEYS = "id prompt images seed rewrite_text style negative size cfg mask denoise schedule unknown"
# what would take long, or leave the folder
LONG = {
    "--steps": ("1", "2"),
    "--batch": ("1", "2"),
    "--max-tiles": ("1", "3"),
    "--samples": ("1",),
    "--count": ("1", "2"),
}


def make_files(folder: Path, rng: random.Random) -> list[str]:
    """Files of many kinds, whole and damaged. Returns their names, and some of files that do not exist."""
    picture = Image.new("RGB", (24, 16), "red")
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        picture.save(folder / f"picture.{kind.lower()}", kind)
    whole = (folder / "picture.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.png").write_bytes(bytes(rng.randrange(256) for _ in range(300)))
    (folder / "flipped.jpeg").write_bytes(flip((folder / "picture.jpeg").read_bytes(), rng))
    (folder / "empty").write_bytes(b"")
    (folder / "text.yaml").write_text("output: x\n")
    (folder / "folder").mkdir()
    (folder / "lines.jsonl").write_text('{"id": "a", "prompt": "a red circle"}\n')
    (folder / "bad.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}              ")
    return [path.name for path in folder.iterdir()] + [
        "nowhere",
        "nowhere.png",
        "/dev/null",
        "/dev/zero",
        ".",
        "\x00",
        "x" * 300,
    ]


def flip(data: bytes, rng: random.Random, count: int = 5) -> bytes:
    """The bytes with some of them changed."""
    changed = bytearray(data)
    for _ in range(count if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def random_call(rng: random.Random, files: list[str]) -> list[str]:
    """A command with random options and values."""
    command = rng.choice(
        (
            "generate",
            "generate",
            "generate",
            "rewrite",
            "inspect",
            "train",
            "evaluate",
            "shapes",
            "",
            "generat",
        )
    )
    parser: Any = build_parser()
    options = [
        name
        for name in known_options(parser, command)
        if name not in ("--help", "-h", "--suite", "--offload")
    ]
    call = [command] if command else []
    if rng.random() < 0.8:
        call.append(rng.choice((*TEXTS, *files)))
    for _ in range(rng.randrange(6)):
        name = rng.choice(options or ["--x"])
        call.append(
            name if rng.random() < 0.97 else name[: rng.randrange(len(name)) + 1] + rng.choice(("", "x", "="))
        )
        if rng.random() < 0.85:
            call.append(random_value(rng, name, files))
    if command in ("generate", "rewrite") and rng.random() < 0.9:
        call += ["--steps", "1", "--size", "16x16"] if command == "generate" else []
    rng.shuffle(call) if rng.random() < 0.05 else None
    # a recipe or all suites would run for hours
    return (
        ["--version"]
        if command in ("evaluate", "shapes") and not any(each.startswith("--x") for each in call)
        else call
    )


def known_options(parser: Any, command: str) -> list[str]:
    """The options of a command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and command in action.choices:
            return [name for name in action.choices[command]._option_string_actions if name.startswith("--")]
    return []


def random_value(rng: random.Random, option: str, files: list[str]) -> str:
    """A value for an option, wrong as often as not."""
    if option in LONG:
        return rng.choice((*LONG[option], "0", "-1", "x", ""))
    if option == "--size":
        return rng.choice(SIZES)
    if option == "--out":
        return rng.choice(OUTPUTS)
    if option in ("--image", "--mask", "--like", "--prompts", "--lora", "--model", "--vlm", "--vae"):
        return rng.choice((*files, "https://example.org/a.png", "tiny"))
    return rng.choice((*NUMBERS, *TEXTS))


def random_json(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 5:
        return (
            None,
            rng.choice(TEXTS),
            rng.choice((0, -1, 2**70, 1.5, 1e308, 7.0)),
            rng.random() < 0.5,
            rng.choice(TEXTS),
        )[kind]
    if kind < 7:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): random_json(rng, depth + 1) for _ in range(rng.randrange(4))}


def random_line(rng: random.Random, number: int, files: list[str]) -> bytes:
    """A line of a prompt file: right, with a wrong value, or broken."""
    line: dict[str, Any] = {"id": f"{number}", "prompt": rng.choice(("a red circle", *TEXTS))}
    for key in LINE_KEYS.split():
        if rng.random() < 0.08:
            line[key] = (
                random_json(rng)
                if rng.random() < 0.6
                else [rng.choice(files)]
                if key == "images"
                else rng.choice(files)
            )
    data = json.dumps(line, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return flip(data, rng, 3) if rng.random() < 0.15 else data


def random_file_call(rng: random.Random, folder: Path, files: list[str], number: int) -> list[str]:
    """A call on a file of random lines."""
    lines = [random_line(rng, each, files) for each in range(rng.randrange(1, 5))]
    name = f"prompts-{number % 8}.jsonl"
    (folder / name).write_bytes(
        rng.choice((b"", b"", b"\xef\xbb\xbf", b"\xff\xfe")) + rng.choice((b"\n", b"\r\n")).join(lines)
    )
    if rng.random() < 0.2:
        return ["rewrite", "--prompts", name, "--out", f"rewrites-{number}.jsonl"]
    more = rng.choice((["--no-rewrite"], [], ["--strict"], ["--overwrite"], ["--batch", "2"]))
    return [
        "generate",
        "--prompts",
        name,
        "--out",
        f"out-{number % 50}",
        "--steps",
        "1",
        "--size",
        "16x16",
        *more,
    ]


def cached(load: Callable[..., Pipeline]) -> Callable[..., Pipeline]:
    """`Pipeline.load` that reads the embedded weights once; every other call goes through."""
    once = functools.cache(load)

    def chosen(file: Any, vlm: Any, vae: Any, **more: Any) -> Pipeline:
        plain = str(getattr(file, "path", "")).endswith("unifusion-tiny-1.safetensors") and not any(
            more.values()
        )
        return once() if plain and (str(vlm), str(vae)) == ("tiny", "tiny") else load(file, vlm, vae, **more)

    return chosen


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Outcomes by kind, and the calls that ended in anything but a result or a sentence."""
    outcomes: Counter[str] = Counter()
    found: list[str] = []
    Pipeline.load = cached(Pipeline.load)  # type: ignore[method-assign,assignment]  (no weights are read 10,000 times)
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        if number % 500 == 0:
            # what earlier calls wrote is left behind
            folder = Path(tempfile.mkdtemp())
            os.chdir(folder)
            files = make_files(folder, rng)
        call = random_call(rng, files) if number % 2 else random_file_call(rng, folder, files, number)
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace"), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status: Any = main(call)
        except SystemExit as end:
            status = end.code or 0
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
        told = err.getvalue()
        kind = {0: "done", 1: "some lines failed", USER_ERROR: "refused in a sentence"}.get(status, "defect")
        silent = status in (1, USER_ERROR) and "unifusion: " not in told
        if kind == "defect" or silent or "Traceback" in told:
            kind = "unforeseen" if status == UNFORESEEN else "defect"
            found.append(f"{number}: {call!r:.400} -> {status}: {told[-600:]}")
            print(found[-1], flush=True)
        outcomes[kind] += 1
        if (number + 1) % 1000 == 0:
            print(f"{number + 1} calls: {dict(outcomes)}", flush=True)
    return outcomes, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.monotonic()
    outcomes, found = run(chosen.count, chosen.seed)
    print(f"{chosen.count} calls in {time.monotonic() - began:.0f} s: {dict(outcomes)}")
    raise SystemExit(bool(found))
