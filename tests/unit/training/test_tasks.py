"""What the tasks draw and how they judge it, without training: pytest tests/unit/training/test_tasks.py"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unifusion_core.models.autoencoder import Autoencoder
from unifusion_core.training import autoencoder, decoder, vlm
from unifusion_core.training.generator import pool_scene
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.world import edits
from unifusion_core.world.scenes import sample_scene


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


def test_pixels_that_are_not_judged_do_not_count() -> None:
    pixels, judged = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    judged[..., :4] = 0
    spoiled = pixels.clone()
    spoiled[..., :4] = 0.5
    assert autoencoder.reconstruction_loss(spoiled, pixels, 4.0, judged) == 0
    assert autoencoder.reconstruction_loss(spoiled, pixels, 4.0) > 0


@pytest.mark.parametrize("kind", [*edits.EDIT_KINDS, *edits.REFERENCE_KINDS])
def test_what_an_instruction_means_is_what_it_changes_or_takes_over(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(20):
        draw = edits.sample_edit if kind in edits.EDIT_KINDS else edits.sample_reference
        edit = draw(rng, kind, None)
        meant = vlm.meant_objects(edit)
        count = {"add": 0, "background": 0, "two_objects_on_background": 2}.get(kind, 1)
        assert len(meant) == count
        for source, index in meant:
            assert index < len(edit.sources[source].objects)
            kept = set(edit.target.objects)
            changed = edit.sources[source].objects[index] not in kept
            assert changed or kind not in ("remove", "recolor", "reshape", "move", "resize")


def test_drawn_latents_stand_beside_the_pixels_of_their_scene(
    random_weights: SimpleNamespace, tmp_path: Path
) -> None:
    """With the true latents in place of drawn ones, an encoder that averages pixels shows whether crops fit each other."""
    task = decoder.DecoderTask(
        seed=0,
        start=random_weights.vae,
        generator=random_weights.model,
        backbone=load_vlm(random_weights.vlm),
        pool_seed=5,
        pool_size=6,
        pool_path=tmp_path / "pool.safetensors",
        drawn_path=tmp_path / "drawn.safetensors",
        latent_noise=0.0,
    )
    assert {s: len(n) for s, n in task.numbers.items()} == {
        s: len(latents) for s, latents in task.drawn.items()
    }
    assert all(torch.isfinite(latents).all() for latents in task.drawn.values())
    for size, numbers in task.numbers.items():
        pictures = [torch.from_numpy(autoencoder.render(pool_scene(5, n)[0], *size)) for n in numbers]
        if pictures:
            pixels = torch.stack(pictures).movedim(-1, 1).float() / 255
            averages = torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 6, 1, 1)[:, :16]
            task.pool[size] = task.drawn[size] = averages
    latents, pixels, judged = task.collate([task.item(i) for i in range(12)])
    torch.testing.assert_close(latents[:, :3], torch.nn.functional.avg_pool2d(pixels, 8), rtol=0, atol=1e-5)
    assert {0.0, 1.0} == set(judged.unique().tolist())
    loss, parts = task.loss(Autoencoder(), (latents, pixels, judged), 0)
    assert loss > 0
    assert parts["mse"] > 0
    assert not any(p.requires_grad for p in task.model.taesd_encoder.parameters())
