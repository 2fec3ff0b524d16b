"""The order of the recipes, and putting a finished part in its place."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from unifusion_core.errors import CheckpointError, ConfigError
from unifusion_core.shapes.training import chain
from unifusion_core.shapes.training.chain import CHAIN, install, part_of
from unifusion_core.shapes.training.recipes import RECIPES
from unifusion_core.zoo.spec import BuiltIn
from unifusion_core.zoo.tiny import BUILT_IN


@pytest.fixture
def places(tmp_path: Path) -> BuiltIn:
    """An edition in another folder, filled with the embedded parts."""
    places = BuiltIn(
        name="another",
        generator=tmp_path / "weights" / "generator.safetensors",
        vlm=tmp_path / "weights" / "vlm",
        vae=tmp_path / "weights" / "vae.safetensors",
    )
    places.generator.parent.mkdir()
    shutil.copyfile(BUILT_IN.generator, places.generator)
    shutil.copytree(BUILT_IN.vlm, places.vlm)
    shutil.copyfile(BUILT_IN.vae, places.vae)
    return places


def test_the_chain_names_all_recipes_but_comparisons_the_judge_and_what_is_not_shipped() -> None:
    names = [name for stage in CHAIN for name in (*stage.vae, *stage.vlm, *stage.generator)]

    assert len(set(names)) == len(names)
    others = {name for name in RECIPES if name.startswith(("tiny-short", "fusion-"))} | {
        "tiny-judge",
        "tiny-vae-marks",
        "tiny-vae-crisp",
        "tiny-vae-finish",
        "tiny-vlm-marks",
        "tiny-marks",
        "tiny-marks-finish",
        "tiny-marks-taught",
    }
    assert set(names) == set(RECIPES) - others
    assert [part_of(name) for name in ("tiny-vae-colors", "tiny-vlm", "tiny", "tiny-short")] == [
        "vae",
        "vlm",
        "generator",
        None,
    ]


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("part", ["generator", "vlm", "vae"])
def test_a_finished_part_replaces_the_one_in_its_place(
    places: BuiltIn, tmp_path: Path, random_weights: SimpleNamespace, part: str, empty: bool
) -> None:
    if empty:
        shutil.rmtree(places.generator.parent)
    source = Path(getattr(random_weights, "model" if part == "generator" else part))
    finished = tmp_path / "run" / chain.FINISHED[part]
    finished.parent.mkdir()
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, finished)

    place = install(tmp_path / "run", places)

    assert place == getattr(places, part)
    weights = "model.safetensors" if part == "vlm" else ""
    assert (place / weights).read_bytes() == (source / weights).read_bytes()
    assert not list(place.parent.glob("*.part"))


def test_a_run_that_is_not_finished_or_damaged_changes_nothing(places: BuiltIn, tmp_path: Path) -> None:
    before = places.generator.read_bytes()
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match=r"has no finished part .*: finish the run first, by --resume"):
        install(tmp_path / "run", places)
    (tmp_path / "run" / "generator.safetensors").write_bytes(before[:1000])
    with pytest.raises(CheckpointError):
        install(tmp_path / "run", places)

    assert places.generator.read_bytes() == before
