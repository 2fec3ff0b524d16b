"""Checkpoints of a run: a folder for each, written by torch.distributed.checkpoint as safetensors, one shard per process.

A checkpoint that was saved by any number of processes is loaded by any other. A folder gets its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..errors import CheckpointError, TrainingError

STATE = "state.json"
_PREFIX = "step-"


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Writes folder/step-N. All processes call it. Raises TrainingError if the disk is full; earlier checkpoints stay intact."""
    final = folder / f"{_PREFIX}{step:07d}"
    part = final.with_suffix(".part")
    chief, together = _rank() == 0, dist.is_initialized()
    try:
        if chief:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        _wait()
        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        with _without_warning():
            # safetensors keeps no other order of axes in memory (channels_last)
            packed = {name: value.contiguous() for name, value in _with_axes(tensors).items()}
            save(packed, storage_writer=writer, no_dist=not together)
        if chief:
            (part / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
            for file in part.iterdir():
                _flush(file)
    except (OSError, CheckpointException) as error:
        if chief:
            # what is there of it takes the room that is missing
            shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to {folder} ({reason}): make room, then go on "
            "with --resume from the last one"
        ) from error
    _wait()
    if chief:
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
    _wait()
    return final


def load_checkpoint(folder: Path, read: Callable[[dict[str, Any]], Mapping[str, Tensor]]) -> int:
    """Loads a checkpoint folder in place into the tensors that `read` returns for its state, which `read` may also refuse.

    Returns the step. Raises CheckpointError if the folder is damaged or has other tensors.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        step = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error!r}): remove it to go on from an earlier checkpoint"
        ) from error
    target = _with_axes(read(state))
    try:
        with _without_warning():
            reader = HuggingFaceStorageReader(str(folder))
            load(target, storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        # its text has the reason of each process
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{folder} is damaged or belongs to another configuration ({reason}): remove it to go on from an earlier checkpoint"
        ) from error
    return step


def checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints, the earliest first."""
    return sorted(each for each in folder.glob(f"{_PREFIX}*") if each.is_dir() and each.suffix != ".part")


def remove_old(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the last `keep` checkpoints and that of the step `best`."""
    for each in checkpoints(folder)[:-keep]:
        if int(each.name.removeprefix(_PREFIX)) != best:
            shutil.rmtree(each)


@contextmanager
def _without_warning() -> Iterator[None]:
    """torch warns of a single process, which is nothing unusual here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _with_axes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views with at least one axis, since shards of safetensors have offsets."""
    return {name: value if value.ndim else value.view(1) for name, value in tensors.items()}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _flush(path: Path) -> None:
    """Makes sure that a file is on the disk before its folder gets its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
