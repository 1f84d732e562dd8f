"""Every default, once, with its unit and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SEED = 0

# How an autoencoder is built: plain, or causal along the slices (nets/causal_autoencoder.py).
Arch = Literal["plain", "causal"]

# The model grids: voxels and spacing (mm). They share one field of view in this template space,
# given by its lower corner in RAS mm.
GRIDS = {"t1w-2mm": ((80, 96, 88), 2.0), "cdm-1mm": ((160, 192, 176), 1.0)}
DEFAULT_GRID = "t1w-2mm"
TEMPLATE_SPACE = "MNI152NLin2009aSym"
FIELD_OF_VIEW_CORNER_MM = (-80.0, -113.0, -83.0)

# Where torch, MKL and ITK read how many threads they may have.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")

WORK_SPACING_MM = 2.0


@dataclass(frozen=True)
class Preprocess:
    """How a scan comes to the model grid; part of the bundle."""

    grid: str = DEFAULT_GRID
    # Bias field and registration are estimated on a copy of about this spacing (mm).
    work_spacing_mm: float = WORK_SPACING_MM
    n4_iterations: tuple[int, ...] = (30, 30, 30)
    n4_shrink: int = 3
    n4_tolerance: float = 1e-4
    # This percentile of the brain becomes 1; evaluation.md section 0 scales the same way.
    intensity_percentile: float = 99.5
    # Brighter voxels (vessels, fat left by a generous mask) are cut here.
    intensity_cap: float = 1.2


PREPROCESS = Preprocess()

# By what a counterfactual is made: a diffusion model under other conditions alone (edit/latent.py),
# the scan's own tissue moved (edit/tissue.py), the diffusion model under edited masks of regions
# too (edit/masked.py), or moved tissue in which that model fills what is new (edit/filled.py). The
# default is moved tissue where the bundle can.
By = Literal["conditions", "tissue", "masks", "tissue+masks"]

# How an edit reaches the scan: its own tissue moved, or an edit on the model grid brought there
# (scan/render.py).
Render = Literal["tissue", "residual", "warp", "latent"]

# Whose rate of ageing a counterfactual goes at (causal/rates.py): how people of different age
# differ, or how one person changes.
Rates = Literal["cohort", "within"]
RATES: Rates = "cohort"

# Of a scan under another protocol (edit/rerender.py): its bias field, where 'target' is the scan's
# own, as much stronger or weaker as the target's field strength has it; and its noise, where 'own'
# is scaled in its place, and 'fresh' adds what is missing.
BiasField = Literal["keep", "remove", "target"]
NoiseOf = Literal["keep", "own", "fresh"]

# How the simulator makes a true counterfactual: the anatomy anew, with the subject's shape and
# noise, or the partial volumes of the factual one changed at borders.
TruthBy = Literal["anatomy", "partial-volumes"]

# How a brain is found when no mask is given (scan/brain.py).
SkullStrip = Literal["auto", "none", "template", "synthstrip", "hd-bet"]
SKULL_STRIP: SkullStrip = "auto"


# What guidance of an edit leads away from: a network that is told no conditions (Ho & Salimans
# 2022); the factual conditions and masks, so that it exaggerates what the edit changes alone; or
# the factual masks under the new conditions, so that it exaggerates what masks change.
GuidedFrom = Literal["nothing", "factual", "masks"]


@dataclass(frozen=True)
class Edit:
    """How far a latent is inverted and how it is denoised again."""

    steps: int = 10
    # The inversion stops at this fraction of T: enough to change anatomy, little enough to keep
    # the subject. At 0 the latent mean alone makes the edit.
    depth: float = 0.6
    fixed_point: int = 2
    guidance: float = 1.0
    guidance_from: GuidedFrom = "nothing"
    # As --drift says it (diffusion/drift.py); None: the bundle's own.
    drift: str | None = None


EDIT = Edit()


# How noise is taken away under another acquisition: drawn anew at every step, or not at all, after
# an inversion under the scan's own.
AcquisitionSampler = Literal["ddpm", "ddim"]


@dataclass(frozen=True)
class Rediffusion:
    """A scan under another acquisition by diffusion: noise to `start_t` of 1000, and back under
    guidance, in at most so many steps; 'ddpm' takes all."""

    start_t: int
    guidance: float
    sampler: AcquisitionSampler
    most_steps: int = 25

    @property
    def steps(self) -> int:
        return self.start_t if self.sampler == "ddpm" else min(self.most_steps, self.start_t)


# By sampler. Contrast is a direction that all voxels share: what is inverted to less than all of
# the noise keeps it (docs/acquisition.md). 'ddpm' as in cDDGM, Algorithm 1.
REDIFFUSION = {
    "ddim": Rediffusion(1000, 1.0, "ddim"),
    "ddpm": Rediffusion(50, 3.0, "ddpm"),
}


@dataclass(frozen=True)
class Decoding:
    """How a diffusion decoder denoises voxels: DPM-Solver++ steps, and voxels along the edge of a
    tile, 0 for the whole image at once."""

    steps: int = 8
    tile: int = 0


DECODING = Decoding()
# What turns latents into images: the autoencoder's own decoder, or a diffusion model of voxels.
DecoderKind = Literal["kl", "diffusion"]

Sampling = Literal["ddim", "dpm++"]


@dataclass(frozen=True)
class Generation:
    """How a latent is denoised from noise alone."""

    # DPM-Solver++ in 20 steps ends where DDIM does in 50.
    sampler: Sampling = "ddim"
    steps: int = 50
    guidance: float = 1.0
    # As in `Edit`.
    drift: str | None = None


GENERATION = Generation()


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast; `steps` is also the length of the cosine schedule."""

    steps: int
    learning_rate: float
    batch_size: int = 1
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema_decay: float = 0.995
    checkpoint_every: int = 250
    report_every: int = 500
    seed: int = 0


