"""Registry of the suites of `unifusion evaluate`, which measure any model. Imports nothing: the command line lists the names.

To add a suite of the model alone, write a function (Subject, Sampling) -> rows and add its line to `SUITES`. To add a benchmark
on the user's data, write a `Benchmark` (`benchmarks/benchmark.py`) and add its line to `BENCHMARKS`. Its line in `ABOUT` is what
`unifusion evaluate` lists.
"""

from __future__ import annotations

from typing import NamedTuple


class About(NamedTuple):
    """A suite in the list of suites. `time` is an estimate for the embedded model on two idle cores, at 0.3 s per image and the
    default number of samples; of a benchmark it is that of drawing."""

    measures: str
    needs: str
    time: str


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
ABOUT = {
    "speed": About("seconds from a prompt to an image", "nothing", "2 min"),
    "vlm-speed": About("encoding a prompt, against transformers' own calls", "nothing", "2 min"),
    "geneval2": About("Soft-TIFA of 800 prompts", "--data --judge --out", "4 min"),
    "dpg": About("1,065 long prompts, four images each", "--data --judge --out", "20 min"),
    "gedit": About("edits: consistency and quality", "--data --judge --out", "6 min"),
    "references": About("compositions of your images", "--data --judge --out", "0.3 s per image"),
    "reconstruct": About("your images, at 1, 5 and 10 tiles", "--data --out", "1 s per image"),
    "drift": About("what your edits should leave alone", "--data --out", "0.5 s per image"),
    "judge": About("a judge's own exam", "--data --judge --out", "1 s per image"),
    "verifi": About("a benchmark with rewriting and without", "--of and what that needs", "2 x that of --of"),
    "layers": About("a benchmark without each tapped layer", "--of and what that needs", "6 x that of --of"),
}
