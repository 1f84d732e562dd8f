"""Image similarity: PSNR and SSIM inside a mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def psnr(image: np.ndarray, reference: np.ndarray, mask: np.ndarray, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB over `mask`; infinite for equal images."""
    error = np.mean((image[mask].astype(np.float64) - reference[mask]) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def ssim(image: np.ndarray, reference: np.ndarray, mask: np.ndarray, peak: float = 1.0) -> float:
    """Mean structural similarity over `mask`."""
    return float(ssim_map(image, reference, peak)[mask].mean())


def ssim_map(image: np.ndarray, reference: np.ndarray, peak: float = 1.0) -> np.ndarray:
    """Structural similarity around each voxel (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    mx, my, vx, vy, vxy = _moments(image, reference)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


def ssim_structure(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, peak: float = 1.0
) -> float:
    """The structure term of SSIM alone, which brightness and contrast do not change (cDDGM)."""
    _, _, vx, vy, vxy = _moments(image, reference)
    c3 = (0.03 * peak) ** 2 / 2
    # Rounding may leave a variance a little below zero.
    value = (vxy + c3) / (np.sqrt(np.clip(vx, 0, None) * np.clip(vy, 0, None)) + c3)
    return float(value[mask].mean())


def _moments(image: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, ...]:
    """Local means, variances and covariance, all of the images' shape."""

    def blur(x: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(x, 1.5, truncate=3.5))

    x, y = image.astype(np.float64), reference.astype(np.float64)
    mx, my = blur(x), blur(y)
    return mx, my, blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
