"""The numbers behind the nodes: sampling equals the core's, conditions are computed once, VLM states are right.

    pytest tests/comfyui/test_in_process.py

One process measures everything (in_process.py, where each case is explained); a test looks at each result.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.comfyui

SCRIPT = Path(__file__).with_name("in_process.py")
PARITY = 1e-4  # of the largest value, in float32; what is seen is near 1e-6
LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def measured(
    comfyui_home: Path, comfyui_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """`measured(name)`: what a case of in_process.py returned."""
    folder = tmp_path_factory.mktemp("in_process")
    command = [comfyui_python, str(SCRIPT), str(comfyui_home), str(SCRIPT.parents[2]), str(folder)]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    limit = LIMIT_SECONDS * int(os.environ.get("COMFYUI_PATIENCE", "1"))
    done = subprocess.run(
        command, cwd=comfyui_home, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    if not lines:
        pytest.fail(f"in_process.py ended with {done.returncode}:\n{done.stderr[-5000:]}", pytrace=False)
    results = json.loads(lines[0].removeprefix("RESULTS "))

    def look_up(name: str) -> Any:
        result = results[name]
        if isinstance(result, dict) and "failed" in result:
            pytest.fail(result["failed"], pytrace=False)
        return result

    return look_up


@pytest.mark.parametrize(
    "case",
    [
        "equal_lengths",
        "unequal_lengths",
        "without_guidance",
        "batch_of_three",
        "joint_attention",
        "pooled_conditions",
        "condition_per_latent",
        "concatenation",
        "odd_latent",
        "latents_with_a_time_axis",
    ],
)
def test_comfyui_draws_what_the_core_draws(measured: Callable[[str], Any], case: str) -> None:
    assert measured(case) <= PARITY


@pytest.mark.parametrize("case", ["unifusion_sampler", "sampling_nodes", "stock_conditioning_nodes"])
def test_every_way_of_sampling_is_exact(measured: Callable[[str], Any], case: str) -> None:
    found = measured(case)
    assert max(found.values()) <= PARITY, found


def test_conditions_are_computed_once_and_released(measured: Callable[[str], Any]) -> None:
    assert measured("computed_once") == {"pool": 2, "prepare": 2, "left": 0}


def test_a_lora_on_one_condition_reaches_pooling_and_keys(measured: Callable[[str], Any]) -> None:
    found = measured("hooked_lora")
    assert found["difference"] <= PARITY
    assert found["effect"] > 100 * PARITY


def test_a_saved_model_opens_as_the_same_model(measured: Callable[[str], Any]) -> None:
    found = measured("saved_and_loaded")
    assert found["difference"] <= 1e-6
    assert found["config"]
    assert found["record"] == {"recipe": "none"}


def test_smaller_weights_draw_nearly_the_same(measured: Callable[[str], Any]) -> None:
    found = measured("weight_types")
    assert found["fp32"] == 0
    assert 0 < found["fp16"] < found["bf16"] < found["fp8_e4m3fn"] < 0.5


def test_krea_2_is_drawn_as_by_comfyui(measured: Callable[[str], Any]) -> None:
    found = measured("krea_2_is_drawn_alike")
    assert max(found.values()) <= PARITY, found
    assert measured("krea_2_stock_sampler") <= PARITY


def test_krea_2s_schedules_are_the_published_ones(measured: Callable[[str], Any]) -> None:
    found = measured("krea_2_schedules")
    assert found.pop("automatic") == [False, True]  # taken for turbo
    assert max(found.values()) <= PARITY, found


def test_krea_2s_loras_apply_as_to_comfyuis_own(measured: Callable[[str], Any]) -> None:
    found = measured("krea_2_loras")
    assert len(found) == 6
    assert all(all(result.values()) for result in found.values()), found


def test_krea_2_in_8_bits_stays_so(measured: Callable[[str], Any]) -> None:
    found = measured("krea_2_in_8_bits")
    for layout in ("marked", "old"):
        assert found[layout].pop("type") == "torch.float8_e4m3fn"
        assert max(found[layout].values()) <= PARITY, found
    assert found["lora"] <= PARITY
    assert found["effect"] > 100 * PARITY


@pytest.mark.parametrize("model", ["generator", "vlm"])
def test_a_model_loaded_in_part_computes_the_same(measured: Callable[[str], Any], model: str) -> None:
    found = measured(f"{model}_loaded_in_part")
    assert found["in part"]
    assert found["patched on the way"] > 0
    assert 0 < found["share"] < 0.5
    assert found["difference"] <= PARITY
    assert found["again"] <= PARITY
    assert found["effect"] > 100 * PARITY


def test_what_no_layer_of_comfyuis_fetches_is_brought(measured: Callable[[str], Any]) -> None:
    found = measured("nothing_of_the_vlm_is_left_behind")
    assert found == {"fetched when called": ["cpu"], "the rest": ["meta"]}


def test_an_untrained_size_is_warned_about_once(measured: Callable[[str], Any]) -> None:
    (sentence,) = measured("size_warning")
    assert "96 x 160" in sentence
    assert "96 x 64" in sentence


def test_an_edit_in_another_size_than_its_picture_is_warned_about(measured: Callable[[str], Any]) -> None:
    *sentences, of_two = measured("edited_size_warning")
    (sentence,) = sentences
    assert "128x128 is drawn" in sentence
    assert "96x64" in sentence
    assert of_two == "None"


def test_comfyuis_clip_gives_the_vlms_states(measured: Callable[[str], Any]) -> None:
    found = measured("vlm_states")
    assert max(found["text"], found["pictures"], found["stock"]) <= 1e-5
    assert found["text places"]
    assert found["pictures places"]
    assert found["text tiles"] == [1, 64, 64, 3]
    assert found["pictures tiles"][1:] == [48, 48, 3]
    assert found["pictures tiles"][0] > 2
    assert found["empty prompt"] >= 1


def test_comfyuis_clip_writes_the_vlms_text(measured: Callable[[str], Any]) -> None:
    found = measured("vlm_text")
    assert found["greedy"]
    assert found["seeds"] == [True, False]


def test_comfyuis_own_qwen3_vl_gives_what_the_folder_gives(measured: Callable[[str], Any]) -> None:
    found = measured("stock_text_encoder")
    for name in ("text", "pictures", "one_pass", "reencode", "states of words", "quantised", "stock"):
        assert found[name] <= PARITY, name
    assert found["text rest"]
    assert found["pictures rest"]
    assert found["tiles"] == 4  # two and a thumbnail, and one
    assert "QuantizedTensor" in found["kinds of weights"]
    assert found["words"]
    assert found["stopped"]
    assert found["words before the stop"] > 1
    assert found["seeds"] == [True, False]


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        ("other width", ["64 wide", "2560 wide", "Qwen3-VL-4B", "Load UniFusion VLM"]),
        ("other encoder", ["Linear", "Load UniFusion VLM", "Load CLIP of type krea2"]),
    ],
)
def test_a_text_encoder_that_cannot_serve_is_answered_with_a_sentence(
    measured: Callable[[str], Any], attempt: str, words: list[str]
) -> None:
    sentence = measured("stock_sentences")[attempt]
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("case", ["generation_is_interrupted", "rewriting_is_interrupted"])
def test_writing_stops_when_the_user_cancels(measured: Callable[[str], Any], case: str) -> None:
    assert measured(case) == "interrupted"


def test_the_rewriting_node_gives_the_cores_text_and_states(measured: Callable[[str], Any]) -> None:
    found = measured("verifi")
    assert found["text"]
    assert max(found["states"], found["locked"], found["reencoded"]) <= PARITY
    assert found["changed"] > 100 * PARITY
    assert found["seeds"] == [True, False]


def test_pictures_are_read_once_for_all_instructions(measured: Callable[[str], Any]) -> None:
    found = measured("pictures_read_once")
    assert found["looks"] == [1, 2]
    assert found["difference"] == 0


def test_a_latent_has_the_size_of_its_picture(measured: Callable[[str], Any]) -> None:
    assert measured("latents_from_pictures") == [
        [[1, 16, 14, 20], [160, 112]],
        [[1, 16, 13, 25], [200, 104]],
        [[1, 16, 25, 50], [400, 200]],
    ]


def test_layer_gains_reach_the_pooling(measured: Callable[[str], Any]) -> None:
    found = measured("layer_gains")
    assert max(found["written out"], found["named"], found["none"]) <= PARITY
    assert found["effect"] > 100 * PARITY


def test_layers_are_looked_at_as_the_core_reads_them(measured: Callable[[str], Any]) -> None:
    found = measured("layers_read")
    assert max(found["shares"], found["attention"]) <= PARITY
    assert found["weight gained by a lora"] == pytest.approx(3, abs=1e-4)
    assert found["shape"][0] == 1
    assert found["shape"][3] == 3
    assert min(found["shape"][1:3]) > 500
    assert 0 <= found["range"][0] < found["range"][1] <= 1
    lines = [line.split()[:2] for line in found["table"].splitlines()]
    assert lines.count(["picture", "1:"]) == lines.count(["picture", "2:"]) == 1
    assert ["$", "prompt"] in lines
    assert ["blue", "prompt"] in lines


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        ("rewrite without an end", ["did not end within 2 tokens", "max_new_tokens"]),
        ("huge picture", ["8000x200", "8 to 4096"]),
        ("nan picture", ["NaN", "find the step"]),
        ("gray picture", ["1 channels", "RGB"]),
        ("long prompt", ["1024", "shorten"]),
        ("foreign conditioning", ["768 wide", "72", "Load UniFusion VLM"]),
        ("other clip", ["Linear", "Load UniFusion VLM"]),
        ("other model", ["Linear", "Load UniFusion Model"]),
        ("other features", ["(0, 1, 4)", "(0, 1, 3)", "Load UniFusion VLM"]),
        ("other features looked at", ["(0, 1, 4)", "(0, 1, 3)", "Load UniFusion VLM"]),
        ("gains for other layers", ["2 layer gains", "reads 3 layers (0, 1, 3)", "3: 0.5"]),
        ("other taps", ["(0, 1, 4)", "(0, 1, 3)", "Load UniFusion VLM"]),
        ("unequal lengths for krea 2", ["5, 3 tokens", "one prompt at a time"]),
        ("other features for krea 2", ["(0, 1, 3) of internvl", "of qwen3_vl", "Load UniFusion VLM"]),
        ("other vlm", ["number of layers is 6, 9 is needed"]),
        ("latent of other channels", ["4 channels", "16", "EmptySD3LatentImage"]),
    ],
)
def test_a_wrong_input_is_answered_with_a_sentence(
    measured: Callable[[str], Any], attempt: str, words: list[str]
) -> None:
    sentence = measured("sentences")[attempt]
    assert all(word in sentence for word in words), sentence
