"""Three ways from latents to images: the KL decoder, a diffusion decoder, the causal autoencoder.

    python benchmarks/cycle_people.py --out build/cycle
    python benchmarks/cycle_autoencoder.py --out build/cycle --steps 0
    python benchmarks/decoders.py decoder --people build/cycle --out build/decoders --steps 3000
    python benchmarks/decoders.py causal --people build/cycle --out build/decoders --steps 3000
    python benchmarks/decoders.py measure --people build/cycle --out build/decoders

Simulated people at 2 mm. The diffusion decoder is told the latents of the autoencoder of
benchmarks/cycle_autoencoder.py; the causal autoencoder has latents of its own, of about as many
numbers. `measure` prints for held-out people PSNR and SSIM inside the brain, of detail beyond 0.2
cycles/mm the power over that of the image and the coherence with it, and the time of one volume;
it leaves a table, and pictures of three planes. Each network is a bundle, OUT/decoder and
OUT/causal. With --seconds it is trained for a time (paced.py); interrupted, the same command goes
on.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cycle_autoencoder import rows_of
from cycle_latents import AUTOENCODER
from cycle_people import read_people
from paced import fit_within
from scipy import ndimage
from torch import Tensor, nn

from cfgen.bundle import copy_bundle, half, new_bundle, read_bundle, write_part
from cfgen.config import CAUSAL_FIT, DECODER_FIT, DECODING, GRIDS, PREPROCESS, FitConfig
from cfgen.data.conditions import default_schema, fit_schema
from cfgen.device import autocast, pick_device
from cfgen.edit.decoder import load_decoder
from cfgen.edit.latent import load_autoencoder
from cfgen.jobs.train_autoencoder import autoencoder_description
from cfgen.jobs.train_decoder import decoder_description
from cfgen.metrics.image import psnr, ssim
from cfgen.nets.causal_autoencoder import AnyAutoencoder
from cfgen.nets.diffusion_decoder import upsampled
from cfgen.train.causal_autoencoder import CAUSAL, CausalTask
from cfgen.train.diffusion_decoder import DecoderTask
from cfgen.train.fit import Task, fit
from cfgen.train.record import trained_on

SPACING_MM = GRIDS[PREPROCESS.grid][1]
DETAIL = 0.2
FITS = {"decoder": DECODER_FIT, "causal": CAUSAL_FIT}
# People whom a training's own report looks at.
REPORTED = 4
PICTURES = 4
log = logging.getLogger("cfgen")


class StillDecoderTask(DecoderTask):
    """Of images as they are, encoded once: there are people enough, and to warp them would take
    most of a step. Images and latents lie on the device."""

    def _scale(self) -> None:
        super()._scale()
        latents = [self.encode(image.float()[None, None])[0].half() for image in self.images]
        self.latents = torch.stack(latents)
        self.images = self.images.to(self.device)

    def _pair(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise AssertionError("pairs are drawn by number")

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        size, T, p = self.fit.batch_size, self.schedule.T, self.recipe.net.pack
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        spread = (torch.rand(1, generator=generator) + torch.arange(size) / size) % 1
        t = 1 + (spread * T).long().clamp(max=T - 1)
        m, shape = self.recipe.net.multiple, self.images.shape[1:]
        free = torch.tensor([n // m - c // m + 1 for n, c in zip(shape, self.crop, strict=True)])
        corners = (torch.rand(size, 3, generator=generator) * free).long() * m
        known = upsampled(self.latents[chosen.to(self.device)].float(), shape, p)
        images, latents = [], []
        for n, (person, corner) in enumerate(zip(chosen.tolist(), corners.tolist(), strict=True)):
            i, j, k = (slice(s, s + c) for s, c in zip(corner, self.crop, strict=True))
            a, b, c = (slice(s.start // p, s.stop // p) for s in (i, j, k))
            images.append(self.images[person, i, j, k].float())
            latents.append(known[n, :, a, b, c])
        x, latent = torch.stack(images)[:, None], torch.stack(latents)
        eps = torch.randn(x.shape, generator=generator).to(self.device)
        return self._error(self.net, 2 * x - 1, latent, t, eps).mean(), {}


def trained(task: Task, options: argparse.Namespace, config: FitConfig) -> nn.Module:
    folder = options.out / "runs" / options.stage
    if options.seconds:
        return fit_within(task, config, folder, options.seconds)
    return fit(task, config, folder)


def train(options: argparse.Namespace, device: torch.device) -> None:
    """OUT/decoder, the bundle of the autoencoder with a diffusion decoder, or OUT/causal."""
    people, stage = read_people(options.people), options.stage
    fit_config = replace(
        FITS[stage],
        steps=options.steps or FITS[stage].steps,
        batch_size=options.batch,
        learning_rate=options.rate or FITS[stage].learning_rate,
        report_every=options.report_every,
    )
    numbers = people.rows("train")[: options.n]
    images = torch.from_numpy(people.images[numbers])
    held_out = torch.from_numpy(people.images[people.rows("val")[:REPORTED]])
    given = (images, torch.ones(len(images)), held_out, held_out > 0)
    rows, out = rows_of(people, "train")[: options.n], options.out / stage
    if stage == "decoder":
        source = read_bundle(options.people / AUTOENCODER)
        autoencoder = load_autoencoder(source, device)
        task = StillDecoderTask(*given, autoencoder, device, fit_config)
        net = trained(task, options, fit_config)
        part, about, bundle = "decoder", decoder_description(task, source), copy_bundle(source, out)
    else:
        how = CAUSAL.on(GRIDS[PREPROCESS.grid][0])
        causal = CausalTask(*given, device, fit_config, how)
        net = trained(causal, options, fit_config)
        out.mkdir(parents=True, exist_ok=True)
        schema = fit_schema(rows, default_schema())
        bundle = new_bundle(out, PREPROCESS, schema, {"name": "simulated brains"})
        part, about = "autoencoder", autoencoder_description(causal.net)
        task = causal
    write_part(bundle, part, half(net), about, trained_on(rows, fit_config))
    log.info("%s: %s", stage, task.report(net, options.out / f"{stage}.png"))


Way = Callable[[Tensor], Tensor]


def ways(people: Path, out: Path, device: torch.device) -> dict[str, Way]:
    """From images (1, 1, D, H, W) to what is left of them, by each network that is there."""
    source = read_bundle(people / AUTOENCODER)
    folded = load_autoencoder(source, device)

    def there_and_back(net: AnyAutoencoder) -> Way:
        def way(x: Tensor) -> Tensor:
            with autocast(device):
                return net(x).float()

        return way

    found = {"KL decoder": there_and_back(folded)}
    if (out / "decoder" / "decoder.safetensors").exists():
        decoder = load_decoder(read_bundle(out / "decoder"), device)
        for steps in (4, DECODING.steps, 20):
            how = replace(DECODING, steps=steps)

            def way(x: Tensor, how: object = how) -> Tensor:
                with autocast(device):
                    z0 = folded.encode(x).float()
                return decoder.decode(z0, [0], how)

            found[f"diffusion decoder, {steps} steps"] = way
    if (out / "causal" / "autoencoder.safetensors").exists():
        causal = load_autoencoder(read_bundle(out / "causal"), device)
        found["causal autoencoder"] = there_and_back(causal)
    return found


def detail(image: np.ndarray, real: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Beyond `DETAIL` cycles/mm inside the brain, whose edge is faded out: power over that of the
    real image, and the coherence of both, 1 where every detail is where it should be."""
    window = ndimage.gaussian_filter(ndimage.binary_erosion(mask, iterations=3) * 1.0, 1.0)
    axes = [np.fft.fftfreq(n, SPACING_MM) for n in image.shape]
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij")))
    beyond = radius > DETAIL
    mean = float(real[mask].mean())
    a, b = (np.fft.fftn((x - mean) * window)[beyond] for x in (image, real))
    power = float((np.abs(a) ** 2).sum() / (np.abs(b) ** 2).sum())
    both = np.sqrt((np.abs(a) ** 2).sum() * (np.abs(b) ** 2).sum())
    return power, float(np.real(a * b.conj()).sum() / max(both, 1e-12))


