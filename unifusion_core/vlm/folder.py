"""Loads a local VLM folder in Hugging Face's layout. Nothing is downloaded, and no code of the folder is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from ..contracts import VLMSpec
from ..errors import VLMError
from .backbone import VLMBackbone, check_size_fits
from .families import find_family


def load_vlm(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tile_size: int | None = None,
    spec: VLMSpec | None = None,
) -> VLMBackbone:
    """Loads a VLM.

    device      "meta" = the model without its weights, which can prepare chats and nothing else
    tile_size   side of a tile in pixels, for families that do not fix it; None = the family's default
    spec        of a generator: a VLM of another family or size is refused before its weights are read

    Raises VLMError for a folder that is missing, incomplete, damaged, of an unsupported family, too large for the memory, or that
    needs custom code.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VLMError(
            f"There is no VLM folder {folder}; give the path of a folder in Hugging Face's layout."
        )
    config = _read_json(folder / "config.json")
    if config is None:
        raise VLMError(
            f"{folder} has no config.json, so it is not a VLM folder; copy all files of the model into it."
        )
    model_type = str(config.get("model_type"))
    find_family(model_type)
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in (_read_json(folder / name) or {}):
            raise VLMError(
                f'{folder / name} requires code of the folder ("auto_map"), which is never run; use the version of this model '
                "that transformers supports without it (its name often ends in -hf)."
            )
    if spec is not None:
        check_size_fits(spec, model_type, *_size(folder))
    tokenizer = load_tokenizer(folder)
    empty = str(device) == "meta"
    model = _empty_model(folder, dtype) if empty else _load_model(folder, dtype, device)
    return VLMBackbone(
        model, tokenizer, normalisation=_normalisation(folder), tile_size=tile_size, folder=folder
    )


def _size(folder: Path) -> tuple[int, int]:
    """Hidden size and number of layers of the language model."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config()
        return text.hidden_size, text.num_hidden_layers
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise VLMError(
            f"{folder / 'config.json'} is damaged ({_in_one_line(error)}); copy the model's files again."
        ) from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, or of the folder `tokenizer` beside it, as diffusers saves pipelines. Raises VLMError if it is
    missing, damaged or has no tokenizer.json."""
    beside = folder.parent / "tokenizer"
    if not _has_tokenizer(folder) and _has_tokenizer(beside):
        folder = beside
    if not _has_tokenizer(folder):
        raise VLMError(f"{folder} has no tokenizer (tokenizer.json); copy all files of the model into it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # the tokenizers library raises bare Exception for a damaged file
    except Exception as error:
        raise VLMError(
            f"The tokenizer in {folder} cannot be read ({_in_one_line(error)}); copy its files again."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise VLMError(
            f"The tokenizer in {folder} is a {type(tokenizer).__name__} and a tokenizer.json is needed; copy it from the "
            "model's files."
        )
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise VLMError(
            f'{folder / "tokenizer_config.json"} is damaged ("model_max_length" is {tokenizer.model_max_length!r}, a number is '
            "needed); copy the model's files again."
        )
    return tokenizer


def _empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder's config.json, without weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return cast(Any, AutoModelForImageTextToText).from_config(config, dtype=dtype)


def _load_model(folder: Path, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """The model with its weights on the device. A model that was saved without its language model head has none, and writes no
    text. Raises VLMError unless the folder has exactly the other weights."""
    try:
        with _no_progress_bars():
            model, info = cast(Any, AutoModelForImageTextToText).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
    except (
        *(OSError, ValueError, RuntimeError, KeyError, MemoryError),
        *(SafetensorError, StrictDataclassError),
    ) as error:
        if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error)):
            raise VLMError(
                f"The VLM in {folder} needs more memory than is available ({_in_one_line(error)}): use a smaller one, or close "
                "other programs."
            ) from error
        raise VLMError(
            f"The weights in {folder} are missing, damaged or do not fit its config.json ({_in_one_line(error)}); "
            "copy the model's files again."
        ) from error
    missing = {str(key) for key in info["missing_keys"]}
    if missing == {"lm_head.weight"}:
        # transformers has made one of random numbers
        model.set_output_embeddings(None)
        info["missing_keys"] = set()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(str(key) for key in info[kind])
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise VLMError(
                f"The weights in {folder} do not fit its config.json: {kind.replace('_', ' ')} {shown}; "
                "copy the model's files again."
            )
    return model.to(device)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hides transformers' progress bars and its report of weights, which is raised here, and restores its settings afterwards."""
    shown, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if shown:
            hf_logging.enable_progress_bar()


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]] | None:
    """(mean, std) of the folder's image processor; None if it has none, for the family's default. Raises VLMError unless each has
    one number per colour, and `std` positive ones."""
    processor = _read_json(folder / "preprocessor_config.json")
    if processor is None:
        processor = (_read_json(folder / "processor_config.json") or {}).get("image_processor")
    if not processor or "image_mean" not in processor or "image_std" not in processor:
        return None
    for name in ("image_mean", "image_std"):
        values = processor[name]
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != 3 or (name == "image_std" and min(values) <= 0):
            raise VLMError(
                f'The image processor in {folder} is damaged ("{name}" is {values!r}, one number per colour is needed); copy the '
                "model's files again."
            )
    return processor["image_mean"], processor["image_std"]


def _in_one_line(error: Exception) -> str:
    """The words of another library's error."""
    return " ".join(str(error).split())


def _read_json(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None if there is no such file. Raises VLMError if it is damaged."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VLMError(f"{path} is damaged ({error}); copy the model's files again.") from error
    if not isinstance(content, dict):
        raise VLMError(f"{path} is damaged (no JSON object); copy the model's files again.")
    return content
