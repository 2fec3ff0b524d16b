"""Draws the picture of training/README.md, what two LoRAs change, after the commands of "Teach it a colour, or an edit":

    python tests/benchmarks/before_after.py

A row has the input image where there is one, the image before training, and the image after it, from the same noise.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from unifusion_core.images import read_image_file
from unifusion_core.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "unifusion_core" / "training" / "before-after.png"
# LoRA, prompt, input image, seed
ROWS = (
    ("runs/tiny-color/final.safetensors", "a big lime circle at the top left, white background", None, 1),
    ("runs/tiny-color/final.safetensors", "big lime star at center, black background.", None, 2),
    ("runs/tiny-paint/final.safetensors", "make everything blue", "runs/paint/edits-003-input.png", 3),
    ("runs/tiny-paint/final.safetensors", "paint everything yellow", "runs/paint/edits-007-input.png", 4),
)
SIDE, GAP = 128, 8


def main() -> None:
    sheet = Image.new("RGB", (3 * SIDE + 2 * GAP, len(ROWS) * (SIDE + GAP) - GAP), "white")
    before = Pipeline.load()
    for row, (lora, prompt, shown, seed) in enumerate(ROWS):
        images = [read_image_file(Path(shown))] if shown else []
        if shown:
            sheet.paste(Image.open(shown), (0, row * (SIDE + GAP)))
        for column, pipe in ((1, before), (2, Pipeline.load(lora=[lora]))):
            image = pipe(prompt, images=images, rewrite=False, seed=seed)
            sheet.paste(image, (column * (SIDE + GAP), row * (SIDE + GAP)))
    sheet.save(PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    main()
