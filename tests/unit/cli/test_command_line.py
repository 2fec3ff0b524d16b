"""The command `unifusion`: what it writes and prints, and one sentence with exit status 2 for every mistake.

pytest tests/unit/cli/test_command_line.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unifusion_core.checkpoints.generator_file import CONFIG_KEY
from unifusion_core.checkpoints.safetensors_file import read_tensors
from unifusion_core.cli.main import main
from unifusion_core.contracts import TokenRole
from unifusion_core.evaluation.runner import load_suite
from unifusion_core.evaluation.suites import BENCHMARKS, COMPARISONS, SUITES
from unifusion_core.shapes.evaluation.suites import SUITES as OF_SHAPES
from unifusion_core.vlm.backbone import VLMBackbone, Written
from unifusion_core.vlm.chat import VLMInputs

QUICK = ["--size", "32x32", "--steps", "1", "--no-rewrite"]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def record_of(path: Path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.text["unifusion"])


def same(a: Path, b: Path) -> bool:
    """To one level: in another batch sums are rounded otherwise."""
    first, second = (np.asarray(Image.open(path)).astype(int) for path in (a, b))
    return first.shape == second.shape and np.abs(first - second).max() <= 1


# Drawing ------------------------------------------------------------------------------------------


def test_generate_writes_a_picture_and_prints_its_name(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder" / "a.png"
    assert (
        main(["generate", "a red circle", *QUICK, "--seed", "7", "--out", str(out), *random_weights.options])
        == 0
    )
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "none of the sizes" in printed.err  # 32x32
    record = record_of(out)
    assert (record["prompt"], record["seed"], record["rewrite"]) == ("a red circle", 7, None)
    assert record["settings"] == {
        "size": [32, 32],
        "steps": 1,
        "cfg": 2.0,
        "image_cfg": None,
        "schedule": "shift 3",
        "max_tiles": 10,
        "negative": "",
        "denoise": 1.0,
    }


def test_without_a_name_pictures_are_numbered_and_nothing_is_overwritten(
    random_weights: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["generate", "", *QUICK, *random_weights.options]) == 0
    assert main(["generate", "", *QUICK, "--batch", "2", *random_weights.options]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "unifusion-0001.png",
        "unifusion-0002.png",
        "unifusion-0003-1.png",
        "unifusion-0003-2.png",
    ]


def test_a_file_of_prompts_draws_what_single_calls_draw(
    random_weights: SimpleNamespace, tmp_path: Path
) -> None:
    Image.fromarray(np.full((40, 24, 3), 90, np.uint8)).save(tmp_path / "in.png")
    lines = [
        {"id": "plain", "prompt": "a red circle", "seed": 4},
        {"id": "locked", "prompt": "a red circle", "rewrite_text": "big blue star at top, pink background."},
        {"id": "edit", "prompt": "make it red", "images": ["in.png"]},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    common = ["--steps", "1", *random_weights.options]
    out = tmp_path / "out"
    # --rewrite is not given: random weights never end a rewrite, so only lines that have one may be rewritten
    (tmp_path / "locked.jsonl").write_text(json.dumps(lines[1]))
    assert main(["generate", "--prompts", str(tmp_path / "locked.jsonl"), "--out", str(out), *common]) == 0
    assert record_of(out / "locked.png")["rewrite"] == lines[1]["rewrite_text"]
    text = ["--rewrite-text", lines[1]["rewrite_text"], "--out", str(tmp_path / "b.png")]
    assert main(["generate", "a red circle", *text, *common]) == 0
    assert same(out / "locked.png", tmp_path / "b.png")

    every = ["generate", "--prompts", str(file), "--out", str(out), "--no-rewrite", "--overwrite", *common]
    assert main(every) == 0
    assert record_of(out / "locked.png")["rewrite"] is None
    assert Image.open(out / "edit.png").size == (24, 40)  # its picture's size
    single = ["--seed", "4", "--no-rewrite", "--out", str(tmp_path / "c.png")]
    assert main(["generate", "a red circle", *single, *common]) == 0
    assert same(out / "plain.png", tmp_path / "c.png")


def test_a_batch_counts_its_seeds_on(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    options = [*QUICK, *random_weights.options]
    assert (
        main(["generate", "x", "--seed", "8", "--batch", "2", "--out", str(tmp_path / "a.png"), *options])
        == 0
    )
    assert main(["generate", "x", "--seed", "9", "--out", str(tmp_path / "b.png"), *options]) == 0
    assert record_of(tmp_path / "a-2.png")["seed"] == 9
    assert same(tmp_path / "a-2.png", tmp_path / "b.png")
    assert not same(tmp_path / "a-1.png", tmp_path / "b.png")


# Rewriting ----------------------------------------------------------------------------------------


def test_rewrite_adds_its_text_to_the_lines_and_keeps_what_is_there(
    random_weights: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = Written(texts=["written"], ended=[True], features=None)
    monkeypatch.setattr("unifusion_core.vlm.backbone.VLMBackbone.write", lambda *_, **__: answer)
    options = random_weights.options[:4]
    assert main(["rewrite", "a ball", *options]) == 0
    assert capsys.readouterr().out == "written\n"
    lines = [{"id": "a", "prompt": "x", "seed": 1}, {"id": "b", "prompt": "y", "rewrite_text": "kept"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert (
        main(
            [
                "rewrite",
                "--prompts",
                str(tmp_path / "in.jsonl"),
                "--out",
                str(tmp_path / "out.jsonl"),
                *options,
            ]
        )
        == 0
    )
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [{**lines[0], "rewrite_text": "written"}, lines[1]]


def test_a_style_goes_before_the_prompt_and_into_the_record(
    random_weights: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(self: VLMBackbone, inputs: VLMInputs, *_: object, **__: object) -> Written:
        roles = inputs.roles[0] == TokenRole.PROMPT
        asked.append(self.tokenizer.decode(inputs.token_ids[0, roles]).strip())
        return Written(texts=["written"], ended=[True], features=None)

    monkeypatch.setattr("unifusion_core.vlm.backbone.VLMBackbone.write", answer)
    out = tmp_path / "styled.png"
    options = ["--style", "all in red.", "--steps", "1", "--size", "32x32", "--out", str(out)]
    assert main(["generate", "a ball", *options, *random_weights.options]) == 0
    assert asked == ["all in red. a ball"]
    record = record_of(out)
    assert (record["prompt"], record["style"], record["rewrite"]) == ("a ball", "all in red.", "written")


def test_an_edit_in_another_size_than_its_picture_is_drawn_with_a_warning(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (50, 33)).save(tmp_path / "given.png")
    call = ["generate", "x", "--image", str(tmp_path / "given.png"), "--no-rewrite", "--steps", "1"]
    call += [*random_weights.options, "--out", str(tmp_path / "out.png")]
    assert main(call) == 0
    assert Image.open(tmp_path / "out.png").size == (48, 32)
    assert "will shift" not in capsys.readouterr().err
    assert main([*call, "--size", "64x32"]) == 0
    assert "64x32 is drawn, and the picture that is edited is 48x32" in capsys.readouterr().err


def test_a_picture_larger_than_the_model_draws_is_scaled_unless_a_size_is_given(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (400, 300)).save(tmp_path / "photo.png")
    call = ["generate", "x", "--image", str(tmp_path / "photo.png"), "--max-tiles", "1", "--no-rewrite"]
    call += ["--steps", "1", *random_weights.options, "--out", str(tmp_path / "out.png")]
    assert main(call) == 0
    width, height = Image.open(tmp_path / "out.png").size
    assert width * height <= 160 * 112
    assert abs(width / height - 4 / 3) < 0.1
    assert f"400x300, larger than this model draws well: {width}x{height} is drawn" in capsys.readouterr().err
    assert main([*call, "--size", "64x48"]) == 0
    assert Image.open(tmp_path / "out.png").size == (64, 48)
    assert "larger than" not in capsys.readouterr().err


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "required: COMMAND"),
        (["draw"], "invalid choice: 'draw'"),
        (["generate"], "give either a PROMPT or --prompts"),
        (["generate", "x", "--prompts", "y.jsonl"], "give either a PROMPT or --prompts"),
        (["generate", "x", "--stepps", "3"], "unrecognized arguments: --stepps 3, did you mean --steps?"),
        (["generat", "x"], "did you mean generate?"),
        (["generate", "x", "--style", "ters"], 'there is no style "ters", did you mean "terse"?'),
        (["generate", "x", "--cfg", "-1"], "a number from 0 to 100"),
        (["generate", "x", "--cfg", "1000"], "a number from 0 to 100"),
        (["generate", "x", "--steps", "20000"], "at most 10000"),
        (["generate", "x", "--denoise", "0"], "above 0 and up to 1"),
        (["generate", "x", "--denoise", "0.5"], "give --image, or leave --denoise out"),
        (["generate", "x", "--mask", "m.png"], "give --image, or leave --mask out"),
        (["generate", "x", "--grid"], "give --batch, or leave --grid out"),
        (["generate", "x", "--quiet", "--verbose"], "not allowed with"),
        (["generate", "x", "--overwrite"], "--overwrite belongs to --prompts"),
        (["generate", "x", "--no-rewrite", "--temperature", "1"], "--no-rewrite makes none"),
        (["generate", "x", "--negative", "red", "--cfg", "1"], "cfg 1 is none"),
        (["generate", "x", "--device", "abacus"], 'The device "abacus" cannot be used here'),
        (
            ["generate", "x", "--image", "https://example.org/a.png"],
            "is an address and nothing is downloaded",
        ),
        (["generate", "x", "--like", "nowhere.png"], "there is no picture nowhere.png"),
        (["generate", "a", "b"], "unrecognized arguments: b"),
        (["generate", "--prompts", "/dev/zero", "--out", "o"], "/dev/zero cannot be read (no file)"),
        (["train", "/dev/zero"], "no file"),
        (["train", "a\0b"], "no file"),
        (["train", "\ud800"], "no file"),
        (["generate", "x", "--size", "big"], '"big" is no size: write width x height'),
        (["generate", "x", "--size", "130x128"], "near are 128x128 and 136x128"),
        (["generate", "x", "--steps", "0"], "at least 1"),
        (["generate", "x", "--cfg", "nan"], "a number is needed"),
        (["generate", "x", "--image-cfg", "2"], "give --image, or leave --image-cfg out"),
        (["generate", "x", "--seed", "-1"], "a whole number from 0"),
        (["generate", "x", "--rewrite-text", " "], "the rewrite is empty"),
        (["generate", "x", "--style", "keep everything else"], "add a picture"),
        (
            ["generate", "x", "--style", "translate to English"],
            "choose one of caption, terse, detailed, keep everything else.",
        ),
        (
            ["rewrite", "x", "--style", "translate to English"],
            'does not follow the style "translate to English"',
        ),
        (["generate", "x", "--style", "terse", "--no-rewrite"], "add --rewrite, or leave --style out"),
        (["generate", "x", "--out", "a.gif"], "choose a name that ends in .png, .jpg or .webp"),
        (["generate", "x", "--out", "diffusers/model_index.json/a.png"], "cannot be written"),
        (["generate", "x", "--out", "-", "--batch", "2"], "one picture to stdout"),
        (["generate", "x", "--image", "nowhere.png"], "There is no picture nowhere.png"),
        (["generate", "x", "--model", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        (["generate", "--prompts", "nowhere.jsonl", "--out", "o"], "nowhere.jsonl cannot be read"),
        (["rewrite", "x", "--out", "a"], "--out belongs to --prompts"),
        (["shapes", "train", "nothing"], 'there is no recipe "nothing"; choose one of tiny-vae'),
        (["shapes"], "required: VERB"),
        (["train", "tiny-vae"], "unifusion shapes train tiny-vae"),
        (["train", "tiny", "--resume", "--out", "x"], "unifusion shapes train tiny"),
        (["train", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["train", "x.yaml", "--out", "y"], "--set output=DIR"),
        (["train"], "give a configuration: unifusion train CONFIG.yaml"),
        (["evaluate", "--suite", "edits"], "write unifusion shapes evaluate --suite edits"),
        (["shapes", "results", "nowhere"], "there is no report in nowhere"),
        (["evaluate", "--suite", "vlm", "--page", "page.md"], "is made by unifusion shapes results"),
        (["evaluate", "--report", "a.json", "--page", "page.md"], "is made by unifusion shapes results"),
        (
            ["evaluate", "--suite", "speed", "taste"],
            'there is no suite "taste"; choose from speed, vlm-speed',
        ),
        (
            ["shapes", "evaluate", "--suite", "vlm", "taste"],
            'there is no suite "taste"; choose from text-to-image',
        ),
        (["generate", "x", "--schedule", "karras"], 'there is no schedule "karras"; choose one of uniform'),
        (["inspect", "nowhere"], "there is no file nowhere"),
        (["inspect", "diffusers"], "diffusers is a folder, such as diffusers saves"),
        (["generate", "x", "--model", "diffusers"], "diffusers is a folder, such as diffusers saves"),
        (["generate", "x", "--model", "krea2.gguf"], "krea2.gguf is a GGUF file, which is not read here"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_status_2(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "model_index.json").write_text('{"_class_name": "Krea2Pipeline"}')
    (tmp_path / "krea2.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("unifusion: ")
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_files_of_another_kind_are_refused(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = random_weights.model.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle.safetensors").write_bytes(b"PK\x03\x04 and more")
    files = {
        tmp_path / "cut.safetensors": "damaged, cut short",
        tmp_path / "pickle.safetensors": "may run code",
        random_weights.vae: "another kind of model",
    }
    for file, sentence in files.items():
        options = ["--model", str(file), "--vlm", str(random_weights.vlm), "--vae", str(random_weights.vae)]
        assert main(["generate", "x", *QUICK, "--out", str(tmp_path / "a.png"), *options]) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    options = [
        "--model",
        str(random_weights.model),
        "--vlm",
        str(tmp_path / "empty"),
        "--vae",
        str(random_weights.vae),
    ]
    assert main(["generate", "x", *QUICK, "--out", str(tmp_path / "a.png"), *options]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "unifusion_core", "generate", "x", "--size", "1x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert run.stderr.count("\n") == 1


# Training, evaluation, inspection -------------------------------------------------------------------

SETTINGS = ("steps=10", "learning_rate=1", "precision=fp32", "shard=false")


@pytest.mark.parametrize("recipe", ["tiny-vae", "tiny-vlm", "tiny"])
def test_dry_run_says_what_would_run_and_writes_nothing(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shapes", "train", recipe, "--dry-run", "--set", *SETTINGS]) == 0
    printed = capsys.readouterr().out
    assert '"steps": 10' in printed
    assert '"learning_rate": 1.0' in printed
    assert '"precision": "fp32"' in printed
    assert '"shard": false' in printed
    assert "parameters" in printed
    assert "s per step" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("speed=3", 'there is no "speed" to set'),
        ("steps=many", "--set steps=many: steps cannot be that: Input should be a valid integer"),
        ("precision=fp8", "precision cannot be that: Input should be 'fp32', 'bf16' or 'fp16'"),
        ("shard=maybe", "shard cannot be that: Input should be a valid boolean"),
        ("save_every=0", "save_every is 0, 1 or more is needed"),
    ],
)
def test_settings_that_a_recipe_does_not_have_are_refused(
    change: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shapes", "train", "tiny-vae", "--dry-run", "--set", change]) == 2
    assert sentence in capsys.readouterr().err


def test_evaluate_prints_a_table_and_writes_the_numbers(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    arguments = ["--suite", "autoencoder", "--samples", "3", "--out", str(out), *random_weights.options]
    assert main(["shapes", "evaluate", *arguments]) == 0
    assert "seen pairs" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["samples"] == 3
    rows = {row["name"]: row for row in report["suites"]["autoencoder"]}
    assert rows["seen pairs"]["rates"]["exact"]["total"] == 3


def test_inspect_tells_each_kind_of_file(
    random_weights: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, words in {
        random_weights.model: ("UniFusion generator", "internvl, 6 layers of width 160", "0, 1, 2, 3, 5"),
        random_weights.vae: ("VAE in the TAESD layout", "16 channels"),
        random_weights.vlm: ("VLM folder", "6 layers of width 160"),
    }.items():
        assert main(["inspect", str(path)]) == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words), printed
        assert len(printed.splitlines()) <= 20
        assert main(["inspect", str(path), "--json"]) == 0
        everything = json.loads(capsys.readouterr().out)
        assert everything["training"]["recipe"] == "random"


def test_inspect_tells_what_a_lora_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"attn.to_q": (6144, 6144), "attn.to_k": (1536, 6144)}
    tensors = {"text_encoder.layers.0.lora_A.weight": torch.ones(4, 8), "step": torch.ones(1)}
    for layer, (rows, columns) in sizes.items():
        key = f"transformer.transformer_blocks.27.{layer}"
        tensors |= {
            f"{key}.lora_A.weight": torch.ones(4, columns),
            f"{key}.lora_B.weight": torch.zeros(rows, 4),
        }
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_base_model_version": "krea2"})

    assert main(["inspect", str(tmp_path / "lora.safetensors")]) == 0

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "base krea-2, of krea-2, paper-8b, tiny",
        "kind LoRA (2 layers)",
        "rank 4 (2 layers)",
        "keys 4 used, 2 not used",
        "it belongs to a text encoder 1 keys, such as text_encoder.layers.0.lora_A.weight",
        "no known part of an adapter 1 keys, such as step",
        "without effect 2 of 2 layers are zero, as before training",
    ):
        assert line in lines, lines
    assert main(["inspect", str(tmp_path / "lora.safetensors"), "--json"]) == 0
    assert '"ss_base_model_version": "krea2"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "value", "sentence"),
    [
        ("vlm.family", "qwen9", 'of type "qwen9"; supported are internvl, qwen2_5_vl, qwen3_vl'),
        ("vlm.hidden_size", -160, "the VLM's width is -160: it must be at least 1"),
        ("lap.num_layer_blocks", -1, "LAP with -1 blocks"),
        ("dit.num_heads", 0, "num_heads is 0: it must be above 0"),
        ("dit.num_kv_heads", 0, "num_kv_heads is 0: it must be above 0"),
        ("dit.mlp_size", -8, "mlp_size is -8: it must be above 0"),
    ],
)
def test_inspect_refuses_impossible_numbers_in_one_sentence(
    random_weights: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    value: object,
    sentence: str,
) -> None:
    tensors, metadata = read_tensors(random_weights.model)
    stored = json.loads(metadata[CONFIG_KEY])
    part, name = where.split(".")
    stored["config"][part][name] = value
    save_file(tensors, tmp_path / "odd.safetensors", metadata | {CONFIG_KEY: json.dumps(stored)})
    assert main(["inspect", str(tmp_path / "odd.safetensors")]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("config.json", None, "has no config.json, so it is no VLM folder: copy all files"),
        ("config.json", "{", "config.json is damaged (Expecting"),
        ("config.json", "[]", "config.json is damaged (no JSON object): copy the model's files again"),
        (
            "config.json",
            '{"text_config": []}',
            "(its text_config is no object): copy the model's files again",
        ),
        ("training.json", "{", "training.json is damaged (Expecting"),
    ],
)
def test_inspect_refuses_damaged_json_of_a_vlm(
    random_weights: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    text: str | None,
    sentence: str,
) -> None:
    folder = tmp_path / "vlm"
    folder.mkdir()
    (folder / "config.json").write_bytes((random_weights.vlm / "config.json").read_bytes())
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    assert main(["inspect", str(folder)]) == 2
    assert sentence in capsys.readouterr().err


def test_inspect_refuses_a_damaged_record_of_a_vae(
    random_weights: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata = read_tensors(random_weights.vae)
    for record in ("{", "[]"):
        save_file(tensors, tmp_path / "vae.safetensors", metadata | {"training": record})
        assert main(["inspect", str(tmp_path / "vae.safetensors")]) == 2
        assert "vae.safetensors: its record of training is damaged" in capsys.readouterr().err
    save_file({"taesd_decoder.1.weight": torch.ones(3)}, tmp_path / "flat.safetensors")
    assert main(["inspect", str(tmp_path / "flat.safetensors")]) == 2
    assert "another kind of model" in capsys.readouterr().err


@pytest.fixture
def krea_2_file(tmp_path: Path) -> Path:
    """Krea 2's true layout: a header of 430 weights and a hole of 25.6 GB, which takes no room on the disk."""
    from unifusion_core.models.layers import LayerFactory
    from unifusion_core.models.unifusion import UniFusion
    from unifusion_core.zoo.krea_2 import KREA_2

    header: dict[str, Any] = {}
    end = 0
    for name, value in UniFusion(KREA_2.config, LayerFactory(device="meta")).state_dict().items():
        start, end = end, end + 2 * value.numel()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "krea2.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def test_inspect_tells_what_a_krea_2_file_needs(
    krea_2_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(krea_2_file)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "Krea 2 generator (raw or turbo",
        "12820.07 M: LAP and refiner 396.92 M",
        "25.6 GB in the file (bfloat16)",
        "qwen3_vl, 36 layers of width 2560",
        "122.9 kB per token",
        "10: 243.3 MB",
        "krea-2 turbo, 8 steps, cfg 1",
        "8 bit whole",
    ):
        assert words in printed
    shares = dict(re.findall(r"on (\d+) GB +16 bit (whole|\d+%)", printed))
    assert shares == {"8": "28%", "12": "43%", "16": "59%", "24": "90%", "48": "whole"}


