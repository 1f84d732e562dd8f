"""State dicts in MONAI's names -> ours: the modules have one order, only wrappers differ."""

from __future__ import annotations

import re

from torch import Tensor

from cfgen.errors import BundleError

# MONAI wraps every convolution in a module that names it `conv`.
_WRAPPER = re.compile(r"\.conv\.(weight|bias)$")


def unet_from_monai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of MONAI's DiffusionModelUNet, in the names of nets/unet.py."""
    return {_unwrap(key): value for key, value in state.items()}


def autoencoder_from_monai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of MONAI's AutoencoderKL, in the names of nets/autoencoder.py."""
    renamed = {}
    for key, value in state.items():
        name = _unwrap(key)
        # AutoencoderKL's down- and upsampling keep one `conv` of their own; ours is that one.
        name = name.replace(".attn.", ".")
        renamed[name] = value
    return renamed


def _unwrap(key: str) -> str:
    return _WRAPPER.sub(r".\1", key)


def check_names(state: dict[str, Tensor], expected: dict[str, Tensor], where: object) -> None:
    """Raises BundleError naming weights that are missing, left over or of another shape."""
    faults = [f"{k} missing" for k in expected if k not in state]
    faults += [f"{k} left over" for k in state if k not in expected]
    faults += [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(expected[k].shape)}"
        for k in expected
        if k in state and state[k].shape != expected[k].shape
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f" and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise BundleError(where, shown, "the weights of this configuration")
