"""Train LAP, refiner and DiT on the frozen VLM: text to image on rewrites and on raw prompts, edits and reconstructions of one
picture (never of more).

A train-time head on a middle block must name what stands in each patch. Near t = 1 the words alone can tell, so it teaches the
blocks before it to read them; a close relative of representation alignment (REPA), with the scene in place of an encoder. Two
more, on that block and on the last, must tell the unnamed traits, which picture tokens alone can.

What a chat looks like is drawn per sample, so that the picture follows the words that are kept and not what the VLM expects
(VERIFI's words are read behind the prompt, see ARCHITECTURE.md, so that their states hold the prediction too; the suite `swap`
measures which of the two is drawn): about half of the rewrites stand without a prompt, some behind the prompt they belong to,
some behind a prompt for another scene.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ...checkpoints.generator_file import load_generator, save_generator
from ...checkpoints.safetensors_file import read_tensors
from ...contracts import MAX_TILES, Features, Request, TokenRole
from ...errors import CheckpointError
from ...flow.path import interpolate, sample_training_times, velocity
from ...flow.schedule import build_schedule
from ...models.autoencoder import DOWNSCALE, Autoencoder
from ...models.fusion_designs import FUSIONS
from ...models.unifusion import UniFusion, UniFusionConfig, initialize
from ...sampling import make_noise, sample
from ...training.loop import Task, step_generator
from ...vlm.backbone import VLMBackbone
from ...vlm.features import encode_chat
from ..world import captions, edits, prompts
from ..world.render import object_geometry, render_tensor
from ..world.requirements import Requirement, check
from ..world.scenes import (
    ASPECT_SIZES,
    BACKGROUNDS,
    COLORS,
    NUM_TRAITS,
    SHAPES,
    SIZES,
    Scene,
    sample_scene,
    with_free_colors,
)
from ..world.scorer import read_picture
from .autoencoder import encode_pictures, save_grid
from .tiny_vlm import TOKENS_PER_SIDE

logger = logging.getLogger(__name__)

SceneAt = Callable[[int, int], tuple[Scene, tuple[int, int]]]  # (seed, number) -> scene, size

CHATS = {  # share of each kind of chat
    "rewrite alone": 0.42,
    "rewrite behind its prompt": 0.15,
    "rewrite behind another prompt": 0.15,
    "prompt": 0.18,
    "empty": 0.10,
}
PICTURE_CHATS = {  # share of each kind of chat about a picture, by task
    "edit": {"rewrite": 0.85, "instruction alone": 0.15},
    "reconstruct": {"rewrite": 0.5, "picture alone": 0.5},
    "free colors": {"words alone": 0.5, "rewrite": 0.35, "picture alone": 0.15},  # the words name no colours
}
FORMS = {captions.caption: 0.88, captions.brief_caption: 0.04, captions.sentence_caption: 0.08}  # of rewrites
TILE_COUNTS = (1, 5, 10)  # max_tiles
PROMPT_KINDS = {"full": 4, "caption": 3, "terse": 2, "relation": 2, "count": 1, "indirect": 2}
HARDER = {"star": 2.0, "cross": 1.5}  # whose outlines are most often too soft to be read
POOL_SHARES = (
    0.7,
    0.15,
    0.15,
)  # of `ASPECT_SIZES` among the scenes of a pool: another value makes its file worthless
ENCODED_AT_ONCE = 64  # scenes of a pool
IGNORED = -100  # cross_entropy's own label for what does not count
PATCH_LABELS = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, len(BACKGROUNDS))  # 0 = no object


def pool_scene(seed: int, number: int) -> tuple[Scene, tuple[int, int]]:
    """Scene `number` of the pool and the size (width, height) it is drawn at; never a held-out pair."""
    rng = random.Random(f"pool-{seed}-{number}")
    size = rng.choices(ASPECT_SIZES, POOL_SHARES)[0]
    count = rng.choices((1, 2, 3), (0.2, 0.35, 0.45))[0]
    scene = sample_scene(rng, num_objects=count)
    return prompts.with_equal_objects(rng, scene) if rng.random() < 0.08 else scene, size


def free_pool_scene(seed: int, number: int) -> tuple[Scene, tuple[int, int]]:
    """Scene `number` of the second pool, in colours between the named ones: there a colour and a shape meet in every
    combination but those that are held out, and what lies around these is what they are drawn from."""
    scene, size = pool_scene(seed, -1 - number)
    return with_free_colors(random.Random(f"free-{seed}-{number}"), scene), size


def read_pool(
    autoencoder: Autoencoder,
    seed: int,
    count: int,
    path: Path,
    scene_at: SceneAt = pool_scene,
    *,
    process: tuple[int, int] = (0, 1),
) -> dict[tuple[int, int], Tensor]:
    """Latents of the pool's scenes by size, in the order of their numbers: encoding a picture costs more than a training step
    on it, so it is done once, by each of several processes its share, and kept in `path`. A shorter file of the same seed and
    autoencoder is prolonged."""
    weights = sum(
        float(p.detach().cpu().double().abs().sum()) for p in autoencoder.taesd_encoder.parameters()
    )
    key = f"{seed} {weights:.6f}"
    index, num_processes = process
    done, kept = _kept_pool(path, key)
    encoded: list[tuple[int, dict[tuple[int, int], Tensor]]] = []  # first number, latents by size
    starts = range(done, count, ENCODED_AT_ONCE)[index::num_processes]
    for start in tqdm(starts, desc="encoding the pool", disable=index > 0 or not starts):
        pictures: dict[tuple[int, int], list[Tensor]] = {}
        for number in range(start, min(start + ENCODED_AT_ONCE, count)):
            scene, size = scene_at(seed, number)
            pictures.setdefault(size, []).append(render_tensor(scene, *size))
        encoded.append((start, {size: encode_scenes(autoencoder, group) for size, group in pictures.items()}))
    if num_processes > 1:
        encoded = gather_object(encoded)
    groups = [kept, *(group for _, group in sorted(encoded, key=lambda part: part[0]))]
    parts = {size: [group[size] for group in groups if size in group] for size in ASPECT_SIZES}
    pool = {size: torch.cat(part) for size, part in parts.items() if part}
    if done < count and index == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"{}x{}".format(*size): latents for size, latents in pool.items()}
        unfinished = path.with_suffix(".part")
        save_file(tensors, str(unfinished), {"key": key, "count": str(count)})
        unfinished.replace(path)
    return pool


def _kept_pool(path: Path, key: str) -> tuple[int, dict[tuple[int, int], Tensor]]:
    """How many scenes a pool's file holds, and their latents by size; none of another seed or autoencoder, none if damaged."""
    if not path.exists():
        return 0, {}
    try:
        tensors, metadata = read_tensors(path)
    except CheckpointError as error:
        reason = error.__cause__ or error  # without the advice for a file that cannot be made again
        logger.warning("%s cannot be read (%s): the pool is encoded again", path, reason)
        return 0, {}
    if metadata.get("key") != key:
        return 0, {}
    names = {size: "{}x{}".format(*size) for size in ASPECT_SIZES}
    return int(metadata["count"]), {size: tensors[name] for size, name in names.items() if name in tensors}