def timed(way: Way, x: Tensor, device: torch.device) -> tuple[np.ndarray, float]:
    """What is left of an image, and how long it took."""
    with torch.inference_mode():
        started = time.perf_counter()
        made = way(x)[0, 0].cpu().numpy()
        return made, time.perf_counter() - started


def measure(options: argparse.Namespace, device: torch.device) -> None:
    people = read_people(options.people)
    numbers, known = people.rows("val")[: options.val], ways(options.people, options.out, device)
    lines = []
    for place, number in enumerate(numbers):
        image = np.array(people.images[number], np.float32)
        x, mask = torch.from_numpy(image)[None, None].to(device), image > 0
        pictures = [image]
        for name, way in known.items():
            if place == 0:
                timed(way, x, device)
            made, seconds = timed(way, x, device)
            power, coherence = detail(made, image, mask)
            lines.append(
                {
                    "number": str(number),
                    "way": name,
                    "psnr_db": psnr(made, image, mask),
                    "ssim": ssim(made, image, mask),
                    "detail_power": power,
                    "detail_coherence": coherence,
                    "seconds": seconds,
                }
            )
            pictures.append(made)
        if place < PICTURES:
            draw(options.out / f"person-{number}.png", pictures)
    with (options.out / "decoders.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    summary(lines)


def summary(lines: list[dict]) -> None:
    """Means and standard deviations over the people."""
    names = [name for name in lines[0] if name not in ("number", "way")]
    print("| |" + "|".join(names) + "|\n|---|" + "---|" * len(names))
    for way in dict.fromkeys(line["way"] for line in lines):
        values = {n: np.array([x[n] for x in lines if x["way"] == way]) for n in names}
        cells = [f"{v.mean():.3f} ({v.std(ddof=1):.3f})" for v in values.values()]
        print(f"| {way} | " + " | ".join(cells) + " |")


def draw(path: Path, images: list[np.ndarray]) -> None:
    """Axial, coronal and sagittal middle slices, an image a column."""
    from matplotlib.image import imsave

    edge = max(images[0].shape)
    columns = []
    for image in images:
        tiles = []
        for axis in (2, 1, 0):
            tile = np.take(image, image.shape[axis] // 2, axis).T[::-1]
            wide = [(0, edge - n) for n in tile.shape]
            tiles.append(np.pad(tile, wide))
        columns.append(np.concatenate(tiles))
    whole = np.kron(np.concatenate(columns, 1).clip(0, 1.1), np.ones((2, 2)))
    imsave(path, whole, cmap="gray", vmin=0, vmax=1.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("decoder", "causal", "measure"))
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--val", type=int, default=24)
    parser.add_argument("--steps", type=int, help="the preset's, unless given")
    parser.add_argument("--seconds", type=float, help="train for a time, not for --steps")
    parser.add_argument("--rate", type=float, help="the preset's, unless given")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--report-every", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    device = pick_device(options.device)
    # Every step has the same shapes.
    torch.backends.cudnn.benchmark = True
    if options.stage == "measure":
        measure(options, device)
    else:
        train(options, device)


if __name__ == "__main__":
    main()
