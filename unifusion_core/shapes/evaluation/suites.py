"""The suites of `unifusion shapes evaluate`, as strings, so that the command line can list them without heavy imports.

A suite is a file with a function (Subject, Sampling) -> rows, a line here, and one in `ABOUT`.
"""

from __future__ import annotations

from ...evaluation.suites import About

# suites of the given model
OF_THE_MODEL = {
    "text-to-image": "shapes.evaluation.text_to_image:evaluate_text_to_image",
    "verifi": "shapes.evaluation.verifi:evaluate_verifi",
    "edits": "shapes.evaluation.edits:evaluate_edits",
    "swap": "shapes.evaluation.swap:evaluate_swap",
    "vlm": "shapes.evaluation.vlm:evaluate_vlm",
    "autoencoder": "shapes.evaluation.autoencoder:evaluate_autoencoder",
    "layers": "shapes.evaluation.layers:evaluate_layers",
    "edits-in-a-row": "shapes.evaluation.edits_in_a_row:evaluate_edits_in_a_row",
    "limits": "shapes.evaluation.limits:evaluate_limits",
    "german": "shapes.evaluation.german:evaluate_german",
    "marks": "shapes.evaluation.marks:evaluate_marks",
    "outlines": "shapes.evaluation.outlines:evaluate_outlines",
    "kept-marks": "shapes.evaluation.kept_marks:evaluate_kept_marks",
}

# the others are about training runs, which must exist
SUITES = OF_THE_MODEL | {
    "style": "shapes.evaluation.style:evaluate_style",
    "color": "shapes.evaluation.taught:evaluate_color",
    "paint": "shapes.evaluation.taught:evaluate_paint",
    "fusion": "shapes.evaluation.fusion:evaluate_fusion",
    "fusion-curve": "shapes.evaluation.fusion:evaluate_fusion_curve",
    "fusion-layers": "shapes.evaluation.fusion:evaluate_fusion_layers",
    "fusion-rewriting": "shapes.evaluation.fusion:evaluate_fusion_rewriting",
    "edit-training": "shapes.evaluation.designs:evaluate_edit_training",
    "picture-designs": "shapes.evaluation.designs:evaluate_picture_designs",
}

ABOUT = {
    "text-to-image": About("prompts of every kind, rewritten and as they are", "nothing", "40 min"),
    "verifi": About("the same prompts and noise with rewriting and without", "nothing", "20 min"),
    "edits": About("instructions about one to three images", "nothing", "45 min"),
    "swap": About("whether the image follows the rewrite or the prompt", "nothing", "25 min"),
    "vlm": About("rewrites and captions by the VLM", "nothing", "15 min"),
    "autoencoder": About("scenes read after encoding and decoding", "nothing", "2 min"),
    "layers": About("text to image without each tapped layer", "nothing", "1.5 h"),
    "edits-in-a-row": About("ten edits of one image, and ten copies of it", "nothing", "2.5 h"),
    "limits": About("179 everyday prompts in and out of its world", "nothing", "1 min"),
    "german": About("German prompts, translated by rewriting", "nothing", "3 min"),
    "marks": About("how much image tokens hold about marks, at 1, 5, 10 tiles", "nothing", "7 min"),
    "outlines": About("how round circles are", "nothing", "5 min"),
    "kept-marks": About("marks of input images in what is drawn", "nothing", "45 min"),
    "style": About("a style that was trained", "--lora or --model of the run", "5 min"),
    "color": About("an eighth colour that was trained", "--lora or --model of the run", "5 min"),
    "paint": About("an edit that was trained", "--lora or --model of the run", "5 min"),
    "fusion": About("fusion designs on a real language model", "runs/fusion-*", "1 h"),
    "fusion-curve": About("what they drew while they learned", "runs/fusion-*", "1 s"),
    "fusion-layers": About("which of its layers LAP reads", "runs/fusion-lap-1", "15 min"),
    "fusion-rewriting": About("rewriting by a small language model", "runs/fusion-lap-1", "15 min"),
    "edit-training": About("training on text alone and with images", "runs/tiny-short*", "10 min"),
    "picture-designs": About("ways to tell image tokens apart", "runs/tiny-short*", "15 min"),
}
