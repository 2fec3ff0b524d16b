"""The suites, on random weights and on parts that are perfect by construction."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unifusion_core.cli.evaluate import run
from unifusion_core.contracts import Features
from unifusion_core.errors import ConfigError, PromptError
from unifusion_core.evaluation import drawing, report
from unifusion_core.evaluation.rates import Rate
from unifusion_core.evaluation.runner import evaluate
from unifusion_core.evaluation.subject import Row, Sampling, Subject
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.evaluation import layers, swap, text_to_image, verifi, vlm
from unifusion_core.shapes.evaluation.autoencoder import evaluate_autoencoder
from unifusion_core.shapes.evaluation.judging import Tally, judge_caption
from unifusion_core.shapes.evaluation.suites import SUITES
from unifusion_core.shapes.world.captions import caption
from unifusion_core.shapes.world.references import REFERENCE_KINDS
from unifusion_core.shapes.world.scenes import sample_scene
from unifusion_core.vlm.rewrite import Rewrite


@pytest.fixture(scope="module")
def subject(random_weights: SimpleNamespace) -> Subject:
    return Subject(model=random_weights.model, vlm=random_weights.vlm, vae=random_weights.vae, device="cpu")


def draw_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample with one step, to save time."""
    settings = Pipeline.settings
    monkeypatch.setattr(Pipeline, "settings", lambda self, **how: settings(self, **{"steps": 1} | how))


