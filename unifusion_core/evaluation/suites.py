"""Registry of the suites of `unifusion evaluate`, which measure any model. Imports nothing: the command line lists the names.

To add a suite, write a function (Subject, Sampling) -> rows and add its line here.
"""

from __future__ import annotations

# name -> "module:function", relative to this package
SUITES = {
    "speed": "evaluation.speed:evaluate_speed",
    "vlm-speed": "evaluation.vlm_speed:evaluate_vlm_speed",
}