@torch.no_grad()
def encode_scenes(
    autoencoder: Autoencoder, pictures: list[Float[Tensor, "3 H W"]]
) -> Float[Tensor, "B C h w"]:
    """Latents as a pool keeps them: 16 bits, in main memory."""
    return encode_pictures(autoencoder, torch.stack(pictures)).half().cpu().contiguous()


class Pool:
    """Scenes by number with their latents, to be drawn by size. What is drawn before `read` is encoded then."""

    def __init__(
        self, autoencoder: Autoencoder, seed: int, count: int, path: Path, scene_at: SceneAt
    ) -> None:
        self.autoencoder, self.seed, self.count, self.path = autoencoder, seed, count, path
        self.scene_at = scene_at
        self.latents: dict[int, Float[Tensor, "C h w"]] = {}  # by number
        self.numbers: dict[tuple[int, int], list[int]] = {size: [] for size in ASPECT_SIZES}
        for number in range(count):
            self.numbers[scene_at(seed, number)[1]].append(number)

    def read(self, process: tuple[int, int] = (0, 1)) -> None:
        """All latents, from the file or, with the other processes, into it."""
        if self.count:
            by_size = read_pool(
                self.autoencoder, self.seed, self.count, self.path, self.scene_at, process=process
            )
            for size, latents in by_size.items():  # the file may hold more than this pool
                self.latents |= zip(self.numbers[size], latents, strict=False)

    def draw(self, rng: random.Random, size: tuple[int, int]) -> tuple[Scene, Float[Tensor, "C h w"]]:
        """A random scene of this size and its latents."""
        number = rng.choice(self.numbers[size])
        scene, _ = self.scene_at(self.seed, number)
        if number not in self.latents:
            self.latents[number] = encode_scenes(self.autoencoder, [render_tensor(scene, *size)])[0]
        return scene, self.latents[number]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One chat and the latents of the picture it stands for."""

    request: Request
    max_tiles: int
    latents: Float[Tensor, "C h w"]
    scene: Scene
    size: tuple[int, int]
    colors_named: bool = True


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Chats of one picture size."""

    requests: list[Request]
    max_tiles: int
    latents: Float[Tensor, "B C h w"]
    weights: Float[Tensor, "B 1 h w"]
    labels: Int[Tensor, "B N 4"]  # what stands in each patch
    traits: Float[Tensor, "B N 6"]  # its place, size and shade beside what is named, NaN where nothing stands

    @property
    def shows_pictures(self) -> bool:
        return any(request.images for request in self.requests)

    def to(self, device: torch.device, **how: Any) -> Batch:
        """On another device (accelerate calls it)."""
        names = ("latents", "weights", "labels", "traits")
        moved = {name: getattr(self, name).to(device, **how) for name in names}
        return replace(self, **moved)


