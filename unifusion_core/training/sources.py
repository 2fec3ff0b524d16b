"""Sources of training samples: folders of captioned images, JSON lines, tar shards, and local datasets of Hugging Face.

Every source is indexed: it knows its length, and reads sample number i when it is asked for it.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ShapeError
from .config import SourceConfig

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# fields of JSON records: the first that is there counts
PROMPT_KEYS = ("prompt", "instruction", "caption", "text")
TARGET_KEYS = ("image", "output_image", "file_name")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample as it is stored. Images are the bytes of their files.

    name      for messages
    prompt    caption or instruction
    target    the image to draw
    inputs    the images of an edit, in the order in which the prompt counts them
    rewrite   a rewrite that comes with the sample
    mask      an image that is white where the loss counts
    """

    name: str
    prompt: str
    target: bytes
    inputs: tuple[bytes, ...] = ()
    rewrite: str | None = None
    mask: bytes | None = None


class Source(ABC):
    """An indexed source."""

    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def example(self, index: int) -> Example:
        """Sample number `index`. Raises ShapeError, with the reason, for one that cannot be used."""


def open_source(config: SourceConfig) -> Source:
    """The source of a configuration. Raises ConfigError if it does not exist or has no samples."""
    opened = {
        "folder": FolderSource,
        "jsonl": JSONLinesSource,
        "webdataset": TarSource,
        "dataset": DatasetSource,
    }
    source = opened[config.kind](config.place)
    if not len(source):
        raise ConfigError(
            f"{config.kind} {config.place} has no samples: see training/README.md for its format."
        )
    return source


def read_example(source: Source, index: int) -> Example:
    """A sample of a source. Raises ShapeError if its record cannot be used, whatever is wrong with it."""
    try:
        example = source.example(index)
        # text that no tokenizer takes (half of a surrogate pair)
        for text in (example.prompt, example.rewrite or ""):
            text.encode()
        if not all(
            isinstance(each, bytes) for each in (example.target, *example.inputs, example.mask or b"")
        ):
            raise ShapeError("one of its images is neither a path nor the bytes of a file")
    except ShapeError:
        raise
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ShapeError(f"its record is malformed ({type(error).__name__}: {error})") from error
    return example


class FolderSource(Source):
    """Images in a folder and the folders in it, with captions in files of the same names."""

    def __init__(self, place: str) -> None:
        self.folder = Path(place)
        if not self.folder.is_dir():
            raise ConfigError(f"there is no folder {place}: check the path under data.")
        self.files = sorted(
            file
            for file in self.folder.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        self.names = [str(file.relative_to(self.folder)) for file in self.files]

    def example(self, index: int) -> Example:
        file = self.files[index]
        for suffix in (".txt", ".json"):
            caption = file.with_suffix(suffix)
            if caption.is_file():
                record = caption_record(read_bytes(caption), caption.name)
                return example_of(record, self.names[index], self.folder, target=read_bytes(file))
        raise ShapeError(f"it has no caption: write {file.with_suffix('.txt').name}")


class JSONLinesSource(Source):
    """Records of a .jsonl file; image paths are relative to it."""

    def __init__(self, place: str) -> None:
        self.path = Path(place)
        try:
            # other ends of lines may stand inside a JSON string
            lines = self.path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{place} cannot be read ({error}): check the path under data.") from error
        self.lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        self.names = [f"{self.path.name}:{number}" for number, _ in self.lines]

    def example(self, index: int) -> Example:
        return example_of(parse_json(self.lines[index][1]), self.names[index], self.path.parent)


class TarSource(Source):
    """Tar shards. The members are listed once, and each is read from its place in the file."""

    def __init__(self, place: str) -> None:
        self.members: dict[str, dict[str, tuple[Path, int, int]]] = {}
        for path in expand_braces(place):
            try:
                # members are read by their place in the file, which a compressed one does not have
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        if member.isfile():
                            key, _, suffix = Path(member.name).name.partition(".")
                            where = (path, member.offset_data, member.size)
                            name = f"{path.name}/{Path(member.name).parent / key}"
                            self.members.setdefault(name, {})[suffix.lower()] = where
            except (OSError, tarfile.TarError) as error:
                raise ConfigError(
                    f"{path} cannot be read as an uncompressed tar file ({error}): check the path under data, or unpack it."
                ) from error
        self.names = sorted(self.members)

    def example(self, index: int) -> Example:
        parts = self.members[self.names[index]]

        def image(stem: str) -> bytes | None:
            found = next((parts[stem + each] for each in IMAGE_SUFFIXES if stem + each in parts), None)
            return read_part(*found) if found else None

        # the suffixes of the members have no leading dot
        parts = {f".{suffix}": where for suffix, where in parts.items()}
        caption = next((each for each in (".json", ".txt") if each in parts), None)
        if caption is None:
            raise ShapeError("it has no caption: add a member .txt or .json")
        record = caption_record(read_part(*parts[caption]), caption)
        inputs: list[bytes] = []
        while (found := image(f".src{len(inputs)}")) is not None:
            inputs.append(found)
        target = image(".tgt") if inputs else image("")
        if target is None:
            raise ShapeError("it has no target image: add a member .jpg or .png (.tgt.jpg for edits)")
        return example_of(record, self.names[index], None, target=target, inputs=inputs)


class DatasetSource(Source):
    """A local dataset of Hugging Face: an imagefolder with metadata.jsonl, or parquet files."""

    def __init__(self, place: str) -> None:
        # takes seconds to import
        import datasets  # noqa: PLC0415
        from datasets.exceptions import DatasetsError  # noqa: PLC0415

        if not Path(place).is_dir():
            raise ConfigError(f"there is no folder {place}: check the path under data.")
        datasets.disable_progress_bars()
        try:
            loaded = datasets.load_dataset(place, split="train")
        except (OSError, ValueError, DatasetsError) as error:
            raise ConfigError(f"{place} cannot be read as a dataset: {error}") from error
        images = [name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)]
        for name in images:
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
        self.rows: Any = loaded
        self.names = [f"{Path(place).name}[{index}]" for index in range(len(loaded))]

    def example(self, index: int) -> Example:
        return example_of(self.rows[index], self.names[index], None)


