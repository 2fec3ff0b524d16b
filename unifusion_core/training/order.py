"""The order of training samples: a pure function of (seed, position), without state and without shuffle buffers.

Position k of a run takes one sample of one source. The source is drawn by its share; within a source, every epoch is a
permutation of all samples. So a resumed run, any number of processes and any number of workers see the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# positions whose sources are drawn together
_CHUNK = 4096


class SampleOrder:
    """Which sample each position takes.

    counts    samples of each source
    weights   share of each source, or None: those without a share divide the rest by their counts times `repeats`
    repeats   how often an epoch of the run has each sample of a source
    """

    def __init__(
        self, counts: Sequence[int], weights: Sequence[float | None], repeats: Sequence[int], seed: int
    ) -> None:
        self.counts, self.seed = list(counts), seed
        rest = 1 - sum(weight or 0 for weight in weights)
        sizes = [
            0 if weight else count * times
            for count, weight, times in zip(counts, weights, repeats, strict=True)
        ]
        self.shares = [
            weight or rest * size / sum(sizes) for weight, size in zip(weights, sizes, strict=True)
        ]
        # draws of each source before each chunk
        self._before = [np.zeros(len(counts), dtype=np.int64)]

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(source, index within it) of a position."""
        chunk, place = divmod(position, _CHUNK)
        while len(self._before) <= chunk:
            drawn = np.bincount(self._sources(len(self._before) - 1), minlength=len(self.counts))
            self._before.append(self._before[-1] + drawn)
        sources = self._sources(chunk)
        source = int(sources[place])
        number = int(self._before[chunk][source] + (sources[:place] == source).sum())
        epoch, index = divmod(number, self.counts[source])
        return source, int(_permutation(self.seed, source, epoch, self.counts[source])[index])

    def _sources(self, chunk: int) -> np.ndarray:
        return _sources(self.seed, chunk, tuple(self.shares))


@lru_cache(maxsize=4)
def _sources(seed: int, chunk: int, shares: tuple[float, ...]) -> np.ndarray:
    """The sources of one chunk of positions."""
    return np.random.default_rng([seed, 0, chunk]).choice(len(shares), _CHUNK, p=shares)


@lru_cache(maxsize=16)
def _permutation(seed: int, source: int, epoch: int, count: int) -> np.ndarray:
    """The order of a source's samples in one epoch."""
    return np.random.default_rng([seed, 1 + source, epoch]).permutation(count)
