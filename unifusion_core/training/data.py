"""From the sources to training samples: a scan that reports what can be used, caches, and the random parts of each sample.

All chance of a sample (rewrite, dropout, time, noise) is a function of (seed, position).
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..caching import digest
from ..contracts import Features, Request
from ..errors import ConfigError, PromptError, ShapeError
from ..files import write_whole
from ..flow.path import sample_training_times
from ..flow.schedule import build_schedule
from ..images import decode_image
from ..models.autoencoder import DOWNSCALE
from ..pipeline import Pipeline
from .caches import STATE_BYTES, FileCache, LatentCache, StatesCache, content_key, weights_key
from .config import TrainConfig
from .order import SampleOrder
from .sources import Example, open_source, read_example

logger = logging.getLogger(__name__)

# captions that are rewritten in one batch
REWRITTEN_AT_ONCE = 16
# bytes of a latent value
LATENT_BYTES = 4
REWRITTEN_BY_DEFAULT = 0.8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A usable sample of a source.

    size      (width, height) of its target image as stored
    key       hash of the target's file
    caption   its prompt
    rewrite   the rewrite that comes with it
    images    hashes of its input images
    tokens    of its chat, without a rewrite
    masked    whether a mask says where the loss counts
    """

    index: int
    name: str
    size: tuple[int, int]
    key: str
    caption: str
    rewrite: str | None
    images: tuple[str, ...]
    tokens: int
    masked: bool


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """What the run gets for one position.

    latents   of the target; None if they are not cached
    pixels    of the target, where `latents` is None
    weights   of each latent cell in the loss, 0..1; None without a mask
    """

    name: str
    request: Request
    size: tuple[int, int]
    latents: Float[Tensor, "C h w"] | None
    pixels: Float[Tensor, "3 H W"] | None
    noise_seed: int
    t: Float[Tensor, " n"]
    weights: Float[Tensor, "1 h w"] | None = None


@dataclass
class ScanReport:
    """What the scan of the sources found."""

    usable: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self, shown: int = 50) -> Iterator[str]:
        """The report for the terminal, with the first refusals."""
        yield f"{self.usable} samples can be used, {len(self.refused)} are refused"
        for name, reason in self.refused[:shown]:
            yield f"  refused  {name}: {reason}"
        if len(self.refused) > shown:
            yield f"  and {len(self.refused) - shown} more"
        for note in self.notes:
            yield f"  note     {note}"


