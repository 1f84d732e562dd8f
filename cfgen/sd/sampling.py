"""Slices from prompts, and edits of slices, by diffusers' own pipelines under drifting schedulers.

Noise comes from a generator on the CPU, so that every device makes the same slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionPix2PixZeroPipeline,
)
from torch import Tensor

from cfgen.config import SD_EDIT, SdEdit, SdSampler
from cfgen.diffusion.drift import Drift
from cfgen.sd.model import SdModel
from cfgen.sd.schedulers import SAMPLERS, DriftingDDIMInverseScheduler, drifting


@dataclass(frozen=True)
class Sampling:
    """`drift` is the sampler's; the network's own is the model's."""

    drift: Drift
    sampler: SdSampler = "ddim"
    edit: SdEdit = SD_EDIT

    def scheduler(self, model: SdModel) -> Any:
        return drifting(SAMPLERS[self.sampler], model.levels, model.card.trained, self.drift)


@dataclass(frozen=True)
class Edited:
    """Pictures (3, S, S): the edit, and what the model sees of the source without one."""

    picture: Tensor
    rebuilt: Tensor


@torch.no_grad()
def generate(
    model: SdModel, prompts: Sequence[str], noise: Tensor, sampling: Sampling, seed: int
) -> Tensor:
    """Clean latents (N, C, s, s) of prompts, from `noise` of that shape."""
    pipeline = _quiet(
        StableDiffusionPipeline(
            **_parts(model),
            scheduler=sampling.scheduler(model),
            requires_safety_checker=False,
        )
    )
    return _latents(
        pipeline(
            list(prompts),
            num_inference_steps=sampling.edit.steps,
            guidance_scale=sampling.edit.guidance,
            latents=_start(model, noise),
            generator=_generator(seed),
            output_type="latent",
        )
    )


@torch.no_grad()
def instruct(
    model: SdModel, picture: Tensor, instruction: str, noise: Tensor, sampling: Sampling, seed: int
) -> Edited:
    """InstructPix2Pix (Brooks et al. 2023): a picture (3, S, S) changed as a sentence says."""
    pipeline = _quiet(
        StableDiffusionInstructPix2PixPipeline(
            **_parts(model),
            scheduler=sampling.scheduler(model),
            requires_safety_checker=False,
        )
    )
    source = model.encode(picture[None])
    made = _latents(
        pipeline(
            instruction,
            # Its network was taught with sources that are not scaled.
            image=source / model.vae.config.scaling_factor,
            num_inference_steps=sampling.edit.steps,
            guidance_scale=sampling.edit.guidance,
            image_guidance_scale=sampling.edit.image_guidance,
            latents=_start(model, noise),
            generator=_generator(seed),
            output_type="latent",
        )
    )
    return Edited(model.decode(made)[0], model.decode(source)[0])


def zero_shot(
    model: SdModel,
    picture: Tensor,
    caption: str,
    concepts: tuple[Sequence[str], Sequence[str]],
    sampling: Sampling,
    seed: int,
) -> Edited:
    """Pix2Pix-Zero (Parmar et al. 2023): a picture (3, S, S) under `caption` is inverted, and
    denoised again in the direction from the first sentences to the second.

    The inversion undoes DDIM steps of the same drift; so DDIM it has to be.
    """
    pipeline = _quiet(
        StableDiffusionPix2PixZeroPipeline(
            **_parts(model),
            scheduler=sampling.scheduler(model),
            inverse_scheduler=drifting(
                DriftingDDIMInverseScheduler, model.levels, model.card.trained, sampling.drift
            ),
            caption_generator=None,
            caption_processor=None,
            requires_safety_checker=False,
        )
    )
    steps = sampling.edit.steps
    with _own_attention(model):
        generator = _generator(seed)
        noise = pipeline.invert(
            caption,
            image=model.encode(picture[None]),
            num_inference_steps=steps,
            generator=generator,
            output_type="latent",
        ).latents
        before, after = (pipeline.get_embeds(list(c)) for c in concepts)
        made = _latents(
            pipeline(
                caption,
                source_embeds=before,
                target_embeds=after,
                num_inference_steps=steps,
                guidance_scale=sampling.edit.guidance,
                # Guidance goes from the scan's own caption, so that it exaggerates the direction
                # alone, and without one the scan comes back.
                negative_prompt=caption,
                cross_attention_guidance_amount=sampling.edit.attention,
                latents=noise,
                generator=generator,
                output_type="latent",
            )
        )
    plain = Sampling(sampling.drift, sampling.sampler, SdEdit(steps, guidance=1.0))
    rebuilt = generate(model, [caption], model.card.trained.minus(noise), plain, seed)
    return Edited(model.decode(made)[0], model.decode(rebuilt)[0])


def _parts(model: SdModel) -> dict[str, Any]:
    return {
        "vae": model.vae,
        "text_encoder": model.text_encoder,
        "tokenizer": model.tokenizer,
        "unet": model.unet,
        "safety_checker": None,
        "feature_extractor": None,
    }


def _start(model: SdModel, noise: Tensor) -> Tensor:
    """The noisiest latent, where the network was trained."""
    return model.card.trained.plus(noise).to(model.device)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _latents(output: Any) -> Tensor:
    return torch.as_tensor(output.images)


def _quiet(pipeline: DiffusionPipeline) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _own_attention(model: SdModel) -> Iterator[None]:
    """Pix2Pix-Zero puts its own attention into the network: it is taken out again."""
    before = model.unet.attn_processors
    try:
        yield
    finally:
        model.unet.set_attn_processor(before)
        model.unet.requires_grad_(False)
