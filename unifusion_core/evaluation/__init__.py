"""Numbers for claims: suites that let a model work on the small world and judge what comes out, exactly.

`tally` judges (the trainer uses it, too), one file per suite, `report` prints and stores, `suites` runs them by name.
"""

SUITE_NAMES = (
    "text-to-image",
    "swap",
    "vlm",
    "autoencoder",
    "speed",
)  # here, because suites.py is slow to import
