"""Compare fusion designs on a real, frozen language model (arXiv 2510.12789, section on fusion designs, there Llama 3.1 8B).

Every design gets the same captions in free wordings, the same order and noise for a seed, the same DiT, which goes on from the
shipped weights or starts anew, and as many trained parameters. The language model (`..encoder`) never saw the world of shapes.
Its states are computed once and kept.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ...checkpoints.generator_file import GeneratorFile, save_generator
from ...checkpoints.safetensors_file import read_tensors
from ...checkpoints.vae_file import load_autoencoder
from ...contracts import Features, Request, VLMSpec
from ...errors import ConfigError
from ...flow.path import sample_training_times
from ...flow.schedule import build_schedule
from ...images import Pixels, to_pixels
from ...models.autoencoder import DOWNSCALE, Autoencoder
from ...models.fusion_designs import FUSIONS
from ...models.lap import LAPConfig
from ...models.unifusion import UniFusion, UniFusionConfig
from ...sampling import make_noise, sample
from ...training.connector import DIGITS, build_connected
from ...training.loop import Loop, Loss, Task
from ...training.objective import FlowBatch, FlowMatching
from ...vlm.backbone import VLMBackbone
from ...vlm.features import encode_chat
from ...vlm.folder import load_vlm
from ...zoo.tiny import BUILT_IN, TINY
from ..world import prompts
from ..world.render import render_tensor
from ..world.requirements import check
from ..world.scenes import ASPECT_SIZES, Scene, sample_scene
from ..world.scorer import read_picture
from .generator import foreground
from .pool import encode_scenes

# every third layer of SmolLM2's 30, as in the paper
EVERY_THIRD = tuple(range(2, 30, 3))
ALL_TAPS = (0, *EVERY_THIRD)
HEADS = 9
MLP_SIZE = 640
# kinds of wordings and their shares
WORDINGS = {"full": 5, "terse": 2, "caption": 1}
# numbers of objects and their shares
OBJECTS = {1: 0.2, 2: 0.35, 3: 0.45}
BATCH_SIZE = 12
NOISES = 4
FOREGROUND_WEIGHT = 3.0
TIME_MEANS = (1.0,)
EMPTY_SHARE = 0.05
ENCODED_AT_ONCE = 32
DRAWN_AT_ONCE = 24
# held-out scenes that are drawn while training
WATCHED = 48
DRAWING_STEPS, DRAWING_CFG = 12, 2.0
SIZE = ASPECT_SIZES[0]

POOL = Path("runs/fusion/pool.safetensors")
# folder of a run in `runs/`, and name of its recipe
RUN = "fusion-{design}-{seed}"
ENCODER = Path("runs/smollm")
POOL_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class Design:
    """A way from the language model's layers to the DiT.

    fusion        a key of `FUSIONS`
    mlp_size      of the blocks; chosen so that all designs have the same number of parameters within 5 %
    layer_blocks  blocks in which a token sees its own layers, or itself alone
    scaled        divide each tap's states by their root mean square
    warm          the DiT goes on from the shipped weights
    """

    fusion: str = "lap"
    taps: tuple[int, ...] = EVERY_THIRD
    mlp_size: int = MLP_SIZE
    layer_blocks: int = 1
    scaled: bool = True
    warm: bool = True


DESIGNS = {
    "lap": Design(),
    "last-layer": Design(taps=EVERY_THIRD[-1:]),
    "key-value": Design(fusion="key-value fusion", mlp_size=304),
    "injection": Design(fusion="hidden-state injection", mlp_size=496),
    "without-refiner": Design(fusion="without refiner"),
    "causal-refiner": Design(fusion="causal refiner"),
    "middle-layer": Design(taps=(14,)),
    "mean": Design(fusion="mean of layers"),
    "three-layers": Design(fusion="concatenated layers", taps=(8, 17, 26), mlp_size=1664, layer_blocks=0),
    "ten-layers": Design(fusion="concatenated layers", mlp_size=320, layer_blocks=0),
    "embeddings": Design(taps=ALL_TAPS),
    "unscaled": Design(scaled=False),
    "from-scratch": Design(warm=False),
}


# Captions -----------------------------------------------------------------------------------------


def is_held_out_wording(text: str) -> bool:
    """Whether a caption has the form that no design is trained on: parts separated by colons or semicolons."""
    return ":" in text or ";" in text


def word(rng: random.Random, scene: Scene, *, held_out_wording: bool = False) -> prompts.Wording:
    """A caption of the scene in a free wording."""
    while True:
        wording = prompts.word_scene(rng, scene, rng.choices(list(WORDINGS), list(WORDINGS.values()))[0])
        if is_held_out_wording(wording.text) == held_out_wording:
            return wording


def training_caption(number: int) -> prompts.Wording:
    """Caption `number` of the training, without held-out pairs and wordings."""
    rng = random.Random(f"fusion-{number}")
    count = rng.choices(list(OBJECTS), list(OBJECTS.values()))[0]
    return word(rng, sample_scene(rng, num_objects=count))


def encode_texts(backbone: VLMBackbone, texts: Sequence[str]) -> list[Float[Tensor, "T L D"]]:
    """The states of `ALL_TAPS` over each text's own tokens and what opens the answer, in bfloat16."""
    spec = backbone.spec(ALL_TAPS, "rewrite")
    found: list[Tensor | None] = [None] * len(texts)
    # texts of one length together, so that little is padded
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in tqdm(range(0, len(texts), ENCODED_AT_ONCE), desc="encoding captions", disable=None):
        numbers = order[start : start + ENCODED_AT_ONCE]
        inputs = backbone.prepare([Request(prompt=texts[number]) for number in numbers], spec.template)
        features = encode_chat(backbone, spec, inputs)
        for row, number in enumerate(numbers):
            found[number] = features.states[row][features.mask[row]].bfloat16()
    return [states for states in found if states is not None]


