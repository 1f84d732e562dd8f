"""Random numbers that belong to a subject: the same in any shard, batch or process.

Philox is a counter: a subject's numbers lie at its own place, whoever asks for them.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

# What the numbers of a subject are for; each has a sequence of its own.
PARENTS, VOLUMES, SHAPE, TEXTURE, BIAS, NOISE, ACQUISITION = range(7)


def uniforms(seed: int, stream: int, start: int, stop: int, width: int) -> np.ndarray:
    """Numbers in (0, 1), float64 (stop - start, width), of subjects `start` to `stop` - 1."""
    # A step of the counter gives four numbers.
    steps = -(-width // 4)
    counter = np.random.Philox(key=_key(seed, stream))
    counter.advance(start * steps)
    raw = counter.random_raw((stop - start) * steps * 4).reshape(stop - start, -1)[:, :width]
    numbers: np.ndarray = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return numbers


def normals(seed: int, stream: int, start: int, stop: int, width: int) -> np.ndarray:
    """Standard normal numbers, as `uniforms`."""
    return np.asarray(ndtri(uniforms(seed, stream, start, stop, width)))


def generator(seed: int, stream: int, subject: int, part: int = 0) -> np.random.Generator:
    """A generator of any many numbers of one subject; `part` tells visits or fields apart."""
    return np.random.Generator(
        np.random.Philox(key=_key(seed, stream), counter=[0, 0, part, subject])
    )


def _key(seed: int, stream: int) -> np.ndarray:
    return np.array([seed, stream], np.uint64)
