"""Numbers for claims: suites that let a model work on the small world and judge what comes out, exactly.

`tally` judges (the trainer uses it, too), one file per suite, `report` prints and stores, `suites` runs them by name.
"""

# Names stand here because suites.py is slow to import.
SHIPPED_SUITES = (
    "text-to-image",
    "verifi",
    "edits",
    "swap",
    "vlm",
    "autoencoder",
    "layers",
    "speed",
)  # judge the model that is given
# these measure something else: a random VLM of middle size, and training runs, which must have been made
SUITE_NAMES = (*SHIPPED_SUITES, "vlm-speed", "designs", "edit-training", "picture-designs")