def features_of(states: Sequence[Float[Tensor, "T L D"]], taps: Sequence[int]) -> Features:
    """Features of some taps for kept states."""
    indices = [ALL_TAPS.index(tap) for tap in taps]
    rows = [
        Features(
            states=each[None, :, indices].float(),
            mask=torch.ones(1, len(each), dtype=torch.bool),
            positions=torch.zeros(1, len(each), 3),
        )
        for each in states
    ]
    return Features.cat(rows)


@dataclass(frozen=True, kw_only=True)
class CaptionPool:
    """Captions' states and the latents of what they ask for; the last caption is the empty one.

    states    of all captions in a row
    starts    where each caption's tokens begin, and the end
    scales    root mean square of each tap
    """

    states: Float[Tensor, "tokens L D"]
    starts: Int[Tensor, " captions"]
    latents: Float[Tensor, "B C h w"]
    scales: Float[Tensor, " L"]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.latents)

    def states_of(self, number: int) -> Float[Tensor, "T L D"]:
        """The states of caption `number`; -1 is the empty one."""
        number = number % (len(self.starts) - 1)
        return self.states[self.starts[number] : self.starts[number + 1]]


def load_pool(path: Path = POOL, encoder: Path = ENCODER, count: int = POOL_SIZE) -> CaptionPool:
    """The pool in a file, which is made first if it is not there."""
    if not path.exists():
        _write_pool(path, encoder, count)
    tensors, metadata = read_tensors(path)
    return CaptionPool(**tensors, fingerprint=metadata["fingerprint"])


