"""Judges of coloured shapes: the scorer, which is exact, and the embedded VLM, which answers with captions alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ... import zoo
from ...contracts import Request
from ...errors import ConfigError
from ...evaluation.benchmarks.benchmark import Answer, Question, Shown
from ...evaluation.benchmarks.gedit import CONSISTENCY, QUALITY
from ...evaluation.benchmarks.judge import VLMJudge
from ...images import to_pixels
from ...vlm.backbone import VLMBackbone
from ...vlm.folder import load_vlm
from ...zoo.tiny import TINY
from ..world.captions import parse_caption
from ..world.questions import answer
from ..world.requirements import Requirement, check
from ..world.scenes import Scene
from ..world.scorer import read_picture
from .judging import NOTHING, PROPERTIES, Judgement

# of a caption drawn at random, for probabilities
SAMPLES = 8
MAX_NEW_TOKENS = 64
MAX_TILES = 10
DESCRIBE = "describe the picture"


def check_questions(name: str, questions: Iterable[Question], free: Iterable[str] = ()) -> None:
    """Raises ConfigError for a question that the demo did not write."""
    for question in questions:
        known = question.text in free or (question.accepted and answer(question.text, NOTHING) is not None)
        if not known:
            raise ConfigError(
                f'the judge {name} cannot answer "{question.text}": it knows the questions that unifusion shapes '
                "benchmark writes; "
                "use a VLM folder"
            )


@dataclass(frozen=True)
class ExactJudge:
    """The scorer: it reads the image back into a scene from its pixels, and answers from the scene."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "exact"}

    def check(self, questions: Iterable[Question]) -> None:
        """Raises ConfigError for a question that the demo did not write."""
        check_questions("exact", questions)

    def answer(self, shown: Shown, questions: Sequence[Question]) -> list[Answer]:
        (pixels,) = to_pixels(shown.output[None])
        scene = read_picture(pixels).scene
        return [_answered(question, answer(question.text, scene)) for question in questions]


@dataclass(frozen=True)
class CaptionJudge:
    """The embedded VLM. It was trained to answer with captions, so it is asked for one, and its caption answers the questions.

    The likeliest caption gives the words. The share of `SAMPLES` captions, drawn at temperature 1 from fixed seeds, that give
    the accepted answer is its probability. For an edit it also writes the caption of the target: consistency is the share of
    the target's properties that the caption of the result has, quality the share of captions that agree.
    """

    backbone: VLMBackbone

    @classmethod
    def load(cls, device: torch.device | str = "cpu") -> CaptionJudge:
        return cls(load_vlm(zoo.path_of("tiny", "vlm"), device=device))

    @property
    def identity(self) -> dict[str, Any]:
        dtype = str(next(self.backbone.parameters()).dtype).removeprefix("torch.")
        return {"name": "tiny", "fingerprint": self.backbone.fingerprint, "dtype": dtype, "captions": SAMPLES}

    def check(self, questions: Iterable[Question]) -> None:
        """Raises ConfigError for a question that the demo did not write."""
        check_questions("tiny", questions, free=(CONSISTENCY, QUALITY))

    def answer(self, shown: Shown, questions: Sequence[Question]) -> list[Answer]:
        likeliest, *drawn = self._captions([shown.output])
        found = []
        for question in questions:
            if not question.accepted:
                rating = {CONSISTENCY: self._consistency, QUALITY: _agreement}[question.text]
                tenths = round(10 * rating(shown, likeliest, drawn))
                found.append(Answer(text=json.dumps({"score": [tenths, tenths]})))
                continue
            said = _answered(question, answer(question.text, likeliest))
            right = [_answered(question, answer(question.text, each)).probability or 0.0 for each in drawn]
            found.append(Answer(text=said.text, probability=sum(right) / len(right)))
        return found

    def _captions(self, images: Sequence[torch.Tensor], prompt: str = DESCRIBE) -> list[Scene]:
        """The scene of the likeliest caption, then those of `SAMPLES` others; an unreadable caption has no objects."""
        request = Request(prompt=prompt, images=images)
        template = TINY.config.vlm.template
        greedy = self.backbone.write(
            self.backbone.prepare([request], template, MAX_TILES),
            (),
            max_new_tokens=MAX_NEW_TOKENS,
            reuse_images=True,
        )
        varied = self.backbone.write(
            self.backbone.prepare([request] * SAMPLES, template, MAX_TILES),
            (),
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=1.0,
            seed=list(range(SAMPLES)),
        )
        return [parse_caption(text.strip()) or NOTHING for text in (*greedy.texts, *varied.texts)]

    def _consistency(self, shown: Shown, likeliest: Scene, drawn: Sequence[Scene]) -> float:
        target, *_ = self._captions(shown.inputs, shown.item.prompt)
        requirement = Requirement.of(target)
        judgement = Judgement(requirement=requirement, verdict=check(requirement, likeliest), readable=True)
        counted = [right for name in PROPERTIES for right in judgement.counted(name)]
        return sum(counted) / len(counted)


def load_trained_judge(folder: Path, device: torch.device | str = "cpu") -> VLMJudge:
    """A VLM that `unifusion shapes train tiny-judge` made: it answers in one word, in the embedded model's chat format."""
    # a run writes every VLM into a folder of the same name
    name = "/".join(folder.resolve().parts[-2:])
    return VLMJudge(load_vlm(folder, device=device), name, template=TINY.config.vlm.template)


def _agreement(shown: Shown, likeliest: Scene, drawn: Sequence[Scene]) -> float:
    return 0.0 if likeliest == NOTHING else sum(each == likeliest for each in drawn) / len(drawn)


def _answered(question: Question, text: str | None) -> Answer:
    said = Answer(text=text or "")
    return Answer(text=said.text, probability=float(said.is_one_of(question.accepted)))
