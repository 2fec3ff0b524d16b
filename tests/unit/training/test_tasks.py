"""What the tasks draw and how they judge it, without training: pytest tests/unit/training/test_tasks.py"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from unifusion_core.training import autoencoder, vlm
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