@torch.no_grad()
def _write_pool(path: Path, encoder: Path, count: int) -> None:
    backbone, autoencoder = load_encoder(encoder), load_autoencoder(BUILT_IN.vae).eval()
    wordings = [training_caption(number) for number in range(count)]
    kept = encode_texts(backbone, [*(each.text for each in wordings), ""])
    lengths = torch.tensor([0, *(len(each) for each in kept)])
    states = torch.cat(kept)
    latents = [
        encode_scenes(
            autoencoder, [render_tensor(each.target, *SIZE) for each in wordings[start : start + 64]]
        )
        for start in range(0, count, 64)
    ]
    tensors = {
        "states": states,
        "starts": lengths.cumsum(0),
        "latents": torch.cat(latents),
        "scales": states.float().square().mean((0, 2)).sqrt(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(tensors, str(unfinished), {"fingerprint": backbone.fingerprint})
    unfinished.replace(path)


def load_encoder(folder: Path = ENCODER) -> VLMBackbone:
    """The language model. Raises ConfigError if its folder is not there."""
    if not folder.is_dir():
        raise ConfigError(
            f"There is no language model in {folder}: write it with `unifusion shapes encoder {folder}`."
        )
    # matrix products in bfloat16 are several times as fast on newer processors
    return load_vlm(folder, torch.bfloat16)


# The task -----------------------------------------------------------------------------------------


def config_of(design: Design, spec: VLMSpec, scales: Sequence[float]) -> UniFusionConfig:
    """The generator's configuration."""
    lap = LAPConfig(
        num_heads=HEADS,
        mlp_size=design.mlp_size,
        num_layer_blocks=design.layer_blocks,
        num_refiner_blocks=1,
        tap_scales=tuple(scales) if design.scaled else (),
    )
    return replace(TINY.config, vlm=spec, lap=lap)


def build_design(design: Design, config: UniFusionConfig, seed: int) -> UniFusion:
    """The generator with new weights before the DiT, and new or shipped ones in it."""
    shipped = GeneratorFile(BUILT_IN.generator).load(dtype=torch.float32) if design.warm else None
    return build_connected(config, seed, shipped, FUSIONS[design.fusion]).requires_grad_(True)


class FusionTask(Task[UniFusion]):
    """One design on the pool's captions; `seed` gives the new weights, the order of the captions, times and noise."""

    not_muon = ("first.", "last.linear", "projector", "tmlp.0", "modulation")

    def __init__(self, design: Design, seed: int, *, pool_path: Path = POOL, encoder: Path = ENCODER) -> None:
        self.design, self.seed, self.encoder = design, seed, encoder
        self.pool = load_pool(pool_path, encoder)
        backbone = load_encoder(encoder)
        indices = [ALL_TAPS.index(tap) for tap in design.taps]
        scales = [float(f"{self.pool.scales[index]:.{DIGITS}g}") for index in indices]
        self.config = config_of(design, backbone.spec(design.taps, "rewrite"), scales)
        self.model = build_design(design, self.config, seed)
        self.settings = {
            **asdict(design),
            "seed": seed,
            "noises": NOISES,
            "vlm_fingerprint": self.pool.fingerprint,
        }
        self.orders: dict[int, list[int]] = {}
        self.watched: tuple[list[prompts.Wording], Features] | None = None
        self.autoencoder: Autoencoder = load_autoencoder(BUILT_IN.vae).eval()
        self.backbone = backbone

    def objective(self) -> nn.Module:
        return FlowMatching(self.model)

    def item(self, index: int) -> tuple[int, int]:
        """(sample, caption): every epoch has each caption once."""
        epoch, place = divmod(index, len(self.pool))
        if epoch not in self.orders:
            order = list(range(len(self.pool)))
            random.Random(f"fusion-order-{self.seed}-{epoch}").shuffle(order)
            self.orders[epoch] = order
        return index, self.orders[epoch][place]

    def collate(self, items: list[tuple[int, int]]) -> FlowBatch:
        numbers = [number for _, number in items]
        chance = [random.Random(f"fusion-sample-{self.seed}-{index}") for index, _ in items]
        said = [
            -1 if rng.random() < EMPTY_SHARE else number for rng, number in zip(chance, numbers, strict=True)
        ]
        latents = self.pool.latents[numbers].float()
        noise, times = [], []
        for rng in chance:
            generator = torch.Generator().manual_seed(rng.getrandbits(48))
            noise.append(torch.randn(NOISES, *latents.shape[1:], generator=generator))
            times.append(sample_training_times(NOISES, means=TIME_MEANS, generator=generator))
        near = torch.stack([foreground(training_caption(number).target, SIZE) for number in numbers])
        return FlowBatch(
            features=features_of([self.pool.states_of(number) for number in said], self.design.taps),
            latents=latents,
            noise=torch.stack(noise),
            t=torch.stack(times),
            weights=1 + (FOREGROUND_WEIGHT - 1) * near[:, None],
        )

    def loss(self, model: UniFusion, batch: FlowBatch, number: int) -> Loss:
        raise NotImplementedError("the objective computes it")

    def evaluate(self, loop: Loop, step: int) -> dict[str, float]:
        """Share of right properties in images of held-out pairs."""
        if not loop.chief:
            return {}
        if self.watched is None:
            wordings = held_out_captions(WATCHED, "watched")
            states = encode_texts(self.backbone, [each.text for each in wordings])
            self.watched = wordings, features_of(states, self.design.taps)
        wordings, features = self.watched
        empty = features_of([self.pool.states_of(-1)], self.design.taps)
        images = draw(self.model, self.autoencoder, features, empty)
        return {"properties": properties_right(images, wordings)}

    def export(self, loop: Loop, weights: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        if loop.chief:
            # prompts are drawn as they are: no sample was a rewrite
            save_generator(self.model, loop.out / "generator.safetensors", {**record, "rewritten": 0.0})


# Judging ------------------------------------------------------------------------------------------


def held_out_captions(count: int, name: str, *, wording: bool = False) -> list[prompts.Wording]:
    """Captions of scenes with a held-out pair, or (`wording`) of scenes without one in a held-out wording; one to three objects
    in turn."""
    found = []
    for number in range(count):
        rng = random.Random(f"fusion-{name}-{number}")
        scene = sample_scene(rng, num_objects=1 + number % 3, held_out=not wording)
        found.append(word(rng, scene, held_out_wording=wording))
    return found


def three_objects(count: int, name: str) -> list[prompts.Wording]:
    """Captions that say everything about three objects, in the order of mention."""
    found = []
    for number in range(count):
        rng = random.Random(f"fusion-{name}-{number}")
        found.append(prompts.word_scene(rng, sample_scene(rng, num_objects=3), "full"))
    return found


@torch.no_grad()
def draw(
    model: UniFusion,
    autoencoder: Autoencoder,
    features: Features,
    empty: Features,
    gains: Sequence[float] | None = None,
) -> list[Pixels]:
    """One image for each row of features, number i from seed i; `gains` of the layers as in `UniFusion.pool`."""
    side = SIZE[0] // DOWNSCALE
    schedule = build_schedule("shift 3", DRAWING_STEPS, (side // model.config.dit.patch_size) ** 2)
    images = []
    # as in training
    with torch.autocast("cpu", torch.bfloat16):
        negative = model.pool(empty)
        for start in range(0, len(features.states), DRAWN_AT_ONCE):
            rows = slice(start, start + DRAWN_AT_ONCE)
            part = Features(
                states=features.states[rows], mask=features.mask[rows], positions=features.positions[rows]
            )
            seeds = list(range(start, start + len(part.states)))
            noise = make_noise(seeds, model.config.dit.latent_channels, side, side, "cpu")
            latents = sample(
                model, model.pool(part, gains), noise, schedule, negative=negative, cfg=DRAWING_CFG
            )
            images += to_pixels(autoencoder.decode(latents.float()).float())
    return images


def properties_right(images: Sequence[Pixels], wordings: Sequence[prompts.Wording]) -> float:
    """Mean share of right named properties, 0..1."""
    pairs = zip(images, wordings, strict=True)
    return fmean(check(wording.requirement, read_picture(image).scene).properties for image, wording in pairs)
