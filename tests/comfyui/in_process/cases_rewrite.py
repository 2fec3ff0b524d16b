"""The rewrite node gives the same text and states as the core (VERIFI)."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from the_pack.unifusion_core.contracts import Request
from the_pack.unifusion_core.vlm.folder import load_vlm
from the_pack.unifusion_core.vlm.rewrite import encode_requests, rewrite
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY

from .case import PARITY, case, close, difference
from .small_unifusion import rewritten, tiny_clip

PROMPT = "a red ball in the snow"


@case()
def verifi() -> dict[str, Any]:
    """A rewrite, the same text locked, one word of it changed, and its states by reencoding; sampled texts by their seeds."""
    clip, plain, spec = tiny_clip(), load_vlm(BUILT_IN.vlm), TINY.config.vlm
    given, text = rewritten(clip, PROMPT)
    (expected,) = rewrite(plain, spec, [Request(prompt=PROMPT)], TINY.rewriting)
    locked, locked_text = rewritten(clip, PROMPT, locked_text=text)
    changed, _ = rewritten(clip, PROMPT, locked_text=text.replace("white", "black"))
    again, _ = rewritten(clip, PROMPT, states="reencode")
    reencoded = encode_requests(plain, spec, [Request(prompt=text)], states="one_pass")
    first, same, other = (rewritten(clip, "a shape", temperature=2.0, seed=seed)[1] for seed in (1, 1, 2))
    return {
        "text": text == expected.request.rewrite == locked_text,
        "states": difference(given.features.states, expected.features.states),
        "locked": difference(locked.features.states, expected.features.states),
        "changed": difference(changed.features.states, expected.features.states),
        "reencoded": difference(again.features.states, reencoded.states),
        "same text by seeds 1 and 1, 1 and 2": [first == same, first == other],
    }


@verifi.check
def _(found: dict[str, Any]) -> None:
    assert found["text"]
    assert close(found["states"], found["locked"], found["reencoded"])
    assert found["changed"] > 100 * PARITY
    assert found["same text by seeds 1 and 1, 1 and 2"] == [True, False]


@case(equals="interrupted")
def rewriting_is_interrupted() -> str:
    clip = tiny_clip()
    mm.interrupt_current_processing(True)
    try:
        rewritten(clip, "a red ball")
    except mm.InterruptProcessingException:
        return "interrupted"
    finally:
        mm.interrupt_current_processing(False)
    return "ran to its end"
