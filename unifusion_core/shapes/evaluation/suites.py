"""The suites of `unifusion shapes evaluate`, as strings, so that the command line can list them without heavy imports.

A suite is a file with a function (Subject, Sampling) -> rows, and a line here.
"""

from __future__ import annotations

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
