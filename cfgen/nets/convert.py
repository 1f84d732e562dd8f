"""State dicts in MONAI's names -> ours: the modules have one order, only wrappers differ."""

from __future__ import annotations

import re

from torch import Tensor

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
