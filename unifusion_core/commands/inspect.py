"""`unifusion inspect`: what a generator, a VAE or a VLM folder is."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VLMError

if TYPE_CHECKING:  # for annotations alone
    from torch import Tensor


def inspect(arguments: argparse.Namespace) -> None:
    """Print what a file or a VLM folder holds. Raises UniFusionError if it is none of ours, or damaged."""
    from .. import embedded

    path = embedded.GENERATOR if arguments.file == "tiny" else Path(arguments.file)
    if path.is_dir() and not _is_of_diffusers(path):
        title, facts, blocks = _vlm_facts(path)
    else:
        from ..checkpoint import read_layout

        tensors, metadata = read_layout(path)
        if "taesd_decoder.1.weight" in tensors:
            title, facts, blocks = _vae_facts(tensors, metadata)
        else:
            title, facts, blocks = _generator_facts(tensors, metadata, path.name)
    print(f"{path}: {title}")
    for name, fact in facts.items():
        print(f"{name:16} {fact}")
    for name, content in blocks.items():
        print(f"{name}:\n{json.dumps(content, indent=1)}" if content else f"{name}: not recorded")


def _is_of_diffusers(folder: Path) -> bool:
    config = folder / "config.json"
    whole = (folder / "model_index.json").is_file()
    return whole or (
        config.is_file() and '"_class_name"' in config.read_text(encoding="utf-8", errors="replace")
    )


_Facts = tuple[str, dict[str, Any], dict[str, dict[str, Any]]]  # title, one-line facts, JSON blocks


def _generator_facts(tensors: dict[str, Tensor], metadata: dict[str, str], name: str) -> _Facts:
    from ..checkpoint import CONFIG_KEY, split_generator_tensors
    from ..memory import SIZE, fits, gigabytes, taps_of_tiles, working_bytes
    from ..presets import DRAWN_WITH
    from ..quantized import without_parts

    stored, config, training = split_generator_tensors(tensors, metadata, name)
    weights = without_parts(stored)
    spec, total = config.vlm, _count(weights.values())
    pooling = _count(t for key, t in weights.items() if key.startswith("txt"))
    types = sorted({str(t.dtype).removeprefix("torch.") for t in weights.values()})
    drawing = DRAWN_WITH.get(config.latent_format)
    facts = {
        "parameters": f"{millions(total)}: LAP and refiner {millions(pooling)}, DiT {millions(total - pooling)}",
        "weights": f"{gigabytes(sum(t.nbytes for t in stored.values()))} in the file ({', '.join(types)})",
        "VLM it needs": f"{spec.family}, {spec.num_layers} layers of width {spec.hidden_size}",
        "its weights": spec.fingerprint or "any of that size",
        "tapped layers": ", ".join(map(str, spec.taps)),
        "their states": taps_of_tiles(config),
        "latents": config.latent_format,
        "drawn with": f"{drawing.schedule}, {drawing.steps} steps, cfg {drawing.cfg:g}"
        if drawing
        else "unknown",
        "trained sizes": ", ".join(f"{w}x{h}" for w, h in config.trained_sizes) or "not recorded",
        "one step": f"about {gigabytes(working_bytes(config))} at {SIZE[0]}x{SIZE[1]}, beside the weights; of which fit",
        **fits(config, total),
    }
    configured = any(key.endswith(CONFIG_KEY) for key in (*metadata, *tensors))
    title = "UniFusion generator" if configured else "Krea 2 generator (raw or turbo, which no file tells)"
    return title, facts, {"config": dataclasses.asdict(config), "training": training}


def _vae_facts(tensors: dict[str, Tensor], metadata: dict[str, str]) -> _Facts:
    facts = {
        "parameters": millions(_count(tensors.values())),
        "latents": f"{tensors['taesd_decoder.1.weight'].shape[1]} channels, one cell for 8 x 8 pixels",
    }
    return "VAE in the TAESD layout", facts, {"training": json.loads(metadata.get("training", "{}"))}


def _vlm_facts(folder: Path) -> _Facts:
    """From the folder's files alone: transformers would take seconds to import."""
    from ..checkpoint import read_layout

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VLMError(f"{folder} is no VLM folder: its config.json cannot be read ({error})") from error
    text = config.get("text_config", config)
    files = sorted(folder.glob("*.safetensors"))
    record = folder / "training.json"
    facts = {
        "parameters": millions(sum(_count(read_layout(file)[0].values()) for file in files)),
        "family": config.get("model_type"),
        "language model": f"{text.get('num_hidden_layers')} layers of width {text.get('hidden_size')}",
        "longest chat": f"{text.get('max_position_embeddings')} tokens",
    }
    return (
        "VLM folder",
        facts,
        {"training": json.loads(record.read_text("utf-8")) if record.is_file() else {}},
    )


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
