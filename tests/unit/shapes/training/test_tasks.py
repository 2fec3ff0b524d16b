"""Samples, labels and losses of the training tasks, without training."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from unifusion_core.checkpoints.vae_file import load_autoencoder
from unifusion_core.contracts import Request, TokenRole
from unifusion_core.shapes.training import autoencoder, generator, heads, pool, vlm
from unifusion_core.shapes.world import captions, edits, references
from unifusion_core.shapes.world.render import mark_geometry, render_tensor
from unifusion_core.shapes.world.scenes import ASPECT_SIZES, COLORS, Mark, Scene, SceneObject, sample_scene
from unifusion_core.shapes.world.scorer import read_picture
from unifusion_core.vlm.features import encode_chat
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.vlm.styles import STYLES
from unifusion_core.zoo.tiny import BUILT_IN, TINY


def test_crops_lie_around_objects_hard_ones_above_all() -> None:
    scene = sample_scene(random.Random(2), num_objects=3)
    shapes = ("star", "cross", "circle")
    scene = replace(
        scene,
        objects=tuple(replace(o, shape=s, size="big") for o, s in zip(scene.objects, shapes, strict=True)),
    )
    rng = random.Random(0)
    drawn = Counter(autoencoder.weighted_object(rng, scene).shape for _ in range(600))
    assert drawn["star"] > drawn["cross"] > drawn["circle"] > 50

    def covered(object_share: float) -> float:
        """Share of crops whose middle is not of the background's colour, the corner's."""
        task = autoencoder.AutoencoderTask(seed=0, crop=40, object_share=object_share)
        crops = torch.stack([task.item(i) for i in range(80)])
        middle = crops[:, :, 16:24, 16:24].flatten(2).float().mean(2)
        return float(((middle - crops[:, :, 0, 0].float()).abs().amax(1) > 20).float().mean())

    assert covered(1.0) > covered(0.0) + 0.2


@pytest.mark.parametrize("kind", [*edits.EDIT_KINDS, *references.REFERENCE_KINDS])
def test_what_an_instruction_means_is_what_it_changes_or_takes_over(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(20):
        edit = edits.sample_instruction(rng, kind, None)
        meant = vlm.meant_objects(edit)
        count = {"add": 0, "background": 0, "two_objects_on_background": 2}.get(kind, 1)
        assert len(meant) == count
        for source, index in meant:
            assert index < len(edit.sources[source].objects)
            kept = set(edit.target.objects)
            changed = edit.sources[source].objects[index] not in kept
            assert changed or kind not in ("remove", "recolor", "reshape", "move", "resize")


def test_styles_change_how_the_answer_is_worded_or_what_it_shows() -> None:
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for _ in range(400):
        before = vlm.sample_rewrite(rng, "full")
        after = vlm.with_random_style(rng, before)
        answer = after.form(after.target)
        seen[after.style if after.style in STYLES.values() else "free"] += 1
        if after.style == STYLES["terse"]:
            assert answer == captions.brief_caption(before.target)
        elif after.style == STYLES["detailed"]:
            assert answer == captions.sentence_caption(before.target)
        elif after.style == STYLES["translate to English"]:
            assert "hintergrund" in after.prompt
            assert answer == captions.caption(before.target)
        elif after.style not in STYLES.values():
            assert after.prompt == before.prompt
            assert len(after.target.objects) == len(before.target.objects)
    assert set(seen) == {*STYLES.values(), "free"} - {""}


def test_a_pool_is_encoded_once_by_all_processes_and_a_damaged_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool, "ENCODED_AT_ONCE", 4)
    path = tmp_path / "pool.safetensors"

    def new_pool(count: int = 10) -> pool.Pool:
        return pool.Pool(load_autoencoder(BUILT_IN.vae), 7, count, path, pool.pool_scene)

    alone = new_pool()
    alone.load()
    whole = path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert sorted(alone.latents) == list(range(10))
    # not loaded, so encoded on demand
    fresh = new_pool()
    number = fresh.draw(random.Random(5), ASPECT_SIZES[0])
    assert number == alone.draw(random.Random(5), ASPECT_SIZES[0])
    scene, latents = fresh.at(number)
    assert scene == alone.at(number)[0]
    torch.testing.assert_close(latents, alone.at(number)[1], atol=5e-3, rtol=0)

    encoded: list[object] = []
    encode = pool.encode_scenes
    monkeypatch.setattr(pool, "encode_scenes", lambda *given: encoded.append(given) or encode(*given))
    fewer = new_pool(3)
    fewer.load()
    assert not encoded, "a longer file has what a shorter pool needs"
    assert all(torch.equal(fewer.latents[number], alone.latents[number]) for number in range(3))

    path.write_bytes(whole[:-100])
    shares: list[list[object]] = []

    def gather(mine: list[object]) -> list[object]:
        shares.append(mine)
        return [part for share in shares for part in share]

    monkeypatch.setattr(pool, "gather_object", gather)
    with caplog.at_level("WARNING"):
        new_pool().load((1, 2))
        assert path.read_bytes() == whole[:-100], "the first process alone writes"
        together = new_pool()
        together.load((0, 2))
    assert "the pool is encoded again" in caplog.text
    assert [[first for first, _ in share] for share in shares] == [[4], [0, 8]]
    from_file = new_pool()
    from_file.load()
    for each in (together, from_file):
        assert all(torch.equal(each.latents[number], alone.latents[number]) for number in range(10))


def test_a_new_tokenizer_is_kept_when_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "tokenizer_texts", lambda seed: ["a red circle and a blue star"] * 2)
    settings = {"seed": 1, "batch_size": 2, "mix": {"rewrite": 1.0}, "tokenizer": tmp_path / "tokenizer"}
    task = vlm.VLMTask(**settings)
    assert not list(tmp_path.iterdir())
    task.prepare((1, 2))
    assert not list(tmp_path.iterdir())
    task.prepare((0, 2))
    monkeypatch.setattr(vlm, "tokenizer_texts", lambda seed: ["other wordings"] * 2)
    assert vlm.VLMTask(**settings).tokenizer.get_vocab() == task.tokenizer.get_vocab()


def test_with_a_frozen_language_model_only_what_sees_learns() -> None:
    task = vlm.VLMTask(
        seed=1,
        batch_size=2,
        mix={"detail": 0.5, "edit": 0.5},
        tokenizer=BUILT_IN.vlm,
        cell_weight=0.1,
        detail_weight=0.5,
        trait_weight=3.0,
        frozen_language_model=True,
        start=BUILT_IN.vlm,
    )
    rng = random.Random(5)
    for kind, answered in (("detail", False), ("edit", True)):
        batch = task.collate([task.sample(rng, kind, max_tiles=5) for _ in range(2)])
        task.model.zero_grad()
        loss, parts = task.loss(task.model, batch, 0)
        loss.backward()
        assert ("loss_picture" in parts) == answered
        learning = {name for name, p in task.model.named_parameters() if p.grad is not None}
        assert not any("language_model" in name for name in learning)
        for part in ("vision_tower.encoder", "multi_modal_projector", "cell_head", "detail_head"):
            assert any(part in name for name in learning), (kind, part)
    traits = parts["traits_mse"]
    task.trait_weight += 1
    again, _ = task.loss(task.model, batch, 0)
    assert float((again - loss).detach()) == pytest.approx(float(traits.detach()), rel=1e-3)


def test_colours_without_a_name_are_neither_named_nor_guessed(tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    free = pool.Pool(load_autoencoder(BUILT_IN.vae), 7, 3, path, pool.free_pool_scene)
    size = next(size for size, numbers in free.numbers.items() if numbers)
    scene, latents = free.at(free.draw(random.Random(0), size))
    assert latents.shape == (16, size[1] // 8, size[0] // 8)
    assert not scene.held_out
    rng = random.Random(0)
    for _ in range(20):
        request = generator.GeneratorTask.sample_image_request(rng, scene, "free colors", size)
        assert not set((request.rewrite or "").replace(",", "").split()) & set(COLORS)
        assert request.images or request.rewrite
    labels = heads.patch_labels(scene, size, 2, colors_named=False)
    drawn = labels[:, 0] > 0
    assert drawn.any()
    assert (labels[drawn, 1] == heads.IGNORED).all()
    assert (labels[~drawn, 1] == 0).all()


def test_traits_are_asked_where_an_object_stands_and_a_picture_can_tell_them() -> None:
    rng = random.Random(3)
    size = ASPECT_SIZES[1]
    scene = sample_scene(rng, num_objects=1)
    # a square fills its bounding box
    obj = replace(scene.objects[0], shape="square")
    scene = replace(scene, objects=(obj,))
    picture = render_tensor(scene, *size)
    traits = heads.patch_traits(scene, size, 2, image_shown=True)
    known = ~traits.isnan().any(1)
    assert torch.equal(traits[known], torch.tensor(obj.traits.relative).expand(int(known.sum()), -1))
    patches = torch.nn.functional.unfold(
        (picture - picture[:, :1, :1]).abs().amax(0)[None, None], 16, stride=16
    )
    assert torch.equal(known, patches[0].amax(0) > 0), "known in each patch that shows some of the object"

    free = heads.patch_traits(scene, size, 2, image_shown=True, colors_named=False)
    assert torch.equal(free[known][:, :3], traits[known][:, :3])
    assert free[:, 3:].isnan().all()
    words = heads.patch_traits(scene, size, 2, image_shown=False)
    assert words.isnan().all()


def test_a_patch_has_the_mark_whose_middle_it_covers() -> None:
    mark = Mark(dx=0.25, dy=-0.5, radius=3.5 / 128, level=-45)
    obj = SceneObject(shape="square", color="red", size="big", cell=(1, 1), mark=mark)
    scene, size = Scene(objects=(obj,), background="white"), ASPECT_SIZES[0]
    marks, places = heads.patch_marks(scene, size, 2)
    (covering,) = (marks != heads.MARK_NONE).nonzero()
    x, y, _ = mark_geometry(obj, *size) or (0, 0, 0)
    patches_in_a_row = size[0] // 16
    assert int(covering) == int(y // 16) * patches_in_a_row + int(x // 16)
    assert int(marks[covering]) == heads.MARK_DARKER
    torch.testing.assert_close(places[covering[0]], torch.tensor([y % 16, x % 16]) / 16 - 0.5)
    assert places[marks == heads.MARK_NONE].isnan().all()


def test_right_guesses_of_marks_cost_nothing_and_batches_without_marks_have_no_places() -> None:
    marks = torch.tensor([heads.MARK_NONE, heads.MARK_DARKER])
    places = torch.tensor([[math.nan, math.nan], [0.25, -0.5]])
    right = torch.tensor([[9.0, -9, -9, 3, 3], [-9, -9, 9, 0.25, -0.5]])
    entropy, off = heads.mark_errors(right, marks, places)
    assert (float(entropy), float(off)) == (pytest.approx(0, abs=1e-6), 0)
    right[1, 3] += 0.5
    assert float(heads.mark_errors(right, marks, places)[1]) == pytest.approx(0.125)
    assert float(heads.mark_errors(right[:1], marks[:1], places[:1])[1]) == 0


@pytest.mark.parametrize(("max_tiles", "levels"), [(1, 1), (5, 2), (10, 2)])
def test_each_mark_is_told_by_one_token_of_the_tiles_and_one_of_the_thumbnail(
    max_tiles: int, levels: int
) -> None:
    task = vlm.VLMTask(
        seed=1,
        batch_size=4,
        mix={"detail": 1.0},
        tokenizer=BUILT_IN.vlm,
        mark_weight=1.0,
        marked_share=1.0,
        start=BUILT_IN.vlm,
    )
    samples = [replace(task.item(index), max_tiles=max_tiles) for index in range(4)]
    batch = task.collate(samples)
    told = sum(obj.mark is not None for each in samples for scene in each.sources for obj in scene.objects)
    assert told > 4
    assert int((batch.marks != heads.MARK_NONE).sum()) == levels * told
    assert torch.equal(batch.places.isnan().any(1), batch.marks == heads.MARK_NONE)
    assert "loss_marks" in task.loss(task.model, batch, 0)[1]


def task_with_marks(folder: Path, **settings: Any) -> generator.GeneratorTask:
    """Samples of a small pool, with marks, one at a time."""
    return generator.GeneratorTask(
        generator.GeneratorSettings(seed=7, pool_size=12, marked_pool_size=12, **settings),
        batch_size=1,
        config=TINY.config,
        backbone=load_vlm(BUILT_IN.vlm),
        autoencoder=load_autoencoder(BUILT_IN.vae),
        pool_path=folder / "pool.safetensors",
    )


def test_marks_are_drawn_where_an_image_tells_them_or_nothing_tells_anything(tmp_path: Path) -> None:
    task = task_with_marks(
        tmp_path, mark_weight=1.0, mark_change=0.2, tasks={"text": 0.3, "edit": 0.4, "reconstruct": 0.3}
    )
    marked = {True: 0, False: 0}
    for index in range(60):
        sample = task.item(index)
        told = bool(sample.request.images) or not (sample.request.prompt or sample.request.rewrite)
        marked[told] += any(obj.mark for obj in sample.scene.objects)
        batch = task.collate([sample])
        shown = any(obj.mark for obj in sample.scene.objects)
        assert bool((batch.marks != heads.MARK_NONE).any()) == bool(batch.changes.any()) == shown
        # most cells are as without the mark
        assert float((batch.changes.abs().amax(1) > 0.3).float().mean()) < 0.3
    assert marked[True] > 15
    assert marked[False] == 0
    assert {"loss_marks", "places_mse", "change_error"} <= task.loss(task.model, batch, 0)[1].keys()


def test_a_teacher_without_marks_teaches_its_own_images_with_the_marks_of_the_sample(tmp_path: Path) -> None:
    """What is left to learn by the teacher itself is the marks' change alone."""
    task = task_with_marks(
        tmp_path,
        head_weight=0.0,
        mark_change=1.0,
        tasks={"text": 0.3, "reconstruct": 0.7},
        start=BUILT_IN.generator,
        teacher=BUILT_IN.generator,
    )
    with_mark, without = 0, 0
    for number in range(12):
        batch = task.collate([task.item(number)])
        _, parts = task.loss(task.model, batch, number)
        assert any(name.startswith("loss_t_") for name in parts)
        if batch.changes.any():
            with_mark += 1
            assert float(parts["change_error"].detach()) > 0.05
        else:
            without += 1
            assert float(parts["velocity_mse"].detach()) < 1e-9
    assert with_mark > 3
    assert without > 1
    assert task.teacher is not None
    noisy, t = torch.randn(2, 16, 16, 16), torch.tensor([0.2, 0.9])
    changes = torch.zeros_like(noisy)
    changes[:, :, 3, 4] = 1.0
    features = task.features([Request(prompt="a red circle")])
    taught = generator.taught_velocity(task.teacher, features, noisy, t, changes)
    clean = noisy - (1 - t[:, None, None, None]) * changes
    plain = generator.taught_velocity(task.teacher, features, clean, t, torch.zeros_like(changes))
    torch.testing.assert_close(taught, plain - changes)


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
def test_an_error_along_the_change_of_a_mark_counts_and_others_do_not(drawn: float) -> None:
    changes = torch.zeros(2, 16, 4, 4)
    changes[0, :, 1:3, 2] = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    elsewhere = torch.ones_like(changes) * (changes == 0)
    off = (drawn - 1) * changes + elsewhere
    assert float(generator.change_error(off, changes)) == pytest.approx((drawn - 1) ** 2, abs=1e-5)
    assert float(generator.change_error(off, torch.zeros_like(changes))) == 0


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
def test_how_much_of_the_marks_the_first_step_draws(drawn: float, tmp_path: Path) -> None:
    task = generator.GeneratorTask(
        generator.GeneratorSettings(seed=7, pool_size=1, marked_pool_size=1),
        batch_size=1,
        config=TINY.config,
        backbone=load_vlm(BUILT_IN.vlm),
        autoencoder=load_autoencoder(BUILT_IN.vae),
        pool_path=tmp_path / "pool.safetensors",
    )

    class Ideal(torch.nn.Module):
        """Predicts the latents of the condition's image, smaller by the share `drawn`, and the same noise for all."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(drawn))

        def pool(self, features: list[Request]) -> list[Request]:
            return features

        def prepare(self, requests: list[Request], grid: tuple[int, int]) -> torch.Tensor:
            assert grid == (8, 8)
            return autoencoder.encode_images(task.autoencoder, torch.stack([r.images[0] for r in requests]))

        def forward(self, noise: torch.Tensor, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            return noise - self.weight * latents

    task.features = lambda requests, max_tiles=10: requests
    assert task.marks_drawn(Ideal(), count=2) == pytest.approx(drawn, abs=1e-5)


def test_frozen_fusion_trains_the_dit_alone(tmp_path: Path) -> None:
    task = generator.GeneratorTask(
        generator.GeneratorSettings(seed=7, pool_size=12, frozen_fusion=True),
        batch_size=1,
        config=TINY.config,
        backbone=load_vlm(BUILT_IN.vlm),
        autoencoder=load_autoencoder(BUILT_IN.vae),
        pool_path=tmp_path / "pool.safetensors",
    )
    loss, _ = task.loss(task.model, task.collate([task.item(0)]), 0)
    loss.backward()
    unifusion = task.model["unifusion"]
    assert all(p.grad is None for p in unifusion.txtfusion.parameters())
    assert any(bool(p.grad.any()) for p in unifusion.blocks.parameters() if p.grad is not None)


def test_a_decoder_of_another_file_goes_on_behind_the_encoder(random_weights: SimpleNamespace) -> None:
    random_vae = Path(random_weights.vae)
    task = autoencoder.AutoencoderTask(seed=0, start=BUILT_IN.vae, decoder_of=random_vae, decoder_only=True)
    shipped, other = load_autoencoder(BUILT_IN.vae).state_dict(), load_autoencoder(random_vae).state_dict()
    for name, weights in task.model.state_dict().items():
        assert torch.equal(weights, (shipped if "encoder" in name else other)[name])


def test_crops_lie_around_marks() -> None:
    task = autoencoder.AutoencoderTask(
        seed=0, crop=32, object_share=1.0, marked_share=1.0, mark_weight=9.0, start=BUILT_IN.vae
    )
    covered = torch.stack([task.item(index)[3] for index in range(40)]) > 0
    # jitter is a quarter of the crop; crops end at the border, and a few colours allow no mark
    assert float(covered[:, 6:26, 6:26].any((1, 2)).float().mean()) > 0.8


def test_the_autoencoder_learns_marks_where_they_are() -> None:
    # crops anywhere: those around objects lie elsewhere if the objects have marks
    task = autoencoder.AutoencoderTask(seed=0, crop=64, marked_share=1.0, mark_weight=9.0, start=BUILT_IN.vae)
    crops = task.collate([task.item(index) for index in range(8)])
    assert crops.shape == (8, 5, 64, 64)
    covered = crops[:, 3]
    assert set(covered.unique().tolist()) == {0.0, 1.0}
    assert 0.005 < float(covered.mean()) < 0.15
    plain = autoencoder.AutoencoderTask(seed=0, crop=64, start=BUILT_IN.vae)
    images = plain.collate([plain.item(index) for index in range(8)])[:, :3]
    assert ((images != crops[:, :3]).any(1) <= (covered > 0)).all(), "only marks differ, and are covered"


@pytest.mark.parametrize("color_weight", [0.0, 2.0])
def test_a_colour_that_is_off_everywhere_counts_more_than_noise(color_weight: float) -> None:
    task = autoencoder.AutoencoderTask(seed=0, crop=32, color_weight=color_weight, start=BUILT_IN.vae)
    crops = task.collate([task.item(index) for index in range(2)])
    # of one size in every pixel; the second cancels out in each cell
    offset = torch.full_like(crops[:, :3], 0.02)
    checkered = offset * (-1) ** torch.arange(32)
    losses = []
    for error in (offset, checkered):
        task.model.decode = lambda latents, error=error: crops[:, :3] + error
        loss, parts = task.loss(task.model, crops, 0)
        losses.append(loss.item())
        if color_weight:
            assert float(parts["color_error"]) == pytest.approx(0.02 if error is offset else 0, abs=1e-6)
    assert losses[0] - losses[1] == pytest.approx(0.02 * color_weight, abs=1e-6)


def test_latents_are_held_where_there_is_no_mark_and_no_free_colour() -> None:
    def moved(free_rgb_share: float, *, everywhere: bool) -> float:
        """The penalty after the encoder's latents of all cells, or of marks alone, have changed."""
        task = autoencoder.AutoencoderTask(
            seed=0,
            crop=64,
            object_share=1.0,
            marked_share=1.0,
            mark_weight=9.0,
            free_rgb_share=free_rgb_share,
            anchor=1.0,
            start=BUILT_IN.vae,
        )
        crops = task.collate([task.item(index) for index in range(8)])
        _, parts = task.loss(task.model, crops, 0)
        assert float(parts["moved"]) == 0, "nothing has changed yet"
        change = 0.5 * (1 if everywhere else F.max_pool2d(crops[:, 3:4], 8))
        encode = task.model.encode
        task.model.encode = lambda pixels: encode(pixels) + change
        return float(task.loss(task.model, crops, 0)[1]["moved"].detach())

    assert moved(0.0, everywhere=True) == pytest.approx(0.25)
    assert moved(0.0, everywhere=False) == 0
    assert moved(1.0, everywhere=True) == 0


