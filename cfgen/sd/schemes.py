"""The five schemes: which weights each trains, and what is left of them when it ends.

`Trained` holds the very parameters of the model that learn, and nothing else of it: an optimizer,
a moving average and a checkpoint of a scheme are as small as the scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from cfgen.config import SdScheme
from cfgen.errors import BundleError, UsageError
from cfgen.sd.model import SdModel
from cfgen.sd.prompts import NOUN

# Textual Inversion's new word, and the rare one that DreamBooth takes (Ruiz et al. 2023).
NEW_WORD = "<brain-mri>"
RARE_WORD = "sks"
_NOUNS: dict[SdScheme, str] = {"condition": NEW_WORD, "prior": f"{RARE_WORD} {NOUN}"}
# Where low-rank changes are: the attention's projections, as diffusers' script has them.
_LORA_RANK = 4
_LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


class Trained(nn.Module):
    """The parameters that learn, under their names in the model."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            # A name in a module has no dots.
            self.register_parameter(name.replace(".", "/"), parameter)
            parameter.requires_grad_(True)

    @contextmanager
    def lent(self, other: nn.Module) -> Iterator[None]:
        """Inside, the model has the values of `other`, such as a moving average."""
        own = [p.detach().clone() for p in self.parameters()]
        self.take(other)
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters(), own, strict=True):
                parameter.data.copy_(value)

    def take(self, other: nn.Module) -> None:
        """The values of `other` for good."""
        for parameter, value in zip(self.parameters(), other.parameters(), strict=True):
            parameter.data.copy_(value.data)


@dataclass(frozen=True)
class Scheme:
    """`noun` is what prompts call the image; `finish` puts what was learnt where diffusers looks
    for it in the model."""

    model: SdModel
    trained: Trained
    noun: str
    finish: Callable[[], None]


def prepare_scheme(tune: SdScheme, model: SdModel) -> Scheme:
    """Make `model` ready to be trained; only `Scheme.trained` of it requires gradients.

    Low-rank changes start from torch's own generator. Raises BundleError for a model that has the
    scheme's new word already.
    """
    if tune == "condition":
        parameters, finish = _new_word(model)
    elif tune == "lora":
        parameters, finish = _low_rank(model.unet)
    else:
        parameters, finish = dict(model.unet.named_parameters()), _nothing
        if tune == "cross-attn":
            # attn2 attends to the text (Kumari et al. 2023, section 3.2).
            parameters = {
                n: p for n, p in parameters.items() if "attn2.to_k." in n or "attn2.to_v." in n
            }
    noun = _NOUNS.get(tune, model.card.noun)
    return Scheme(model, Trained(parameters), noun, finish)


def widened(model: SdModel) -> SdModel:
    """InstructPix2Pix's network: its first layer also takes the latent of a source, with weights
    of zero to begin with (Brooks et al. 2023, section 3.2)."""
    unet, first = model.unet, model.unet.conv_in
    wide = nn.Conv2d(
        2 * model.channels, first.out_channels, first.kernel_size, first.stride, first.padding
    ).to(first.weight.device)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : model.channels] = first.weight
        wide.bias = first.bias
    unet.conv_in = wide.requires_grad_(False)
    unet.register_to_config(in_channels=2 * model.channels)
    return model


def refuse_pairs(tune: SdScheme, model: SdModel) -> None:
    """Raises UsageError for a scheme that cannot learn to edit."""
    if tune == "prior":
        found, expected = "with --pairs: samples of the parent have no source", "another scheme"
    elif tune != "full" and not model.edits:
        found = "with --pairs: the new inputs of the network would stay at zero"
        expected = "full, or an InstructPix2Pix model to begin with"
    else:
        return
    raise UsageError(f"--tune {tune}", found, expected)


Learnt = tuple[dict[str, nn.Parameter], Callable[[], None]]


def _nothing() -> None:
    """Weights that were trained in their place are there already."""


def _new_word(model: SdModel) -> Learnt:
    tokenizer, encoder = model.tokenizer, model.text_encoder
    start = tokenizer(NOUN, add_special_tokens=False).input_ids
    if tokenizer.add_tokens([NEW_WORD]) != 1:
        raise BundleError(model.folder, f"knows the word {NEW_WORD} already", "a model without it")
    table = encoder.get_input_embeddings()
    row = nn.Parameter(table.weight[start].mean(0).clone())
    # A table may have more rows than there are words.
    rows = max(len(tokenizer), len(table.weight))
    encoder.resize_token_embeddings(rows, mean_resizing=False)
    table = encoder.get_input_embeddings().requires_grad_(False)
    number = tokenizer.convert_tokens_to_ids(NEW_WORD)

    def replaced(module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        # The row is looked up nowhere else: the table itself stays as it was.
        return torch.where((inputs[0] == number)[..., None], row.to(out.dtype), out)

    hook = table.register_forward_hook(replaced)

    def finish() -> None:
        hook.remove()
        with torch.no_grad():
            table.weight[number] = row

    return {"new_word": row}, finish


def _low_rank(unet: Any) -> Learnt:
    unet.add_adapter(
        LoraConfig(
            r=_LORA_RANK,
            lora_alpha=_LORA_RANK,
            init_lora_weights="gaussian",
            target_modules=_LORA_LAYERS,
        )
    )
    parameters = {n: p for n, p in unet.named_parameters() if "lora_" in n}

    def finish() -> None:
        # Into the weights themselves, so that the folder is one of diffusers' own.
        unet.fuse_lora()
        unet.unload_lora()

    return parameters, finish
