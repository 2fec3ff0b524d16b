"""Train LAP, refiner and DiT on the frozen VLM: text to image, edits and reconstructions of one image (never of more).

The chat of each sample is random, so that the image follows the rewrite and not what the VLM expects: about half of the
rewrites have no prompt before them, some have their own, some that of another scene. (VERIFI's rewrite is encoded behind the
prompt, so its states also hold the VLM's prediction, see ARCHITECTURE.md. The suite `swap` measures which of the two the image
follows.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...checkpoints.generator_file import load_generator, save_generator
from ...contracts import MAX_TILES, Features, Request, TokenRole
from ...flow.path import interpolate, sample_training_times, velocity
from ...flow.schedule import build_schedule
from ...models.autoencoder import DOWNSCALE, Autoencoder
from ...models.fusion_designs import FUSIONS
from ...models.unifusion import UniFusion, UniFusionConfig, initialize
from ...sampling import make_noise, sample
from ...training.loop import Loop, Loss, Task, seeded, step_generator
from ...training.objective import attention_for_training, loss_by_time
from ...vlm.backbone import VLMBackbone
from ...vlm.features import encode_chat
from ..world import captions, edits, prompts
from ..world.marks import with_marks
from ..world.render import mark_geometry, object_geometry, render_tensor
from ..world.requirements import Requirement, check
from ..world.scenes import ASPECT_SIZES, Scene, sample_scene
from ..world.scorer import read_picture
from .autoencoder import encode_images, save_grid
from .heads import (
    build_heads,
    mark_loss,
    naming_loss,
    patch_labels,
    patch_marks,
    patch_traits,
    trait_loss,
)
from .pool import POOL_SHARES, Pool, SceneAt, free_pool_scene, marked_pool_scene, pool_scene
from .tiny_vlm import TOKENS_PER_SIDE

# share of each kind of chat
CHATS = {
    "rewrite alone": 0.42,
    "rewrite behind its prompt": 0.15,
    "rewrite behind another prompt": 0.15,
    "prompt": 0.18,
    "empty": 0.10,
}
# share of each kind of chat about an image, by task; the words of "free colors" name no colours
PICTURE_CHATS = {
    "edit": {"rewrite": 0.85, "instruction alone": 0.15},
    "reconstruct": {"rewrite": 0.5, "picture alone": 0.5},
    "free colors": {"words alone": 0.5, "rewrite": 0.35, "picture alone": 0.15},
}
# shares of the chats about an image that lose their words, and their images, so that each can guide apart; chats in words
# alone have "empty" instead
DROPOUT = {"text": 0.1, "images": 0.1}
# share of each form of a rewrite
FORMS = {captions.caption: 0.88, captions.brief_caption: 0.04, captions.sentence_caption: 0.08}
# max_tiles
TILE_COUNTS = (1, 5, 10)
PROMPT_KINDS = {"full": 4, "caption": 3, "terse": 2, "relation": 2, "count": 1, "indirect": 2}
# weight of shapes whose outlines are most often too soft to be recognised
HARDER = {"star": 2.0, "cross": 1.5}


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """What a generator is trained on, and how. The order of the fields is that of the record.

    pool_size           scenes of the pool; `free_pool_size`: of the pool with free colours; `marked_pool_size`: of those of the
                        first pool that edits and reconstructions draw, with marks; 0 = all of them, without
    noises              noises per item and step
    foreground_weight   of the loss near objects, 1 elsewhere; times `harder` for some shapes
    time_means          of the logit-normal times, in turn (`sample_training_times`)
    picture_time_means  the same for batches with images, empty = `time_means`; near t = 1 only its tokens show an image
    mark_foreground     of the loss where a mark is, times that of its object
    mark_change         weight of the error along the marks' change of the latents (`change_error`)
    head_weight         of the loss of the patch head; `trait_weight`: of the trait heads; `mark_weight`: of the mark heads
    hidden_thumbnails   share of the batches whose thumbnails are masked, so that the tiles are used
    tasks               shares of "text", "edit", "reconstruct" and "free colors" among the batches
    edit_shares         of the kinds of edits, 1 if not named
    fusion              how the VLM's layers reach the DiT, a key of `FUSIONS`
    frozen_fusion       LAP and refiner stay as they are
    start               a generator file to continue from, even if the VLM or the autoencoder has been trained further since
    teacher             a generator file that knows all but marks: its velocity, moved by what the marks change, is the target
    tile_shares         of `TILE_COUNTS` among the batches; `size_shares`: of `ASPECT_SIZES`

    `harder`, `chats`, `picture_chats` and `dropout` are constants of this file, recorded with the rest.
    """

    seed: int
    pool_size: int
    free_pool_size: int = 0
    marked_pool_size: int = 0
    noises: int = 3
    foreground_weight: float = 3.0
    harder: dict[str, float] = field(default_factory=lambda: HARDER, init=False)
    time_means: tuple[float, ...] = (0.0,)
    picture_time_means: tuple[float, ...] = ()
    head_weight: float = 0.1
    trait_weight: float = 0.0
    mark_foreground: float = 1.0
    mark_change: float = 0.0
    mark_weight: float = 0.0
    hidden_thumbnails: float = 0.0
    tasks: dict[str, float] = field(default_factory=lambda: {"text": 1.0})
    edit_shares: dict[str, float] = field(default_factory=dict)
    fusion: str = "lap"
    frozen_fusion: bool = False
    start: Path | None = None
    teacher: Path | None = None
    chats: dict[str, float] = field(default_factory=lambda: CHATS, init=False)
    picture_chats: dict[str, dict[str, float]] = field(default_factory=lambda: PICTURE_CHATS, init=False)
    dropout: dict[str, float] = field(default_factory=lambda: DROPOUT, init=False)
    tile_shares: tuple[float, ...] = (0.4, 0.3, 0.3)
    size_shares: tuple[float, ...] = POOL_SHARES

    def record(self) -> dict[str, Any]:
        """All fields for the record of a run; of files their names."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One chat, the latents of the image that it asks for, and what its marks change in them."""

    request: Request
    max_tiles: int
    latents: Float[Tensor, "C h w"]
    change: Float[Tensor, "C h w"]
    scene: Scene
    size: tuple[int, int]
    colors_named: bool = True


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Chats of one image size; `labels`, `traits`, `marks` and `places` are those of `heads`."""

    requests: list[Request]
    max_tiles: int
    latents: Float[Tensor, "B C h w"]
    changes: Float[Tensor, "B C h w"]
    weights: Float[Tensor, "B 1 h w"]
    labels: Int[Tensor, "B N 4"]
    traits: Float[Tensor, "B N 6"]
    marks: Int[Tensor, "B N"]
    places: Float[Tensor, "B N 2"]

    @property
    def shows_images(self) -> bool:
        return any(request.images for request in self.requests)

    def to(self, device: torch.device, **how: Any) -> Batch:
        """The batch on another device; accelerate calls it."""
        names = ("latents", "changes", "weights", "labels", "traits", "marks", "places")
        return replace(self, **{name: getattr(self, name).to(device, **how) for name in names})


class GeneratorTask(Task[nn.ModuleDict]):
    """Text to image, edits and reconstructions of shapes; no sample has a held-out pair."""

    not_muon = (
        "first.",
        "last.linear",
        "projector",
        "tmlp.0",
        "modulation",
        "patch_head",
        "trait_heads",
        "mark_heads",
    )

    def __init__(
        self,
        given: GeneratorSettings,
        *,
        batch_size: int,
        config: UniFusionConfig,
        backbone: VLMBackbone,
        autoencoder: Autoencoder,
        pool_path: Path,
    ) -> None:
        """`pool_path` is the file of the pool's latents; the other pools have their own files beside it."""
        self.given, self.batch_size = given, batch_size
        self.settings = {**given.record(), "vlm_fingerprint": backbone.fingerprint}
        self.head_blocks = (config.dit.num_blocks // 2, config.dit.num_blocks - 1)
        # torch's stubs lack memory_format
        autoencoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.backbone, self.autoencoder = backbone, autoencoder.eval()
        backbone.check_fits(config.vlm)
        pools: dict[str, tuple[int, SceneAt]] = {
            "named": (given.pool_size, pool_scene),
            "free": (given.free_pool_size, free_pool_scene),
            "marked": (given.marked_pool_size, marked_pool_scene),
        }
        self.pools = {
            name: Pool(
                self.autoencoder,
                given.seed,
                count,
                pool_path.with_stem(f"{pool_path.stem}-{name}") if name != "named" else pool_path,
                scene_at,
            )
            for name, (count, scene_at) in pools.items()
        }
        # states of other weights of the same size would silently be garbage, so the file insists on this VLM
        self.config = replace(config, vlm=replace(config.vlm, fingerprint=backbone.fingerprint))
        if not config.lap.tap_scales:
            self.config = replace(self.config, lap=replace(config.lap, tap_scales=self.tap_scales()))
        unifusion = FUSIONS[given.fusion](self.config)
        initialize(unifusion, torch.Generator().manual_seed(given.seed))
        if given.start:
            earlier, self.before = load_generator(given.start)
            unifusion.load_state_dict(earlier.state_dict())
        self.teacher = load_generator(given.teacher)[0].requires_grad_(False) if given.teacher else None
        if given.frozen_fusion:
            unifusion.txtfusion.requires_grad_(False)
        with seeded(given.seed):
            heads = build_heads(config.dit.hidden_size)
        self.model = nn.ModuleDict({"unifusion": unifusion, **heads})

    def tap_scales(self) -> tuple[float, ...]:
        """Root mean square of each tapped layer's states over the kept tokens.

        Late layers are hundreds of times larger than the embeddings and would drown them.
        """
        rng = random.Random("tap-scales")
        requests = [self.sample_request(rng, sample_scene(rng)) for _ in range(64)]
        features = self.features(requests)
        scales = features.states[features.mask].float().square().mean((0, 2)).sqrt()
        return tuple(round(scale, 4) for scale in scales.tolist())

    def features(self, requests: list[Request], max_tiles: int = MAX_TILES) -> Features:
        """The features of all chats in one pass."""
        spec = self.config.vlm
        return encode_chat(self.backbone, spec, self.backbone.prepare(requests, spec.template, max_tiles))

    def prepare(self, process: tuple[int, int]) -> None:
        for pool in self.pools.values():
            pool.load(process)

    def item(self, index: int) -> Sample:
        given = self.given
        group = random.Random(f"generator-group-{given.seed}-{index // self.batch_size}")
        size = group.choices(ASPECT_SIZES, given.size_shares)[0]
        task = group.choices(list(given.tasks), list(given.tasks.values()))[0]
        max_tiles = group.choices(TILE_COUNTS, given.tile_shares)[0]
        rng = random.Random(f"generator-{given.seed}-{index}")
        marked = task != "free colors" and given.marked_pool_size > 0
        pool = self.pools["free" if task == "free colors" else "marked" if marked else "named"]
        number = pool.draw(rng, size)
        scene, latents = pool.at(number)
        request = (
            self.sample_request(rng, scene)
            if task == "text"
            else drop_parts(
                # random numbers of its own, so that the other draws stay as they are
                random.Random(f"generator-dropout-{given.seed}-{index}"),
                self.sample_image_request(rng, scene, task, size, given.edit_shares),
            )
        )
        change = torch.zeros_like(latents)
        if marked:
            plain_scene, plain = self.pools["named"].at(number)
            if request.images or not (request.prompt or request.rewrite):
                # guidance compares with the empty chat: what does not keep the marks that it sees in the noisy latents makes
                # guided ones too strong
                change = latents - plain
            else:
                # nothing tells of marks
                scene, latents = plain_scene, plain
        return Sample(
            request=request,
            max_tiles=max_tiles,
            latents=latents,
            change=change,
            scene=scene,
            size=size,
            colors_named=task != "free colors",
        )

    @staticmethod
    def sample_request(rng: random.Random, scene: Scene) -> Request:
        """A chat that asks for the scene in words, of a random kind (`CHATS`)."""
        kind = rng.choices(list(CHATS), list(CHATS.values()))[0]
        if kind == "empty":
            return Request(prompt="")
        possible = [k for k in PROMPT_KINDS if k in prompts.possible_kinds(scene)]
        wording = prompts.word_scene(
            rng, scene, rng.choices(possible, [PROMPT_KINDS[k] for k in possible])[0]
        )
        if kind == "prompt":
            return Request(prompt=wording.text)
        text = sample_rewrite(rng, wording.target)
        if kind == "rewrite alone":
            return Request(prompt="", rewrite=text)
        if kind == "rewrite behind another prompt":
            wording = prompts.word_any(rng, sample_scene(rng))
        return Request(prompt=wording.text, rewrite=text)

    @staticmethod
    def sample_image_request(
        rng: random.Random,
        scene: Scene,
        task: str,
        size: tuple[int, int],
        edit_shares: dict[str, float] | None = None,
    ) -> Request:
        """A chat that asks for an edit into the scene or for the scene itself, of a random kind (`PICTURE_CHATS`)."""
        kind = rng.choices(list(PICTURE_CHATS[task]), list(PICTURE_CHATS[task].values()))[0]
        if task == "edit":
            edit = edits.sample_edit_into(rng, scene, edit_shares)
            source, prompt, target = edit.sources[0], edit.instruction, edit.target
        else:
            source = target = scene.in_raster_order()
            prompt = edits.describe_request(rng) if kind == "rewrite" else ""
        text = captions.colorless_caption(scene) if task == "free colors" else sample_rewrite(rng, target)
        return Request(
            prompt=prompt,
            images=[render_tensor(source, *size)] if kind != "words alone" else [],
            rewrite=text if kind in ("rewrite", "words alone") else None,
        )

    def collate(self, items: list[Sample]) -> Batch:
        given = self.given
        weights = torch.stack([foreground(s.scene, s.size, given.mark_foreground) for s in items])
        patch_size = self.config.dit.patch_size
        labels = [patch_labels(s.scene, s.size, patch_size, colors_named=s.colors_named) for s in items]
        traits = [
            patch_traits(
                s.scene,
                s.size,
                patch_size,
                image_shown=bool(s.request.images),
                colors_named=s.colors_named,
            )
            for s in items
        ]
        marks, places = zip(*(patch_marks(s.scene, s.size, patch_size) for s in items), strict=True)
        return Batch(
            requests=[s.request for s in items],
            max_tiles=items[0].max_tiles,
            latents=torch.stack([s.latents for s in items]).float(),
            changes=torch.stack([s.change for s in items]).float(),
            weights=1 + (given.foreground_weight - 1) * weights[:, None],
            labels=torch.stack(labels),
            traits=torch.stack(traits),
            marks=torch.stack(marks),
            places=torch.stack(places),
        )

    def place(self, device: torch.device) -> None:
        self.backbone.to(device)
        self.autoencoder.to(device)
        if self.teacher:
            self.teacher.to(device)

    def loss(self, model: nn.ModuleDict, batch: Batch, number: int) -> Loss:
        with attention_for_training(batch.latents.device):
            return self._loss(model, batch, number)

    def _loss(self, model: nn.ModuleDict, batch: Batch, number: int) -> Loss:
        given, device = self.given, batch.latents.device
        latents = batch.latents.repeat_interleave(given.noises, 0)
        weights = batch.weights.repeat_interleave(given.noises, 0)
        generator = step_generator(given.seed, number)
        means = (batch.shows_images and given.picture_time_means) or given.time_means
        t = sample_training_times(len(latents), means=means, generator=generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        patch = self.config.dit.patch_size
        grid = (latents.shape[-2] // patch, latents.shape[-1] // patch)
        unifusion = cast(UniFusion, model["unifusion"])
        features = self.features(batch.requests, batch.max_tiles)
        if float(torch.rand((), generator=generator)) < given.hidden_thumbnails:
            features = without_thumbnails(features)
        condition = unifusion.prepare(unifusion.pool(features), grid).repeat(given.noises)
        tokens: list[Tensor] = []

        def keep_tokens(index: int, block: nn.Module) -> Callable[..., Tensor]:
            def call(*args: Any, **rest: Any) -> Tensor:
                tokens.append(block(*args, **rest))
                return tokens[-1]

            return call if index in self.head_blocks else block

        noisy = interpolate(latents, noise, t)
        predicted = unifusion(noisy, t, condition, keep_tokens)
        changes = batch.changes.repeat_interleave(given.noises, 0)
        wanted = velocity(latents, noise)
        if self.teacher:
            wanted = taught_velocity(self.teacher, features, noisy, t, changes)
        off = predicted - wanted
        error = off.square()
        flow = (error * weights).mean() / weights.mean()
        labels = batch.labels.repeat_interleave(given.noises, 0)
        naming = naming_loss(model["patch_head"], tokens[0], labels)
        traits = batch.traits.repeat_interleave(given.noises, 0)
        trait = trait_loss(cast(nn.ModuleList, model["trait_heads"]), tokens, traits)
        parts = {"velocity_mse": error.mean(), "loss_naming": naming}
        # at small t outlines form, near 1 what is where: a run can win in one and lose in the other
        parts |= loss_by_time(error.detach().mean((1, 2, 3))[:, None], t[:, None])
        if given.trait_weight:
            parts["traits_mse"] = trait
        loss = flow + given.head_weight * naming + given.trait_weight * trait
        if given.mark_weight:
            marks = batch.marks.repeat_interleave(given.noises, 0)
            places = batch.places.repeat_interleave(given.noises, 0)
            kinds, place = mark_loss(cast(nn.ModuleList, model["mark_heads"]), tokens, marks, places)
            parts |= {"loss_marks": kinds, "places_mse": place}
            loss = loss + given.mark_weight * (kinds + place)
        if given.mark_change:
            parts["change_error"] = change_error(off, changes)
            loss = loss + given.mark_change * parts["change_error"]
        return loss, parts

    def evaluate(self, loop: Loop, step: int) -> dict[str, float]:
        """Share of exact images for captions as rewrites and for raw prompts, and for edits with their rewrites if trained."""
        if not loop.chief:
            return {}
        model = self.model
        scores: dict[str, float] = {}
        sheets = []
        names = ["rewrite_held", "rewrite_seen", "prompt_held"] + ["edit_held"] * ("edit" in self.given.tasks)
        for name in names:
            kind, pairs = name.split("_")
            rng = random.Random(f"generator-evaluation-{name}")
            wanted = [self._sample_question(rng, kind, held_out=pairs == "held") for _ in range(32)]
            requests = [request for request, _ in wanted]
            images = self.generate(
                cast(UniFusion, model["unifusion"]), requests, seeds=list(range(len(requests)))
            )
            sheets.append(images[:12])
            exact = []
            for image, (_, target) in zip(images, wanted, strict=True):
                reading = read_picture((image.permute(1, 2, 0) * 255).round().byte().cpu().numpy())
                exact.append(bool(reading.readable and check(Requirement.of(target), reading.scene).exact))
            few = [e for e, (_, target) in zip(exact, wanted, strict=True) if len(target.objects) < 3]
            scores[name] = round(sum(exact) / len(exact), 3)
            scores[f"{name}_1_2"] = round(sum(few) / len(few), 3)
        if self.given.marked_pool_size:
            scores["marks_drawn"] = round(self.marks_drawn(cast(UniFusion, model["unifusion"])), 3)
        save_grid(torch.cat(sheets), loop.out / "samples" / f"{step:06d}.png", columns=12)
        return scores

    @torch.no_grad()
    def marks_drawn(self, model: UniFusion, count: int = 32) -> float:
        """How much of the marks the first step from pure noise draws, because an image shows them: 0 = nothing, 1 = all.

        It is the share of the change of the latents that comes back as a change of the predicted ones, over `count` images with
        marks and the same without. It rises long before a mark can be seen.
        """
        rng = random.Random("generator-evaluation-marks")
        pairs = [(with_marks(rng, plain, 1.0), plain) for plain in (sample_scene(rng) for _ in range(count))]
        size = ASPECT_SIZES[0]
        # those with marks, then the same without
        images = [[render_tensor(scene, *size) for scene in each] for each in zip(*pairs, strict=True)]
        device = next(model.parameters()).device
        latents = [encode_images(self.autoencoder, torch.stack(each)) for each in images]
        _, channels, rows, columns = latents[0].shape
        noise = make_noise(list(range(count)), channels, rows, columns, device)
        patch = self.config.dit.patch_size
        velocities = [
            model(
                noise,
                torch.ones(count, device=device),
                model.prepare(
                    model.pool(self.features([Request(prompt="", images=[image]) for image in each])),
                    (rows // patch, columns // patch),
                ),
            )
            for each in images
        ]
        change = latents[0] - latents[1]
        return float(((velocities[1] - velocities[0]) * change).sum() / change.square().sum())

    @staticmethod
    def _sample_question(rng: random.Random, kind: str, *, held_out: bool) -> tuple[Request, Scene]:
        """A chat of the kind "rewrite", "prompt" or "edit", and the scene that it asks for."""
        if kind == "edit":
            edit = edits.sample_edit(rng, rng.choice(edits.EDIT_KINDS), held_out)
            images = [render_tensor(edit.sources[0], *ASPECT_SIZES[0])]
            text = captions.caption(edit.target)
            return Request(prompt=edit.instruction, images=images, rewrite=text), edit.target
        wording = prompts.word_scene(rng, sample_scene(rng, held_out=held_out), "full")
        if kind == "prompt":
            return Request(prompt=wording.text), wording.target
        return Request(prompt="", rewrite=captions.caption(wording.target)), wording.target

    def generate(
        self,
        model: UniFusion,
        requests: list[Request],
        seeds: list[int],
        *,
        steps: int = 16,
        cfg: float = 2.0,
    ) -> Float[Tensor, "B 3 H W"]:
        """Square images for chats, in 0..1."""
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

    def export(self, loop: Loop, weights: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        if not loop.chief:
            return
        factors, bias = preview_factors(self.autoencoder.cpu())
        record = {**record, "latent_rgb_factors": factors, "latent_rgb_bias": bias}
        unifusion = cast(UniFusion, self.model["unifusion"])
        save_generator(unifusion, loop.out / "generator.safetensors", record)


@torch.no_grad()
def taught_velocity(
    teacher: UniFusion,
    features: Features,
    noisy: Float[Tensor, "B C h w"],
    t: Float[Tensor, " B"],
    changes: Float[Tensor, "B C h w"],
) -> Float[Tensor, "B C h w"]:
    """The velocity of a generator that knows no marks, moved by what the marks of the sample change in its clean latents.

    The teacher is asked about the same noise without the marks. Its answer has no noise of its own, so little but marks is left
    to learn, and what it draws otherwise stays.
    """
    patch = teacher.config.dit.patch_size
    grid = (noisy.shape[-2] // patch, noisy.shape[-1] // patch)
    condition = teacher.prepare(teacher.pool(features), grid).repeat(len(noisy) // len(features.states))
    return teacher(noisy - (1 - t[:, None, None, None]) * changes, t, condition) - changes


def change_error(off: Float[Tensor, "B C h w"], changes: Float[Tensor, "B C h w"]) -> Tensor:
    """Squared error along what marks change in each cell, 1 if nothing of them is drawn and all else is right.

    Near a mark, other errors are several times its size and would drown it in the squared error of all channels.
    """
    own = changes.square().sum(1)
    # a batch may have no mark
    return (off * changes).sum(1).square().sum() / own.square().sum().clamp(min=1e-6)


def without_thumbnails(features: Features) -> Features:
    """The features with the thumbnail of each chat's only image masked if the image has tiles; it comes after the tiles."""
    image = features.mask & (features.token_info.roles == TokenRole.IMAGE)
    from_the_end = image.flip(1).cumsum(1).flip(1)
    has_tiles = image.sum(1, keepdim=True) > TOKENS_PER_SIDE**2
    return replace(features, mask=features.mask & ~(image & has_tiles & (from_the_end <= TOKENS_PER_SIDE**2)))


def sample_rewrite(rng: random.Random, scene: Scene) -> str:
    """A caption of the scene in a random form (`FORMS`), since styles make the VLM write other forms than its own."""
    return rng.choices(list(FORMS), list(FORMS.values()))[0](scene)


def drop_parts(rng: random.Random, request: Request) -> Request:
    """The request without its words, without its images, without both, or as it is (`DROPOUT`)."""
    if rng.random() < DROPOUT["text"]:
        request = replace(request, prompt="", rewrite=None)
    if rng.random() < DROPOUT["images"]:
        request = replace(request, images=[])
    return request


def foreground(scene: Scene, size: tuple[int, int], mark_foreground: float = 1.0) -> Float[Tensor, "h w"]:
    """1 (more for `HARDER` shapes) on latent cells within one cell of an object's bounding box, 0 elsewhere; times
    `mark_foreground` on those within one cell of a mark's."""
    width, height = size
    mask = torch.zeros(height // DOWNSCALE, width // DOWNSCALE)
    for obj in scene.objects:
        mask[_cells_around(*object_geometry(obj, width, height))] = HARDER.get(obj.shape, 1.0)
        if geometry := mark_geometry(obj, width, height):
            mask[_cells_around(*geometry)] *= mark_foreground
    return mask


def _cells_around(x: float, y: float, radius: float) -> tuple[slice, slice]:
    """Latent cells within one cell of a square around a place, all in pixels."""
    x, y, radius = x / DOWNSCALE, y / DOWNSCALE, radius / DOWNSCALE
    rows, columns = (slice(max(0, int(each - radius) - 1), int(each + radius) + 2) for each in (y, x))
    return rows, columns


@torch.no_grad()
def preview_factors(autoencoder: Autoencoder) -> tuple[list[list[float]], list[float]]:
    """The least-squares map (factors, bias) from a latent cell to its mean colour in -1..1, for ComfyUI's quick previews."""
    rng = random.Random("preview")
    pixels = torch.stack([render_tensor(sample_scene(rng)) for _ in range(48)])
    latents = autoencoder.encode(pixels).movedim(1, -1).flatten(0, -2)
    colors = F.avg_pool2d(pixels, DOWNSCALE).movedim(1, -1).flatten(0, -2) * 2 - 1
    solution = torch.linalg.lstsq(torch.cat([latents, torch.ones(len(latents), 1)], 1), colors).solution
    return solution[:-1].tolist(), solution[-1].tolist()
