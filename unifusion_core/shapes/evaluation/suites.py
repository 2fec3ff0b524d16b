"""The suites of `unifusion shapes evaluate`. Light to import: the command line lists the names.

A suite is one file with a function (Subject, Sampling) -> rows, and one line here.
"""

from __future__ import annotations

OF_THE_MODEL = {
    "text-to-image": "shapes.evaluation.text_to_image:evaluate_text_to_image",
    "verifi": "shapes.evaluation.verifi:evaluate_verifi",
    "edits": "shapes.evaluation.edits:evaluate_edits",
    "swap": "shapes.evaluation.swap:evaluate_swap",
    "vlm": "shapes.evaluation.vlm:evaluate_vlm",
    "autoencoder": "shapes.evaluation.autoencoder:evaluate_autoencoder",
    "layers": "shapes.evaluation.layers:evaluate_layers",
}
"""These judge the model that is given."""

# the others judge training runs, which must have been made before
SUITES = OF_THE_MODEL | {
    "designs": "shapes.evaluation.designs:evaluate_designs",
    "edit-training": "shapes.evaluation.designs:evaluate_edit_training",
    "picture-designs": "shapes.evaluation.designs:evaluate_picture_designs",
}
