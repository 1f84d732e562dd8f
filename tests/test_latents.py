"""Latents of the training scans on disk, and what is read in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cfgen.config import FitConfig
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig, start_from_cosines
from cfgen.train.latent_diffusion import (
    LatentDiffusionConfig,
    LatentDiffusionTask,
    sampled_figures,
)
from cfgen.train.latents import (
    PENALTIES,
    LatentData,
    LatentReader,
    cached_views,
    encode_views,
    fit_mean,
    fit_reader,
)

CPU = torch.device("cpu")


@pytest.fixture
def net():
    torch.manual_seed(0)
    config = AutoencoderConfig(
        (8, 8), (1, 1), (False, False), 4, norm_groups=4, pack=2, linear_path=True
    )
    made = Autoencoder(config).eval()
    start_from_cosines(made)
    return made


def test_cached_latents_are_those_encoded_and_go_on_where_they_stopped(net, tmp_path):
    images = torch.rand(3, 16, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    path = tmp_path / "folder" / "latents.npy"
    expected = encode_views(net, images, 3, CPU, 0)
    assert torch.equal(cached_views(net, images, 3, CPU, 0, path), expected)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["done"] == 3
    # The first is kept as it is, the others are made again.
    bank = torch.from_numpy(np.load(path, mmap_mode="r+"))
    bank[:] = 7
    path.with_suffix(".json").write_text(json.dumps(record | {"done": 1}))
    found = cached_views(net, images, 3, CPU, 0, path)
    assert bool((found[0] == 7).all())
    assert torch.equal(found[1:], expected[1:])
    # Another seed, other images or other weights are another file.
    assert not torch.equal(cached_views(net, images, 3, CPU, 1, path)[:, 2], expected[:, 2])
    assert torch.equal(cached_views(net, images, 3, CPU, 0, path), expected)
    with torch.no_grad():
        net.linear_encoder.weight.mul_(2)
    assert not torch.equal(cached_views(net, images, 3, CPU, 0, path), expected)


def test_latents_on_disk_are_not_changed_by_who_reads_them(net, tmp_path):
    images = torch.rand(2, 16, 16, 16).half()
    first = cached_views(net, images, 2, CPU, 0, tmp_path / "latents.npy")
    kept = first.clone()
    first.zero_()
    assert torch.equal(cached_views(net, images, 2, CPU, 0, tmp_path / "latents.npy"), kept)


def test_the_error_of_a_reader_is_that_of_fits_without_each_latent():
    """Against as many fits, each without one; and it reads what is there."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(14, 2, generator=generator)
    pattern = torch.randn(2, 3, 2, 2, 2, generator=generator)
    latents = 0.5 * torch.randn(14, 3, 2, 2, 2, generator=generator)
    latents = latents + torch.einsum("nv,vcdhw->ncdhw", c, pattern)
    reader = fit_reader(latents, c, 1)
    x = latents.flatten(1).double()
    y = c[:, 1].double()
    unit = torch.linalg.svdvals(x - x.mean(0)).square().sum() / 14

    def left_out(penalty: float) -> torch.Tensor:
        errors = []
        for n in range(14):
            rest = torch.arange(14) != n
            a, b = x[rest] - x[rest].mean(0), y[rest] - y[rest].mean()
            gram = a.T @ a + penalty * unit * torch.eye(x.shape[1])
            beta = torch.linalg.solve(gram, a.T @ b)
            errors.append(y[n] - (x[n] - x[rest].mean(0)) @ beta - y[rest].mean())
        return torch.stack(errors)

    found = min((left_out(p) for p in PENALTIES), key=lambda e: float(e.square().mean()))
    assert reader.error == pytest.approx(float(found.abs().mean()), rel=1e-4)
    read, true = (y - found) - (y - found).mean(), y - y.mean()
    assert reader.slope == pytest.approx(float((read @ true) / (true @ true)), rel=1e-3)
    slopes = (c[:, 1] - c[:, 1].mean()) @ (latents - latents.mean(0)).flatten(1)
    slopes = slopes / (c[:, 1] - c[:, 1].mean()).square().sum()
    assert torch.allclose(reader.shift.flatten(), 2 * slopes, atol=1e-5)
    assert torch.corrcoef(torch.stack([reader.read(latents), c[:, 1]]))[0, 1] > 0.95


def test_figures_of_new_latents_are_the_slope_over_the_readers_own():
    reader = LatentReader(0, torch.zeros(1), torch.ones(1), 3.0, 0.0, 0.5, torch.ones(1))
    young = torch.tensor([-0.3, 0.2, 0.6]).reshape(3, 1, 1, 1, 1)
    figures = sampled_figures(
        reader, young, young + torch.tensor([0.4, 0.6, 0.8])[:, None, None, None, None]
    )
    # Differences of 0.4, 0.6 and 0.8 over two standard deviations, where true ones show half.
    assert figures["read_slope"] == pytest.approx(0.6)
    assert figures["read_slope_se"] == pytest.approx(0.2 / 3**0.5)


@pytest.mark.parametrize("part", [0.0, 0.4, 1.0])
def test_a_network_is_heard_as_far_as_it_moves_along_the_data(part):
    """One that knows the difference between young and old, and says a part of it."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(12, 2, generator=generator)
    latents = torch.randn(12, 1, 3, 8, 8, 8, generator=generator)
    data = LatentData(latents, c, torch.ones(12), latents[:, 0], c)
    reader = fit_reader(latents[:, 0], c, 1)
    mean = fit_mean(latents, c, torch.ones(12), torch.zeros(2, dtype=torch.bool), False)
    task = LatentDiffusionTask(data, mean, CPU, FitConfig(1, 1e-3), LatentDiffusionConfig(), reader)

    def network(zt, level, tokens):
        value = tokens[:, 1, 2][:, None, None, None, None]
        z0 = part * value * reader.shift / 2 / mean.sigma
        return task.schedule.target(z0, (zt - signal * z0) / noise, level + 1)

    signal, noise = task.schedule.levels(torch.tensor([990]), latents[:1, 0])
    assert task._heard(network, reader, latents[:, 0], c) == pytest.approx(part, abs=1e-4)
