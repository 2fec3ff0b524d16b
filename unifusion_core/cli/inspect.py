"""`unifusion inspect`: what a generator, a LoRA, a VAE or a VLM folder is."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, VLMError

if TYPE_CHECKING:
    # for annotations alone
    from torch import Tensor

    from ..checkpoints.generator_file import GeneratorContent
    from ..checkpoints.safetensors_file import SafetensorsFile

COPY_AGAIN = "copy the model's files again"


def add_command(commands: argparse._SubParsersAction) -> None:
    """The command and its options."""
    parser = commands.add_parser("inspect", help="what a generator, a LoRA, a VAE or a VLM folder is")
    parser.set_defaults(run=inspect)
    parser.add_argument("file", metavar="FILE", help="tiny, a safetensors file, or a VLM folder")
    parser.add_argument(
        "--json",
        action="store_true",
        help="everything, with the whole configuration and training record, as JSON",
    )


def inspect(arguments: argparse.Namespace) -> None:
    """Print what a file or a VLM folder holds. Raises UniFusionError if it is none of ours, or damaged."""
    from .. import zoo
    from ..checkpoints.adapter_file import is_adapter
    from ..checkpoints.generator_file import SUPPORTED, GeneratorContent
    from ..checkpoints.safetensors_file import SafetensorsFile

    path = zoo.path_of(arguments.file, "generator")
    if path.is_dir() and not _is_of_diffusers(path):
        title, facts, blocks = _vlm_facts(path)
    else:
        file = SafetensorsFile(path, wanted=SUPPORTED)
        first = file.layout.get("taesd_decoder.1.weight")
        if first is not None and first.ndim == 4:
            title, facts, blocks = _vae_facts(file.layout, file.metadata, path.name)
        elif is_adapter(file.names):
            title, facts, blocks = _adapter_facts(file)
        else:
            title, facts, blocks = _generator_facts(GeneratorContent(file.layout, file.metadata, path.name))
    if arguments.json:
        print(json.dumps({"path": str(path), "kind": title, **facts, **blocks}, indent=1, ensure_ascii=False))
        return
    print(f"{path}: {title}")
    for name, fact in facts.items():
        print(f"{name:16} {fact}")
    recorded = ", ".join(name for name, content in blocks.items() if content)
    print(f"{'with --json':16} {recorded or 'the same'}")


def _is_of_diffusers(folder: Path) -> bool:
    config = folder / "config.json"
    whole = (folder / "model_index.json").is_file()
    return whole or (
        config.is_file() and '"_class_name"' in config.read_text(encoding="utf-8", errors="replace")
    )


# title, one-line facts, JSON blocks
_Facts = tuple[str, dict[str, Any], dict[str, dict[str, Any]]]


def _generator_facts(content: GeneratorContent) -> _Facts:
    from ..checkpoints.memory import SIZE, fits, gigabytes, taps_of_tiles, working_bytes
    from ..checkpoints.quantized import drop_scales, formats_of, quantized_layers

    config, spec, total = content.config, content.config.vlm, content.num_parameters
    pooling = _count(p for name, p in content.module.named_parameters() if name.startswith("txt"))
    quantised = {f"{layer}.weight" for layer in quantized_layers(content.tensors)}
    plain = (t for name, t in drop_scales(content.tensors).items() if name not in quantised)
    types = sorted({str(t.dtype).removeprefix("torch.") for t in plain} | formats_of(content.tensors))
    variants = [
        f"{f'{name}: ' if name else ''}{each.schedule}, {each.steps} steps, cfg {each.cfg:g}"
        for name, each in content.spec.sampling.items()
    ]
    facts = {
        "parameters": f"{millions(total)}: LAP and refiner {millions(pooling)}, DiT {millions(total - pooling)}",
        "weights": f"{gigabytes(sum(t.nbytes for t in content.tensors.values()))} in the file ({', '.join(types)})",
        "VLM it needs": f"{spec.family}, {spec.num_layers} layers of width {spec.hidden_size}",
        "its weights": spec.fingerprint or "any of that size",
        "tapped layers": ", ".join(map(str, spec.taps)),
        "their states": taps_of_tiles(config),
        "latents": config.latent_format,
        "drawn with": "; ".join(variants),
        "trained sizes": ", ".join(f"{w}x{h}" for w, h in config.trained_sizes) or "not recorded",
        "limits": " ".join(content.spec.limits) or "none known",
        "one step": f"about {gigabytes(working_bytes(config))} at {SIZE[0]}x{SIZE[1]}, beside the weights; of which fit",
        **fits(config, total),
    }
    title = "UniFusion generator" if content.configured else content.spec.title
    return title, facts, {"config": dataclasses.asdict(config), "training": content.training}


def _adapter_facts(file: SafetensorsFile) -> _Facts:
    """Of an adapter for the generator of the zoo that it fits best."""
    from .. import zoo
    from ..checkpoints.adapter_file import adapter_of
    from ..models.layers import LayerFactory
    from ..models.unifusion import UniFusion

    tensors, fits = file.tensors(), {}
    for spec in zoo.specs():
        module = UniFusion(spec.config, LayerFactory(device="meta"))
        shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
        fits[spec.name] = adapter_of(tensors, shapes, file.path.name)
    base, adapter = max(fits.items(), key=lambda item: len(item[1].used))
    reasons = Counter(adapter.unused.values())
    zero = len(adapter.without_effect)
    facts = {
        "base": f"{base}, of {', '.join(fits)}" if adapter.used else f"none of {', '.join(fits)}",
        "kind": ", ".join(f"{kind} ({count} layers)" for kind, count in adapter.kinds.most_common())
        or "unknown",
        "rank": ", ".join(f"{rank} ({count} layers)" for rank, count in adapter.ranks.most_common())
        or "none",
        "keys": f"{len(adapter.used)} used, {len(adapter.unused)} not used",
        "for example": (adapter.used or tuple(adapter.unused))[0],
        **{
            reason: f"{count} keys, such as {_first(adapter.unused, reason)}"
            for reason, count in reasons.items()
        },
        "without effect": f"{zero} of {len(adapter.changes)} layers are zero, as before training"
        if zero
        else "no layer",
    }
    return "adapter of a generator", facts, {"metadata": dict(file.metadata)}


def _first(unused: Mapping[str, str], reason: str) -> str:
    return next(key for key, told in unused.items() if told == reason)


def _vae_facts(tensors: dict[str, Tensor], metadata: dict[str, str], name: str) -> _Facts:
    facts = {
        "parameters": millions(_count(tensors.values())),
        "latents": f"{tensors['taesd_decoder.1.weight'].shape[1]} channels, one cell for 8 x 8 pixels",
    }
    try:
        training = _json_object(metadata.get("training", "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name}: its record of training is damaged ({error}): download or save it again"
        ) from error
    return "VAE in the TAESD layout", facts, {"training": training}


def _vlm_facts(folder: Path) -> _Facts:
    """From the folder's files alone: transformers would take seconds to import."""
    from ..checkpoints.safetensors_file import SafetensorsFile

    if not (folder / "config.json").is_file():
        raise VLMError(
            f"{folder} has no config.json, so it is no VLM folder: copy all files of the model into it"
        )
    config = _read_json(folder / "config.json")
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise VLMError(f"{folder / 'config.json'} is damaged (its text_config is no object): {COPY_AGAIN}")
    files = sorted(folder.glob("*.safetensors"))
    record = folder / "training.json"
    facts = {
        "parameters": millions(sum(_count(SafetensorsFile(file).layout.values()) for file in files)),
        "family": config.get("model_type"),
        "language model": f"{text.get('num_hidden_layers')} layers of width {text.get('hidden_size')}",
        "longest chat": f"{text.get('max_position_embeddings')} tokens",
    }
    return (
        "VLM folder",
        facts,
        {"training": _read_json(record) if record.is_file() else {}},
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _json_object(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise VLMError(f"{path} is damaged ({error}): {COPY_AGAIN}") from error


def _json_object(text: str) -> dict[str, Any]:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def millions(count: int) -> str:
    """For example "12.80 M"."""
    return f"{count / 1e6:.2f} M"