# What the network of a diffusion model says, how noise levels count in its loss
# (diffusion/weights.py), and how conditions come into it (nets/unet.py).
Prediction = Literal["v", "eps", "z0"]
LossWeights = Literal["uniform", "min-snr"]
Conditioning = Literal["attention", "norm", "both"]
# Latents are standardised by a spread for each channel, or by one for all: then a channel counts in
# the loss as much as it varies. Of one for all, the network may be told the spread of each voxel
# (diffusion/preconditioning.py).
LatentScale = Literal["channel", "all", "voxel"]
PREDICTION: Prediction = "v"
LOSS_WEIGHTS: LossWeights = "uniform"
CONDITIONING: Conditioning = "attention"
LATENT_SCALE: LatentScale = "channel"
# Of the noise schedule (diffusion/schedule.py).
NOISE_SHIFT = 1.0
# Of latents whose conditions are acquisitions: contrast is what all voxels agree on, and unshifted
# it is decided in the last hundredth of the noise (docs/acquisition.md).
ACQUISITION_NOISE_SHIFT = 8.0

# How masks of regions come into a diffusion model (nets/controlnet.py): by a control network beside
# the UNet, or as further channels of its input.
Control = Literal["masks", "concatenate"]

# The condition of the first term of a cycle step (diffusion/cycle.py): 'target' is c', as CDM's
# Eq. 2 is printed, 'factual' c.
FirstTerm = Literal["factual", "target"]


@dataclass(frozen=True)
class Cycle:
    """How a diffusion model is fine-tuned with the cycle. `weight` is lambda, which CDM does not
    state; the less it is, the more harm is done (docs/cycle.md). Times are drawn between two
    fractions of T."""

    weight: float = 100.0
    first_term: FirstTerm = "factual"
    t_low: float = 0.0
    t_high: float = 1.0


CYCLE = Cycle()

# How a trained bundle comes to another scanner's scans (train/adapt.py): all weights of the
# diffusion model; keys and values of its cross-attention; inputs of new conditions; all, with
# samples of the parent beside; low-rank adapters; or the latent mean alone.
Tune = Literal["full", "cross-attn", "condition", "prior", "lora", "none"]
# Its autoencoder: the decoder alone, so that latents stay what they are, or all of it.
TuneAutoencoder = Literal["decoder", "all"]
# Where a drift acts: in the forward process of training, in the samplers, or in both.
DriftAt = Literal["both", "training", "inference"]
DRIFT_AT: DriftAt = "both"
# Scans that a scheme needs to train on; weights of a few columns need the fewest.
FEWEST_SCANS: dict[Tune, int] = {
    "none": 3,
    "condition": 3,
    "cross-attn": 5,
    "lora": 5,
    "prior": 5,
    "full": 5,
}

# Of each stage (train/).
AUTOENCODER_FIT = FitConfig(steps=4500, learning_rate=1e-3)
CAUSAL_FIT = FitConfig(steps=4500, learning_rate=3e-4)
DECODER_FIT = FitConfig(steps=3000, learning_rate=1e-3, batch_size=2)
LATENT_DIFFUSION_FIT = FitConfig(steps=2200, learning_rate=5e-4, batch_size=4, ema_decay=0.998)
# 2,000 iterations are CDM's (section 4.3).
CYCLE_FIT = FitConfig(steps=2000, learning_rate=1e-4, batch_size=4, ema_decay=0.998)
# Of few scans, without decay of weights: what is not trained stays as it is, to the bit.
_FEW = FitConfig(
    steps=400,
    learning_rate=1e-4,
    batch_size=4,
    weight_decay=0.0,
    warmup_steps=20,
    ema_decay=0.98,
    checkpoint_every=50,
    report_every=50,
)
ADAPT_FITS: dict[Tune, FitConfig] = {
    "full": _FEW,
    "prior": _FEW,
    "cross-attn": replace(_FEW, learning_rate=5e-4),
    "lora": replace(_FEW, learning_rate=1e-3),
    "condition": replace(_FEW, learning_rate=5e-3),
}
ADAPT_AUTOENCODER_FIT = replace(_FEW, steps=300, learning_rate=2e-4, batch_size=1)
# Reports in a row that are no better than the best, after which the training ends.
PATIENCE = 3
JUDGE_FIT = FitConfig(
    steps=600,
    learning_rate=2e-3,
    batch_size=8,
    weight_decay=1e-2,
    warmup_steps=30,
    ema_decay=0.98,
    checkpoint_every=100,
    report_every=200,
)
SEGMENTER_FIT = FitConfig(steps=7000, learning_rate=1e-3, ema_decay=0.998)
# How a tissue network's scans are changed (train/tissues.py): not, or in gamma, bias and noise.
TissueAugmentation = Literal["none", "plain"]
TISSUES_FIT = FitConfig(
    steps=800,
    learning_rate=5e-3,
    weight_decay=1e-3,
    warmup_steps=20,
    ema_decay=0.98,
    checkpoint_every=100,
    report_every=400,
)


