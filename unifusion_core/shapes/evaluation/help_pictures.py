"""Generate the images of the nodes' help pages with the embedded model:

python -m unifusion_core.shapes.evaluation.help_pictures nodes/web/docs/pictures
"""

from __future__ import annotations

import copy
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ...contracts import Request
from ...flow.schedule import SCHEDULES, build_schedule
from ...images import Pixels
from ...inspection.layer_map import draw_layer_map
from ...inspection.reading import read_layers
from ...inspection.table import lines_of
from ...models.lap import parse_layer_gains
from ...pipeline import Pipeline, SamplingSettings
from ...vlm.image_strength import with_strength
from ...vlm.rewrite import Rewrite
from ...vlm.styles import with_style
from ...vlm.tiling import split_into_tiles

PROMPT = "a big red circle at the top left and a small blue star at the bottom right, white background"
BIG = "a big red circle at the top left and a big cyan square at the bottom right, white background"
ROUNDABOUT = "a ball the colour of a tomato in the snow"
EDIT = "make the circle blue"
STYLE = "keep everything else"
SEED = 1
DOTS_PER_INCH = 90
# inches
PANEL, TITLE_LINE = 1.75, 0.17
# letters
TITLE_WIDTH = 26
WEBP_QUALITY = 85

Panels = Iterable[tuple[str, Pixels]]


def text_to_image(pipeline: Pipeline) -> Pixels:
    """Three images of the embedded model, in its three sizes."""
    prompts = {
        PROMPT: (128, 128),
        "two purple crosses on pink": (160, 112),
        "a huge yellow diamond at night": (112, 160),
    }
    return side_by_side(
        (prompt, generated(pipeline, rewritten(pipeline, prompt), pipeline.settings(size=size)))
        for prompt, size in prompts.items()
    )


def caption(pipeline: Pipeline) -> Pixels:
    """An image, and the VLM's caption of it."""
    source = generated(pipeline, rewritten(pipeline, PROMPT))
    seen = rewritten(pipeline, "", source)
    return side_by_side([(f"the VLM sees: {seen.request.rewrite}", source)])


def tiles(pipeline: Pipeline) -> Pixels:
    """An image, its tiles and its thumbnail."""
    source = generated(pipeline, rewritten(pipeline, PROMPT))
    split = split_into_tiles(as_input(source), 5, pipeline.backbone.tile_size)
    names = [*(f"tile {number}" for number in range(1, len(split))), "thumbnail"]
    cut = [as_image(pixels) for pixels in split.pixels]
    return side_by_side([("the picture", source), *zip(names, cut, strict=True)])


def verifi(pipeline: Pipeline) -> Pixels:
    """An indirect prompt without and with rewriting."""
    plain = Request(prompt=ROUNDABOUT)
    raw = Rewrite(request=plain, features=pipeline.encode([plain]))
    done = rewritten(pipeline, ROUNDABOUT)
    return side_by_side(
        [
            (f"read as it is: {ROUNDABOUT}", generated(pipeline, raw)),
            (f"rewritten: {done.request.rewrite}", generated(pipeline, done)),
        ]
    )


def lora_strengths(pipeline: Pipeline) -> Pixels:
    """The same prompt and noise with a LoRA of random numbers, at several strengths."""
    done, panels = rewritten(pipeline, PROMPT), []
    for strength in (0.0, 0.5, 1.0, 2.0):
        random = torch.Generator().manual_seed(SEED)
        model = copy.deepcopy(pipeline.model)
        for index in range(len(model.blocks)):
            weight = model.get_parameter(f"blocks.{index}.attn.wo.weight")
            up, down = (torch.randn(size, generator=random) for size in ((len(weight), 4), (4, len(weight))))
            weight += strength * 0.02 * (up @ down)
        changed = Pipeline(model, pipeline.backbone, pipeline.autoencoder, spec=pipeline.spec)
        panels.append((f"strength {strength:g}", generated(changed, done)))
    return side_by_side(panels)


def layer_gains(pipeline: Pipeline) -> Pixels:
    """The same prompt and noise with several layer gains."""
    done, taps = rewritten(pipeline, PROMPT), pipeline.model.config.vlm.taps
    return side_by_side(
        (text or "empty: as trained", generated(pipeline, done, gains=parse_layer_gains(text, taps)))
        for text in ("", "0: 0", "2: 0, 3: 0", "1, 0, 0, 0, 0", "0, 0, 0, 1, 0", "0: -1")
    )


def layer_map(pipeline: Pipeline) -> Pixels:
    """The layer map of an edit: its words, and the image that it changes."""
    source = as_input(generated(pipeline, rewritten(pipeline, PROMPT)))
    request = with_style(Request(prompt=EDIT, images=[source]), STYLE)
    features = pipeline.rewrite_requests([request])[0].features
    reading = read_layers(pipeline.model, features.to(pipeline.device, pipeline.dtype))
    lines = lines_of(features, pipeline.backbone.token_texts(features.token_info.ids[0]))
    return draw_layer_map(reading, features, lines, pipeline.model.config.vlm.taps, [source])


def strengths(pipeline: Pipeline) -> Pixels:
    """Images from fewer and fewer of an image's tokens, and from repeated tokens."""
    source = generated(pipeline, rewritten(pipeline, PROMPT))
    request = Request(prompt="", images=[as_input(source)])
    read = pipeline.encode([request])
    panels = [("the picture", source)]
    for keep, gain in ((1.0, 1), (0.3, 1), (0.1, 1), (1.0, 3)):
        changed = Rewrite(request=request, features=with_strength(read, 1, keep=keep, gain=gain))
        panels.append((f"keep {keep:g}, gain {gain}", generated(pipeline, changed)))
    return side_by_side(panels)