class PerfectAutoencoder(nn.Module):
    """Latents are the pixels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def test_a_perfect_autoencoder_is_exact() -> None:
    subject = Subject()
    subject.__dict__["autoencoder"] = PerfectAutoencoder()
    rows = list(evaluate_autoencoder(subject, Sampling(samples=12)))
    *pairs, marks, colors = rows
    assert [row.name for row in pairs] == ["held-out pairs", "seen pairs"]
    assert all(row.rates["exact"] == Rate(12, 12) for row in pairs)
    assert pairs[-1].values["PSNR dB"] == float("inf")
    assert pairs[-1].values["place error px"] < 0.3
    assert marks.rates["found and near"].share == marks.rates["present or not"].share == 1
    assert marks.rates["found where there is none"] == Rate(0, marks.rates["found where there is none"].total)
    assert 0 < marks.rates["found and near"].total < marks.rates["present or not"].total
    assert colors.rates["within 4 levels"] == Rate(24, 24)
    assert colors.values["background off at most, levels"] == colors.values["object off at most, levels"] == 0


class DimmingAutoencoder(PerfectAutoencoder):
    """Every image comes back 20 levels darker."""

    def decode(self, latents: Tensor) -> Tensor:
        return (latents - 20 / 255).clamp(min=0)


def test_an_autoencoder_that_changes_colours_is_told_by_their_levels() -> None:
    subject = Subject()
    subject.__dict__["autoencoder"] = DimmingAutoencoder()
    *_, colors = evaluate_autoencoder(subject, Sampling(samples=9))
    assert colors.rates["within 4 levels"].right == 0
    assert colors.values["background off at most, levels"] == 20


def test_the_vlm_suite_shares_samples_among_kinds_and_draws_the_same_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[vlm.Task]] = []

    def judge(backbone: object, tasks: list[vlm.Task], max_tiles: int) -> Tally:
        seen.append(tasks)
        return Tally(tuple(judge_caption("", task.requirement) for task in tasks))

    monkeypatch.setattr(vlm, "judge", judge)
    subject = Subject()
    subject.__dict__["backbone"] = None
    rows = {row.name: row for row in vlm.evaluate_vlm(subject, Sampling(samples=9))}
    assert rows["edit, 10 tiles"].rates["exact"] == Rate(0, 9)
    assert rows["  recolor, 5 tiles"].rates["exact"].total == 2
    assert rows["two pictures, 1 tiles"].rates["exact"].total == 9
    assert rows["rewrite indirect"].rates["exact"].total == 9
    first = [task.prompt for tasks in seen for task in tasks]
    seen.clear()
    list(vlm.evaluate_vlm(subject, Sampling(samples=9)))
    assert [task.prompt for tasks in seen for task in tasks] == first


def test_random_weights_write_nothing_right(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "MAX_NEW_TOKENS", 4)
    rng = random.Random(0)
    tasks = [vlm.draw_instruction(rng, kind) for kind in REFERENCE_KINDS]
    assert [len(task.request().images) for task in tasks] == [2, 2, 3]
    tally = vlm.judge(subject.backbone, tasks, max_tiles=1)
    assert (len(tally), tally.rate("readable").right) == (3, 0)


def test_prompts_cover_every_case_with_and_without_held_out_pairs() -> None:
    sampling = Sampling(samples=2 * len(text_to_image.CASES))
    for held_out in (True, False):
        prompts = text_to_image.draw_prompts(sampling, held_out=held_out)
        cases = {(p.kind, len(p.target.objects)) for p in prompts}
        assert cases == set(text_to_image.CASES)
        assert all(p.target.held_out == held_out for p in prompts)


def test_text_to_image_draws_both_ways_and_saves_sheets(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # half of the rewrites succeed, half do not end
    def attempt(backbone: object, spec: object, requests: list, *_: object, **__: object) -> list:
        text = caption(sample_scene(random.Random(1)))
        done = replace(requests[0], rewrite=text)
        rewritten = Rewrite(request=done, features=subject.pipeline.encode([done]))
        return [rewritten, PromptError("did not end")][: len(requests)]

    monkeypatch.setattr(drawing, "attempt_rewrites", attempt)
    draw_in_one_step(monkeypatch)
    rows = list(text_to_image.evaluate_text_to_image(subject, Sampling(samples=2, pictures=tmp_path)))
    totals = [row for row in rows if not row.name.startswith(" ")]
    assert [row.name for row in totals] == [
        "held-out pairs, rewritten",
        "held-out pairs, prompt as it is",
        "seen pairs, rewritten",
        "seen pairs, prompt as it is",
    ]
    assert all(row.rates["exact"].total == 2 for row in totals)
    sheets = sorted(path.name for path in tmp_path.iterdir())
    assert len(sheets) == 4
    assert Image.open(tmp_path / sheets[0]).width > 6 * 128


def test_a_swap_changes_one_word_and_asks_for_no_held_out_pair() -> None:
    rng = random.Random(0)
    for word in swap.WORDS:
        for _ in range(30):
            drawn = swap.draw_swap(rng, word)
            assert not drawn.said.held_out
            assert drawn.followed(drawn.said) == (True, False)
            assert drawn.followed(drawn.asked) == (False, True)
            before, after = caption(drawn.asked).split(), caption(drawn.said).split()
            # places have one or two words
            if word != "place":
                assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_swap_reports_whose_word_the_picture_follows(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "WORDS", ("color",))
    (row,) = swap.evaluate_swap(subject, Sampling(samples=1))
    assert row.rates["exact"] == Rate(0, 1)
    assert row.values == {"word of the rewrite %": 0.0, "word of the prompt %": 0.0}


def test_reports_hold_every_row_and_survive_a_later_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(name="  a", rates={"exact": Rate(1, 2)}, values={"PSNR dB": float("inf"), "s": 1.23456})]

    def broken(subject: Subject, sampling: Sampling) -> Iterator[Row]:
        yield rows[0]
        raise RuntimeError

    suites = {"good": lambda *_: iter(rows), "bad": broken}
    said: list[str] = []
    out = tmp_path / "new" / "report.json"
    with pytest.raises(RuntimeError):
        evaluate(suites, Subject(), samples=2, out=out, say=said.append)
    written = json.loads(out.read_text())["suites"]
    assert list(written) == ["good"]
    assert written["good"][0]["name"] == "a"
    assert written["good"][0]["rates"]["exact"]["share"] == 0.5
    assert written["good"][0]["values"] == {"PSNR dB": None, "s": 1.2346}
    assert "50.0 % (9.5-90.5) of 2" in said[1]
    assert report.header("x") == "\nx"


def test_unknown_suites_and_no_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match='no suite "taste"'):
        run(["taste"], SUITES, SimpleNamespace(model="tiny", vlm="tiny", vae="tiny"))
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate({"vlm": SUITES["vlm"]}, Subject(), samples=0)


def test_rewriting_is_compared_picture_by_picture(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    difference = verifi.paired_difference([True, True, True, False], [True, False, False, True])
    assert difference["points"] == 25.0
    assert difference["lower bound"] < 0 < difference["upper bound"]
    same = verifi.paired_difference([True, False] * 20, [True, False] * 20)
    assert set(same.values()) == {0.0}

    asked: list[tuple[list[str], bool]] = []

    def draw(pipeline: object, prompts: list, *, rewriting: bool) -> list[text_to_image.Generated]:
        asked.append(([p.text for p in prompts], rewriting))
        return [
            text_to_image.Generated(
                wording=p,
                rewrite=None,
                picture=None,
                judgement=judge_caption(caption(p.target) if rewriting else "", p.requirement),
            )
            for p in prompts
        ]

    monkeypatch.setattr(verifi, "generate_images", draw)
    rows = list(verifi.evaluate_verifi(subject, Sampling(samples=6)))
    assert [rows[i].rates["exact"].share for i in (0, 1, 3, 4)] == [1.0, 0.0, 1.0, 0.0]
    assert rows[2].values["points"] == rows[5].values["points"] == 100.0
    assert asked[0][0] == asked[1][0] != asked[2][0] == asked[3][0]


def test_layers_are_left_out_one_by_one_and_all_but_one(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_in_one_step(monkeypatch)
    drawn: list[list[float] | None] = []
    states: list[Tensor] = []
    sample = subject.pipeline.sample

    def seen(features: Features, *args: Any, layer_gains: list[float] | None = None) -> Any:
        drawn.append(layer_gains)
        states.append(features.states)
        return sample(features, *args, layer_gains=layer_gains)

    monkeypatch.setattr(subject.pipeline, "sample", seen)
    rows = list(layers.evaluate_layers(subject, Sampling(samples=1)))
    taps = subject.pipeline.model.config.vlm.taps
    assert [row.name for row in rows] == [
        "all layers",
        *(f"without layer {tap}" for tap in taps),
        *(f"layer {tap} alone" for tap in taps),
        *(f"layer {tap} of another caption" for tap in taps),
    ]
    assert drawn[0] == [1.0] * len(taps)
    assert drawn[1] == [0.0] + [1.0] * (len(taps) - 1)
    assert drawn[2 * len(taps)] == [0.0] * (len(taps) - 1) + [1.0]
    assert drawn[2 * len(taps) + 1 :] == [None] * len(taps)
    for index, replaced in enumerate(states[2 * len(taps) + 1 :]):
        changed = [not torch.equal(replaced[:, :, i], states[0][:, :, i]) for i in range(len(taps))]
        assert changed == [i == index for i in range(len(taps))]
