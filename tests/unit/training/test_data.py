"""What a run learns from: order, sources, refused files, buckets, chance and conditions."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unifusion_core.contracts import Request
from unifusion_core.errors import ConfigError
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.examples import write_examples
from unifusion_core.training.caches import LatentCache, content_key
from unifusion_core.training.config import SourceConfig, TrainConfig
from unifusion_core.training.data import TrainingData, bucket, fit_image
from unifusion_core.training.objective import FlowBatch, FlowMatching
from unifusion_core.training.order import SampleOrder
from unifusion_core.training.sources import open_source
from unifusion_core.training.trainer import passes_of


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int) -> bytes:
    written = io.BytesIO()
    picture(seed).save(written, "PNG")
    return written.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def data_of(pipeline: Pipeline, tmp_path: Path, **values: Any) -> TrainingData:
    given = {"output": tmp_path / "run", "steps": 1, "resolution": [32], "cache": {"latents": False}}
    config = TrainConfig.model_validate(given | {"data": [{"folder": tmp_path / "pictures"}]} | values)
    return TrainingData(config, pipeline)


# Order -------------------------------------------------------------------------------------------


def test_every_epoch_has_each_sample_once_in_another_order() -> None:
    order = SampleOrder([7], [None], [1], seed=3)
    epochs = [[order[7 * epoch + i][1] for i in range(7)] for epoch in range(3)]

    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_order_depends_on_seed_and_position_alone() -> None:
    one, other = (SampleOrder([7, 30], [0.3, None], [1, 1], seed=3) for _ in range(2))
    positions = [9000, 5, 4095, 4096, 12345, 0]

    assert [one[p] for p in positions] == [other[p] for p in reversed(positions)][::-1]
    assert [one[p] for p in range(50)] != [
        SampleOrder([7, 30], [0.3, None], [1, 1], seed=4)[p] for p in range(50)
    ]


def test_sources_are_drawn_by_weight_then_by_size_and_repeats() -> None:
    order = SampleOrder([10, 100, 50], [0.5, None, None], [1, 1, 2], seed=0)
    assert order.shares == pytest.approx([0.5, 0.25, 0.25])

    drawn = Counter(order[i][0] for i in range(6000))
    assert [drawn[i] / 6000 for i in range(3)] == pytest.approx(order.shares, abs=0.03)
    # within a source every sample comes equally often, across the borders of chunks too
    seen = Counter(order[i][1] for i in range(6000) if order[i][0] == 1)
    assert max(seen.values()) - min(seen.values()) <= 1


# Sources -----------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_samples(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    records = []
    members: dict[str, bytes] = {}
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(i))
        (folder / f"{i}.txt").write_text(f"caption {i}\n")
        records.append({"prompt": f"caption {i}", "image": f"folder/{i}.png"})
        members |= {f"{i}.png": png(i), f"{i}.txt": f"caption {i}".encode()}
    for number in range(2):
        half = {name: content for name, content in members.items() if int(name[0]) // 2 == number}
        write_tar(tmp_path / f"s-0{number}.tar", half)
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, records)))
    imagefolder = tmp_path / "imagefolder"
    imagefolder.mkdir()
    for i in range(4):
        (imagefolder / f"{i}.png").write_bytes(png(i))
    metadata = [{"file_name": f"{i}.png", "text": f"caption {i}"} for i in range(4)]
    (imagefolder / "metadata.jsonl").write_text("\n".join(map(json.dumps, metadata)))
    import pandas

    parquet = tmp_path / "parquet"
    parquet.mkdir()
    table = {"image": [png(i) for i in range(4)], "prompt": [f"caption {i}" for i in range(4)]}
    pandas.DataFrame(table).to_parquet(parquet / "part.parquet")

    for given in (
        {"folder": folder},
        {"jsonl": tmp_path / "lines.jsonl"},
        {"webdataset": str(tmp_path / "s-{00..01}.tar")},
        {"dataset": parquet},
    ):
        source = open_source(SourceConfig.model_validate(given))
        examples = [source.example(i) for i in range(len(source))]
        assert [e.prompt for e in examples] == [f"caption {i}" for i in range(4)], given
        assert [e.target for e in examples] == [png(i) for i in range(4)], given


def test_edits_come_from_json_lines_and_tars(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    edit = {"instruction": "make it blue", "input_images": ["0.png", "1.png"], "output_image": "2.png"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(edit))
    parts = {"a.src0.png": png(0), "a.src1.png": png(1), "a.tgt.png": png(2)}
    write_tar(
        tmp_path / "edits.tar", parts | {"a.json": json.dumps({"instruction": "make it blue"}).encode()}
    )

    for given in ({"jsonl": tmp_path / "edits.jsonl"}, {"webdataset": str(tmp_path / "edits.tar")}):
        example = open_source(SourceConfig.model_validate(given)).example(0)
        assert example.prompt == "make it blue"
        assert example.inputs == (png(0), png(1))
        assert example.target == png(2)


@pytest.mark.parametrize(
    "given",
    [{"folder": "nowhere"}, {"jsonl": "nowhere"}, {"webdataset": "s-{0..1}.tar"}, {"dataset": "nowhere"}],
)
def test_a_source_that_does_not_exist_is_named(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"nowhere|s-0\.tar"):
        open_source(SourceConfig.model_validate(given))


def test_what_cannot_be_used_is_told_by_file_and_reason(tmp_path: Path, pipeline: Pipeline) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    good = picture(1, (48, 32))
    good.save(folder / "good.png")
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.convert("L").save(folder / "gray.png")
    Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(folder / "deep.png")
    good.convert("RGBA").save(folder / "alpha.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:400])
    (folder / "zero.png").write_bytes(b"")
    good.save(folder / "mute.png")
    good.save(folder / "blank.png")
    good.save(folder / "long.png")
    good.save(folder / "GOOD.png")
    for name in ("good", "cmyk", "gray", "deep", "alpha", "cut", "zero", "GOOD"):
        (folder / f"{name}.txt").write_text("a red circle")
    (folder / "blank.txt").write_text(" \n")
    (folder / "long.txt").write_text("word " * 10_000)

    report = data_of(pipeline, tmp_path).report

    assert report.usable == 6
    refused = dict(report.refused)
    assert refused.keys() == {"cut.png", "zero.png", "mute.png", "blank.png", "long.png"}
    assert "write mute.txt" in refused["mute.png"]
    assert "empty" in refused["blank.png"]
    assert "cannot be read as a picture" in refused["zero.png"]
    assert any("differ only in case" in note for note in report.notes)


def test_nothing_usable_ends_the_run_with_the_reasons(tmp_path: Path, pipeline: Pipeline) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "a.txt").write_text("a")

    with pytest.raises(ConfigError, match=r"(?s)no usable sample.*a\.png"):
        data_of(pipeline, tmp_path)


def test_a_picture_that_changes_under_the_run_is_noticed(tmp_path: Path, pipeline: Pipeline) -> None:
    write_examples(tmp_path / "pictures", 2)
    data = data_of(pipeline, tmp_path)
    (tmp_path / "pictures" / "000.png").write_bytes(png(9))

    position = next(i for i in range(2) if data.order[i] == (0, 0))
    with pytest.raises(ConfigError, match=r"000\.png changed during the run"):
        data.sample(position)


# Samples -----------------------------------------------------------------------------------------


def test_buckets_keep_the_area_and_do_not_swap_sides() -> None:
    assert bucket((512, 512), 128, 16) == (128, 128)
    wide, tall = bucket((1600, 900), 256, 16), bucket((900, 1600), 256, 16)
    assert wide[0] > wide[1]
    assert tall == wide[::-1]
    assert wide[0] * wide[1] <= 256**2
    assert wide[0] / wide[1] == pytest.approx(16 / 9, rel=0.1)
    assert bucket((4000, 10), 128, 16)[1] == 16


def test_a_fitted_image_is_the_middle_of_the_scaled_one() -> None:
    image = torch.zeros(3, 64, 128)
    image[:, :, 32:96] = 1
    assert fit_image(image, (32, 32)).shape == (3, 32, 32)
    assert float(fit_image(image, (32, 32))[:, :, 2:-2].mean()) == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(fit_image(image, (128, 64)), image)


def test_samples_of_other_sizes_make_passes_of_their_own(tmp_path: Path, pipeline: Pipeline) -> None:
    (tmp_path / "pictures").mkdir()
    for i, size in enumerate(((64, 64), (96, 48), (64, 64), (48, 96), (64, 64))):
        picture(i, size).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"{i}")
    data = data_of(pipeline, tmp_path, resolution=[64])

    passes = passes_of([data.sample(i) for i in range(5)], 2)

    assert sorted(len(each) for each in passes) == [1, 1, 1, 2]
    assert all(len({sample.size for sample in each}) == 1 for each in passes)


def test_chance_belongs_to_the_position(tmp_path: Path, pipeline: Pipeline) -> None:
    write_examples(tmp_path / "pictures", 4)
    one, other = (data_of(pipeline, tmp_path, seed=2) for _ in range(2))

    first = [one.sample(i) for i in range(12)]
    again = [other.sample(i) for i in reversed(range(12))][::-1]

    for a, b in zip(first, again, strict=True):
        assert (a.name, a.noise_seed, float(a.t), a.request.prompt) == (
            b.name,
            b.noise_seed,
            float(b.t),
            b.request.prompt,
        )
    assert len({a.noise_seed for a in first}) == 12


def test_text_and_images_are_dropped_apart_in_every_kind_of_sample(
    tmp_path: Path, pipeline: Pipeline
) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    edit = {"instruction": "make it blue", "input_images": ["0.png"], "output_image": "1.png"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(edit))
    data = data_of(
        pipeline,
        tmp_path,
        data=[{"jsonl": tmp_path / "edits.jsonl"}],
        dropout={"text": 0.3, "images": 0.4},
        reconstruct=0.2,
        rewrite={"share": 0},
    )
    kinds: Counter[tuple[bool, bool]] = Counter()
    for position in range(400):
        request = data.sample(position).request
        kinds[bool(request.prompt), bool(request.images)] += 1

    # 0.8 are edits, of which 0.7 keep their text; all samples keep their images in 0.6
    assert sum(n for (text, _), n in kinds.items() if text) / 400 == pytest.approx(0.56, abs=0.07)
    assert sum(n for (_, images), n in kinds.items() if images) / 400 == pytest.approx(0.6, abs=0.07)
    assert len(kinds) == 4


def test_rewrites_are_made_once_and_conditions_are_those_of_the_pipeline(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_examples(tmp_path / "pictures", 3)
    values = {"rewrite": {"share": 1.0}, "dropout": {"text": 0, "images": 0}}
    data = data_of(pipeline, tmp_path, **values)
    data.fill_caches()
    monkeypatch.setattr(Pipeline, "rewrite_requests", None)
    again = data_of(pipeline, tmp_path, **values)
    again.fill_caches()
    sample = again.sample(0)
    monkeypatch.undo()

    (entry,) = (each for each in again.entries[0] if each.name == sample.name)
    expected = pipeline.rewrite_requests([Request(prompt=entry.caption)])[0]
    assert sample.request.rewrite == expected.text
    features = pipeline.encode([sample.request])
    torch.testing.assert_close(features.states, expected.features.states, atol=1e-4, rtol=1e-4)


def test_latents_are_kept_by_content_and_equal_those_made_anew(tmp_path: Path, pipeline: Pipeline) -> None:
    write_examples(tmp_path / "pictures", 3)
    cached = data_of(pipeline, tmp_path, cache={"latents": True}, rewrite={"share": 0})
    assert "3 to make" in cached.describe_caches()[0]
    cached.fill_caches()
    assert "0 to make" in cached.describe_caches()[0]

    fresh = data_of(pipeline, tmp_path, rewrite={"share": 0})
    for position in range(3):
        kept, made = cached.sample(position), fresh.sample(position)
        assert kept.latents is not None
        assert made.pixels is not None
        assert torch.equal(kept.latents, fresh.encode(made.pixels[None])[0])


def test_a_cache_beyond_its_limit_is_refused_before_it_is_made(tmp_path: Path, pipeline: Pipeline) -> None:
    write_examples(tmp_path / "pictures", 3)
    data = data_of(pipeline, tmp_path, cache={"latents": True, "limit_gb": 1e-9})

    with pytest.raises(ConfigError, match=r"cache\.limit_gb"):
        data.describe_caches()


def test_a_damaged_cache_entry_is_made_again(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path)
    key = content_key(["a", b"b"])
    cache.save(key, torch.ones(2, 3, 3))
    loaded = cache.load(key)
    assert loaded is not None
    assert torch.equal(loaded, torch.ones(2, 3, 3))

    cache.path(key).write_bytes(b"damaged")
    assert cache.load(key) is None
    assert content_key(["ab", ""]) != content_key(["a", "b"])


def test_held_back_samples_never_train(tmp_path: Path, pipeline: Pipeline) -> None:
    write_examples(tmp_path / "pictures", 12)
    data = data_of(pipeline, tmp_path, validation=0.4)

    held = {each.name for each in data.validation_samples()}

    assert 0 < len(held) < 12
    assert held.isdisjoint({data.sample(i).name for i in range(60)})
    assert [float(s.t) for s in data.validation_samples()] == [float(s.t) for s in data.validation_samples()]


def test_a_mask_says_where_the_loss_counts(tmp_path: Path, pipeline: Pipeline) -> None:
    mask = np.zeros((32, 32, 3), np.uint8)
    # the left half
    mask[:, :16] = 255
    for name, pixels in (("mask", mask), ("black", mask * 0), ("small", mask[:16])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    records = [
        {"prompt": "a", "image": "0.png", "mask": "mask.png"},
        {"prompt": "b", "image": "1.png", "mask": "black.png"},
        {"prompt": "c", "image": "2.png", "mask": "small.png"},
        {"prompt": "d", "image": "3.png", "mask": 5},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    data = data_of(pipeline, tmp_path, data=[{"jsonl": tmp_path / "data.jsonl"}])

    reasons = " ".join(reason for _, reason in data.report.refused)
    assert data.report.usable == 1
    for words in ("its mask is black", "its mask has 32x16 pixels and its image 32x32"):
        assert words in reasons
    weights = data.sample(0).weights
    assert weights is not None
    assert weights.tolist() == [[[1.0, 1.0, 0.0, 0.0]] * 4]
    # the loss is that of the left half alone
    half = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    noise, t = torch.zeros(1, 1, 16, 4, 4), torch.full((1, 1), 0.5)
    features = pipeline.encode([Request(prompt="a red circle")])
    batch = FlowBatch(features=features, latents=half, noise=noise, t=t, weights=weights[None])
    everywhere = replace(batch, weights=None)
    with torch.no_grad():
        objective = FlowMatching(pipeline.model)
        masked, whole = objective.losses(batch), objective.losses(everywhere)
        right = objective.losses(replace(batch, weights=1 - weights[None]))
    torch.testing.assert_close((masked + right) / 2, whole, atol=1e-5, rtol=1e-4)
    assert not torch.equal(masked, right)


@pytest.mark.parametrize(
    "record",
    [
        '{"prompt": "a", "image": {}}',
        '{"prompt": "a", "image": {"bytes": "zz"}}',
        '{"prompt": "a", "image": "odd/\\u0000x.png"}',
        '{"prompt": "a\\ud800b", "image": "0.png"}',
        '{"prompt": "a", "image": "0.png", "rewrite": 5}',
        '{"prompt": ' + "[" * 100_000,
    ],
)
def test_a_malformed_record_is_refused_and_the_others_are_used(
    tmp_path: Path, pipeline: Pipeline, record: str
) -> None:
    picture(0).save(tmp_path / "0.png")
    # a separator of lines inside a string is none
    good = json.dumps({"prompt": "a\u2028b", "image": "0.png"}, ensure_ascii=False)
    (tmp_path / "data.jsonl").write_text(f"\ufeff{good}\n{record}\n{good}\n", encoding="utf-8")

    data = data_of(pipeline, tmp_path, data=[{"jsonl": tmp_path / "data.jsonl"}])

    assert data.report.usable == 2
    assert [name for name, _ in data.report.refused] == ["data.jsonl:2"]


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        member = tarfile.TarInfo("0.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"a"))

    with pytest.raises(ConfigError, match="as an uncompressed tar file"):
        open_source(SourceConfig(webdataset=str(tmp_path / "a.tar")))
