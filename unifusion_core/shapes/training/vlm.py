"""Train the embedded VLM: captions of images, rewrites of prompts, edits and references. Every answer is the target's caption.

The VLM takes the part of a pretrained one, so it is trained on held-out pairs and on several images. Train-time heads teach what
answers teach too slowly or never:

cell_head    on image tokens: names of what is in the token's cell
detail_head  on image tokens: the pixels that the token covers, and the unnamed traits of the object there; no answer mentions
             them, but the image tokens of a real VLM contain them
mark_head    on image tokens: whether the token covers the middle of a mark, lighter or darker than its object, and where in the
             token's area; no answer mentions marks either
meant_head   on the token before the answer: the objects that the instruction refers to, per image
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...contracts import Request, TokenRole
from ...evaluation.benchmarks.soft_tifa import ONE_WORD
from ...training.loop import Loop, Loss, Task, seeded
from ...vlm.backbone import VLMBackbone
from ...vlm.chat import VLMInputs
from ...vlm.folder import load_vlm
from ...vlm.styles import STYLES
from ...zoo.tiny import TINY
from ..world import captions, edits, prompts, references
from ..world.edit_wordings import Edit
from ..world.german import german_prompt
from ..world.marks import with_marks
from ..world.questions import NO, answer, questions_of
from ..world.render import render_tensor
from ..world.restyle import RESTYLE_KINDS, restyle, restyled
from ..world.scenes import ASPECT_SIZES, BACKGROUNDS, COLORS, NUM_TRAITS, SHAPES, SIZES, Scene, sample_scene
from .heads import MARK_WEIGHTS, area_marks, mark_errors
from .tiny_vlm import MEAN, STD, TOKENS_PER_SIDE, build_tokenizer, build_vlm, read_tokenizer, save_vlm

# max_tiles: the thumbnail alone, with 2 x 2 tiles, with 3 x 3 tiles
TILE_COUNTS = (1, 5, 10)
NUM_CELLS, MAX_SOURCES = 9, 3
REWRITE_SHARES = {"full": 4, "terse": 3, "relation": 2, "count": 1, "indirect": 4, "caption": 1}
# of 6, so that the later layers can use what the head teaches
MEANT_LAYER = 4
# resolution of an image token's part of its tile in the detail head
PIXELS_PER_SIDE = 4
# classes of shape, colour, size (0 = empty cell) and background
CELL_LABELS = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, len(BACKGROUNDS))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One chat of the VLM's training.

    sources  the scenes of its images
    target   the scene of the answer, worded by `form`
    meant    (source, object) of the objects that the instruction refers to
    """

    kind: str
    prompt: str
    sources: tuple[Scene, ...]
    target: Scene
    max_tiles: int = 1
    style: str = ""
    form: Callable[[Scene], str] = captions.caption
    meant: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class VLMBatch:
    """A batch of chats with their answers.

    cells   labels of each image token, in the order of the batch
    traits  of the object in each image token's cell, NaN if the cell is empty
    marks   of each image token: `MARK_NONE`, `MARK_LIGHTER` or `MARK_DARKER`
    places  of its mark in the token's area, see `heads.area_marks`
    meant   1 for the cells, image by image, of objects that the instruction refers to
    """

    chat: VLMInputs
    cells: Int[Tensor, "P 4"]
    traits: Float[Tensor, "P 6"]
    marks: Int[Tensor, " P"]
    places: Float[Tensor, "P 2"]
    meant: Float[Tensor, "B cells"]
    kind: str

    def to(self, device: torch.device, **how: Any) -> VLMBatch:
        """The batch on another device; accelerate calls it."""
        names = ("cells", "traits", "marks", "places", "meant")
        moved = {name: getattr(self, name).to(device, **how) for name in names}
        return replace(self, chat=self.chat.to(device), **moved)


