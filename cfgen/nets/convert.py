"""State dicts in MONAI's names -> ours: the modules have one order, only wrappers differ.

Names of MONAI (1.4 and later) and of its forerunner MONAI Generative are read alike; MONAI's
`load_old_state_dict` shows where the two differ.
"""

from __future__ import annotations

import re

from torch import Tensor

from cfgen.nets.blocks import current_name

# MONAI wraps every convolution in a module that names it `conv`.
_WRAPPER = re.compile(r"\.conv\.(weight|bias)$")
# The convolution after an enlargement, before MONAI called it `postconv`.
_ENLARGED = re.compile(r"(decoder\.blocks\.\d+|upsampler)\.conv\.")
# Self-attention, before MONAI gave it a module `attn` of its own.
_BARE_ATTENTION = re.compile(
    r"(attentions\.\d+|middle_block\.attention)\.(to_[qkv]|qkv|out_proj)\."
)
# A first layer that makes query, key and value at once (`use_combined_linear`).
_COMBINED = re.compile(r"\.qkv\.")

_CONTROL = {
    "controlnet_cond_embedding.": "mask_embed.",
    "controlnet_down_blocks.": "zero_skips.",
    "controlnet_mid_block.": "zero_middle.",
}


def unet_from_monai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of MONAI's DiffusionModelUNet, in the names of nets/unet.py."""
    return {_BARE_ATTENTION.sub(r"\1.attn.\2.", k): v for k, v in _split(_named(state)).items()}


def controlnet_from_monai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of MONAI's ControlNet whose masks have the latent's grid (one number of channels in
    `conditioning_embedding_num_channels`), in the names of nets/controlnet.py."""
    named = unet_from_monai(state)
    for theirs, ours in _CONTROL.items():
        named = {k.replace(theirs, ours): v for k, v in named.items()}
    return named


def autoencoder_from_monai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of MONAI's AutoencoderKL, in the names of nets/autoencoder.py."""
    return {k.replace(".attn.", "."): v for k, v in _split(_named(state)).items()}


def _named(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for key, value in state.items():
        name = current_name(_WRAPPER.sub(r".\1", key))
        name = _ENLARGED.sub(r"\1.postconv.", name)
        name = name.replace(".proj_attn.", ".out_proj.").replace(".to_out.0.", ".out_proj.")
        named[name] = value
    return named


def _split(state: dict[str, Tensor]) -> dict[str, Tensor]:
    split = {}
    for key, value in state.items():
        if not _COMBINED.search(key):
            split[key] = value
            continue
        for which, part in zip("qkv", value.chunk(3), strict=True):
            split[_COMBINED.sub(f".to_{which}.", key)] = part.clone()
    return split
