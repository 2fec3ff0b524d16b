"""Train the embedded VLM: captions of pictures, rewrites of prompts, edits and references, all into one target caption.

It stands for a pretrained VLM that knows its world, so it may see held-out pairs and several pictures. Train-time heads teach
what answers alone teach too slowly, or never. On the picture tokens, one must name what stands in the cell a token looks at, one
must tell the pixels that it covers and the unnamed traits of what stands there: no answer speaks of those, but a real VLM's
picture tokens hold them. On the token before the answer, one must tell which objects, of which picture, the instruction means.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...contracts import Request, TokenRole
from ...training.loop import Task
from ...vlm.backbone import VLMBackbone
from ...vlm.chat import VLMInputs
from ...vlm.folder import load_vlm
from ...vlm.styles import STYLES
from ...zoo.tiny import TINY
from ..world import captions, edits, prompts
from ..world.german import german_prompt
from ..world.render import render_tensor
from ..world.restyle import RESTYLE_KINDS, restyle, restyled
from ..world.scenes import ASPECT_SIZES, BACKGROUNDS, COLORS, NUM_TRAITS, SHAPES, SIZES, Scene, sample_scene
from .tiny_vlm import MEAN, STD, TOKENS_PER_SIDE, build_tokenizer, build_vlm, read_tokenizer, save_vlm

TILE_COUNTS = (1, 5, 10)  # max_tiles: thumbnail alone, 2 x 2 and 3 x 3 tiles beside it
NUM_CELLS, MAX_SOURCES = 9, 3
REWRITE_SHARES = {"full": 4, "terse": 3, "relation": 2, "count": 1, "indirect": 4, "caption": 1}
MEANT_LAYER = 4  # of 6: the layers behind it can use what the head asks for
PIXELS_PER_SIDE = 4  # of a picture token's part of its tile, as the head must tell it
CELL_LABELS = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, len(BACKGROUNDS))  # 0 = an empty cell


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One chat of the VLM's training: what is asked, about which scenes, and the scene to answer with."""

    kind: str
    prompt: str
    sources: tuple[Scene, ...]
    target: Scene
    max_tiles: int = 1
    style: str = ""
    form: Callable[[Scene], str] = captions.caption  # how the answer is worded
    meant: frozenset[tuple[int, int]] = frozenset()  # (source, object) that the instruction speaks of


@dataclass(frozen=True, kw_only=True)
class VLMBatch:
    """A batch of chats with their answers."""

    chat: VLMInputs
    cells: Int[Tensor, "P 4"]  # labels of each picture token, in the order of the batch
    traits: Float[Tensor, "P 6"]  # of the object in each picture token's cell, NaN for an empty one
    meant: Float[
        Tensor, "B cells"
    ]  # 1 for each cell of each picture with an object that the instruction means
    kind: str

    def to(self, device: torch.device, **how: Any) -> VLMBatch:
        """On another device (accelerate calls it)."""
        return replace(
            self,
            chat=self.chat.to(device),
            cells=self.cells.to(device, **how),
            traits=self.traits.to(device, **how),
            meant=self.meant.to(device, **how),
        )


def sample_rewrite(rng: random.Random, kind: str, held_out: bool | None = None) -> Sample:
    """A prompt of this kind and the caption it must become."""
    scene = sample_scene(
        rng, held_out=held_out, num_objects=rng.choice((2, 3)) if kind in ("relation", "count") else None
    )
    if kind == "count":
        scene = prompts.with_equal_objects(rng, scene)
    wording = prompts.word_scene(rng, scene, kind)
    return Sample(kind=kind, prompt=wording.text, sources=(), target=wording.target)


def sample_caption(rng: random.Random, max_tiles: int, held_out: bool | None = None) -> Sample:
    """A picture to be captioned in raster order."""
    scene = sample_scene(rng, held_out=held_out).in_raster_order()
    return Sample(
        kind="describe",
        prompt=edits.describe_request(rng),
        sources=(scene,),
        target=scene,
        max_tiles=max_tiles,
    )


def sample_edit(rng: random.Random, kind: str, max_tiles: int, held_out: bool | None = None) -> Sample:
    """An instruction about one or more pictures and the caption of the picture it asks for."""
    edit = edits.sample_instruction(rng, kind, held_out)
    return Sample(
        kind=kind,
        prompt=edit.instruction,
        sources=edit.sources,
        target=edit.target,
        max_tiles=max_tiles,
        meant=meant_objects(edit),
    )