def sample_rewrite(rng: random.Random, kind: str, held_out: bool | None = None) -> Sample:
    """A prompt of this kind, to be rewritten."""
    scene = sample_scene(
        rng, held_out=held_out, num_objects=rng.choice((2, 3)) if kind in ("relation", "count") else None
    )
    if kind == "count":
        scene = prompts.with_equal_objects(rng, scene)
    wording = prompts.word_scene(rng, scene, kind)
    return Sample(kind=kind, prompt=wording.text, sources=(), target=wording.target)


def sample_caption(rng: random.Random, max_tiles: int, held_out: bool | None = None) -> Sample:
    """An image, to be captioned in raster order."""
    scene = sample_scene(rng, held_out=held_out).in_raster_order()
    return Sample(
        kind="describe",
        prompt=edits.describe_request(rng),
        sources=(scene,),
        target=scene,
        max_tiles=max_tiles,
    )


def sample_question(rng: random.Random, max_tiles: int, held_out: bool | None = None) -> Sample:
    """An image and a question about it, to be answered in one word; about half of the answers are no."""
    scene = sample_scene(rng, held_out=held_out)
    asked = questions_of(prompts.word_any(rng, scene).requirement)
    if rng.random() < 0.5:
        # about another scene
        other = sample_scene(rng, held_out=held_out)
        others = questions_of(prompts.word_any(rng, other).requirement)
        asked = [question for question in others if answer(question.text, scene) == NO] or asked
    text = rng.choice(asked).text
    right = str(answer(text, scene)).lower()
    return Sample(
        kind="question",
        prompt=text + ONE_WORD,
        sources=(scene,),
        target=scene,
        max_tiles=max_tiles,
        form=lambda _: right,
    )


def sample_edit(rng: random.Random, kind: str, max_tiles: int, held_out: bool | None = None) -> Sample:
    """An edit, reference or look, to be answered with the caption of its target."""
    edit = edits.sample_instruction(rng, kind, held_out)
    return Sample(
        kind=kind,
        prompt=edit.instruction,
        sources=edit.sources,
        target=edit.target,
        max_tiles=max_tiles,
        meant=meant_objects(edit),
    )


def meant_objects(edit: Edit) -> frozenset[tuple[int, int]]:
    """(source, object) of the objects that an instruction changes, removes, or copies into another image."""
    kept = frozenset(origin for origin in edit.origin if origin is not None)
    if edit.kind == "remove":
        return frozenset((0, i) for i in range(len(edit.sources[0].objects))) - kept
    if edit.kind in edits.EDIT_KINDS:
        return frozenset(origin for i in edit.touched if (origin := edit.origin[i]) is not None)
    if edit.kind in references.LOOK_KINDS:
        return kept if edit.kind != "in_order" else frozenset(origin for origin in edit.origin[:1] if origin)
    # the image that the objects are put into
    last = len(edit.sources) - 1
    return frozenset((source, i) for source, i in kept if source != last)


def with_random_style(rng: random.Random, sample: Sample) -> Sample:
    """The chat with a random style, which its answer follows."""
    name = rng.choice(("terse", "detailed", "keep everything else", "translate to English", "free", "free"))
    if name == "free":
        text, changes = restyle(rng, rng.choice(RESTYLE_KINDS))
        target = restyled(sample.target, changes)
        return replace(sample, style=text, target=target, meant=frozenset())
    if name == "translate to English" and not sample.sources:
        sample = replace(sample, prompt=german_prompt(rng, sample.target))
    form = {"terse": captions.brief_caption, "detailed": captions.sentence_caption}.get(
        name, captions.caption
    )
    return replace(sample, style=STYLES[name], form=form)