def layers_side_by_side(pipeline: Pipeline) -> Pixels:
    """The input of ComfyUI's Krea 2: one row per token with the states of all layers; here those of the embedded VLM."""
    features = pipeline.encode([Request(prompt=ROUNDABOUT)])
    states, taps = features.states[0].float(), pipeline.model.config.vlm.taps
    figure = Figure(figsize=(7, 2.6), dpi=DOTS_PER_INCH, layout="constrained")
    plot = figure.subplots()
    scaled = states / states.square().mean((0, 2), keepdim=True).sqrt()
    image = plot.imshow(
        scaled.flatten(1), aspect="auto", cmap="RdBu", vmin=-2, vmax=2, interpolation="nearest"
    )
    width = states.shape[-1]
    plot.set_xticks([width * (index + 0.5) for index in range(len(taps))], [f"layer {tap}" for tap in taps])
    for index in range(1, len(taps)):
        plot.axvline(width * index - 0.5, color="black", linewidth=0.8)
    plot.set_ylabel("token")
    plot.set_title("The layers of each token side by side", fontsize=10)
    figure.colorbar(image, label="state / layer's size")
    return rendered(figure)


def steps(pipeline: Pipeline) -> Pixels:
    """The same prompt and noise with more and more steps."""
    done = rewritten(pipeline, PROMPT)
    return side_by_side(
        (f"{count} steps", generated(pipeline, done, pipeline.settings(steps=count)))
        for count in (1, 2, 4, 8, 20)
    )


def schedules(pipeline: Pipeline) -> Pixels:
    """The times of each schedule."""
    figure = Figure(figsize=(5, 3.2), dpi=DOTS_PER_INCH, layout="constrained")
    plot = figure.subplots()
    for name in SCHEDULES:
        plot.plot(build_schedule(name, 20, 64).tolist(), marker=".", linewidth=1, label=name)
    plot.set_xticks(range(0, 21, 5))
    plot.set_xlabel("step of 20")
    plot.set_ylabel("time t (1 = noise, 0 = clean)")
    plot.set_title("UniFusion's schedules, a picture of 128 x 128", fontsize=10)
    plot.legend(fontsize=8)
    plot.spines[["top", "right"]].set_visible(False)
    return rendered(figure)


def edited_in_its_size(pipeline: Pipeline) -> Pixels:
    """An edit in its image's own size, and in another."""
    wide = pipeline.settings(size=(160, 112))
    source = generated(pipeline, rewritten(pipeline, BIG), wide)
    edit = rewritten(pipeline, EDIT, source, STYLE)
    return side_by_side(
        [
            ("the picture, 160 x 112", source),
            (f"{EDIT}: in the picture's size", generated(pipeline, edit, wide)),
            (
                "the same in 128 x 128: all has moved",
                generated(pipeline, edit, replace(wide, size=(128, 128))),
            ),
        ]
    )


# by node id
PICTURES: dict[str, Callable[[Pipeline], Pixels]] = {
    "UniFusionModelLoader": text_to_image,
    "UniFusionVLMLoader": caption,
    "UniFusionLoraLoader": lora_strengths,
    "UniFusionImageEncode": tiles,
    "UniFusionVerifiRewrite": verifi,
    "UniFusionLAPPool": layer_gains,
    "UniFusionLAPInspect": layer_map,
    "UniFusionPictureStrength": strengths,
    "UniFusionFeaturesToKrea2": layers_side_by_side,
    "UniFusionSampler": steps,
    "UniFusionSchedule": schedules,
    "UniFusionLatentFromReference": edited_in_its_size,
}


def rewritten(pipeline: Pipeline, prompt: str, source: Pixels | None = None, style: str = "") -> Rewrite:
    """The VLM's rewrite of a prompt, about one image or none."""
    pictures = [] if source is None else [as_input(source)]
    return pipeline.rewrite_requests([with_style(Request(prompt=prompt, images=pictures), style)])[0]


def generated(
    pipeline: Pipeline,
    of: Rewrite,
    settings: SamplingSettings | None = None,
    gains: Sequence[float] | None = None,
) -> Pixels:
    """One image, always from the same noise."""
    return pipeline.sample(of.features, [SEED], settings, layer_gains=gains)[0]


def as_input(picture: Pixels) -> Tensor:
    """An image as a tensor, 3 H W in 0..1."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def as_image(pixels: Tensor) -> Pixels:
    """A tensor, 3 H W in 0..1, as an image of 8 bits."""
    return (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def side_by_side(panels: Panels) -> Pixels:
    """Images in a row, each with its title."""
    named = [("\n".join(textwrap.wrap(title, TITLE_WIDTH)), picture) for title, picture in panels]
    lines = max(title.count("\n") for title, _ in named) + 2
    tallest = max(1.0, *(picture.shape[0] / picture.shape[1] for _, picture in named))
    size = (PANEL * len(named), PANEL * tallest + lines * TITLE_LINE)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    for panel, (title, picture) in zip(figure.subplots(1, len(named), squeeze=False)[0], named, strict=True):
        panel.imshow(picture)
        panel.set_title(title, fontsize=8)
        panel.set(xticks=[], yticks=[])
    return rendered(figure)


def rendered(figure: Figure) -> Pixels:
    """The pixels of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def main(folder: Path) -> None:
    """Write all images into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.load(device="cpu")
    for node, make in PICTURES.items():
        path = folder / f"{node}.webp"
        Image.fromarray(make(pipeline)).save(path, "WEBP", quality=WEBP_QUALITY, method=6)
        print(f"{path} {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