def test_a_krea_2_file_needs_its_own_vae(krea_2_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before 25.6 GB of weights are read: they would not fit into this test's memory."""
    assert main(["generate", "x", "--model", str(krea_2_file)]) == 2
    assert (
        'produces 16 of "qwen-image": choose its own VAE (--vae; the folder vae/ of its diffusers'
        in capsys.readouterr().err
    )


def test_a_style_beside_an_own_rewrite_is_refused_where_prompts_are_not_rewritten(
    krea_2_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["generate", "x", "--model", str(krea_2_file), "--style", "terse"]
    assert main([*call, "--rewrite-text", "a red ball"]) == 2
    assert "--rewrite-text is the rewrite: leave --style out" in capsys.readouterr().err
    assert main(call) == 2
    assert "add --rewrite, or leave --style out" in capsys.readouterr().err


def test_schedule_brings_its_steps_and_guidance(random_weights: SimpleNamespace, tmp_path: Path) -> None:
    def settings(*options: str) -> list[Any]:
        out = tmp_path / "picture.png"
        command = ["generate", "a red circle", "--no-rewrite", "--size", "32x32", "--out", str(out)]
        assert main([*command, *options, *random_weights.options]) == 0
        made = json.loads(Image.open(out).text["unifusion"])["settings"]
        return [made["schedule"], made["steps"], made["cfg"]]

    assert settings("--steps", "2") == ["shift 3", 2, 2.0]
    assert settings("--schedule", "krea-2 turbo") == ["krea-2 turbo", 8, 1.0]
    assert settings("--schedule", "krea-2 raw", "--steps", "1") == ["krea-2 raw", 1, 5.5]
    assert settings("--schedule", "uniform", "--steps", "1", "--cfg", "1") == ["uniform", 1, 1.0]


def test_help_needs_no_torch_and_inspecting_a_generator_no_transformers(
    random_weights: SimpleNamespace,
) -> None:
    code = """
import sys
from unifusion_core.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print("imported:", *(name for name in ("torch", "transformers") if name in sys.modules))
sys.exit(status)
"""
    runs = [run_python(code, "generate", "--help"), run_python(code, "inspect", str(random_weights.model))]
    assert [run.returncode for run in runs] == [0, 0]
    assert [run.stdout.splitlines()[-1] for run in runs] == ["imported:", "imported: torch"]


@pytest.mark.parametrize("name", [*SUITES, *OF_SHAPES])
def test_every_suite_that_the_command_line_names_can_be_loaded(name: str) -> None:
    assert callable(load_suite((SUITES | OF_SHAPES)[name]))


@pytest.mark.parametrize(
    ("command", "suites"),
    [
        (["evaluate"], {*SUITES, *BENCHMARKS, *COMPARISONS}),
        (["shapes", "evaluate"], {*OF_SHAPES}),
    ],
)
def test_evaluate_without_a_suite_lists_them_with_what_they_need(
    command: list[str], suites: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    printed = capsys.readouterr().out
    rows = [re.split(r" {2,}", line) for line in printed.splitlines() if re.search(r"\S {2,}\S", line)]
    header, *rows = rows
    assert header == ["suite", "measures", "needs", "time"]
    assert {row[0] for row in rows} == suites
    # what, needs and time of each
    assert all(len(row) == 4 for row in rows)
    assert max(map(len, printed.splitlines())) <= 130
