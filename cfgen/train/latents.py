"""Latents of the training scans: views of each, kept in one memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cfgen.causal.latent_mean import LatentMean, fit_latent_mean, fit_plain_mean
from cfgen.config import LATENT_SCALE, LatentScale
from cfgen.data.conditions import Schema
from cfgen.device import autocast
from cfgen.nets.causal_autoencoder import AnyAutoencoder
from cfgen.progress import each
from cfgen.streams import Purpose, torch_stream
from cfgen.train.augmentation import AUGMENTATION, mirror, random_acquisition, random_view
from cfgen.train.cohort import Cohort
from cfgen.train.mapped import mapped
from cfgen.train.together import first_alone, join


@dataclass(frozen=True)
class LatentData:
    """`latents` (N, views, C, d, h, w) float16, which may lie on disk, `conditions` (N, V),
    sampling `weights` (N,), and latents (M, C, d, h, w) and conditions (M, V) that are held out.
    `masks` (N, views, K, P, d, h, w) and those held out (M, K, P, d, h, w) are for networks that
    take masks (train/masks.py)."""

    latents: Tensor
    conditions: Tensor
    weights: Tensor
    held_out: Tensor
    held_out_conditions: Tensor
    masks: Tensor | None = None
    held_out_masks: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, d, h, w) of one latent."""
        c, d, h, w = self.latents.shape[2:]
        return c, d, h, w


def encode_views(
    autoencoder: AnyAutoencoder, images: Tensor, views: int, device: torch.device, seed: int
) -> Tensor:
    """Latents (N, views, C, d, h, w) float16 of each image, its mirror image and warped views."""
    bank = []
    for number, image in each(enumerate(images), len(images), "subjects encoded"):
        bank.append(_views(autoencoder, image.float(), views, device, seed, number))
    return torch.stack(bank)


def cached_views(
    autoencoder: AnyAutoencoder,
    images: Tensor,
    views: int,
    device: torch.device,
    seed: int,
    path: Path,
) -> Tensor:
    """As `encode_views`, in a .npy file at `path` that is mapped into memory, not read (`mapped`).
    What is there already, of the same weights, images and seed, is kept."""
    config = autoencoder.config
    edges = config.latent_edges(images.shape[1:])

    def make(number: int) -> np.ndarray:
        return _views(autoencoder, images[number].float(), views, device, seed, number).numpy()

    return mapped(
        path,
        _fingerprint(autoencoder, images, views, seed),
        (len(images), views, config.latent_channels, *edges),
        make,
        "subjects encoded",
    )


def latent_data(
    train: Cohort,
    val: Cohort,
    autoencoder: AnyAutoencoder,
    views: int,
    device: torch.device,
    seed: int,
    folder: Path,
) -> LatentData:
    """The latents of both splits; those of train in `folder`. Of several processes the first makes
    the file, and the others read it."""
    join(device)
    path = folder / "latents.npy"
    return LatentData(
        first_alone(lambda: cached_views(autoencoder, train.images, views, device, seed, path)),
        train.conditions,
        train.weights,
        encode_views(autoencoder, val.images, 1, device, seed)[:, 0],
        val.conditions,
    )


def trial_data(
    few: Cohort, autoencoder: AnyAutoencoder, device: torch.device, seed: int
) -> LatentData:
    """The latents of a few scans, in memory and held out from nobody: to try a step on."""
    latents = encode_views(autoencoder, few.images, 1, device, seed)
    return LatentData(latents, few.conditions, few.weights, latents[:, 0], few.conditions)


