"""The generators that this package knows: one file each, found by being here.

A file of this folder defines one `GeneratorSpec` at its top level and nothing has to be registered. A file that cannot be loaded
is named in a warning and leaves the others working.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from ..models.unifusion import UniFusionConfig
from .spec import GeneratorSpec, SamplingDefaults, Shapes

logger = logging.getLogger(__name__)

_failures: dict[str, str] = {}


def specs() -> list[GeneratorSpec]:
    """The spec of every file in this folder, by file name."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        if module.name == "spec":
            continue
        try:
            content = vars(importlib.import_module(f".{module.name}", __package__))
        # a file of somebody else may fail in any way, and the others must go on
        except Exception as error:
            if module.name not in _failures:
                logger.warning("zoo/%s.py cannot be loaded (%s): its models are unknown", module.name, error)
            _failures[module.name] = f"{type(error).__name__}: {error}"
            continue
        _failures.pop(module.name, None)
        found += [value for value in content.values() if isinstance(value, GeneratorSpec)]
    return found


def built_in(name: str | Path) -> GeneratorSpec | None:
    """The spec whose files come with the package, by the name that users write for them ("tiny"); None for another name."""
    return next((spec for spec in specs() if spec.built_in and spec.name == str(name)), None)


def path_of(name: str | Path, part: Literal["generator", "vlm", "vae"]) -> Path:
    """The file or folder behind what a user wrote: a path, or "tiny" for a part of the embedded model."""
    spec = built_in(name)
    return getattr(spec.built_in, part) if spec else Path(name)


def identify(shapes: Shapes) -> tuple[GeneratorSpec, UniFusionConfig] | None:
    """The spec and the configuration of weights that carry no UniFusion configuration, told by names and shapes; None if they
    belong to no generator of the zoo. A generator whose own configuration the weights have goes before one that knows their
    layout in other sizes.

    Raises CheckpointError if the layout is known and its shapes do not fit together, or cannot do without a configuration."""
    found: list[tuple[GeneratorSpec, UniFusionConfig]] = []
    misfit: CheckpointError | None = None
    for spec in specs():
        try:
            config = spec.recognize(shapes)
        except CheckpointError as error:
            misfit = misfit or error
            continue
        if config is not None:
            found.append((spec, config))
    exact = [each for each in found if each[1] == each[0].config]
    if misfit and not exact:
        raise misfit
    return next(iter(exact or found), None)


def spec_for(config: UniFusionConfig, name: str | None = None) -> GeneratorSpec:
    """The spec of a configuration that a file carries: the one it names, else the first that draws the same latents.

    Raises CheckpointError if there is none: the file was made for a later version, or its zoo file could not be loaded.
    """
    known = specs()
    for spec in known:
        if spec.name == name and spec.config.latent_format == config.latent_format:
            return spec
    for spec in known:
        if spec.config.latent_format == config.latent_format:
            return spec
    formats = ", ".join(sorted({spec.config.latent_format for spec in known}))
    raise CheckpointError(
        f'the model draws latents of format "{config.latent_format}", this version knows {formats}: '
        f"update the pack{failures_told()}"
    )


def sampling_for(spec: GeneratorSpec, schedule: str | None = None) -> SamplingDefaults:
    """What a generator draws best with. A schedule that belongs to a variant, of this generator or of another, brings that
    variant's steps and guidance scale; any other schedule leaves those of the first variant."""
    if schedule is None:
        return spec.default_sampling
    variants = (each for known in (spec, *specs()) for each in known.sampling.values())
    return next(
        (each for each in variants if each.schedule == schedule),
        replace(spec.default_sampling, schedule=schedule),
    )


def failures_told() -> str:
    """The files of this folder that could not be loaded, for the end of an error's sentence; empty if there are none."""
    if not _failures:
        return ""
    return "".join(f"; zoo/{name}.py could not be loaded ({reason})" for name, reason in _failures.items())


def failures() -> Mapping[str, str]:
    """The files of this folder that could not be loaded, and why."""
    return dict(_failures)
