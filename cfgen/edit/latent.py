"""The networks of a bundle, loaded and ready: image <-> latent, and one edit in latent space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfgen.bundle import Bundle
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import DECODING, GRIDS, SEED, DecoderKind, Edit
from cfgen.data.conditions import Schema, Values
from cfgen.device import autocast
from cfgen.diffusion.drift import NO_DRIFT, NO_DRIFTING, Drift, Drifting, parse_drift
from cfgen.diffusion.guidance import ContextNet, guided, guided_z0, led
from cfgen.diffusion.inversion import invert_ddim
from cfgen.diffusion.preconditioning import v_of
from cfgen.diffusion.samplers import Denoiser, ddim_step, denoise_ddim
from cfgen.diffusion.schedule import Schedule, ScheduleConfig, time_grid
from cfgen.edit.control import Control, load_control
from cfgen.edit.decoder import DiffusionDecoder, load_decoder
from cfgen.errors import BundleError, UsageError
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig
from cfgen.nets.causal_autoencoder import AnyAutoencoder, CausalAutoencoder, CausalConfig
from cfgen.nets.condition import Condition, token_width
from cfgen.nets.controlnet import mask_channels
from cfgen.nets.slices import SliceCoder
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.progress import Step, working


@dataclass(frozen=True)
class Models:
    """`latent_mean` is always there: the papers' plain form is a mean without conditions.

    `control` is for conditions with masks; `null` says whether the UNet was trained without
    conditions too, which guidance needs. A `decoder` that is there decodes in the autoencoder's
    place. `drifting` are the drifts of training and sampling (diffusion/drift.py).
    """

    autoencoder: AnyAutoencoder
    latent_mean: LatentMean
    unet: UNet
    schedule: Schedule
    device: torch.device
    control: Control | None = None
    null: bool = True
    decoder: DiffusionDecoder | None = None
    drifting: Drifting = NO_DRIFTING

    @property
    def shape(self) -> tuple[int, ...]:
        """(d, h, w) of the latents."""
        return tuple(self.latent_mean.coefficients.shape[2:])

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """The latent mean (B, C, d, h, w) float32 of images (B, 1, D, H, W)."""
        with autocast(self.device):
            z0: Tensor = self.autoencoder.encode(image.to(self.device)).float()
        return z0

    @torch.inference_mode()
    def decode(self, z0: Tensor, seed: int = SEED) -> Tensor:
        """Images (B, 1, D, H, W) float32 of latents; a diffusion decoder starts from the noise of
        the seed, which is the same for all."""
        if self.decoder is not None:
            return self.decoder.decode(z0, [seed] * len(z0), DECODING)
        with autocast(self.device):
            image: Tensor = self.autoencoder.decode(z0.to(self.device)).float()
        return image

    def denoiser(self, c: Condition, guidance: float, rescale: float = 0.0) -> Denoiser:
        """The UNet under a condition of B elements; without the condition masks stay as they are.
        `rescale` above 0 puts back the spread that guidance adds (`guided_z0`). It is asked at
        latents without the drift of training.

        Raises UsageError for guidance that the UNet was not trained for, and for masks where there
        is no network that takes them.
        """
        require_null(guidance, self.null)
        nothing = c.tokens(dropped=torch.ones(len(c), dtype=torch.bool))
        net, spread = self._network(c), self.latent_mean.spread

        def net_v(zt: Tensor, t: Tensor, context: Tensor) -> Tensor:
            # Networks count noise levels from 0.
            output = net(self.drifting.trained.plus(zt), t, context)
            return v_of(output, zt, t + 1, self.schedule, spread)

        step = guided(net_v, c.tokens(), nothing, guidance)
        if rescale:
            step = guided_z0(net_v, c.tokens(), nothing, guidance, self.schedule, rescale)

        def denoise(zt: Tensor, t: Tensor) -> Tensor:
            with autocast(self.device):
                return step(zt, t).float()

        return denoise

    def drift(self, asked: str | None, steps: int, depth: float = 1.0) -> Drift:
        """What a sampler of so many steps moves a latent by in each: the model's own, unless it is
        asked for, as --drift says it. Raises UsageError for one that is out of range, or of another
        form than that of the model's training."""
        if asked is None:
            return self.drifting.of_a_step(steps, depth)
        channels = self.latent_mean.coefficients.shape[1]
        return parse_drift(asked).check(channels).less(self.drifting.trained)

    def _network(self, c: Condition) -> ContextNet:
        masks, control = c.masks, self.control
        if masks is None:
            return self.unet
        if control is None:
            raise UsageError("masks", "no network that takes them is loaded", "a bundle with one")
        channels = mask_channels(control.regions, control.detail)
        if masks.shape[1] != channels:
            expected = f"{channels}, as in the bundle's training"
            raise UsageError("masks", f"{masks.shape[1]} channels", expected)

        def net(zt: Tensor, t: Tensor, context: Tensor) -> Tensor:
            # Guidance asks for the batch twice.
            return control.net(zt, t, context, torch.cat([masks] * (len(zt) // len(masks))))

        return net


# Above this the inversion lost more of the subject than an edit should rest on.
ROUND_TRIP_LIMIT = 0.01


@dataclass(frozen=True)
class LatentEdit:
    """The reconstruction under the factual conditions and a latent for each target."""

    reconstruction: Tensor
    counterfactuals: list[Tensor]
    # |reconstruction - z0| / |z0|
    round_trip: float


@torch.inference_mode()
def edit_latent(
    models: Models,
    z0: Tensor,
    c: Condition,
    targets: Sequence[Condition],
    config: Edit,
    noise: Tensor | None = None,
) -> LatentEdit:
    """Abduct r from z0 (B, C, d, h, w) under c, act and predict for each target, of B elements all.

    Abduction is shared by all targets; the reconstruction takes the same way back under c, so that
    what the sampler itself loses cancels in the difference. `noise`, of the shape of z0, makes it
    one sample of the abduction.
    """
    last = round(config.depth * (len(models.schedule.alpha_bar) - 1))
    # At depth 0 nothing is diffused: the edit is the latent mean's alone.
    times = time_grid(config.steps, last) if last else [0]
    drift = models.drift(config.drift, config.steps, config.depth)
    r = models.latent_mean.residual(z0, c.vector)
    rt = abduct(models, r, c, times, config.fixed_point, noise, drift)

    classifier_free = config.guidance_from == "nothing"

    def predict(target: Condition, denoiser: Denoiser) -> Tensor:
        with working("denoising", len(times) - 1) as step:
            edited = denoise_ddim(counted(denoiser, step), models.schedule, rt, times, drift)
        return models.latent_mean.latent(edited, target.vector, c.vector)

    def guided_to(target: Condition) -> Denoiser:
        if classifier_free:
            return models.denoiser(target, config.guidance)
        away = c if config.guidance_from == "factual" else Condition(target.vector, c.masks)
        return led(models.denoiser(target, 1.0), models.denoiser(away, 1.0), config.guidance)

    reconstruction = predict(c, models.denoiser(c, 1.0))
    error = (reconstruction - z0).norm() / z0.norm()
    counterfactuals = [
        # What is asked for is what is: unless guidance leads away from it, that was computed
        # already.
        reconstruction
        if (config.guidance == 1 or not classifier_free) and target.equals(c)
        else predict(target, guided_to(target))
        for target in targets
    ]
    return LatentEdit(reconstruction, counterfactuals, float(error))


def abduct(
    models: Models,
    r: Tensor,
    c: Condition,
    times: Sequence[int],
    fixed_point: int,
    noise: Tensor | None = None,
    drift: Drift = NO_DRIFT,
) -> Tensor:
    """The residual r (B, C, d, h, w) at the last of `times`: by DDIM inversion under c (CDM Eq.
    5-6), or with `noise` a sample of what r may have become there (`Schedule`)."""
    if noise is not None:
        return ddim_step(models.schedule, r, noise, times[-1])
    with working("inverting", (len(times) - 1) * (fixed_point + 1)) as step:
        denoiser = counted(models.denoiser(c, 1.0), step)
        return invert_ddim(denoiser, models.schedule, r, times, fixed_point, drift)


def counted(denoiser: Denoiser, step: Step) -> Denoiser:
    """The denoiser, with `step` called after each time that it is asked."""

    def denoise(zt: Tensor, t: Tensor) -> Tensor:
        prediction = denoiser(zt, t)
        step()
        return prediction

    return denoise


def condition_of(schema: Schema, values: Values, device: torch.device) -> Condition:
    """The condition of one image, from a value for every variable in raw units."""
    return Condition(torch.from_numpy(schema.encode(values))[None]).to(device)


def without_conditions(bundle: Bundle) -> BundleError:
    """What is raised where a UNet that takes no conditions is asked for some."""
    fix = "train it: cfgen train-ldm"
    return BundleError(bundle.path, "its UNet takes no conditions", "one that does", fix)


def _coder(bundle: Bundle, device: torch.device) -> AnyAutoencoder:
    """The autoencoder; of a diffusion model of slices what takes them, which is asked for the same:
    to encode and to decode."""
    unet = bundle.parts.get("unet")
    if unet is None or not unet.config["net"].get("flat", False):
        return load_autoencoder(bundle, device)
    return SliceCoder(GRIDS[bundle.preprocess.grid][0][-1])  # type: ignore[return-value]


def load_models(
    bundle: Bundle, device: torch.device, *, masks: bool = False, decoder: DecoderKind = "kl"
) -> Models:
    """With `masks` also the network that takes them, and the diffusion decoder where it is asked
    for. Raises BundleError when a part is missing, damaged or does not fit its configuration."""
    autoencoder = _coder(bundle, device)
    net = bundle.network("unet", UNet, UNetConfig, device)
    width = token_width(sum(v.width for v in bundle.schema.variables))
    if net.config.context_dim not in (None, width):
        raise BundleError(
            bundle.path,
            f"its UNet takes conditions of width {net.config.context_dim}",
            f"{width}, that of its {', '.join(bundle.schema.names)}",
            "train it on these conditions: cfgen train-ldm",
        )
    mean = LatentMean.from_tensors(bundle.tensors("latent_mean")).to(device)
    with bundle.fitting("unet"):
        schedule = Schedule.make(ScheduleConfig(**bundle.part("unet").config["schedule"]))
        drifting = Drifting.from_json(bundle.part("unet").config.get("drift"))
    null = has_null(bundle)
    models = Models(autoencoder, mean, net, schedule, device, null=null, drifting=drifting)
    if masks:
        models = replace(models, control=load_control(bundle, net, models.shape, device))
    if decoder == "diffusion":
        models = replace(models, decoder=load_decoder(bundle, device))
    return models


def has_null(bundle: Bundle) -> bool:
    """Whether the bundle's UNet was trained without conditions too."""
    dropped: float = bundle.part("unet").config.get("drop_conditions", 1.0)
    return dropped > 0


def require_null(guidance: float, null: bool) -> None:
    """Raises UsageError for guidance of a UNet that was never trained without conditions."""
    if guidance != 1 and not null:
        raise UsageError(
            "--guidance",
            f"{guidance:g} with a UNet that was never trained without conditions",
            "1, or one that was",
        )


def load_autoencoder(bundle: Bundle, device: torch.device) -> AnyAutoencoder:
    """The bundle's autoencoder, plain or causal, as its part says. Raises BundleError when it is
    missing, damaged or of a kind that this cfgen does not know."""
    arch = bundle.part("autoencoder").config.get("arch", "plain")
    if arch == "plain":
        return bundle.network("autoencoder", Autoencoder, AutoencoderConfig, device)
    if arch == "causal":
        return bundle.network("autoencoder", CausalAutoencoder, CausalConfig, device)
    raise BundleError(
        bundle.path / "bundle.json", f"an autoencoder of kind '{arch}'", "plain or causal"
    )
