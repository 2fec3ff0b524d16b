"""The suites of `unifusion evaluate`, which measure any model. Light to import: the command line lists the names.

A suite is one file with a function (Subject, Sampling) -> rows, and one line here.
"""

from __future__ import annotations

# name -> "module:function", relative to this package
SUITES = {
    "speed": "evaluation.speed:evaluate_speed",
    "vlm-speed": "evaluation.vlm_speed:evaluate_vlm_speed",
}
