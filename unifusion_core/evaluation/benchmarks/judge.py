"""A VLM as judge: p(answer | images, question) by the first token of its answer, or its answer in words (greedy).

The images come before the question in a chat, so their keys and values serve all questions about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...contracts import MAX_TILES, ChatTemplate, Request
from ...errors import VLMError
from ...vlm.backbone import VLMBackbone
from ...vlm.folder import load_vlm
from .benchmark import Answer, Question, Shown

QUESTIONS_AT_ONCE = 16
# side of the one tile of a family that takes each tile for an image of its own, in pixels
SIDE = 896
AGAIN = "\nAnswer with the JSON object alone."
YES = ("Yes", "yes", " yes", " Yes")
NO = ("No", "no", " no", " No")


@dataclass
class VLMJudge:
    """Asks a VLM.

    name        in reports
    max_tiles   per image. None = one for Qwen-VL, to which each tile is an image of its own, so that it would count an object
                once per tile; `MAX_TILES` for InternVL
    template    the chat format; None = the family's own
    """

    backbone: VLMBackbone
    name: str
    max_tiles: int | None = None
    template: ChatTemplate | None = None

    @classmethod
    def load(
        cls, folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> VLMJudge:
        """A judge from a folder in Hugging Face's layout. Raises VLMError as `load_vlm` does."""
        backbone = load_vlm(folder, dtype, device)
        if backbone.family.block_per_tile:
            backbone.set_tile_size(SIDE)
        return cls(backbone, folder.name)

    @property
    def tiles(self) -> int:
        """`max_tiles` that is used."""
        return self.max_tiles or (1 if self.backbone.family.block_per_tile else MAX_TILES)

    @property
    def identity(self) -> dict[str, Any]:
        """Name, family, content hash, dtype, and how images are cut."""
        return {
            "name": self.name,
            "family": self.backbone.family_name,
            "fingerprint": self.backbone.fingerprint,
            "dtype": str(next(self.backbone.parameters()).dtype).removeprefix("torch."),
            "max_tiles": self.tiles,
            "tile_size": self.backbone.tile_size,
        }

    def first_tokens(self, spellings: Iterable[str]) -> dict[int, str]:
        """The first token of each spelling -> the spelling, each token once. A spelling that starts with a token of spaces alone
        says nothing and is left out."""
        tokens: dict[int, str] = {}
        for spelling in spellings:
            first = self.backbone.tokenizer.encode(spelling, add_special_tokens=False)[:1]
            if first and str(self.backbone.tokenizer.decode(first)).strip():
                tokens.setdefault(first[0], spelling)
        return tokens

    def check(self, questions: Iterable[Question]) -> None:
        """Raises VLMError if two answers start with the same token, or if one starts with none."""
        owners: dict[int, tuple[str, ...]] = {}
        for accepted in dict.fromkeys([YES, NO, *(q.accepted for q in questions if q.accepted)]):
            tokens = self.first_tokens(accepted)
            if not tokens:
                raise VLMError(
                    f'The judge {self.name} has no token for the answer "{accepted[0]}": use a judge whose vocabulary has it.'
                )
            for token in tokens:
                other = owners.setdefault(token, accepted)
                if _words(other) != _words(accepted):
                    raise VLMError(
                        f'The answers "{accepted[0]}" and "{other[0]}" start with the same token of the judge '
                        f"{self.name}, so their "
                        "probabilities cannot be told apart: use a judge with a larger vocabulary."
                    )

    def answer(self, shown: Shown, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question. Raises PromptError for a question that is too long for the judge."""
        answers: dict[int, Answer] = {}
        for sees in ("output", "all"):
            images = [shown.output] if sees == "output" else [*shown.inputs, shown.output]
            asked = [(i, q) for i, q in enumerate(questions) if q.sees == sees]
            chosen = [(i, q) for i, q in asked if q.accepted]
            for start in range(0, len(chosen), QUESTIONS_AT_ONCE):
                part = chosen[start : start + QUESTIONS_AT_ONCE]
                found = self._choose(images, [q for _, q in part])
                answers |= dict(zip([i for i, _ in part], found, strict=True))
            answers |= {i: self._write(images, q) for i, q in asked if not q.accepted}
        return [answers[i] for i in range(len(questions))]

    def _choose(self, images: Sequence[torch.Tensor], questions: Sequence[Question]) -> list[Answer]:
        asked = [question.ask or question.text for question in questions]
        logits = self.backbone.first_token_logits(images, asked, template=self.template, max_tiles=self.tiles)
        yes_or_no = self.first_tokens((*YES, *NO))
        found = []
        for question, row in zip(questions, torch.softmax(logits.double(), dim=-1).cpu(), strict=True):
            right = self.first_tokens(question.accepted)
            likeliest = int(row.argmax())
            text = (right | yes_or_no).get(likeliest) or str(self.backbone.tokenizer.decode([likeliest]))
            # sums of rounded numbers may exceed 1
            found.append(Answer(text=text.strip(), probability=min(1.0, float(row[list(right)].sum()))))
        return found

    def _write(self, images: Sequence[torch.Tensor], question: Question) -> Answer:
        text = ""
        for reminder in ("", AGAIN):
            request = Request(prompt=(question.ask or question.text) + reminder, images=images)
            chats = self.backbone.prepare([request], self.template, self.tiles)
            written = self.backbone.write(
                chats, (), max_new_tokens=question.max_new_tokens, reuse_images=True
            )
            text = written.texts[0].strip()
            if question.is_valid is None or question.is_valid(text):
                break
        return Answer(text=text)


def _words(spellings: Iterable[str]) -> set[str]:
    return {each.strip().lower() for each in spellings}
