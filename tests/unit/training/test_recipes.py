"""The recipes at scale, by dry runs on files that have the real models' sizes and no content.

All of them: pytest tests/unit/training/test_recipes.py -m "slow or not slow"
The table in training/README.md: python tests/unit/training/test_recipes.py
"""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import yaml
from transformers import InternVLConfig, PreTrainedTokenizerFast, Qwen3VLConfig

from unifusion_core.checkpoints.generator_file import config_to_json
from unifusion_core.models.layers import LayerFactory
from unifusion_core.models.unifusion import UniFusion, UniFusionConfig
from unifusion_core.shapes.examples import write_examples
from unifusion_core.training.config import TrainConfig, load_config
from unifusion_core.training.dry_run import dry_run
from unifusion_core.zoo.krea_2 import KREA_2
from unifusion_core.zoo.paper_8b import PAPER_8B

diffusers = pytest.importorskip("diffusers")

RECIPES = Path(__file__).parents[3] / "unifusion_core" / "training" / "recipes"
SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<img>",
    "</img>",
)
SPECIAL = (*SPECIAL, "<IMG_CONTEXT>")


def write_empty_generator(path: Path, config: UniFusionConfig, *, configured: bool) -> None:
    """A safetensors file with the names, types and shapes of a generator in bfloat16, whose data are a hole of the disk."""
    model = UniFusion(config, LayerFactory(device="meta", dtype=torch.bfloat16))
    header: dict[str, object] = {}
    if configured:
        header["__metadata__"] = {"unifusion_config": config_to_json(config, spec=PAPER_8B)}
    start = 0
    for name, value in model.state_dict().items():
        end = start + value.nbytes
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)


def write_empty_vlm(folder: Path, kind: str) -> None:
    """A VLM folder without weights."""
    from unifusion_core.shapes.training.tiny_vlm import build_tokenizer

    tokenizer: PreTrainedTokenizerFast = build_tokenizer(["a circle"], 400)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.save_pretrained(str(folder))
    if kind == "qwen3_vl":
        text = {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
        }
        text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
        image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        config = Qwen3VLConfig(text_config=text, image_token_id=image, tie_word_embeddings=True)
    else:
        text = {
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
        }
        text |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151674}
        image = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        config = InternVLConfig(text_config=text, image_token_id=image)
    config.save_pretrained(str(folder))


def make_place(place: Path) -> Path:
    """A folder with everything that the recipes name."""
    (place / "models").mkdir()
    write_empty_generator(place / "models" / "krea2_raw_bf16.safetensors", KREA_2.config, configured=False)
    write_empty_vlm(place / "models" / "qwen3-vl-4b", "qwen3_vl")
    write_empty_vlm(place / "models" / "internvl3-8b-hf", "internvl")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1)
    vae.save_pretrained(place / "models" / "qwen-image-vae")
    write_examples(place / "pictures", 3)
    write_examples(place / "edits", 3, "paint")
    for stage in ("256", "512", "1024"):
        (place / "runs" / f"paper-8b-{stage}").mkdir(parents=True)
        final = place / "runs" / f"paper-8b-{stage}" / "final.safetensors"
        write_empty_generator(final, PAPER_8B.config, configured=True)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("scale"))


def stages_of_the_paper() -> list[list[str]]:
    """The changes to `paper_8b.yaml` of each stage, from the file's comments."""
    comments = " ".join(
        line.removeprefix("#").strip()
        for line in (RECIPES / "paper_8b.yaml").read_text().splitlines()
        if line[:1] == "#"
    )
    stages = [found.split(" Stage")[0].split(" From the")[0] for found in comments.split("--set ")[1:]]
    return [[], *(re.split(r" (?=[a-z_]+=)", stage) for stage in stages)]


def said_by(name: str, place: Path, *changes: str, gpus: int = 1) -> dict[str, float]:
    """What a dry run in `place` says: numbers by the word before them, memory in GB."""
    config = load_config(RECIPES / name, changes)
    if any(source.webdataset for source in config.data):
        # tars are scanned as folders are
        config = TrainConfig.model_validate(config.model_dump() | {"data": [{"folder": "pictures"}]})
    said: list[str] = []
    with chdir(place):
        dry_run(config, said.append, gpus=gpus)
    (text,) = said
    numbers = {
        "trained": r"trained\s+([\d.]+) M",
        "frozen": r"([\d.]+) M are frozen",
        "vlm": r"VLM\s+([\d.]+) M",
    }
    numbers |= {
        "memory": r"memory\s+([\d.]+) GB",
        "sharded": r"sharded\s+([\d.]+) GB",
        "days": r"about ([\d.e-]+) days",
    }
    numbers |= {"tokens": r"tokens\s+(\d+)"}
    return {key: float(found[1]) for key, pattern in numbers.items() if (found := re.search(pattern, text))}


def test_a_lora_for_krea_2_fits_24_gb(place: Path) -> None:
    said = said_by("krea_2_lora_24gb.yaml", place)

    assert said["frozen"] == pytest.approx(12_900, rel=0.01)
    assert said["memory"] < 22


@pytest.mark.slow
def test_edits_for_krea_2_fit_80_gb(place: Path) -> None:
    said = said_by("krea_2_edit.yaml", place)

    # five tiles of 196 tokens
    assert said["tokens"] >= 5 * 196
    assert said["memory"] < 76


@pytest.mark.slow
def test_a_connector_before_krea_2_fits_80_gb(place: Path) -> None:
    said = said_by("connector_swap.yaml", place, gpus=8)

    # LAP, refiner and projection are trained
    assert 600 < said["trained"] < 900
    assert said["vlm"] > 7_000
    assert said["memory"] < 76


@pytest.mark.slow
def test_the_paper_s_stages_fit_64_gpus_and_see_less_than_a_billion_samples(place: Path) -> None:
    stages = stages_of_the_paper()
    assert len(stages) == 4
    samples = days = 0.0
    for changes in stages:
        config = load_config(RECIPES / "paper_8b.yaml", changes)
        samples += config.steps * config.batch_size * config.gradient_accumulation * 64
        said = said_by("paper_8b.yaml", place, *changes, gpus=64)
        assert said["sharded"] < 76
        days += said["days"]

    assert 5e8 < samples < 1e9
    assert said["trained"] == pytest.approx(8_800, rel=0.01)
    # some weeks on 64 GPUs
    assert 7 < days < 120


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_valid_configuration(path: Path) -> None:
    assert load_config(path).output.name
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def main() -> None:
    """Prints the rows of the table in training/README.md."""
    runs: list[tuple[str, list[str], int]] = [
        ("krea_2_lora_24gb.yaml", [], 1),
        ("krea_2_lora_24gb.yaml", ["quantize=null"], 1),
        ("krea_2_lora_24gb.yaml", ["checkpointing=false"], 1),
        ("krea_2_edit.yaml", [], 1),
        ("connector_swap.yaml", [], 8),
        *(("paper_8b.yaml", changes, 64) for changes in stages_of_the_paper()),
    ]
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder))
        for name, changes, gpus in runs:
            said = said_by(name, place, *changes, gpus=gpus)
            shown = "  ".join(f"{key} {value:g}" for key, value in said.items())
            print(f"{name} {' '.join(changes)[:60]} on {gpus}: {shown}", flush=True)


if __name__ == "__main__":
    main()
