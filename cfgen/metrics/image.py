"""Image similarity: PSNR and SSIM inside a mask."""

from __future__ import annotations

import numpy as np


def psnr(image: np.ndarray, reference: np.ndarray, mask: np.ndarray, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB over `mask`; infinite for equal images."""
    error = np.mean((image[mask].astype(np.float64) - reference[mask]) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def ssim(image: np.ndarray, reference: np.ndarray, mask: np.ndarray, peak: float = 1.0) -> float:
    """Mean structural similarity over `mask` (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    from scipy import ndimage

    def blur(x: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(x, 1.5, truncate=3.5))

    x, y = image.astype(np.float64), reference.astype(np.float64)
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    value = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(value[mask].mean())