def meant_objects(edit: edits.Edit) -> frozenset[tuple[int, int]]:
    """(source, object) of what an instruction changes, removes, or takes over into another picture."""
    kept = frozenset(origin for origin in edit.origin if origin is not None)
    if edit.kind == "remove":
        return frozenset((0, i) for i in range(len(edit.sources[0].objects))) - kept
    if edit.kind in edits.EDIT_KINDS:
        return frozenset(origin for i in edit.touched if (origin := edit.origin[i]) is not None)
    if edit.kind in edits.LOOK_KINDS:
        return kept if edit.kind != "in_order" else frozenset(origin for origin in edit.origin[:1] if origin)
    last = len(edit.sources) - 1  # the picture that the objects are put into
    return frozenset((source, i) for source, i in kept if source != last)


def with_random_style(rng: random.Random, sample: Sample) -> Sample:
    """The same chat behind a style that its answer follows."""
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
    """Batches of one kind each (so that lengths are alike); the mix is drawn per batch."""

    name = "vlm"
    not_muon = ("embed_tokens", "embeddings", "cell_head", "detail_head", "meant_head")

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
        frozen_language_model: bool = False,
        rewrite_shares: dict[str, float] | None = None,
        edit_shares: dict[str, float] | None = None,
        tile_shares: tuple[float, float, float] = (0.55, 0.25, 0.2),
        style_share: float = 0.0,
        start: Path | None = None,
    ) -> None:
        """`mix`: shares of the tasks; `detail_weight`: of the head that tells what a picture token
        covers, `trait_weight`: of its traits, if they weigh otherwise than its pixels; `frozen_language_model`: train what
        sees alone, so that texts keep their states; `rewrite_shares`: of the kinds of prompts (`REWRITE_SHARES` if not given);
        `edit_shares`: of the kinds among edits, references and looks (1 if not named); `tile_shares`: how many
        batches have each of `TILE_COUNTS`; `style_share`: of the chats, how many have a style;
        `start`: a VLM folder to go on from."""
        self.seed, self.batch_size, self.mix = seed, batch_size, mix
        self.cell_weight, self.meant_weight = cell_weight, meant_weight
        self.detail_weight = detail_weight
        self.trait_weight = detail_weight if trait_weight is None else trait_weight
        self.rewrite_shares = rewrite_shares or REWRITE_SHARES
        self.edit_shares, self.tile_shares, self.style_share = edit_shares or {}, tile_shares, style_share
        self.settings = {
            "seed": seed,
            "mix": mix,
            "cell_weight": cell_weight,
            "meant_weight": meant_weight,
            "detail_weight": detail_weight,
            "trait_weight": self.trait_weight,
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
        vlm = self.backbone.model.requires_grad_(True)  # the backbone has frozen it
        if frozen_language_model:
            vlm.model.language_model.requires_grad_(False)
        width = TINY.config.vlm.hidden_size
        self.model = nn.ModuleDict(
            {
                "vlm": vlm,
                "cell_head": nn.Linear(width, sum(CELL_LABELS)),
                "detail_head": nn.Linear(width, 3 * PIXELS_PER_SIDE**2 + NUM_TRAITS),
                "meant_head": nn.Linear(width, MAX_SOURCES * NUM_CELLS),
            }
        )

    # ------------------------------------------------------------------ data

    def prepare(self, process: tuple[int, int]) -> None:
        """Keep a tokenizer that is new: a run that is resumed after the prompts changed must not number its words anew."""
        if process[0] == 0 and not (self.tokenizer_folder / "tokenizer.json").exists():
            self.tokenizer.save_pretrained(str(self.tokenizer_folder))

    def item(self, index: int) -> Sample:
        group = random.Random(f"vlm-group-{self.seed}-{index // self.batch_size}")
        task = group.choices(list(self.mix), list(self.mix.values()))[0]
        max_tiles = group.choices(TILE_COUNTS, self.tile_shares)[0]
        rng = random.Random(f"vlm-{self.seed}-{index}")
        sample = self.draw(rng, task, max_tiles)
        return with_random_style(rng, sample) if rng.random() < self.style_share else sample

    def draw(self, rng: random.Random, task: str, max_tiles: int, held_out: bool | None = None) -> Sample:
        """One sample of a task: rewrite, describe, edit, reference, look, detail."""
        if task == "detail":
            count = MAX_SOURCES if max_tiles == 1 else 1  # what is seen at once stays small
            scenes = tuple(sample_scene(rng, held_out=held_out) for _ in range(count))
            prompt = edits.describe_request(rng)
            return Sample(kind=task, prompt=prompt, sources=scenes, target=scenes[0], max_tiles=max_tiles)
        if task == "rewrite":
            shares = self.rewrite_shares
            return sample_rewrite(rng, rng.choices(list(shares), list(shares.values()))[0], held_out)
        if task == "describe":
            return sample_caption(rng, max_tiles, held_out)
        kinds = {"edit": edits.EDIT_KINDS, "reference": edits.REFERENCE_KINDS, "look": edits.LOOK_KINDS}[task]
        shares = [self.edit_shares.get(kind, 1.0) for kind in kinds]
        return sample_edit(rng, rng.choices(kinds, shares)[0], max_tiles, held_out)

    def collate(self, items: list[Sample]) -> VLMBatch:
        requests = []
        for sample in items:
            pictures = []
            for scene in sample.sources:
                width, height = ASPECT_SIZES[len(sample.prompt) % len(ASPECT_SIZES)]
                pictures.append(render_tensor(scene, width, height))
            requests.append(
                Request(
                    prompt=sample.prompt,
                    images=pictures,
                    style=sample.style,
                    rewrite=sample.form(sample.target),
                )
            )
        chat = self.backbone.prepare(requests, TINY.config.vlm.template, items[0].max_tiles)
        cells, traits = [torch.zeros(0, 4, dtype=torch.long)], [torch.zeros(0, NUM_TRAITS)]
        for sample, roles, positions in zip(items, chat.roles, chat.positions, strict=True):
            for number, scene in enumerate(sample.sources, start=1):
                mine = (roles == TokenRole.IMAGE) & (positions[:, 0] == number)
                cells.append(cell_labels(scene, positions[mine, 1:]))
                traits.append(cell_traits(scene, positions[mine, 1:]))
        meant = torch.zeros(len(items), MAX_SOURCES * NUM_CELLS)
        for row, sample in enumerate(items):
            for source, index in sample.meant:
                cell_row, column = sample.sources[source].objects[index].cell
                meant[row, source * NUM_CELLS + 3 * cell_row + column] = 1
        return VLMBatch(
            chat=chat, cells=torch.cat(cells), traits=torch.cat(traits), meant=meant, kind=items[0].kind
        )

    # ------------------------------------------------------------------ loss

    @staticmethod
    def see(model: nn.ModuleDict, chat: VLMInputs) -> Float[Tensor, "P D"]:
        """The picture tokens as the language model reads them."""
        return (
            cast(Any, model["vlm"]).model.get_image_features(**chat.pixel_inputs).pooler_output.flatten(0, -2)
        )

    def answer_logits(
        self, model: nn.ModuleDict, batch: VLMBatch
    ) -> tuple[
        Float[Tensor, "X V"], Int[Tensor, " X"], Tensor, Float[Tensor, "P D"] | None, Float[Tensor, "B D"]
    ]:
        """Logits for every token of the answers (end included), the tokens themselves, which chat each belongs to, the picture
        tokens as the language model reads them, and the state before each answer in `MEANT_LAYER`."""
        vlm, chat = cast(Any, model["vlm"]), batch.chat
        embedded = vlm.get_input_embeddings()(chat.token_ids)
        seen = None
        if chat.pixel_inputs:
            seen = self.see(model, chat)
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

    def loss(self, model: nn.ModuleDict, batch: VLMBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        parts: dict[str, float] = {}
        if batch.kind == "detail":  # nothing is asked of the language model
            seen, decision = self.see(model, batch.chat), None
            loss = seen.new_zeros(())
        else:
            logits, target, _, seen, decision = self.answer_logits(model, batch)
            loss = F.cross_entropy(logits, target)
            parts["loss_rewrite" if seen is None else "loss_picture"] = float(loss.detach())
        if seen is not None:
            guesses = model["cell_head"](seen).split(CELL_LABELS, -1)
            cell = sum(F.cross_entropy(g, batch.cells[:, i]) for i, g in enumerate(guesses)) / len(
                CELL_LABELS
            )
            parts["loss_cells"] = float(cell)
            loss = loss + self.cell_weight * cell
            if self.detail_weight:
                pixels, traits = detail_errors(model["detail_head"](seen), batch)
                parts |= {"pixels_mse": float(pixels.detach()), "traits_mse": float(traits.detach())}
                loss = loss + self.detail_weight * pixels + self.trait_weight * traits
        if decision is not None and seen is not None and self.meant_weight:
            guesses = model["meant_head"](decision)
            meant = F.binary_cross_entropy_with_logits(guesses, batch.meant, reduction="sum") / len(guesses)
            parts["loss_meant"] = float(meant.detach())
            loss = loss + self.meant_weight * meant
        return loss, parts

    # ------------------------------------------------------------------ judging

    def evaluate(self, model: nn.ModuleDict, step: int, out: Path) -> dict[str, float]:
        """Share of answers whose every token is the most likely one given the tokens before it: where only one answer is
        right, that is the share that greedy decoding gets exactly right."""
        suites = [("rewrite", kind, 1) for kind in ("full", "indirect", "terse")]
        suites += [("describe", "describe", n) for n in TILE_COUNTS] + [
            ("edit", "edit", n) for n in TILE_COUNTS
        ]
        suites += [("reference", "reference", 10), ("look", "look", 1)]
        scores = {}
        device = next(model.parameters()).device
        for task, kind, max_tiles in suites:
            rng = random.Random(f"vlm-evaluation-{task}-{kind}-{max_tiles}")
            right = total = 0
            for _ in range(2):
                items = [
                    sample_rewrite(rng, kind) if task == "rewrite" else self.draw(rng, task, max_tiles)
                    for _ in range(32)
                ]
                logits, target, row, *_ = self.answer_logits(model, self.collate(items).to(device))
                wrong = torch.zeros(len(items), dtype=torch.bool)
                wrong[row[logits.argmax(-1) != target].cpu()] = True
                right += int((~wrong).sum())
                total += len(items)
            scores[f"{kind}{max_tiles if task != 'rewrite' else ''}"] = round(right / total, 3)
        return scores

    def export(self, model: nn.ModuleDict, out: Path, record: dict[str, Any]) -> None:
        save_vlm(cast(Any, model["vlm"]), self.tokenizer, out / "vlm", record)


def tokenizer_texts(seed: int) -> list[str]:
    """What the tokenizer's vocabulary is made from."""
    rng = random.Random(f"tokenizer-{seed}")
    return [*prompts.corpus(rng, 8000), *edits.corpus(rng, 6000)]


def cell_traits(scene: Scene, centres: Float[Tensor, "P 2"]) -> Float[Tensor, "P 6"]:
    """Place, size and shade of the object in the cell that each picture token's centre lies in, each in -1..1; NaN if empty."""
    traits = torch.full((3, 3, NUM_TRAITS), math.nan)
    for obj in scene.objects:
        traits[obj.cell] = torch.tensor(obj.traits.relative)
    row, column = (centres * 3).long().clamp(max=2).unbind(1)
    return traits[row, column]


def detail_errors(guesses: Float[Tensor, "P X"], batch: VLMBatch) -> tuple[Tensor, Tensor]:
    """Mean squared errors of the pixels that each picture token covers, and of the traits of what stands there."""
    tiles = batch.chat.pixel_inputs["pixel_values"]  # G 3 S S
    side = tiles.shape[-1] // TOKENS_PER_SIDE
    told = F.avg_pool2d(tiles, side // PIXELS_PER_SIDE)
    told = told.unfold(2, PIXELS_PER_SIDE, PIXELS_PER_SIDE).unfold(3, PIXELS_PER_SIDE, PIXELS_PER_SIDE)
    told = told.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)  # P 3*4*4
    pixels, traits = guesses.split((told.shape[1], NUM_TRAITS), 1)
    known = ~batch.traits.isnan()
    return F.mse_loss(pixels, told), F.mse_loss(traits[known], batch.traits[known])


def cell_labels(scene: Scene, centres: Float[Tensor, "P 2"]) -> Int[Tensor, "P 4"]:
    """Shape, colour, size (0 = empty) and background of the cell that each picture token's centre lies in."""
    by_cell = {o.cell: (SHAPES.index(o.shape) + 1, list(COLORS).index(o.color) + 1, list(SIZES).index(o.size) + 1)
               for o in scene.objects}  # fmt: skip
    background = list(BACKGROUNDS).index(scene.background)
    rows = (centres * 3).long().clamp(max=2).tolist()
    return torch.tensor([(*by_cell.get((row, column), (0, 0, 0)), background) for row, column in rows])
