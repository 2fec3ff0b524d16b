"""Registry of the suites of `unifusion evaluate`, which measure any model. Imports nothing: the command line lists the names.

To add a suite of the model alone, write a function (Subject, Sampling) -> rows and add its line to `SUITES`. To add a benchmark
on the user's data, write a `Benchmark` (`benchmarks/benchmark.py`) and add its line to `BENCHMARKS`.
"""

from __future__ import annotations

# name -> "module:function", relative to this package
SUITES = {
    "speed": "evaluation.speed:evaluate_speed",
    "vlm-speed": "evaluation.vlm_speed:evaluate_vlm_speed",
}
# name -> "module:class"
BENCHMARKS = {
    "geneval2": "evaluation.benchmarks.geneval2:GenEval2",
    "dpg": "evaluation.benchmarks.dpg:DPG",
    "gedit": "evaluation.benchmarks.gedit:GEdit",
    "references": "evaluation.benchmarks.references:References",
    "reconstruct": "evaluation.benchmarks.reconstruct:Reconstruct",
    "drift": "evaluation.benchmarks.drift:Drift",
    "judge": "evaluation.benchmarks.exam:Exam",
}
# name -> "module:function" that makes a benchmark of another one
COMPARISONS = {
    "verifi": "evaluation.benchmarks.ways:verifi",
    "layers": "evaluation.benchmarks.ways:layers",
}