class TrainingData:
    """The samples of a run.

    Raises ConfigError for sources without a usable sample, and for caches that would exceed their limit.
    """

    def __init__(self, config: TrainConfig, pipeline: Pipeline) -> None:
        self.config, self.pipeline = config, pipeline
        self.sources = [open_source(each) for each in config.data]
        self.folder = config.cache.folder or config.output.parent / "cache"
        self.report = ScanReport()
        self.entries: list[list[Entry]] = []
        self.held_back: list[tuple[int, Entry]] = []
        for number in range(len(self.sources)):
            usable = self._scan(number)
            held = [each for each in usable if _fraction(each.key) < config.validation]
            kept = [each for each in usable if _fraction(each.key) >= config.validation]
            self.held_back += [(number, each) for each in held]
            if not kept:
                place = config.data[number].place
                if held:
                    raise ConfigError(
                        f"validation holds all {len(held)} samples of {place} back: give a smaller share"
                    )
                raise ConfigError("\n".join([f"{place} has no usable sample:", *self.report.lines(10)]))
            self.report.usable += len(usable)
            self.entries.append(kept)
        self.order = SampleOrder(
            [len(each) for each in self.entries],
            [each.weight for each in config.data],
            [each.repeats for each in config.data],
            config.seed,
        )
        share = config.rewrite.share
        usual = REWRITTEN_BY_DEFAULT if pipeline.spec.rewrites else 0.0
        self.rewrite_share = usual if share is None else share
        vae = weights_key(pipeline.autoencoder)[:16]
        self.latents = LatentCache(self.folder / "latents" / vae)
        kept = self.folder if config.rewrite.cache else config.output
        self.rewrites = FileCache(kept / "rewrites" / pipeline.backbone.fingerprint[:16], ".txt")
        self.states = None
        if config.cache.states:
            place = self.folder / "states" / pipeline.backbone.fingerprint[:16]
            self.states = StatesCache(place, config.cache.states)
        self._written: dict[str, str] = {}

    # Before the training -------------------------------------------------------------------------

    def describe_caches(self) -> list[str]:
        """Sizes of the caches before they are made. Raises ConfigError if they would exceed the limit."""
        missing = {key: size for key, _, size in self._targets() if key not in self.latents}
        channels = self.pipeline.model.config.dit.latent_channels
        needed = sum(channels * w * h * LATENT_BYTES // DOWNSCALE**2 for w, h in missing.values())
        lines = []
        if self.config.validation:
            lines.append(f"held back {len(self.held_back)} samples for the validation loss")
        if self.config.cache.latents:
            lines.append(f"latents   {len(missing)} to make, {needed / 1e6:.1f} MB, in {self.folder}")
            self._check_limit("latents", needed)
        if self.rewrite_share:
            lines.append(f"rewrites  {len(self._unwritten())} to make, a few kB")
        if self.states:
            size = self._states_size()
            lines.append(f"states    up to {size / 1e6:.1f} MB, in {self.folder}")
            self._check_limit("states", size)
        return lines

    def _check_limit(self, name: str, size: int) -> None:
        """Raises ConfigError for a cache that would be larger than allowed."""
        if size > self.config.cache.limit_gb * 1e9:
            raise ConfigError(
                f"the {name} need {size / 1e9:.1f} GB and cache.limit_gb is {self.config.cache.limit_gb:g}: raise it, or leave "
                f"cache.{name} out"
            )

    def _states_size(self) -> int:
        """The most bytes that the states of all conditions take: of the chats with and without rewrite, and without words or
        images."""
        spec, config = self.pipeline.model.config.vlm, self.config
        value = len(spec.taps) * spec.hidden_size * STATE_BYTES[config.cache.states or "bf16"]
        written = self.pipeline.spec.rewriting.max_new_tokens
        total = 0
        for _, entry in self._all_entries():
            total += entry.tokens * (1 + bool(config.dropout.images) + bool(config.dropout.text))
            total += (entry.tokens + written) * bool(self.rewrite_share)
            total += config.max_tiles * self.pipeline.backbone.tokens_per_tile * bool(config.reconstruct)
        return total * value

    def fill_caches(self, process: tuple[int, int] = (0, 1)) -> None:
        """Makes this process's part of the latents and rewrites that are missing. `process`: (index, number)."""
        index, count = process
        if self.config.cache.latents:
            todo = [each for each in self._targets() if each[0] not in self.latents][index::count]
            for key, (source, entry), size in tqdm(todo, desc="latents", disable=index > 0 or not todo):
                example = self.sources[source].example(entry.index)
                pixels = fit_image(decode_image(example.target, entry.name), size)
                self.latents.save(key, self.encode(pixels[None])[0])
        if self.rewrite_share:
            todo = self._unwritten()[index::count]
            starts = range(0, len(todo), REWRITTEN_AT_ONCE)
            for start in tqdm(starts, desc="rewrites", disable=index > 0 or not todo):
                self._rewrite(todo[start : start + REWRITTEN_AT_ONCE])
        if self.states:
            todo = list(self._all_entries())[index::count]
            for source, entry in tqdm(todo, desc="states", disable=index > 0 or not todo):
                for request in self._possible_requests(source, entry):
                    if self._states_key(request) not in self.states:
                        self.features([request])

    def _possible_requests(self, source: int, entry: Entry) -> Iterator[Request]:
        """Every condition that a sample can be drawn with."""
        config = self.config
        example = self._unchanged(source, entry)
        images = [decode_image(each, entry.name) for each in example.inputs]
        whole = []
        if self.rewrite_share < 1:
            whole.append(Request(prompt=entry.caption, images=images))
        if self.rewrite_share:
            rewrite = entry.rewrite or self._kept_rewrite(source, entry)
            whole.append(Request(prompt=entry.caption, images=images, rewrite=rewrite))
        if config.reconstruct:
            whole.append(Request(prompt="", images=[decode_image(example.target, entry.name)]))
        for request in whole:
            wordless = replace(request, prompt="", rewrite=None)
            yield request
            if config.dropout.text:
                yield wordless
            if config.dropout.images and request.images:
                yield replace(request, images=[])
                if config.dropout.text:
                    yield replace(wordless, images=[])

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Latents of target images, in float32."""
        vae = self.pipeline.autoencoder
        return vae.encode(pixels.to(next(vae.parameters()).device)).float()

    def longest_condition(self) -> int:
        """The most tokens that a condition of the run has, rewrites up to their limit."""
        written = self.pipeline.spec.rewriting.max_new_tokens if self.rewrite_share else 0
        pictured = self.config.max_tiles * self.pipeline.backbone.tokens_per_tile
        longest = max(entry.tokens for _, entry in self._all_entries()) + written
        return max(longest, pictured) if self.config.reconstruct else longest

    def features(self, requests: Sequence[Request]) -> Features:
        """The conditions of samples as the pipeline encodes them; from the cache where they are kept."""
        encode = partial(self.pipeline.encode, max_tiles=self.config.max_tiles)
        if not self.states:
            return encode(requests)
        rows = []
        for request in requests:
            key = self._states_key(request)
            known = self.states.load(key)
            if known is None:
                self.states.save(key, encode([request]))
                # rounded as those that are read later
                known = self.states.load(key)
            assert known is not None
            rows.append(known)
        return Features.cat(rows)

    def _states_key(self, request: Request) -> str:
        spec = self.pipeline.model.config.vlm
        return content_key(
            [
                str(spec),
                str(self.config.max_tiles),
                request.prompt,
                "no rewrite" if request.rewrite is None else f"rewrite {request.rewrite}",
                *(digest(image) for image in request.images),
            ]
        )

    # Samples -------------------------------------------------------------------------------------

    def entry(self, position: int) -> Entry:
        """What the sample of a position is made of."""
        source, index = self.order[position]
        return self.entries[source][index]

    def sample(self, position: int) -> TrainingSample:
        """The sample of a position."""
        source, index = self.order[position]
        rng = random.Random(f"{self.config.seed}-{position}")
        return self._sample(source, self.entries[source][index], rng)

    def validation_samples(self) -> list[TrainingSample]:
        """All held-back samples, always with the same chance and without dropout."""
        return [sample for batch in self.validation_batches((0, 1)) for sample in batch]

    def validation_batches(self, share: tuple[int, int]) -> Iterator[list[TrainingSample]]:
        """A share (index, number) of the held-back samples in batches of one size, read when their turn comes."""
        index, count = share
        plain = self.config.model_copy(
            update={"dropout": self.config.dropout.model_copy(update={"text": 0.0, "images": 0.0})}
        )
        by_size: dict[tuple[int, int], list[tuple[int, Entry, random.Random]]] = {}
        for source, entry in self.held_back[index::count]:
            rng = random.Random(f"validation-{entry.key}")
            # the first thing that a sample draws is its resolution
            size = self._size(entry, random.Random(f"validation-{entry.key}").choice(plain.resolution))
            by_size.setdefault(size, []).append((source, entry, rng))
        for group in by_size.values():
            for start in range(0, len(group), plain.batch_size):
                batch = group[start : start + plain.batch_size]
                yield [self._sample(source, entry, rng, plain) for source, entry, rng in batch]

    def _sample(
        self, source: int, entry: Entry, rng: random.Random, config: TrainConfig | None = None
    ) -> TrainingSample:
        config = config or self.config
        size = self._size(entry, rng.choice(config.resolution))
        # drawn in any case, so that one share does not change the others' draws
        reconstructed, rewritten, without_text, without_images = (rng.random() for _ in range(4))
        noise_seed, time = rng.getrandbits(63), rng.getrandbits(63)
        key = self._latent_key(entry, size)
        latents = self.latents.load(key) if config.cache.latents else None
        as_reconstruction = reconstructed < config.reconstruct
        example: Example | None = None
        if latents is None or entry.images or entry.masked or as_reconstruction:
            example = self._unchanged(source, entry)
        images: list[Tensor] = []
        prompt, rewrite = entry.caption, None
        if as_reconstruction and example:
            images, prompt = [decode_image(example.target, entry.name)], ""
        else:
            if example:
                images = [decode_image(each, entry.name) for each in example.inputs]
            if rewritten < self.rewrite_share:
                rewrite = entry.rewrite or self._kept_rewrite(source, entry)
        request = Request(prompt=prompt, images=images, rewrite=rewrite)
        if without_text < config.dropout.text:
            request = replace(request, prompt="", rewrite=None)
        if without_images < config.dropout.images:
            request = replace(request, images=[])
        pixels = None
        if latents is None and example:
            pixels = fit_image(decode_image(example.target, entry.name), size)
        generator = torch.Generator().manual_seed(time)
        t = sample_training_times(config.noises, means=(self.time_mean(size),), generator=generator)
        return TrainingSample(
            name=entry.name,
            request=request,
            size=size,
            latents=latents,
            pixels=pixels,
            noise_seed=noise_seed,
            t=t,
            weights=cell_weights(example.mask, size) if example and example.mask else None,
        )

    def time_mean(self, size: tuple[int, int]) -> float:
        """Mean of the logit-normal times: the configuration's, or that whose median is the middle of the model's own schedule."""
        if self.config.time_shift is not None:
            return self.config.time_shift
        patch = DOWNSCALE * self.pipeline.model.config.dit.patch_size
        schedule = self.pipeline.spec.default_sampling.schedule
        middle = float(build_schedule(schedule, 2, (size[0] // patch) * (size[1] // patch))[1])
        return math.log(middle / (1 - middle))

    # Parts ---------------------------------------------------------------------------------------

    def _scan(self, number: int) -> list[Entry]:
        """The usable samples of a source. Reads every image whole, so that damage shows before hours are lost."""
        source, usable, lower = self.sources[number], [], {}
        for index in tqdm(range(len(source)), desc="scan", disable=len(source) < 1000):
            name = source.names[index]
            if (other := lower.setdefault(name.lower(), name)) != name:
                note = f"{name} and {other} differ only in case: some systems keep one of them"
                self.report.notes.append(note)
            try:
                example = read_example(source, index)
                target = decode_image(example.target, name)
                images = [decode_image(each, name) for each in example.inputs]
                request = Request(prompt=example.prompt, images=images, rewrite=example.rewrite)
                spec = self.pipeline.model.config.vlm
                if example.mask is not None:
                    check_mask(decode_image(example.mask, name), target)
                chat = self.pipeline.backbone.prepare([request], spec.template, self.config.max_tiles)
            except (ShapeError, PromptError) as error:
                self.report.refused.append((name, str(error)))
                continue
            usable.append(
                Entry(
                    index=index,
                    name=name,
                    size=(target.shape[2], target.shape[1]),
                    key=content_key([example.target]),
                    caption=example.prompt,
                    rewrite=example.rewrite,
                    images=tuple(content_key([each]) for each in example.inputs),
                    tokens=int(chat.mask.sum()),
                    masked=example.mask is not None,
                )
            )
        return usable

    def _unchanged(self, source: int, entry: Entry) -> Example:
        """The stored sample. Raises ConfigError if it changed since the scan."""
        try:
            example = self.sources[source].example(entry.index)
        except ShapeError as error:
            raise ConfigError(
                f"{entry.name} changed during the run: {error}; resume with --resume"
            ) from error
        if content_key([example.target]) != entry.key:
            raise ConfigError(f"the image of {entry.name} changed during the run: resume with --resume")
        return example

    def _size(self, entry: Entry, resolution: int) -> tuple[int, int]:
        return bucket(entry.size, resolution, DOWNSCALE * self.pipeline.model.config.dit.patch_size)

    def _latent_key(self, entry: Entry, size: tuple[int, int]) -> str:
        return content_key([entry.key, "{}x{}".format(*size)])

    def _all_entries(self) -> Iterator[tuple[int, Entry]]:
        for number, entries in enumerate(self.entries):
            yield from ((number, each) for each in entries)
        yield from self.held_back

    def _targets(self) -> Iterator[tuple[str, tuple[int, Entry], tuple[int, int]]]:
        """(key, where, size) of all latents of the run."""
        for source, entry in self._all_entries():
            for resolution in self.config.resolution:
                size = self._size(entry, resolution)
                yield self._latent_key(entry, size), (source, entry), size

    def _rewrite_key(self, entry: Entry) -> str:
        spec, settings = self.pipeline.model.config.vlm, self.pipeline.spec.rewriting
        return content_key(
            [entry.caption, *entry.images, str(spec.template), str(settings), str(self.config.max_tiles)]
        )

    def _kept_rewrite(self, source: int, entry: Entry) -> str | None:
        """The rewrite of a caption; None if the VLM has none, so that the caption is read as it is."""
        key = self._rewrite_key(entry)
        if key not in self._written:
            if key not in self.rewrites:
                self._rewrite([(source, entry)])
            self._written[key] = (self.rewrites.read(key) or b"").decode()
        return self._written[key] or None

    def _unwritten(self) -> list[tuple[int, Entry]]:
        return [
            (source, entry)
            for source, entry in self._all_entries()
            if not entry.rewrite and self._rewrite_key(entry) not in self.rewrites
        ]

    def _rewrite(self, entries: Sequence[tuple[int, Entry]]) -> None:
        requests = []
        for source, entry in entries:
            images: list[Tensor] = []
            if entry.images:
                images = [decode_image(each, entry.name) for each in self._unchanged(source, entry).inputs]
            requests.append(Request(prompt=entry.caption, images=images))
        for (_, entry), request in zip(entries, requests, strict=True):
            try:
                (done,) = self.pipeline.rewrite_requests([request], max_tiles=self.config.max_tiles)
                text = done.text
            except PromptError as error:
                logger.warning("%s is not rewritten: %s", entry.name, error)
                text = ""
            self.rewrites.write(self._rewrite_key(entry), text.encode())


@lru_cache(maxsize=100_000)
def bucket(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """(width, height) of at most `resolution`^2 pixels, multiples of `multiple`, with the aspect ratio nearest to `size`'s."""
    width, height = size
    area, wanted = resolution**2, math.log(width / height)
    sides = range(multiple, area // multiple + 1, multiple)
    fitting = [(w, area // w // multiple * multiple) for w in sides if area // w >= multiple]
    # among equal ratios the larger image
    return min(
        fitting, key=lambda each: (round(abs(math.log(each[0] / each[1]) - wanted), 6), -each[0] * each[1])
    )


def fit_image(image: Float[Tensor, "3 H W"], size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """The image scaled to cover `size` (width, height), and its middle."""
    width, height = size
    scale = max(width / image.shape[2], height / image.shape[1])
    rows, columns = max(height, round(image.shape[1] * scale)), max(width, round(image.shape[2] * scale))
    if (rows, columns) != tuple(image.shape[1:]):
        image = F.interpolate(image[None], (rows, columns), mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (rows - height) // 2, (columns - width) // 2
    return image[:, top : top + height, left : left + width]


def check_mask(mask: Float[Tensor, "3 H W"], target: Float[Tensor, "3 H2 W2"]) -> None:
    """Raises ShapeError for a mask of another size than its image, and for one that is black."""
    if mask.shape != target.shape:
        (height, width), (rows, columns) = mask.shape[1:], target.shape[1:]
        raise ShapeError(f"its mask has {width}x{height} pixels and its image {columns}x{rows}")
    if not bool(mask.any()):
        raise ShapeError("its mask is black, so nothing of it would be learned")


def cell_weights(mask: bytes, size: tuple[int, int]) -> Float[Tensor, "1 h w"]:
    """The weight of each latent cell: the brightness of the mask there, scaled and cropped as the target is."""
    brightness = fit_image(decode_image(mask, "mask"), size).mean(0, keepdim=True)
    return F.avg_pool2d(brightness[None], DOWNSCALE)[0]


def _fraction(key: str) -> float:
    """A number in 0..1 from a hash."""
    return int(key[:12], 16) / 16**12


def write_report(path: Path, report: ScanReport) -> None:
    """The scan as JSON."""
    refused = [{"name": name, "reason": reason} for name, reason in report.refused]
    content = {"usable": report.usable, "refused": refused, "notes": report.notes}
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
