"""Random numbers by purpose: one function makes every stream of them.

A stream belongs to a seed, a purpose, a subject and a step. Philox is a counter: these four are its
place, so that no two streams meet, and a subject's numbers are the same in any shard, batch,
process or order.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


class Purpose(IntEnum):
    """What numbers are for. A number, once given, stays: cohorts of old seeds are made again."""

    # The simulator's tables (`uniforms`), and its images (`stream`).
    PARENTS = 0
    VOLUMES = 1
    SHAPE = 2
    TEXTURE = 3
    BIAS = 4
    NOISE = 5
    ACQUISITION = 6
    VISITS = 7
    MEASUREMENT = 8
    # Training: batches, what a loss draws by itself, first weights, views of an image, pictures.
    BATCHES = 20
    LOSS = 21
    WEIGHTS = 22
    VIEWS = 23
    PICTURES = 24
    # Samples of one counterfactual.
    SAMPLES = 30
    # Ratios of a person's rate to the cohort's (`causal/rates.py`).
    RATES = 31
    # Brains of nobody: their seeds (step 0) and noise (step 1).
    NOBODY = 33
    # Voxels of a diffusion decoder.
    VOXELS = 34
    # Other protocols of a scan (step 0), and their noise (a step each).
    PROTOCOLS = 35
    # The causal model: noise of categories that are observed, and people drawn again.
    GUMBEL = 40
    RESAMPLING = 41


def stream(
    seed: int, purpose: Purpose, subject: int | str = 0, step: int = 0
) -> np.random.Generator:
    """Any many numbers of one subject and step; a subject may be named by a text."""
    import numpy as np

    counter = [0, 0, step, _number(subject)]
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))


def torch_stream(
    seed: int, purpose: Purpose, subject: int | str = 0, step: int = 0
) -> torch.Generator:
    """As `stream`, for torch: on the CPU, so that every device gets the same numbers."""
    import torch

    first = int(stream(seed, purpose, subject, step).integers(2**63))
    return torch.Generator().manual_seed(first)


def uniforms(seed: int, purpose: Purpose, start: int, stop: int, width: int) -> np.ndarray:
    """Numbers in (0, 1), float64 (stop - start, width), of subjects `start` to `stop` - 1 at once.

    A purpose is for this or for `stream`, never for both.
    """
    import numpy as np

    # A step of the counter gives four numbers.
    steps = -(-width // 4)
    counter = np.random.Philox(key=_key(seed, purpose))
    counter.advance(start * steps)
    raw = counter.random_raw((stop - start) * steps * 4).reshape(stop - start, -1)[:, :width]
    numbers: np.ndarray = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return numbers


def normals(seed: int, purpose: Purpose, start: int, stop: int, width: int) -> np.ndarray:
    """Standard normal numbers, as `uniforms`."""
    import numpy as np
    from scipy.special import ndtri

    return np.asarray(ndtri(uniforms(seed, purpose, start, stop, width)))


def _key(seed: int, purpose: Purpose) -> np.ndarray:
    import numpy as np

    return np.array([seed % 2**64, purpose], np.uint64)


def _number(subject: int | str) -> int:
    if isinstance(subject, int):
        return subject
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big")