class VLMTask(Task[nn.ModuleDict]):
    """Batches of one task each, so that lengths are similar; the task is random per batch."""

    not_muon = ("embed_tokens", "embeddings", "cell_head", "detail_head", "mark_head", "meant_head")

    def __init__(
        self,
        *,
        seed: int,
        batch_size: int,
        mix: dict[str, float],
        tokenizer: Path,
        cell_weight: float = 0.3,
        meant_weight: float = 0.0,
        detail_weight: float = 0.0,
        trait_weight: float | None = None,
        mark_weight: float = 0.0,
        marked_share: float = 0.0,
        frozen_language_model: bool = False,
        rewrite_shares: dict[str, float] | None = None,
        edit_shares: dict[str, float] | None = None,
        tile_shares: tuple[float, float, float] = (0.55, 0.25, 0.2),
        style_share: float = 0.0,
        start: Path | None = None,
    ) -> None:
        """
        mix                    shares of the tasks
        cell_weight            of the head's loss, like `meant_weight` and `detail_weight`
        trait_weight           of the traits in the detail head, `detail_weight` if not given
        mark_weight            of the mark head's loss
        marked_share           share of the objects in images that carry a mark
        frozen_language_model  train the vision part alone, so that the states of texts stay
        rewrite_shares         of the kinds of prompts, `REWRITE_SHARES` if not given
        edit_shares            of the kinds of edits, references and looks, 1 if not named
        tile_shares            of `TILE_COUNTS` among the batches
        style_share            share of chats with a style
        start                  a VLM folder to continue from
        """
        self.seed, self.batch_size, self.mix = seed, batch_size, mix
        self.cell_weight, self.meant_weight = cell_weight, meant_weight
        self.detail_weight = detail_weight
        self.trait_weight = detail_weight if trait_weight is None else trait_weight
        self.mark_weight, self.marked_share = mark_weight, marked_share
        self.rewrite_shares = rewrite_shares or REWRITE_SHARES
        self.edit_shares, self.tile_shares, self.style_share = edit_shares or {}, tile_shares, style_share
        self.settings = {
            "seed": seed,
            "mix": mix,
            "cell_weight": cell_weight,
            "meant_weight": meant_weight,
            "detail_weight": detail_weight,
            "trait_weight": self.trait_weight,
            "mark_weight": mark_weight,
            "marked_share": marked_share,
            "frozen_language_model": frozen_language_model,
            "rewrite_shares": self.rewrite_shares,
            "edit_shares": self.edit_shares,
            "tile_shares": tile_shares,
            "style_share": style_share,
            "start": start.name if start else None,
        }
        self.tokenizer_folder = start or tokenizer
        if start:
            self.backbone = load_vlm(start)
            self.before = json.loads((start / "training.json").read_text())
            self.tokenizer = self.backbone.tokenizer
        else:
            self.tokenizer = (
                read_tokenizer(tokenizer, lambda: tokenizer_texts(seed), vocab_size=900)
                if (tokenizer / "tokenizer.json").exists()
                else build_tokenizer(tokenizer_texts(seed), vocab_size=900)
            )
            self.backbone = VLMBackbone(
                build_vlm(self.tokenizer, seed), self.tokenizer, normalisation=(MEAN, STD)
            )
        # the backbone has frozen it
        vlm = self.backbone.model.requires_grad_(True)
        if frozen_language_model:
            vlm.model.language_model.requires_grad_(False)
        width = TINY.config.vlm.hidden_size
        with seeded(seed):
            heads = {
                "cell_head": nn.Linear(width, sum(CELL_LABELS)),
                "detail_head": nn.Linear(width, 3 * PIXELS_PER_SIDE**2 + NUM_TRAITS),
                "meant_head": nn.Linear(width, MAX_SOURCES * NUM_CELLS),
            }
            # after the others, whose first weights stay as they were before there were marks
            heads["mark_head"] = nn.Linear(width, len(MARK_WEIGHTS) + 2)
        self.model = nn.ModuleDict({"vlm": vlm, **heads})

    def prepare(self, process: tuple[int, int]) -> None:
        """Save a new tokenizer, so that a run that is resumed after the prompts changed keeps its token ids."""
        if process[0] == 0 and not (self.tokenizer_folder / "tokenizer.json").exists():
            self.tokenizer.save_pretrained(str(self.tokenizer_folder))

    def item(self, index: int) -> Sample:
        group = random.Random(f"vlm-group-{self.seed}-{index // self.batch_size}")
        task = group.choices(list(self.mix), list(self.mix.values()))[0]
        max_tiles = group.choices(TILE_COUNTS, self.tile_shares)[0]
        rng = random.Random(f"vlm-{self.seed}-{index}")
        sample = self.sample(rng, task, max_tiles)
        if rng.random() < self.style_share:
            sample = with_random_style(rng, sample)
        sources = tuple(with_marks(rng, scene, self.marked_share) for scene in sample.sources)
        return replace(sample, sources=sources)

    def sample(self, rng: random.Random, task: str, max_tiles: int, held_out: bool | None = None) -> Sample:
        """A random sample of a task: rewrite, describe, question, edit, reference, look, detail."""
        if task == "detail":
            # bounds the number of tiles of a batch
            count = MAX_SOURCES if max_tiles == 1 else 1
            scenes = tuple(sample_scene(rng, held_out=held_out) for _ in range(count))
            prompt = edits.describe_request(rng)
            return Sample(kind=task, prompt=prompt, sources=scenes, target=scenes[0], max_tiles=max_tiles)
        if task == "rewrite":
            shares = self.rewrite_shares
            return sample_rewrite(rng, rng.choices(list(shares), list(shares.values()))[0], held_out)
        if task == "describe":
            return sample_caption(rng, max_tiles, held_out)
        if task == "question":
            return sample_question(rng, max_tiles, held_out)
        kinds = {
            "edit": edits.EDIT_KINDS,
            "reference": references.REFERENCE_KINDS,
            "look": references.LOOK_KINDS,
        }[task]
        shares = [self.edit_shares.get(kind, 1.0) for kind in kinds]
        return sample_edit(rng, rng.choices(kinds, shares)[0], max_tiles, held_out)

    def collate(self, items: list[Sample]) -> VLMBatch:
        requests = []
        for sample in items:
            images = [render_tensor(scene, *size_of(sample)) for scene in sample.sources]
            text = sample.form(sample.target)
            requests.append(Request(prompt=sample.prompt, images=images, style=sample.style, rewrite=text))
        chat = self.backbone.prepare(requests, TINY.config.vlm.template, items[0].max_tiles)
        cells, traits = [torch.zeros(0, 4, dtype=torch.long)], [torch.zeros(0, NUM_TRAITS)]
        marks, places = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, 2)]
        for sample, roles, positions in zip(items, chat.roles, chat.positions, strict=True):
            for number, scene in enumerate(sample.sources, start=1):
                mine = (roles == TokenRole.IMAGE) & (positions[:, 0] == number)
                cells.append(cell_labels(scene, positions[mine, 1:]))
                traits.append(cell_traits(scene, positions[mine, 1:]))
                kinds, offsets = token_marks(scene, size_of(sample), positions[mine, 1:])
                marks.append(kinds)
                places.append(offsets)
        meant = torch.zeros(len(items), MAX_SOURCES * NUM_CELLS)
        for row, sample in enumerate(items):
            for source, index in sample.meant:
                cell_row, column = sample.sources[source].objects[index].cell
                meant[row, source * NUM_CELLS + 3 * cell_row + column] = 1
        return VLMBatch(
            chat=chat,
            cells=torch.cat(cells),
            traits=torch.cat(traits),
            marks=torch.cat(marks),
            places=torch.cat(places),
            meant=meant,
            kind=items[0].kind,
        )

    @staticmethod
    def image_tokens(model: nn.ModuleDict, chat: VLMInputs) -> Float[Tensor, "P D"]:
        """The image tokens as the language model gets them."""
        return (
            cast(Any, model["vlm"]).model.get_image_features(**chat.pixel_inputs).pooler_output.flatten(0, -2)
        )

    def answer_logits(
        self, model: nn.ModuleDict, batch: VLMBatch
    ) -> tuple[
        Float[Tensor, "X V"], Int[Tensor, " X"], Tensor, Float[Tensor, "P D"] | None, Float[Tensor, "B D"]
    ]:
        """For every token of the answers (end included) logits, token id and row; the image tokens, if any; and the state of
        `MEANT_LAYER` before each answer."""
        vlm, chat = cast(Any, model["vlm"]), batch.chat
        embedded = vlm.get_input_embeddings()(chat.token_ids)
        seen = None
        if chat.pixel_inputs:
            seen = self.image_tokens(model, chat)
            embedded = embedded.masked_scatter((chat.roles == TokenRole.IMAGE)[..., None], seen)
        output = vlm.model.language_model(
            inputs_embeds=embedded,
            attention_mask=chat.mask.long(),
            use_cache=False,
            output_hidden_states=True,
        )
        answer = (chat.roles == TokenRole.REWRITE) | (chat.roles == TokenRole.END)
        row, column = answer.nonzero(as_tuple=True)
        before = answer.int().argmax(1) - 1
        decision = output.hidden_states[MEANT_LAYER][torch.arange(len(before)), before]
        logits = vlm.lm_head(output.last_hidden_state[row, column - 1])
        return logits, chat.token_ids[row, column], row, seen, decision

    def loss(self, model: nn.ModuleDict, batch: VLMBatch, number: int) -> Loss:
        parts: dict[str, Tensor] = {}
        if batch.kind == "detail":
            # without the language model
            seen, decision = self.image_tokens(model, batch.chat), None
            loss = seen.new_zeros(())
        else:
            logits, target, _, seen, decision = self.answer_logits(model, batch)
            loss = F.cross_entropy(logits, target)
            parts["loss_rewrite" if seen is None else "loss_picture"] = loss
        if seen is not None:
            guesses = model["cell_head"](seen).split(CELL_LABELS, -1)
            losses = [F.cross_entropy(g, batch.cells[:, i]) for i, g in enumerate(guesses)]
            cell = cast(Tensor, sum(losses)) / len(CELL_LABELS)
            parts["loss_cells"] = cell
            loss = loss + self.cell_weight * cell
            if self.detail_weight:
                pixels, traits = detail_errors(model["detail_head"](seen), batch)
                parts |= {"pixels_mse": pixels, "traits_mse": traits}
                loss = loss + self.detail_weight * pixels + self.trait_weight * traits
            if self.mark_weight:
                kinds, places = mark_errors(model["mark_head"](seen), batch.marks, batch.places)
                parts |= {"loss_marks": kinds, "places_mse": places}
                loss = loss + self.mark_weight * (kinds + places)
        if decision is not None and seen is not None and self.meant_weight:
            guesses = model["meant_head"](decision)
            meant = F.binary_cross_entropy_with_logits(guesses, batch.meant, reduction="sum") / len(guesses)
            parts["loss_meant"] = meant
            loss = loss + self.meant_weight * meant
        return loss, parts

    def evaluate(self, loop: Loop, step: int) -> dict[str, float]:
        """Share of answers of which every token is the most likely one after the tokens before it.

        If only one answer is right, that is the share that greedy decoding gets exactly right.
        """
        if not loop.chief:
            return {}
        model = self.model
        suites = [("rewrite", kind, 1) for kind in ("full", "indirect", "terse")]
        suites += [("describe", "describe", n) for n in TILE_COUNTS] + [
            ("edit", "edit", n) for n in TILE_COUNTS
        ]
        suites += [("reference", "reference", 10), ("look", "look", 1)]
        if "question" in self.mix:
            suites += [("question", "question", n) for n in TILE_COUNTS]
        scores = {}
        device = next(model.parameters()).device
        for task, kind, max_tiles in suites:
            rng = random.Random(f"vlm-evaluation-{task}-{kind}-{max_tiles}")
            right = total = 0
            for _ in range(2):
                items = [
                    sample_rewrite(rng, kind) if task == "rewrite" else self.sample(rng, task, max_tiles)
                    for _ in range(32)
                ]
                logits, target, row, *_ = self.answer_logits(model, self.collate(items).to(device))
                wrong = torch.zeros(len(items), dtype=torch.bool)
                wrong[row[logits.argmax(-1) != target].cpu()] = True
                right += int((~wrong).sum())
                total += len(items)
            scores[f"{kind}{max_tiles if task != 'rewrite' else ''}"] = round(right / total, 3)
        return scores

    def export(self, loop: Loop, weights: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        if loop.chief:
            save_vlm(cast(Any, self.model["vlm"]), self.tokenizer, loop.out / "vlm", record)


def tokenizer_texts(seed: int) -> list[str]:
    """Texts for the tokenizer's vocabulary."""
    rng = random.Random(f"tokenizer-{seed}")
    return [*prompts.corpus(rng, 8000), *edits.corpus(rng, 6000)]


def cell_traits(scene: Scene, centres: Float[Tensor, "P 2"]) -> Float[Tensor, "P 6"]:
    """Traits (-1..1) of the object in each image token's cell, NaN if the cell is empty; `centres` (y, x) are in 0..1."""
    traits = torch.full((3, 3, NUM_TRAITS), math.nan)
    for obj in scene.objects:
        traits[obj.cell] = torch.tensor(obj.traits.relative)
    row, column = (centres * 3).long().clamp(max=2).unbind(1)
    return traits[row, column]


def size_of(sample: Sample) -> tuple[int, int]:
    """Width and height of a chat's images: all of `ASPECT_SIZES`, by chance."""
    return ASPECT_SIZES[len(sample.prompt) % len(ASPECT_SIZES)]


def token_marks(
    scene: Scene, size: tuple[int, int], centres: Float[Tensor, "P 2"]
) -> tuple[Int[Tensor, " P"], Float[Tensor, "P 2"]]:
    """What mark each image token covers, and where: see `area_marks`. `centres` (y, x) are in 0..1, tile by tile."""
    centres = centres * torch.tensor([size[1], size[0]])
    tiles = centres.view(-1, TOKENS_PER_SIDE, TOKENS_PER_SIDE, 2)
    extents = (tiles[:, 1, 1] - tiles[:, 0, 0]).repeat_interleave(TOKENS_PER_SIDE**2, 0)
    return area_marks(scene, size, centres, extents)


def detail_errors(guesses: Float[Tensor, "P X"], batch: VLMBatch) -> tuple[Tensor, Tensor]:
    """Mean squared errors of the pixels that each image token covers, and of the traits of the object there."""
    # G 3 S S
    tiles = batch.chat.pixel_inputs["pixel_values"]
    side = tiles.shape[-1] // TOKENS_PER_SIDE
    covered = F.avg_pool2d(tiles, side // PIXELS_PER_SIDE)
    covered = covered.unfold(2, PIXELS_PER_SIDE, PIXELS_PER_SIDE).unfold(3, PIXELS_PER_SIDE, PIXELS_PER_SIDE)
    # P 3*4*4
    covered = covered.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    pixels, traits = guesses.split((covered.shape[1], NUM_TRAITS), 1)
    known = ~batch.traits.isnan()
    return F.mse_loss(pixels, covered), F.mse_loss(traits[known], batch.traits[known])


def cell_labels(scene: Scene, centres: Float[Tensor, "P 2"]) -> Int[Tensor, "P 4"]:
    """Shape, colour, size (0 = empty) and background of each image token's cell."""
    by_cell = {o.cell: (SHAPES.index(o.shape) + 1, list(COLORS).index(o.color) + 1, list(SIZES).index(o.size) + 1)
               for o in scene.objects}  # fmt: skip
    background = list(BACKGROUNDS).index(scene.background)
    rows = (centres * 3).long().clamp(max=2).tolist()
    return torch.tensor([(*by_cell.get((row, column), (0, 0, 0)), background) for row, column in rows])
