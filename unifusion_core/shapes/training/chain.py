"""The order in which the recipes made the embedded weights, and the step that puts a finished part in its place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...checkpoints.generator_file import GeneratorFile
from ...checkpoints.vae_file import load_autoencoder
from ...errors import ConfigError
from ...vlm.folder import load_vlm
from ...zoo.spec import BuiltIn

_NAME = "unifusion-tiny-2"
_FOLDER = Path(__file__).parents[1] / "next"
# the edition in training: recipes alone read its parts
NEXT = BuiltIn(
    name=_NAME,
    generator=_FOLDER / f"{_NAME}.safetensors",
    vlm=_FOLDER / f"{_NAME}-vlm",
    vae=_FOLDER / f"{_NAME}-vae.safetensors",
)

Part = Literal["vae", "vlm", "generator"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Recipes of one stage, by part. Each continues from what lies in `weights/`, and is put there when it is finished."""

    vae: tuple[str, ...] = ()
    vlm: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()


# the generators of the last stage are trained on the autoencoder of the stage before
CHAIN = (
    Stage(vae=("tiny-vae", "tiny-vae-decoder"), vlm=("tiny-vlm",), generator=("tiny",)),
    Stage(vae=("tiny-vae-sharpen",), vlm=("tiny-vlm-edits",), generator=("tiny-sharpen",)),
    Stage(vae=("tiny-vae-colors",), vlm=("tiny-vlm-looks",), generator=("tiny-edits",)),
    Stage(
        vae=("tiny-vae-outlines",),
        vlm=("tiny-vlm-details",),
        # tiny-finish starts from the folder of tiny-traits in `runs/`
        generator=("tiny-details", "tiny-traits", "tiny-finish"),
    ),
    Stage(vlm=("tiny-vlm-traits",), generator=("tiny-exact",)),
)

# what a finished run leaves in its folder
FINISHED: Mapping[Part, str] = {"vae": "vae.safetensors", "vlm": "vlm", "generator": "generator.safetensors"}


def part_of(recipe: str) -> Part | None:
    """The part that a recipe of the chain makes; None for another recipe."""
    parts: tuple[Part, ...] = ("vae", "vlm", "generator")
    return next((part for part in parts for stage in CHAIN if recipe in getattr(stage, part)), None)


def install(run: Path, edition: BuiltIn) -> Path:
    """Puts the finished part of a run in its place in an edition, where the next recipe takes it from. Returns the place.

    Raises ConfigError if the folder has no finished part, CheckpointError or VLMError if the part cannot be opened.
    """
    found: list[Part] = [part for part, name in FINISHED.items() if (run / name).exists()]
    if not found:
        names = ", ".join(FINISHED.values())
        raise ConfigError(f"{run} has no finished part ({names}): finish the run first, by --resume")
    (part,) = found
    source, place = run / FINISHED[part], Path(getattr(edition, part))
    _check(part, source)
    place.parent.mkdir(exist_ok=True)
    new = place.with_name(f"{place.name}.part")
    if source.is_dir():
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(source, new)
        if place.exists():
            shutil.rmtree(place)
    else:
        shutil.copyfile(source, new)
    new.replace(place)
    return place


def _check(part: Part, source: Path) -> None:
    """Opens the part as every command will."""
    if part == "vae":
        load_autoencoder(source)
    elif part == "vlm":
        load_vlm(source)
    else:
        GeneratorFile(source)
