"""The values that travel between drawing, judging and scoring, and the interface of a benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from ...contracts import MAX_TILES
from ...errors import ConfigError
from ...images import ImageLike, to_tensor

# what a judge sees: the drawn image, or the input images and the drawn one
Sees = Literal["output", "all"]
Key = tuple[str, int]
"""Id of an item and seed: one drawn image."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a drawn image.

    text             as it is recorded; unique within an item
    ask              as the judge is asked; empty = `text`
    accepted         spellings of the right answer; empty = the judge writes freely
    sees             the images that the judge is shown
    max_new_tokens   of a free answer
    is_valid         whether a free answer can be used; if not, the judge is asked once more
    """

    text: str
    ask: str = ""
    accepted: tuple[str, ...] = ()
    sees: Sees = "output"
    max_new_tokens: int = 1
    is_valid: Callable[[str], bool] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How an item is drawn.

    rewriting     None = as the model wants it
    style         text prepended to the prompt, which changes how the VLM rewrites it
    system        the system text of the chat in which the VLM rewrites; empty = the model's own
    max_tiles     per input image, thumbnail included
    layer_gains   on the taps in LAP's sum; None = as trained
    """

    rewriting: bool | None = None
    style: str = ""
    system: str = ""
    max_tiles: int = MAX_TILES
    layer_gains: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt.

    id          of its files; unique
    images      input images: each an image, or a function that reads it
    questions   about the drawn image
    labels      what scores are grouped by
    source      what several items of a benchmark are made of (a prompt, an image): they are sampled together. Empty = `id`
    way         how it is drawn
    """

    id: str
    prompt: str
    images: tuple[ImageLike | Callable[[], ImageLike], ...] = ()
    questions: tuple[Question, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    way: Way = field(default_factory=Way)

    def read_images(self) -> list[Float[Tensor, "3 H W"]]:
        """The input images. Raises ShapeError for one that cannot be read."""
        return [to_tensor(_read(image)) for image in self.images]


def _read(image: ImageLike | Callable[[], ImageLike]) -> ImageLike:
    # a tensor is callable in the eyes of type checkers
    return image if isinstance(image, ImageLike) else image()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a judge may look at: the drawn image, the input images, and the item they belong to."""

    item: Item
    output: Float[Tensor, "3 H W"]
    inputs: Sequence[Float[Tensor, "3 H W"]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A judge's answer.

    text          the likeliest answer in words
    probability   of the accepted answer, 0..1; None for a free answer
    """

    text: str
    probability: float | None = None

    def is_one_of(self, accepted: Sequence[str]) -> bool:
        """Whether the words are an accepted spelling."""
        return self.text.strip().lower() in {each.strip().lower() for each in accepted}


# the answer to every question about an image that could not be drawn; a free answer has no probability
NOT_DRAWN = Answer(text="(not drawn)", probability=0.0)


class Judge(Protocol):
    """Who answers questions about images."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a report says of the judge: answers of judges with another identity are not mixed."""
        ...

    def check(self, questions: Iterable[Question]) -> None:
        """Raises a UniFusionError if the judge cannot answer one of the questions."""
        ...

    def answer(self, shown: Shown, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question."""
        ...


Answers = Mapping[Key, Mapping[str, Answer]]
"""Per drawn image: the text of a question -> its answer."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a run.

    values      the benchmark's own scores by name; the first is the headline
    intervals   (low, high) of 95 % over prompts, for some of the values
    tables      title -> row -> column -> number
    of_images   headline score of each drawn image, for contact sheets and paired differences
    notes       sentences that belong beside the numbers
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    tables: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    of_images: dict[Key, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Benchmark(ABC):
    """One benchmark: reads its file, and turns answers into scores.

    name          on the command line
    source        the file or folder that it needs, and who publishes it
    seeds         drawn images per prompt, if the user does not choose
    licence       of the data, if it restricts their use
    draws         False for what is judged as it is
    """

    name: str
    source: str
    seeds: int = 1
    licence: str = ""
    draws: bool = True

    @abstractmethod
    def read(self, data: Path) -> list[Item]:
        """The items of a file or folder. Raises ConfigError for one that is missing, damaged or of another version."""

    @abstractmethod
    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        """The scores; `answers` has every question of every drawn image."""

    def own_judge(self) -> Judge | None:
        """The judge of a benchmark that measures pixels; None = a VLM is asked."""
        return None

    def missing(self, data: Path, what: str) -> ConfigError:
        """The error for data that are not there."""
        lack = f"{data} has no {what}" if data.is_dir() else f"there is no {data}"
        return ConfigError(f"{lack}: the suite {self.name} needs {self.source}")


def images_of(items: Sequence[Item], answers: Answers) -> list[tuple[Item, Key]]:
    """The items with their drawn images, in order."""
    seeds: dict[str, list[int]] = {}
    for name, seed in answers:
        seeds.setdefault(name, []).append(seed)
    return [(item, (item.id, seed)) for item in items for seed in sorted(seeds.get(item.id, []))]