# Records -----------------------------------------------------------------------------------------


def example_of(
    record: Mapping[str, Any],
    name: str,
    folder: Path | None,
    *,
    target: bytes | None = None,
    inputs: Sequence[bytes] = (),
) -> Example:
    """The sample of a record; images are paths relative to `folder`, bytes, or {"bytes", "path"}. Raises ShapeError."""
    prompt = next((record[key] for key in PROMPT_KEYS if record.get(key) is not None), None)
    if not isinstance(prompt, str):
        raise ShapeError(f"it has no text: give one of {', '.join(PROMPT_KEYS)}")
    if not prompt.strip():
        raise ShapeError("its caption is empty")
    if target is None:
        stored = next((record[key] for key in TARGET_KEYS if record.get(key) is not None), None)
        if stored is None:
            raise ShapeError(f"it has no target image: give one of {', '.join(TARGET_KEYS)}")
        target = image_bytes(stored, folder)
    given = record.get("input_images") or ()
    if not isinstance(given, list | tuple):
        raise ShapeError("input_images is not a list")
    read = [*inputs, *(image_bytes(each, folder) for each in given)]
    rewrite = record.get("rewrite")
    mask = image_bytes(record["mask"], folder) if record.get("mask") is not None else None
    return Example(
        name=name, prompt=prompt.strip(), target=target, inputs=tuple(read), rewrite=rewrite, mask=mask
    )


def image_bytes(stored: Any, folder: Path | None) -> bytes:
    """The bytes of an image in a record."""
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, Mapping):
        return stored["bytes"] if stored.get("bytes") else read_bytes(Path(stored["path"]))
    if not isinstance(stored, str):
        raise ShapeError(f"an image is given as {type(stored).__name__}; give a path")
    return read_bytes((folder or Path()) / stored)


def caption_record(data: bytes, name: str) -> Mapping[str, Any]:
    """The record in a caption file: JSON, or a text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ShapeError(f"its caption is not UTF-8 ({error.reason})") from error
    return parse_json(text) if name.endswith(".json") else {"prompt": text}


def parse_json(text: str) -> Mapping[str, Any]:
    """A JSON object. Raises ShapeError for anything else."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ShapeError(f"it is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ShapeError("it is not a JSON object")
    return record


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises ShapeError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShapeError(f"{path} cannot be read ({error.strerror})") from error


def read_part(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a member of a tar file."""
    with path.open("rb", buffering=io.DEFAULT_BUFFER_SIZE) as file:
        file.seek(offset)
        return file.read(size)


def expand_braces(pattern: str) -> list[Path]:
    """The paths of "shards-{0000..0099}.tar". Raises ConfigError if one does not exist."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        names = [pattern]
    else:
        first, last = found.groups()
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [pattern[: found.start()] + number + pattern[found.end() :] for number in numbers]
    for name in names:
        if not Path(name).is_file():
            raise ConfigError(f"there is no shard {name}: check the path under data.")
    return [Path(name) for name in names]