@dataclass(frozen=True)
class Preset:
    """A grid, and how long each stage is trained there; networks and losses are in
    train/presets.py. `latent_mean` and `prediction` are of the diffusion model."""

    grid: str
    autoencoder: FitConfig
    causal_autoencoder: FitConfig
    latent_diffusion: FitConfig
    latent_mean: str = "ridge"
    prediction: Prediction = PREDICTION
    decoder: FitConfig = DECODER_FIT


# 'cdm-1mm' is the setting of CDM (section 4.3): 400,000 iterations of one scan. Learning rates are
# not stated there; these are usual of such networks.
PRESETS = {
    "t1w-2mm": Preset(DEFAULT_GRID, AUTOENCODER_FIT, CAUSAL_FIT, LATENT_DIFFUSION_FIT),
    "cdm-1mm": Preset(
        "cdm-1mm",
        FitConfig(steps=400_000, learning_rate=1e-4, checkpoint_every=1000, report_every=5000),
        # PCGM, section 4.1.
        FitConfig(steps=40_000, learning_rate=1e-5, checkpoint_every=1000, report_every=5000),
        FitConfig(
            steps=400_000,
            learning_rate=5e-5,
            ema_decay=0.9999,
            checkpoint_every=1000,
            report_every=10_000,
        ),
        latent_mean="none",
        prediction="eps",
        # 40,000 iterations (PCGM, section 4.1), at the rate of its code.
        decoder=FitConfig(
            steps=40_000, learning_rate=1e-4, checkpoint_every=1000, report_every=5000
        ),
    ),
}

# Networks of the judge, which differ by seed.
JUDGE_NETWORKS = 3

# Where the course of a volume over age may bend (years, causal/design.py): the young, middle life,
# and the years from which ventricles widen faster.
AGE_KNOTS = (23.0, 40.0, 58.0, 75.0)

ScmMechanism = Literal["linear", "flow"]


@dataclass(frozen=True)
class ScmFit:
    """How the causal model is fitted (causal/scm_fit.py)."""

    mechanism: ScmMechanism = "linear"
    age_knots: tuple[float, ...] = AGE_KNOTS
    folds: int = 5
    # Fits to people drawn again with replacement, which say how sure the law is.
    members: int = 20
    seed: int = SEED


SCM_FIT = ScmFit()

# Stable Diffusion on axial slices (sd/). Which of its weights are trained: the whole network; keys
# and values of cross-attention (Custom Diffusion); one new word (Textual Inversion); the network
# beside samples of the parent (DreamBooth); low-rank changes (LoRA). `FEWEST_SCANS` holds here too.
SdScheme = Literal["full", "cross-attn", "condition", "prior", "lora"]
PromptKind = Literal["simple", "diverse"]
AgeWords = Literal["number", "word", "binned"]
SdSampler = Literal["ddim", "ddpm"]
SdRender = Literal["residual", "latent"]
SD_RENDER: SdRender = "residual"
# Rates are those of the schemes' own papers and of diffusers' scripts for them.
_SLICES = FitConfig(
    steps=1000,
    learning_rate=1e-5,
    batch_size=4,
    weight_decay=1e-2,
    warmup_steps=50,
    ema_decay=0.99,
    checkpoint_every=100,
    report_every=100,
)
SD_FITS: dict[SdScheme, FitConfig] = {
    "full": replace(_SLICES, steps=2000),
    "cross-attn": _SLICES,
    "condition": replace(_SLICES, steps=3000, learning_rate=5e-3),
    "prior": replace(_SLICES, learning_rate=5e-6),
    "lora": replace(_SLICES, learning_rate=1e-4),
}
# Between the lowest and the highest axial slice with tissue, percent.
SD_SLICES = "45:65"
SD_SLICES_PER_SCAN = 8
# Of the parent, for DreamBooth.
SD_PRIOR_SAMPLES = 64


@dataclass(frozen=True)
class SdEdit:
    """How a slice is edited: `image_guidance` is InstructPix2Pix's, `attention` how much
    Pix2Pix-Zero holds on to the scan's cross-attention."""

    steps: int = 50
    guidance: float = 7.5
    image_guidance: float = 1.5
    attention: float = 0.1


SD_EDIT = SdEdit()
