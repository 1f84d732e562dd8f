"""The configuration of a network from the shapes of its weights.

Weights are in the names of our networks (nets/convert.py). Groups of norms, channels of a head and
the small number in a norm leave no trace in the shapes: they come from the caller. What our
networks cannot do raises ValueError, in MONAI's words; a weight that is not there, KeyError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from cfgen.nets.autoencoder import AutoencoderConfig
from cfgen.nets.unet import UNetConfig

State = dict[str, Tensor]

# Residual block and attention: the residual blocks and attentions of a level are a word of these.
_RES, _ATTENTION = "R", "A"
_MIDDLE = "RAR"


def autoencoder_config(state: State, norm_groups: int, norm_eps: float) -> AutoencoderConfig:
    """Raises ValueError or KeyError, as the file says."""
    _check_3d(state["encoder.blocks.0.weight"])
    if any(".deconv." in key for key in state):
        raise ValueError("transposed convolutions (use_convtranspose=True)")
    _check_last_layers(state)
    encoder = _words(state, "encoder", "conv")
    # The decoder is the encoder from behind, but the middle stands before its first level.
    decoder = _words(state, "decoder", "postconv")
    middle = encoder[-1].endswith(_MIDDLE), decoder[0].startswith(_MIDDLE + _RES)
    if middle[0] != middle[1]:
        text = "with_encoder_nonlocal_attn={}, with_decoder_nonlocal_attn={}".format(*middle)
        raise ValueError(f"a middle in one half alone ({text})")
    if middle[0]:
        encoder[-1], decoder[0] = encoder[-1][: -len(_MIDDLE)], decoder[0][len(_MIDDLE) :]
    if encoder != decoder[::-1]:
        raise ValueError(f"levels {'-'.join(encoder)} on the way in, {'-'.join(decoder)} back")
    ends = state["encoder.blocks.0.weight"].shape[1], _last(state, "decoder").shape[0]
    if ends != (1, 1):
        raise ValueError("images of {} channels in and {} out".format(*ends))
    return AutoencoderConfig(
        channels=_widths(state, encoder),
        res_blocks=tuple(word.count(_RES) for word in encoder),
        attention=tuple(_ATTENTION in word for word in encoder),
        latent_channels=_last(state, "encoder").shape[0],
        middle_attention=middle[0],
        norm_groups=norm_groups,
        norm_eps=norm_eps,
    )


def unet_config(
    state: State, head_channels: int | tuple[int, ...], norm_groups: int, norm_eps: float
) -> UNetConfig:
    """Raises ValueError or KeyError, as the file says."""
    _check_3d(state["conv_in.weight"])
    if "class_embedding.weight" in state:
        classes = state["class_embedding.weight"].shape[0]
        raise ValueError(f"class embeddings (num_class_embeds={classes})")
    if any("sampler.conv1." in key for key in state):
        raise ValueError("residual blocks that change the resolution (resblock_updown=True)")
    _check_last_layers(state)
    levels = range(_count(state, "down_blocks"))
    blocks = [_count(state, f"down_blocks.{level}.resnets") for level in levels]
    if len(set(blocks)) != 1:
        raise ValueError(f"other numbers of blocks on other levels (num_res_blocks={blocks})")
    middle = "middle_block.attention.transformer_blocks"
    layers = _count(state, middle)
    context = state[f"{middle}.0.attn2.to_k.weight"].shape[1] if layers else None
    return UNetConfig(
        in_channels=state["conv_in.weight"].shape[1],
        out_channels=state["out.2.weight"].shape[0],
        channels=tuple(
            state[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels
        ),
        res_blocks=blocks[0],
        attention=tuple(_count(state, f"down_blocks.{level}.attentions") > 0 for level in levels),
        head_channels=head_channels,
        context_dim=context,
        transformer_layers=max(layers, 1),
        norm_groups=norm_groups,
        norm_eps=norm_eps,
    )


def _check_3d(first: Tensor) -> None:
    if first.ndim != 5:
        raise ValueError(f"a network of {first.ndim - 2}D images (spatial_dims)")


def _check_last_layers(state: State) -> None:
    for key in state:
        if key.endswith(".to_q.weight") and key.replace(".to_q.", ".out_proj.") not in state:
            raise ValueError("attention without a last linear layer (include_fc=False)")


def _count(state: State, prefix: str) -> int:
    """How many modules there are in a list of modules."""
    return 1 + max(_numbers(state, prefix), default=-1)


def _numbers(state: State, prefix: str) -> Iterable[int]:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return {int(match[1]) for key in state if (match := pattern.match(key))}


def _words(state: State, half: str, resampling: str) -> list[str]:
    """The levels of an encoder or decoder in their order, each as a word such as 'RARA'."""
    words = [""]
    for number in sorted(_numbers(state, f"{half}.blocks")):
        block = f"{half}.blocks.{number}"
        if f"{block}.conv1.weight" in state:
            words[-1] += _RES
        elif f"{block}.to_q.weight" in state:
            words[-1] += _ATTENTION
        elif f"{block}.{resampling}.weight" in state:
            words.append("")
    return words


def _last(state: State, half: str) -> Tensor:
    """The weight of the last convolution."""
    count = _count(state, f"{half}.blocks")
    return state[f"{half}.blocks.{max(count - 1, 0)}.weight"]


def _widths(state: State, words: list[str]) -> tuple[int, ...]:
    """The channels of each level, read off its first residual block."""
    first, widths = 1, []
    for word in words:
        widths.append(state[f"encoder.blocks.{first}.conv1.weight"].shape[0])
        first += len(word) + 1
    return tuple(widths)