class GeneratorTask(Task[nn.ModuleDict]):
    """Text to image, edits and reconstructions on the small world; no sample ever holds a held-out pair."""

    name = "generator"
    not_muon = ("first.", "last.linear", "projector", "tmlp.0", "modulation", "patch_head", "trait_heads")

    def __init__(
        self,
        *,
        seed: int,
        batch_size: int,
        config: UniFusionConfig,
        backbone: VLMBackbone,
        autoencoder: Autoencoder,
        pool_path: Path,
        pool_size: int,
        free_pool_size: int = 0,
        noises: int = 3,
        foreground_weight: float = 3.0,
        time_means: tuple[float, ...] = (0.0,),
        picture_time_means: tuple[float, ...] = (),
        head_weight: float = 0.1,
        trait_weight: float = 0.0,
        hidden_thumbnails: float = 0.0,
        tasks: dict[str, float] | None = None,
        edit_shares: dict[str, float] | None = None,
        tile_shares: tuple[float, ...] = (0.4, 0.3, 0.3),
        size_shares: tuple[float, ...] = POOL_SHARES,
        fusion: str = "lap",
        start: Path | None = None,
    ) -> None:
        """`tasks`: shares of "text", "edit", "reconstruct" and "free colors" among the batches (text alone if not given); the
        last takes its scenes from a pool of its own, of `free_pool_size`. `edit_shares`: of the kinds of edits (1 if not
        named). `tile_shares`, `size_shares`: how many batches have each of `TILE_COUNTS` and `ASPECT_SIZES`. `fusion`: how the
        VLM's layers reach the DiT (`evaluation.fusion`).

        `time_means`: of the times (`sample_training_times`), `picture_time_means` in batches with pictures, if those differ:
        near t = 1 a picture is told by its tokens alone. `hidden_thumbnails`: in how many of the batches with tiles the
        thumbnail is hidden, so that the tiles are read. `head_weight`, `trait_weight`: of the heads for names and for traits.

        `start`: a generator's file to go on from, also on a VLM or an autoencoder that was trained on since."""
        self.seed, self.batch_size, self.config, self.noises = seed, batch_size, config, noises
        self.foreground_weight, self.time_means, self.head_weight = foreground_weight, time_means, head_weight
        self.picture_time_means = picture_time_means or time_means
        self.trait_weight, self.hidden_thumbnails = trait_weight, hidden_thumbnails
        self.tasks, self.edit_shares = tasks or {"text": 1.0}, edit_shares or {}
        self.tile_shares, self.size_shares = tile_shares, size_shares
        self.head_block, self.last_block = config.dit.num_blocks // 2, config.dit.num_blocks - 1
        self.settings = {
            "seed": seed,
            "pool_size": pool_size,
            "free_pool_size": free_pool_size,
            "noises": noises,
            "foreground_weight": foreground_weight,
            "harder": HARDER,
            "time_means": time_means,
            "picture_time_means": picture_time_means,
            "head_weight": head_weight,
            "trait_weight": trait_weight,
            "hidden_thumbnails": hidden_thumbnails,
            "tasks": self.tasks,
            "edit_shares": self.edit_shares,
            "fusion": fusion,
            "start": start.name if start else None,
            "chats": CHATS,
            "picture_chats": PICTURE_CHATS,
            "tile_shares": tile_shares,
            "size_shares": size_shares,
            "vlm_fingerprint": backbone.fingerprint,
        }
        autoencoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack memory_format)
        self.backbone, self.autoencoder = backbone, autoencoder.eval()
        backbone.check_fits(config.vlm)
        free_path = pool_path.with_stem(f"{pool_path.stem}-free")
        self.pools = {
            "named": Pool(self.autoencoder, seed, pool_size, pool_path, pool_scene),
            "free": Pool(self.autoencoder, seed, free_pool_size, free_path, free_pool_scene),
        }
        # states of other weights of the same size would be garbage without a sign: the file insists on these
        self.config = replace(config, vlm=replace(config.vlm, fingerprint=backbone.fingerprint))
        if not config.lap.tap_scales:
            self.config = replace(self.config, lap=replace(config.lap, tap_scales=self.tap_scales()))
        unifusion = FUSIONS[fusion](self.config)
        initialize(unifusion, torch.Generator().manual_seed(seed))
        if start:
            earlier, self.before = load_generator(start)
            unifusion.load_state_dict(earlier.state_dict())
        head = nn.Linear(config.dit.hidden_size, sum(PATCH_LABELS))
        trait_heads = nn.ModuleList(nn.Linear(config.dit.hidden_size, NUM_TRAITS) for _ in range(2))
        self.model = nn.ModuleDict({"unifusion": unifusion, "patch_head": head, "trait_heads": trait_heads})

    def tap_scales(self) -> tuple[float, ...]:
        """Root-mean-square size of each tapped layer's states over kept tokens: late layers are hundreds of times larger than
        the embeddings, and unscaled they drown them."""
        rng = random.Random("tap-scales")
        requests = [self.draw_request(rng, sample_scene(rng)) for _ in range(64)]
        features = self.features(requests)
        scales = features.states[features.mask].float().square().mean((0, 2)).sqrt()
        return tuple(round(scale, 4) for scale in scales.tolist())

    def features(self, requests: list[Request], max_tiles: int = MAX_TILES) -> Features:
        """Features of all chats in one pass."""
        spec = self.config.vlm
        return encode_chat(self.backbone, spec, self.backbone.prepare(requests, spec.template, max_tiles))

    # ------------------------------------------------------------------ data

    def prepare(self, process: tuple[int, int]) -> None:
        for pool in self.pools.values():
            pool.read(process)

    def item(self, index: int) -> Sample:
        group = random.Random(f"generator-group-{self.seed}-{index // self.batch_size}")
        size = group.choices(ASPECT_SIZES, self.size_shares)[0]
        task = group.choices(list(self.tasks), list(self.tasks.values()))[0]
        max_tiles = group.choices(TILE_COUNTS, self.tile_shares)[0]
        rng = random.Random(f"generator-{self.seed}-{index}")
        scene, latents = self.pools["free" if task == "free colors" else "named"].draw(rng, size)
        request = (
            self.draw_request(rng, scene)
            if task == "text"
            else self.draw_picture_request(rng, scene, task, size, self.edit_shares)
        )
        return Sample(
            request=request,
            max_tiles=max_tiles,
            latents=latents,
            scene=scene,
            size=size,
            colors_named=task != "free colors",
        )

    @staticmethod
    def draw_request(rng: random.Random, scene: Scene) -> Request:
        """A chat for the scene, of a random kind (`CHATS`)."""
        kind = rng.choices(list(CHATS), list(CHATS.values()))[0]
        if kind == "empty":
            return Request(prompt="")
        possible = [k for k in PROMPT_KINDS if k in prompts.possible_kinds(scene)]
        wording = prompts.word_scene(
            rng, scene, rng.choices(possible, [PROMPT_KINDS[k] for k in possible])[0]
        )
        if kind == "prompt":
            return Request(prompt=wording.text)
        text = draw_rewrite(rng, wording.target)
        if kind == "rewrite alone":
            return Request(prompt="", rewrite=text)
        if kind == "rewrite behind another prompt":
            wording = prompts.word_any(rng, sample_scene(rng))
        return Request(prompt=wording.text, rewrite=text)

    @staticmethod
    def draw_picture_request(
        rng: random.Random,
        scene: Scene,
        task: str,
        size: tuple[int, int],
        edit_shares: dict[str, float] | None = None,
    ) -> Request:
        """A chat that asks for the scene, mostly about one picture (`PICTURE_CHATS`): an edit into it, or the scene itself."""
        kind = rng.choices(list(PICTURE_CHATS[task]), list(PICTURE_CHATS[task].values()))[0]
        if task == "edit":
            edit = edits.sample_edit_into(rng, scene, edit_shares)
            source, prompt, target = edit.sources[0], edit.instruction, edit.target
        else:
            source = target = scene.in_raster_order()
            prompt = edits.describe_request(rng) if kind == "rewrite" else ""
        text = captions.colorless_caption(scene) if task == "free colors" else draw_rewrite(rng, target)
        return Request(
            prompt=prompt,
            images=[render_tensor(source, *size)] if kind != "words alone" else [],
            rewrite=text if kind in ("rewrite", "words alone") else None,
        )

    def collate(self, items: list[Sample]) -> Batch:
        weights = torch.stack([foreground(s.scene, s.size) for s in items])
        return Batch(
            requests=[s.request for s in items],
            max_tiles=items[0].max_tiles,
            latents=torch.stack([s.latents for s in items]).float(),
            weights=1 + (self.foreground_weight - 1) * weights[:, None],
            labels=torch.stack([sample_labels(s, self.config.dit.patch_size) for s in items]),
            traits=torch.stack([sample_traits(s, self.config.dit.patch_size) for s in items]),
        )

    # ------------------------------------------------------------------ loss

    def place(self, device: torch.device) -> None:
        self.backbone.to(device)
        self.autoencoder.to(device)

    def loss(self, model: nn.ModuleDict, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        device = batch.latents.device
        latents = batch.latents.repeat_interleave(self.noises, 0)
        weights = batch.weights.repeat_interleave(self.noises, 0)
        generator = step_generator(self.seed, step)
        means = self.picture_time_means if batch.shows_pictures else self.time_means
        t = sample_training_times(len(latents), means=means, generator=generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        patch = self.config.dit.patch_size
        grid = (latents.shape[-2] // patch, latents.shape[-1] // patch)
        unifusion = cast(UniFusion, model["unifusion"])
        features = self.features(batch.requests, batch.max_tiles)
        if float(torch.rand((), generator=generator)) < self.hidden_thumbnails:
            features = without_thumbnails(features)
        condition = unifusion.prepare(unifusion.pool(features), grid).repeat(self.noises)
        seen: list[Tensor] = []

        def watched(index: int, block: nn.Module) -> Callable[..., Tensor]:
            def call(*args: Any, **rest: Any) -> Tensor:
                seen.append(block(*args, **rest))
                return seen[-1]

            return call if index in (self.head_block, self.last_block) else block

        predicted = unifusion(interpolate(latents, noise, t), t, condition, watched)
        error = (predicted - velocity(latents, noise)).square()
        drawing = (error * weights).mean() / weights.mean()
        labels = batch.labels.repeat_interleave(self.noises, 0)
        guesses = model["patch_head"](seen[0][:, -labels.shape[1] :]).split(PATCH_LABELS, -1)
        naming = sum(
            F.cross_entropy(g.flatten(0, 1), labels[..., i].flatten()) for i, g in enumerate(guesses)
        ) / len(PATCH_LABELS)
        traits = batch.traits.repeat_interleave(self.noises, 0)
        known = ~traits.isnan()
        told = [
            head(F.rms_norm(tokens[:, -traits.shape[1] :], tokens.shape[-1:]))[known]
            for head, tokens in zip(cast(nn.ModuleList, model["trait_heads"]), seen, strict=True)
        ]
        telling = sum((each - traits[known]).square().sum() for each in told) / max(1, known.sum())
        parts = {"velocity_mse": float(error.detach().mean()), "loss_naming": float(naming)}
        if self.trait_weight:
            parts["traits_mse"] = float(telling)
        return drawing + self.head_weight * naming + self.trait_weight * telling, parts

    # ------------------------------------------------------------------ judging

    def evaluate(self, model: nn.ModuleDict, step: int, out: Path) -> dict[str, float]:
        """Share of exact pictures: full captions as rewrites, and raw prompts, on held-out and on seen pairs; edits with their
        rewrites, if they are trained."""
        scores: dict[str, float] = {}
        sheets = []
        names = ["rewrite_held", "rewrite_seen", "prompt_held"] + ["edit_held"] * ("edit" in self.tasks)
        for name in names:
            kind, pairs = name.split("_")
            rng = random.Random(f"generator-evaluation-{name}")
            wanted = [self._draw_question(rng, kind, held_out=pairs == "held") for _ in range(32)]
            requests = [request for request, _ in wanted]
            pictures = self.draw(
                cast(UniFusion, model["unifusion"]),
                requests,
                seeds=list(range(len(requests))),
            )
            sheets.append(pictures[:12])
            exact = []
            for picture, (_, target) in zip(pictures, wanted, strict=True):
                reading = read_picture((picture.permute(1, 2, 0) * 255).round().byte().cpu().numpy())
                exact.append(bool(reading.readable and check(Requirement.of(target), reading.scene).exact))
            few = [e for e, (_, target) in zip(exact, wanted, strict=True) if len(target.objects) < 3]
            scores[name] = round(sum(exact) / len(exact), 3)
            scores[f"{name}_1_2"] = round(sum(few) / len(few), 3)
        save_grid(torch.cat(sheets), out / f"{step:06d}.png", columns=12)
        return scores

    @staticmethod
    def _draw_question(rng: random.Random, kind: str, *, held_out: bool) -> tuple[Request, Scene]:
        """A chat of the kind "rewrite", "prompt" or "edit", and the scene that it asks for."""
        if kind == "edit":
            edit = edits.sample_edit(rng, rng.choice(edits.EDIT_KINDS), held_out)
            pictures = [render_tensor(edit.sources[0], *ASPECT_SIZES[0])]
            text = captions.caption(edit.target)
            return Request(prompt=edit.instruction, images=pictures, rewrite=text), edit.target
        wording = prompts.word_scene(rng, sample_scene(rng, held_out=held_out), "full")
        if kind == "prompt":
            return Request(prompt=wording.text), wording.target
        return Request(prompt="", rewrite=captions.caption(wording.target)), wording.target

    def draw(
        self,
        model: UniFusion,
        requests: list[Request],
        seeds: list[int],
        *,
        steps: int = 16,
        cfg: float = 2.0,
    ) -> Float[Tensor, "B 3 H W"]:
        """Square pictures for chats."""
        side = ASPECT_SIZES[0][0] // DOWNSCALE
        device = next(model.parameters()).device
        noise = make_noise(seeds, self.config.dit.latent_channels, side, side, device)
        schedule = build_schedule("shift 3", steps, (side // self.config.dit.patch_size) ** 2)
        latents = sample(
            model,
            model.pool(self.features(requests)),
            noise,
            schedule,
            negative=model.pool(self.features([Request(prompt="")])),
            cfg=cfg,
        )
        return self.autoencoder.decode(latents.contiguous(memory_format=torch.channels_last)).clamp(0, 1)

    def export(self, model: nn.ModuleDict, out: Path, record: dict[str, Any]) -> None:
        factors, bias = preview_factors(self.autoencoder.cpu())
        record = {**record, "latent_rgb_factors": factors, "latent_rgb_bias": bias}
        save_generator(cast(UniFusion, model["unifusion"]), out / "generator.safetensors", record)


def without_thumbnails(features: Features) -> Features:
    """The same features with the thumbnail of each chat's only picture masked, which stands behind its tiles, if it has any."""
    picture = features.mask & (features.token_info.roles == TokenRole.IMAGE)
    from_the_end = picture.flip(1).cumsum(1).flip(1)
    has_tiles = picture.sum(1, keepdim=True) > TOKENS_PER_SIDE**2
    return replace(
        features, mask=features.mask & ~(picture & has_tiles & (from_the_end <= TOKENS_PER_SIDE**2))
    )


def draw_rewrite(rng: random.Random, scene: Scene) -> str:
    """A caption of the scene in a random form (`FORMS`): styles make the VLM write others than its own."""
    return rng.choices(list(FORMS), list(FORMS.values()))[0](scene)


def foreground(scene: Scene, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """1 (more for `HARDER` shapes) on latent cells within one cell of an object's bounding box, 0 elsewhere."""
    width, height = size
    mask = torch.zeros(height // DOWNSCALE, width // DOWNSCALE)
    for obj in scene.objects:
        x, y, radius = (value / DOWNSCALE for value in object_geometry(obj, width, height))
        top, left = max(0, int(y - radius) - 1), max(0, int(x - radius) - 1)
        mask[top : int(y + radius) + 2, left : int(x + radius) + 2] = HARDER.get(obj.shape, 1.0)
    return mask


def sample_labels(sample: Sample, patch_size: int) -> Int[Tensor, "N 4"]:
    """What stands in each patch, by name; colours without a name are not asked for."""
    labels = patch_labels(sample.scene, sample.size, patch_size)
    if not sample.colors_named:
        labels[:, 1] = torch.where(labels[:, 1] > 0, IGNORED, labels[:, 1])
    return labels


def patch_labels(scene: Scene, size: tuple[int, int], patch_size: int) -> Int[Tensor, "N 4"]:
    """Shape, colour and size (0 = none) of the object whose bounding box a patch's centre lies in, and the background."""
    distances = distances_from_patches(scene, size, patch_size)
    labels = torch.zeros(*distances.shape[1:], 4, dtype=torch.long)
    labels[..., 3] = list(BACKGROUNDS).index(scene.background)
    for obj, distance in zip(scene.objects, distances, strict=True):
        names = (SHAPES.index(obj.shape), list(COLORS).index(obj.color), list(SIZES).index(obj.size))
        labels[..., :3] = torch.where(distance[..., None] <= 0, torch.tensor(names) + 1, labels[..., :3])
    return labels.flatten(0, 1)


def distances_from_patches(
    scene: Scene, size: tuple[int, int], patch_size: int
) -> Float[Tensor, "objects rows columns"]:
    """How far the bounding box of each object is from the centre of each patch, along the farther axis, in pixels; 0 or less
    inside."""
    width, height = size
    side = DOWNSCALE * patch_size
    y, x = torch.meshgrid(
        (torch.arange(height // side) + 0.5) * side, (torch.arange(width // side) + 0.5) * side, indexing="ij"
    )
    distances = []
    for obj in scene.objects:
        center_x, center_y, radius = object_geometry(obj, width, height)
        distances.append(torch.maximum((x - center_x).abs(), (y - center_y).abs()) - radius)
    return torch.stack(distances) if distances else torch.zeros(0, *x.shape)


def sample_traits(sample: Sample, patch_size: int) -> Float[Tensor, "N 6"]:
    """Traits in each patch, if there is a picture that can tell them; how far a colour without a name is from one that has one is
    not asked for."""
    traits = patch_traits(sample.scene, sample.size, patch_size)
    if not sample.request.images:
        traits[:] = math.nan
    if not sample.colors_named:
        traits[:, 3:] = math.nan
    return traits


def patch_traits(scene: Scene, size: tuple[int, int], patch_size: int) -> Float[Tensor, "N 6"]:
    """Traits (`Traits.relative`) of the object whose bounding box reaches into a patch, NaN where none does."""
    distances = distances_from_patches(scene, size, patch_size)
    traits = torch.full((*distances.shape[1:], NUM_TRAITS), math.nan)
    for obj, distance in zip(scene.objects, distances, strict=True):
        traits[distance <= DOWNSCALE * patch_size / 2] = torch.tensor(obj.traits.relative)
    return traits.flatten(0, 1)


@torch.no_grad()
def preview_factors(autoencoder: Autoencoder) -> tuple[list[list[float]], list[float]]:
    """Least-squares map from a latent cell to its mean colour in -1..1: what ComfyUI's quick previews need."""
    rng = random.Random("preview")
    pixels = torch.stack([render_tensor(sample_scene(rng)) for _ in range(48)])
    latents = autoencoder.encode(pixels).movedim(1, -1).flatten(0, -2)
    colors = F.avg_pool2d(pixels, DOWNSCALE).movedim(1, -1).flatten(0, -2) * 2 - 1
    solution = torch.linalg.lstsq(torch.cat([latents, torch.ones(len(latents), 1)], 1), colors).solution
    return solution[:-1].tolist(), solution[-1].tolist()