def test_a_batch_has_the_labels_of_its_samples(tmp_path: Path) -> None:
    task = generator.GeneratorTask(
        generator.GeneratorSettings(seed=7, pool_size=1),
        batch_size=3,
        config=TINY.config,
        backbone=load_vlm(BUILT_IN.vlm),
        autoencoder=load_autoencoder(BUILT_IN.vae),
        pool_path=tmp_path / "pool.safetensors",
    )
    scene, size = sample_scene(random.Random(4), num_objects=2), ASPECT_SIZES[0]
    shown = generator.Sample(
        request=Request(prompt="", images=[render_tensor(scene, *size)]),
        max_tiles=1,
        latents=torch.zeros(16, size[1] // 8, size[0] // 8),
        change=torch.zeros(16, size[1] // 8, size[0] // 8),
        scene=scene,
        size=size,
    )
    free = replace(shown, colors_named=False)
    words = replace(shown, request=Request(prompt="two objects"))
    batch = task.collate([shown, free, words])
    assert batch.shows_images
    assert (batch.labels[1] == heads.IGNORED).any()
    assert not (batch.labels[[0, 2]] == heads.IGNORED).any()
    known = ~batch.traits.isnan()
    assert known[0].any(0).all()
    assert known[1].any(0).tolist() == [True] * 3 + [False] * 3
    assert not known[2].any()


def test_a_hidden_thumbnail_leaves_the_tiles_and_the_words() -> None:
    backbone = load_vlm(BUILT_IN.vlm)
    picture = render_tensor(sample_scene(random.Random(1)))
    requests = [Request(prompt="a red circle", images=[picture]), Request(prompt="a red circle")]
    places = {}
    for max_tiles in (1, 5):
        inputs = backbone.prepare(requests, TINY.config.vlm.template, max_tiles)
        features = encode_chat(backbone, TINY.config.vlm, inputs)
        hidden = generator.without_thumbnails(features)
        assert torch.equal(hidden.mask[1], features.mask[1])
        gone = features.mask & ~hidden.mask
        assert (features.token_info.roles[gone] == TokenRole.IMAGE).all()
        places[max_tiles] = features.positions[gone][:, 1:]
    assert len(places[1]) == 0, "where there is a thumbnail alone, it stays"
    # the 3 x 3 tokens of a thumbnail; those of 2 x 2 tiles have other positions
    thirds = torch.tensor([1, 3, 5]) / 6
    torch.testing.assert_close(places[5], torch.cartesian_prod(thirds, thirds))


@pytest.mark.parametrize("task", ["edit", "reconstruct"])
def test_pictures_of_the_generators_training_ask_for_the_scene_and_hold_no_held_out_pair(task: str) -> None:
    rng = random.Random(task)
    kinds: Counter[str] = Counter()
    for _ in range(60):
        scene = sample_scene(rng)
        request = generator.GeneratorTask.sample_image_request(rng, scene, task, ASPECT_SIZES[1])
        assert [p.shape for p in request.images] == [(3, 112, 160)]
        kinds[
            "rewrite" if request.rewrite else "instruction alone" if request.prompt else "picture alone"
        ] += 1
        if request.rewrite and (said := captions.parse_caption(request.rewrite)):
            assert {(o.shape, o.color, o.cell) for o in said.objects} == {
                (o.shape, o.color, o.cell) for o in scene.objects
            }
        if task == "reconstruct":
            shown = read_picture((request.images[0].permute(1, 2, 0) * 255).round().byte().numpy())
            assert {(o.shape, o.color) for o in shown.scene.objects} == {
                (o.shape, o.color) for o in scene.objects
            }
    assert set(kinds) == set(generator.PICTURE_CHATS[task])


def test_words_and_images_are_dropped_apart() -> None:
    request = Request(prompt="make it blue", images=[torch.zeros(3, 8, 8)], rewrite="a blue circle")
    rng = random.Random(0)
    kinds = Counter(
        (bool(dropped.prompt), bool(dropped.rewrite), bool(dropped.images))
        for dropped in (generator.drop_parts(rng, request) for _ in range(2000))
    )

    assert kinds[True, True, True] / 2000 == pytest.approx(0.81, abs=0.03)
    assert kinds[False, False, True] / 2000 == pytest.approx(0.09, abs=0.02)
    assert kinds[True, True, False] / 2000 == pytest.approx(0.09, abs=0.02)
    assert (
        sum(kinds.values())
        - sum(kinds[k] for k in ((True, True, True), (False, False, True), (True, True, False)))
        == kinds[False, False, False]
    )
