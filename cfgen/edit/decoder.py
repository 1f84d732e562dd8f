"""The diffusion decoder of a bundle: from latents to images by denoising voxels in few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.bundle import Bundle
from cfgen.config import GRIDS, Decoding
from cfgen.device import autocast
from cfgen.diffusion.samplers import denoise_dpmpp_2m
from cfgen.diffusion.schedule import Schedule, ScheduleConfig, time_grid
from cfgen.errors import BundleError, UsageError
from cfgen.nets.diffusion_decoder import DecoderConfig, DecoderNet, tiled, upsampled
from cfgen.streams import Purpose, torch_stream


@dataclass(frozen=True)
class DiffusionDecoder:
    """`shape` (D, H, W) and `brightest` are of the images."""

    net: DecoderNet
    schedule: Schedule
    shape: tuple[int, int, int]
    brightest: float
    device: torch.device

    @torch.inference_mode()
    def decode(self, z0: Tensor, seeds: Sequence[int], how: Decoding) -> Tensor:
        """Images (B, 1, D, H, W) float32 in [0, brightest] of latents (B, C, d, h, w).

        The noise of each is that of its seed, on any device; DPM-Solver++(2M). With `how.tile` in
        tiles of so many voxels: less memory for more time, the same image to rounding. Raises
        UsageError for a tile that the network cannot have, or steps that the schedule has not.
        """
        config = self.net.config
        if how.tile and how.tile % config.multiple:
            expected = f"a multiple of {config.multiple} voxels, or 0"
            raise UsageError("tile", f"{how.tile} voxels", expected)
        if len(seeds) != len(z0):
            raise UsageError("seeds", f"{len(seeds)} for {len(z0)} latents", "one for each")
        noise = torch.stack(
            [
                torch.randn((1, *self.shape), generator=torch_stream(s, Purpose.VOXELS))
                for s in seeds
            ]
        ).to(self.device)
        latent = upsampled(z0.to(self.device), self.shape, config.pack)

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            with autocast(self.device):
                if how.tile:
                    return tiled(self.net, xt, t - 1, latent, how.tile)
                return self.net(xt, t - 1, latent).float()

        times = time_grid(how.steps, self.schedule.T)
        return brightness(denoise_dpmpp_2m(denoise, self.schedule, noise, times), self.brightest)


def voxels(image: Tensor) -> Tensor:
    """Brightness in [0, 1.2] as the network sees it: -1 where there is nothing."""
    return 2 * image - 1


def brightness(x: Tensor, brightest: float) -> Tensor:
    """The inverse of `voxels`, cut to what images are."""
    return ((x + 1) / 2).clamp(0, brightest)


def check_decoder(bundle: Bundle) -> None:
    """Raises BundleError when the part is missing, or of another autoencoder than the bundle's."""
    config = bundle.part("decoder").config
    if config["beside"]["autoencoder"] != bundle.part("autoencoder").sha256:
        raise BundleError(
            bundle.path / "decoder.safetensors",
            "decodes the latents of another autoencoder",
            "that of the bundle",
            "train it again: cfgen train-ae --decoder diffusion",
        )


def load_decoder(bundle: Bundle, device: torch.device) -> DiffusionDecoder:
    """Raises BundleError as `check_decoder`, and when the part is damaged."""
    check_decoder(bundle)
    config = bundle.part("decoder").config
    net = bundle.network("decoder", DecoderNet, DecoderConfig, device)
    with bundle.fitting("decoder"):
        schedule = Schedule.make(ScheduleConfig(**config["schedule"]))
    shape = GRIDS[bundle.preprocess.grid][0]
    return DiffusionDecoder(net, schedule, shape, bundle.preprocess.intensity_cap, device)
