"""Time of a pair's MS-SSIM beside MONAI's, in one run, and what all pairs of 400 volumes take.

python benchmarks/msssim.py            # 80x96x88, seconds
python benchmarks/msssim.py --paper    # also 160x192x176 with the paper's scales, minutes
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

# As the command line does: it halves the time that is spent on fresh memory, ours and MONAI's.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics.regression import compute_ms_ssim

from cfgen.metrics.msssim import Scales, choose_pairs, ms_ssim_pairs, scales_for

VOLUMES = 24
PAIRS = 79_800


def volumes(shape: tuple[int, ...]) -> torch.Tensor:
    """Smooth volumes that share a part, so that the similarity is neither 0 nor 1."""
    made = torch.Generator().manual_seed(0)
    common, own = (
        F.interpolate(
            torch.rand(n, 1, *(s // k for s in shape), generator=made), shape, mode="trilinear"
        )[:, 0]
        for n, k in ((1, 16), (VOLUMES, 8))
    )
    return (common + 0.3 * own) / 1.3


def median_time(call: Callable[[], object], times: int = 3) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent))


def compare(shape: tuple[int, ...]) -> None:
    x, scales = volumes(shape), scales_for(shape)
    pairs = choose_pairs(VOLUMES, 10**6, 0)
    found = ms_ssim_pairs(x, pairs, scales)
    ours = median_time(lambda: ms_ssim_pairs(x, pairs, scales)) / len(pairs)
    theirs = median_time(lambda: monais(x, pairs[0], scales))
    expected = np.array([monais(x, p, scales) for p in pairs[:3]])
    off = np.abs(found[:3] - expected).max()
    print(
        f"{'x'.join(map(str, shape))}, {scales.name}: {1e3 * ours:.1f} ms a pair "
        f"({VOLUMES} volumes, their moments included), MONAI {1e3 * theirs:.0f} ms, "
        f"{theirs / ours:.0f} times; largest difference {off:.1e}; {PAIRS} pairs would take "
        f"{PAIRS * ours / 3600:.1f} h"
    )


def monais(x: torch.Tensor, pair: np.ndarray, scales: Scales) -> float:
    a, b = (x[int(i)][None, None] for i in pair)
    return float(compute_ms_ssim(a, b, 3, kernel_size=scales.window, weights=scales.weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paper", action="store_true")
    compare((80, 96, 88))
    if parser.parse_args().paper:
        compare((160, 192, 176))


if __name__ == "__main__":
    main()
