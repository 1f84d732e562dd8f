"""A Stable Diffusion of a few thousand random weights, its tokenizer too, and scans to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cfgen.data.volume import Volume, write_new

ENDS = ("<|startoftext|>", "<|endoftext|>")


def make_tokenizer() -> CLIPTokenizer:
    """Letters alone: every word is spelt."""
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *ENDS]
    return CLIPTokenizer(
        vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77
    )


def make_pipeline(folder: Path) -> Path:
    """Saved as diffusers saves it, with the noise levels of Stable Diffusion 1.4."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    return folder


def make_scan(path: Path, seed: int) -> Path:
    """An ellipsoid with a texture, int16, stored front to back, up and to the left."""
    random = np.random.default_rng(seed)
    shape = (14, 12, 16)
    i, j, k = np.indices(shape)
    inside = ((i - 6.5) / 6) ** 2 + ((j - 5.5) / 5.5) ** 2 + ((k - 7.5) / 6.5) ** 2 < 1
    data = np.where(inside, 600 + 80 * random.standard_normal(shape), 0).clip(0)
    affine = np.array([[0, 0, -2.0, 15], [-2, 0, 0, 13], [0, 2.5, 0, -14], [0, 0, 0, 1]])
    write_new(Volume(data.astype(np.float32), affine), path, np.int16)
    return path


def make_cohort(folder: Path, train: int = 5, visits: int = 1) -> Path:
    """A manifest of people with so many visits each, one of them held out."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["subject,session,image,age,sex,diagnosis,split"]
    for person in range(train + 1):
        split = "train" if person < train else "val"
        for visit in range(visits):
            name = f"p{person}_{visit}.nii.gz"
            make_scan(folder / name, 10 * person + visit)
            age, sex = 60 + person + 4 * visit, "MF"[person % 2]
            diagnosis = "CN" if visit == 0 and person % 2 else "AD"
            lines.append(f"p{person},{visit},{name},{age},{sex},{diagnosis},{split}")
    manifest = folder / "cohort.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
