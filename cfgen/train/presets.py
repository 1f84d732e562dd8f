"""Networks and losses of the presets; grids and lengths of training are in `config.PRESETS`."""

from __future__ import annotations

from dataclasses import dataclass

from cfgen.config import GRIDS
from cfgen.nets.autoencoder import AutoencoderConfig
from cfgen.nets.causal_autoencoder import CausalConfig
from cfgen.nets.diffusion_decoder import DecoderConfig
from cfgen.train.autoencoder import AUTOENCODER, CROP, AutoencoderLoss
from cfgen.train.causal_autoencoder import CAUSAL, Causal
from cfgen.train.diffusion_decoder import RECIPE, DecoderRecipe
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, LatentDiffusionConfig, schedule_for


@dataclass(frozen=True)
class Networks:
    """`crop` is what the autoencoder sees of a scan in a step."""

    autoencoder: AutoencoderConfig
    loss: AutoencoderLoss
    crop: tuple[int, int, int]
    diffusion: LatentDiffusionConfig
    causal: Causal
    decoder: DecoderRecipe = RECIPE


NETWORKS = {
    "t1w-2mm": Networks(AUTOENCODER, AutoencoderLoss(), CROP, LATENT_DIFFUSION, CAUSAL),
    # CDM, section 4.3: three downsamplings, 8 latent channels, UNet 384/512/512 with
    # cross-attention on the last two levels; L1 + 0.005 adversarial + 1e-7 KL on whole scans. Not
    # stated there are the widths of the autoencoder, blocks a level, when the adversary joins and
    # channels of a head.
    "cdm-1mm": Networks(
        AutoencoderConfig(
            channels=(32, 64, 128, 128),
            res_blocks=(2, 2, 2, 2),
            attention=(False, False, False, False),
            latent_channels=8,
            norm_groups=32,
        ),
        AutoencoderLoss(
            gradient=0.0,
            background=1.0,
            kl=1e-7,
            kl_summed=True,
            adversarial=0.005,
            adversarial_from=0.05,
            critic_channels=32,
        ),
        GRIDS["cdm-1mm"][0],
        LatentDiffusionConfig(
            schedule_for("eps"),
            latent_mean=False,
            channels=(384, 512, 512),
            res_blocks=2,
            head_channels=64,
            norm_groups=32,
        ),
        # PCGM: OpenSora's network, crops of 101 x 104 x 104.
        Causal(CausalConfig((128, 256, 512, 512), 2, 4, slices=176), edge=104),
        # As wide as PCGM's decoder at its finest level, with two levels for four: the latent knows
        # what lies far.
        DecoderRecipe(DecoderConfig((56, 112), 0), (96, 96, 96)),
    ),
}