def seen(
    image: Tensor, views: int, seed: int, number: int, masks: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The views of image `number` (D, H, W): itself, its mirror image, and warped ones; and its
    masks (K, D, H, W) moved as each is."""
    whole = image[None] if masks is None else torch.cat([image[None], masks])
    shape = (image.shape[0], image.shape[1], image.shape[2])
    generator = torch_stream(seed, Purpose.VIEWS, number)
    for view in range(views):
        if view < 2:
            moved = mirror(whole) if view else whole
            look = moved[0]
        else:
            moved = random_view(whole, shape, generator, AUGMENTATION)
            look = random_acquisition(moved[0], generator, AUGMENTATION)
        yield look, None if masks is None else moved[1:]


@torch.inference_mode()
def _views(
    autoencoder: AnyAutoencoder,
    image: Tensor,
    views: int,
    device: torch.device,
    seed: int,
    number: int,
) -> Tensor:
    latents = []
    for view, _ in seen(image, views, seed, number):
        x = view[None, None].to(device, memory_format=torch.channels_last_3d)
        with autocast(device):
            latents.append(autoencoder.encode(x)[0].half().cpu())
    return torch.stack(latents)


def hash_weights(digest: hashlib._Hash, net: nn.Module) -> None:
    """Have all weights of a network count in a digest."""
    for value in net.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())


def _fingerprint(autoencoder: AnyAutoencoder, images: Tensor, views: int, seed: int) -> str:
    digest = hashlib.sha256(repr((tuple(images.shape), views, seed, AUGMENTATION)).encode())
    hash_weights(digest, autoencoder)
    # A slice of every image: reading all of a large cohort would take as long as half of the work.
    digest.update(images[:, images.shape[1] // 2].contiguous().numpy().tobytes())
    return digest.hexdigest()


def fit_mean(
    latents: Tensor,
    conditions: Tensor,
    weights: Tensor,
    continuous: Tensor,
    use_conditions: bool,
    scale: LatentScale = LATENT_SCALE,
) -> LatentMean:
    """The latent mean over all views; without conditions it is the mean and scale alone."""
    mean = _mean(latents, conditions, weights, continuous, use_conditions)
    if scale == "channel":
        return mean
    sigma = mean.sigma.square().mean().sqrt().expand_as(mean.sigma)
    mean = replace(mean, sigma=sigma.clone())
    if scale == "all":
        return mean
    return replace(mean, spread=_spread(mean, latents, conditions))


def _spread(mean: LatentMean, latents: Tensor, conditions: Tensor) -> Tensor:
    """(C, d, h, w): the root mean square of the standardised residual in each voxel, over the views
    (N, views, C, d, h, w) of all scans."""
    squares = torch.zeros(latents.shape[2:], dtype=torch.float64)
    for views, c in zip(latents, conditions.cpu(), strict=True):
        r = mean.residual(views.cpu().float(), c[None].expand(len(views), -1))
        squares += r.double().square().sum(0)
    return (squares / (len(latents) * latents.shape[1])).sqrt().float()


def _mean(
    latents: Tensor, conditions: Tensor, weights: Tensor, continuous: Tensor, use_conditions: bool
) -> LatentMean:
    views = latents.shape[1]
    z0 = latents.flatten(0, 1)
    if not use_conditions:
        return fit_plain_mean(z0, conditions.shape[1])
    c = conditions.repeat_interleave(views, 0)
    return fit_latent_mean(z0, c, weights.repeat_interleave(views), continuous)


@dataclass(frozen=True)
class LatentReader:
    """Ridge regression of one input of the condition vector on latents, for figures of a training.

    `centre` and `weights` (P,) belong to the latent's elements, `offset` is the mean of the number;
    `error` and `slope`, on the true numbers, are of each training latent's reading by the fit
    without it (leave-one-out): a slope below 1 is the reader's own. `variable` says which input it
    is.
    """

    variable: int
    centre: Tensor
    weights: Tensor
    offset: float
    error: float
    slope: float
    # Change of latents (C, d, h, w) from one standard deviation below to one above, on average.
    shift: Tensor

    def read(self, latents: Tensor) -> Tensor:
        """(N,) of latents (N, C, d, h, w)."""
        return (latents.float().flatten(1) - self.centre) @ self.weights + self.offset


def age_reader(schema: Schema, data: LatentData) -> LatentReader | None:
    """The reader of age, of the latents as they are; None where age is no condition."""
    if "age" not in schema.names:
        return None
    before = schema.variables[: schema.names.index("age")]
    some = slice(None, None, -(-len(data.latents) // READ_FROM))
    variable = sum(v.width for v in before)
    return fit_reader(data.latents[some, 0], data.conditions[some], variable)


# Scans that the reader is fitted to, at most: all of them are in memory at once.
READ_FROM = 1000


PENALTIES: Sequence[float] = tuple(10.0**n for n in range(-3, 4))


def fit_reader(latents: Tensor, conditions: Tensor, variable: int) -> LatentReader:
    """Of latents (N, C, d, h, w) and conditions (N, V); a channel counts by its spread.

    The penalty, in units of the mean of the kernel's diagonal, is the one with the smallest squared
    leave-one-out error, which of ridge regression is known in closed form: (I - H) y over the
    diagonal of I - H (Allen 1974).
    """
    z, values = latents.float(), conditions[:, variable]
    centre = z.mean(0).flatten()
    x = z.flatten(1) - centre
    offset = float(values.double().mean())
    y = values.double() - offset
    kernel = (x @ x.T).double()
    eigenvalues, vectors = torch.linalg.eigh(kernel)
    eigenvalues = eigenvalues.clamp(min=0)
    turned, unit = vectors.T @ y, float(eigenvalues.mean())

    def left_out(penalty: float) -> Tensor:
        # Row n of I - H over its diagonal; the mean is fitted too, which costs each 1 / N.
        kept = penalty * unit / (eigenvalues + penalty * unit)
        diagonal = (vectors.square() * kept).sum(1) - 1 / len(y)
        return (vectors @ (kept * turned)) / diagonal.clamp(min=1e-9)

    best = min(PENALTIES, key=lambda p: float(left_out(p).square().mean()))
    alpha = vectors @ (turned / (eigenvalues + best * unit))
    errors = left_out(best)
    slope = float(((y - errors) * y).sum() / y.square().sum())
    shift = (2 * (y.float() @ x) / y.square().sum()).reshape(z.shape[1:]).float()
    return LatentReader(
        variable, centre, x.T @ alpha.float(), offset, float(errors.abs().mean()), slope, shift
    )
