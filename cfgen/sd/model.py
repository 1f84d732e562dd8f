"""A diffusers folder of Stable Diffusion on disk, and what cfgen knows of it (`cfgen.json`).

Parts are opened one by one by their class: no download, no pickle, no code of the folder's own. A
folder that cfgen wrote is one that diffusers opens too.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cfgen.config import AgeWords, PromptKind, SdScheme
from cfgen.data.record import Software, key, read_record, this_software, write_record
from cfgen.data.volume import file_sha256
from cfgen.diffusion.drift import Drift
from cfgen.errors import BundleError, UsageError
from cfgen.sd.prompts import NOUN, Style

CARD = "cfgen.json"
INDEX = "model_index.json"
_EXPECTED = "a folder of Stable Diffusion 1 or 2 that diffusers' save_pretrained wrote"
_WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


@dataclass(frozen=True)
class Card:
    """What a fine-tuned folder remembers: the scheme, the drift it was trained with, how its
    prompts were worded, and what it saw."""

    tune: SdScheme | None = None
    drift: list[float] = field(default_factory=lambda: [0.0])
    noun: str = NOUN
    prompts: PromptKind = "diverse"
    patient: bool = True
    age_words: AgeWords = "number"
    diagnoses: list[str] = field(default_factory=list)
    scans: int = 0
    slices: int = 0
    steps: int = 0
    seed: int = 0
    held_out_error: list[float] = field(default_factory=list)
    parent: str = ""
    parent_unet_sha256: str = key("ParentUnetSHA256", "")
    generated_by: list[Software] = field(default_factory=this_software)

    @property
    def trained(self) -> Drift:
        return Drift(tuple(self.drift))

    @property
    def style(self) -> Style:
        return Style(self.prompts, self.patient, self.age_words)


@dataclass(frozen=True)
class SdModel:
    """The parts of a folder, in float32 on one device; `levels` is the configuration of its noise
    levels."""

    folder: Path
    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    levels: dict[str, Any]
    card: Card

    @property
    def device(self) -> torch.device:
        return torch.device(self.vae.device)

    @property
    def channels(self) -> int:
        """Of the latent."""
        return int(self.vae.config.latent_channels)

    @property
    def edits(self) -> bool:
        """Whether it is InstructPix2Pix's: the network takes the latent of a source too."""
        return int(self.unet.config.in_channels) == 2 * self.channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, s, s) that the network was trained for."""
        side = self.unet.config.sample_size
        side = int(side if isinstance(side, int) else max(side))
        return self.channels, side, side

    @property
    def size(self) -> int:
        """The side of its pictures, pixels."""
        return self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (N, C, s, s) of pictures (N, 3, S, S), the mode, in the units of the network."""
        mode = self.vae.encode(pictures.to(self.device)).latent_dist.mode()
        return torch.as_tensor(mode * self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, S, S) of latents, the inverse of `encode`."""
        return torch.as_tensor(self.vae.decode(latents / self.vae.config.scaling_factor).sample)

    def read(self, prompts: list[str]) -> Tensor:
        """What the network is told: (N, L, D). A prompt that is too long is cut."""
        ids = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return torch.as_tensor(self.text_encoder(ids.to(self.device))[0])


def open_model(folder: Path, device: torch.device) -> SdModel:
    """Raises BundleError for a folder that is none, lacks a part, or has weights as pickles."""
    _check_folder(folder)
    opened: dict[str, Any] = {}
    parts: dict[str, Any] = {
        "tokenizer": CLIPTokenizer,
        "text_encoder": CLIPTextModel,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        # Of any kind: what is taken of it is the noise levels.
        "scheduler": DDIMScheduler,
    }
    for name, kind in parts.items():
        safe = {"use_safetensors": True} if name in _WEIGHTS else {}
        try:
            opened[name] = kind.from_pretrained(str(folder / name), local_files_only=True, **safe)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:300]
            raise BundleError(folder / name, f"cannot be opened ({said})", _EXPECTED) from error
    card = folder / CARD
    known = read_record(Card, card, "what sd-tune wrote") if card.exists() else Card()
    networks = {n: opened[n].to(device).eval().requires_grad_(False) for n in _WEIGHTS}
    levels = _noise_levels(opened["scheduler"].config)
    model = SdModel(folder, opened["tokenizer"], **networks, levels=levels, card=known)
    own = int(model.unet.config.in_channels)
    if own not in (model.channels, 2 * model.channels):
        found = f"its network takes {own} channels, of a latent of {model.channels}"
        raise BundleError(folder, found, f"{_EXPECTED}, or InstructPix2Pix", "no inpainting model")
    return model


def _noise_levels(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration, with what is ours to say: latents are never clipped, which
    diffusers does where a file is silent, and steps are even, as its DDIM takes them anyway."""
    levels = {name: value for name, value in config.items() if name != "_use_default_values"}
    return levels | {"clip_sample": False, "timestep_spacing": "leading"}


def _check_folder(folder: Path) -> None:
    if not (folder / INDEX).is_file():
        raise BundleError(folder, f"has no {INDEX}", _EXPECTED, "check the path")
    for name, file in _WEIGHTS.items():
        shards = f"{file}.index.json"
        if not ((folder / name / file).is_file() or (folder / name / shards).is_file()):
            raise BundleError(
                folder / name,
                f"has no {file}",
                "weights as safetensors, never as pickles (.bin)",
                "save it anew with save_pretrained(FOLDER, safe_serialization=True)",
            )


def unet_sha256(folder: Path) -> str:
    """Of the network's weights, or of the list of their parts."""
    file = folder / "unet" / _WEIGHTS["unet"]
    return file_sha256(file if file.is_file() else file.with_name(file.name + ".index.json"))


def refuse_other_folder(out: Path) -> None:
    """Raises UsageError where something is there that is no model: it is not replaced."""
    if out.exists() and not (out / INDEX).is_file():
        found = "is there already and is no folder of Stable Diffusion"
        raise UsageError(out, found, fix="use another --out")


def save_model(model: SdModel, card: Card, out: Path) -> None:
    """Write a folder that diffusers opens, whole or not at all; what was there is replaced."""
    kind = StableDiffusionInstructPix2PixPipeline if model.edits else StableDiffusionPipeline
    pipeline = kind(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(model.levels),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.save_pretrained(str(part), safe_serialization=True)
    write_record(card, part / CARD)
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)
