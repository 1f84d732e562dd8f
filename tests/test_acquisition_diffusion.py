"""A diffusion model that knows how scans were acquired: conditions, tokens, slices, sampling."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from cfgen.bundle import read_bundle
from cfgen.config import Rediffusion
from cfgen.data.acquisition import acquisition_conditions
from cfgen.data.volume import Volume, write_new
from cfgen.diffusion.schedule import Schedule, ScheduleConfig
from cfgen.edit.acquired import encoded
from cfgen.edit.latent import load_models
from cfgen.edit.rediffuse import rediffuse, rediffused
from cfgen.errors import ManifestError, UsageError
from cfgen.nets.condition import Condition
from cfgen.nets.slices import SliceCoder
from cfgen.nets.unet import UNet, UNetConfig, one_a_variable
from cfgen.space.grids import model_grid
from cfgen.train.acquisition import (
    SLICES,
    acquisition_diffusion,
    slice_data,
)
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, some_unsaid, unet_config

MPRAGE = {"manufacturer": "Siemens", "sequence": "MPRAGE", "field_tesla": 3.0, "te_ms": 3.0}
PROTOCOLS = [
    MPRAGE | {"ti_ms": 900.0, "contrast": 0.3},
    MPRAGE | {"ti_ms": 1000.0, "field_tesla": 1.5, "contrast": 0.4},
    {"manufacturer": "GE", "sequence": "SPGR", "field_tesla": 1.5, "te_ms": 3.0},
]
SCHEDULE = Schedule.make(ScheduleConfig(kind="cosine", prediction="eps"))


def test_what_differs_is_a_condition_and_what_is_not_said_is_zero():
    schema = acquisition_conditions(PROTOCOLS)
    # The echo time is the same in all.
    assert schema.names == ["manufacturer", "sequence", "field_tesla", "ti_ms", "contrast"]
    c = encoded(schema, [*PROTOCOLS, {"manufacturer": "Philips", "field_tesla": 3.0}, {}])
    assert c.shape == (5, sum(v.width for v in schema.variables))
    assert c[0, :4].tolist() == [0, 1, 1, 0]
    # Known, and its number; SPGR has no inversion, and nothing knows Philips.
    assert c[:, 6].tolist() == [1, 1, 0, 0, 0]
    assert c[3, :4].tolist() == [0, 0, 0, 0]
    assert c[3, 4] == 1
    assert not c[4].any()
    with pytest.raises(ManifestError, match="one protocol"):
        acquisition_conditions([MPRAGE, MPRAGE])


def test_a_variable_is_one_token():
    c = torch.tensor([[1.0, 0.0, 1.0, 0.7], [0.0, 1.0, 0.0, 0.0]])
    tokens = one_a_variable(Condition(c).tokens(torch.tensor([False, True])), (2, 2))
    assert tokens.shape == (2, 2, 2 + 4 + 1)
    assert tokens[0, 0].tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert torch.allclose(tokens[0, 1], torch.tensor([0, 1, 0, 0, 1, 0.7, 0]))
    # Withheld: which it is, and that nothing is said.
    assert tokens[1].tolist() == [[1, 0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0, 1]]


def test_variables_are_unsaid_by_themselves():
    generator = torch.Generator().manual_seed(0)
    c = some_unsaid(torch.ones(4000, 3), (2, 1), (0.1, 0.5), generator)
    assert torch.equal(c[:, 0], c[:, 1])
    assert c.mean(0).tolist() == pytest.approx([0.9, 0.9, 0.5], abs=0.03)


def small(flat: bool) -> UNet:
    torch.manual_seed(0)
    net = UNet(
        UNetConfig(
            1, 1, (8, 16), 1, (False, True), 8, 6, norm_groups=4, inputs=(2, 2), flat=flat,
            conditioning="both",
        )
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def test_a_slice_is_its_own_image():
    net = small(flat=True)
    context = Condition(torch.randn(3, 4)).tokens()
    slices, t = torch.randn(3, 1, 1, 6, 5), torch.tensor([3, 400, 900])
    with torch.no_grad():
        out = net(slices, t, context)
        alone = net(slices[1:2], t[1:2], context[1:2])
    assert out.shape == slices.shape
    assert torch.allclose(out[1:2], alone, atol=1e-5)
    assert all(conv.kernel_size[0] == 1 for conv in net.modules() if hasattr(conv, "kernel_size"))


def test_slices_are_taken_apart_and_put_together():
    image = torch.randn(2, 1, 3, 4, 5)
    coder = SliceCoder(5)
    slices = coder.encode(image)
    assert torch.equal(slices[5 + 2, 0, 0], image[1, 0, :, :, 2])
    assert torch.equal(coder.decode(slices), image)


def test_slices_without_a_brain_are_left_out():
    images = torch.zeros(2, 10, 10, 4)
    images[0, 2:8, 2:8, 1:3] = 0.5
    images[1, 2:8, 2:8, 3] = 1.0
    c = torch.tensor([[0.0], [1.0]])
    data, mean = slice_data((images, images), (c, c), torch.ones(2), 2)
    assert data.latents.shape == (3, 2, 1, 1, 10, 10)
    assert data.conditions[:, 0].tolist() == [0, 0, 1]
    r = mean.residual(data.latents[:, 0], data.conditions)
    assert float(r.mean()) == pytest.approx(0, abs=1e-5)
    assert float(r.std()) == pytest.approx(1, abs=1e-4)


def test_the_paper_s_networks():
    schema = acquisition_conditions(PROTOCOLS)
    how = acquisition_diffusion(SLICES, schema)
    net = unet_config(11, (1, 1, 80, 96), how)
    assert net.channels == (64, 64, 128, 128, 256, 256)
    assert [n for n, on in enumerate(net.attention, 1) if on] == [3, 5]
    assert (net.res_blocks, net.conditioning, net.flat) == (2, "both", True)
    assert how.schedule == ScheduleConfig(kind="cosine", prediction="eps")
    assert how.drop_conditions == 0.15
    latent = acquisition_diffusion(LATENT_DIFFUSION, schema)
    assert latent.schedule.kind == "cosine"
    # Views of another brightness would not be what the conditions say.
    assert latent.views == 2
    assert sum(latent.inputs) == sum(v.width for v in schema.variables)


def exact(center: float, spread: float):
    """eps of data that are normal around `center`, in closed form."""
    asked = []

    def denoise(zt, t):
        asked.append((int(t[0]), zt.clone()))
        signal, noise = SCHEDULE.levels(t, zt)
        return noise * (zt - signal * center) / (signal**2 * spread**2 + noise**2)

    return denoise, asked


def test_algorithm_1_asks_first_at_the_time_of_the_noise():
    r, config = torch.full((2, 500), 1.0), Rediffusion(50, 1.0, "ddpm")
    denoiser, asked = exact(3.0, 0.0)
    draw = [torch.Generator().manual_seed(n) for n in (1, 2)]
    out = rediffuse(SCHEDULE, (denoiser, denoiser), r, config, draw)
    assert [t for t, _ in asked] == list(range(50, 0, -1))
    signal, noise = SCHEDULE.levels(torch.tensor([50]), r)
    drawn = (asked[0][1] - signal * r) / noise
    assert float(drawn.mean()) == pytest.approx(0, abs=0.1)
    assert float(drawn.std()) == pytest.approx(1, abs=0.1)
    # Who all look like this do, whatever they were.
    assert torch.allclose(out, torch.full_like(out, 3.0), atol=1e-3)


def test_more_noise_takes_more_of_the_other_acquisition():
    r = torch.zeros(1, 4000)
    moved = []
    for start_t in (50, 200, 600):
        denoiser, _ = exact(1.0, 1.0)
        draw = [torch.Generator().manual_seed(0)]
        config = Rediffusion(start_t, 1.0, "ddpm")
        moved.append(float(rediffuse(SCHEDULE, (denoiser, denoiser), r, config, draw).mean()))
    # Of normal data: each step keeps of the way to the centre what its posterior's mean keeps.
    expected = [1 - np.sqrt(float(SCHEDULE.alpha_bar[t])) for t in (50, 200, 600)]
    assert moved == pytest.approx([float(kept(t)) for t in (50, 200, 600)], abs=0.05)
    assert moved == sorted(moved)
    assert all(m >= e - 0.05 for m, e in zip(moved, expected, strict=True))


def kept(start_t: int) -> float:
    """The mean of what comes back of 0, in closed form: data of centre 1 and spread 1 stay normal
    of spread 1 at every time, so that z0 and zt are linear in each other with slope sqrt(alpha)."""
    a = SCHEDULE.alpha_bar.numpy()
    mean = 0.0
    for t in range(start_t, 0, -1):
        ratio = a[t] / a[t - 1]
        z0 = 1 + np.sqrt(a[t]) * (mean - np.sqrt(a[t]))
        mean = (
            np.sqrt(a[t - 1]) * (1 - ratio) / (1 - a[t]) * z0
            + np.sqrt(ratio) * (1 - a[t - 1]) / (1 - a[t]) * mean
        )
    return mean


def test_inversion_under_the_same_acquisition_comes_back():
    r = torch.randn(2, 50)
    denoiser, _ = exact(0.5, 1.5)
    config = Rediffusion(300, 1.0, "ddim", 20)
    out = rediffuse(SCHEDULE, (denoiser, denoiser), r, config, [])
    assert torch.allclose(out, r, atol=0.02)
    with pytest.raises(UsageError, match="start-t"):
        rediffuse(SCHEDULE, (denoiser, denoiser), r, Rediffusion(1001, 3.0, "ddpm"), [])


def table(folder, echo_times):
    grid = model_grid("t1w-2mm")
    axes = np.meshgrid(*[np.arange(n) - n / 2 for n in grid.shape], indexing="ij")
    ball = (sum(x**2 for x in axes) < 30**2).astype(np.float32)
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "image", "split", "Manufacturer", "EchoTime"])
        for n, te in enumerate(echo_times):
            image = folder / f"{n}.nii.gz"
            write_new(
                Volume(ball * (0.5 + 0.1 * n + axes[0] / 400), grid.affine), image, np.float32
            )
            split = "val" if n == len(echo_times) - 1 else "train"
            writer.writerow([f"p{n}", image, split, ("Siemens", "GE")[n % 2], te])
    return path


def test_train_ldm_learns_how_scans_were_acquired(cfgen, tiny_bundle, tmp_path):
    usual = ("train-ldm", "--manifest", table(tmp_path, ["0.003", "", "0.005", "0.004"]))
    usual += ("--bundle", tiny_bundle.path, "--out", tmp_path / "made", "--threads", 1)
    usual += ("--steps", 1, "--batch-size", 1)
    code, _, said = cfgen(*usual, "--conditions", "acquisition")
    assert code == 0, said
    bundle = read_bundle(tmp_path / "made")
    assert bundle.schema.names == ["manufacturer", "te_ms", "contrast"]
    net = bundle.part("unet").config
    assert net["net"]["inputs"] == [2, 2, 2]
    assert net["net"]["conditioning"] == "both"
    assert (net["schedule"]["kind"], net["drop_conditions"]) == ("cosine", 0.15)
    assert net["schedule"]["shift"] == 8
    # What knew other conditions is gone.
    assert not {"scm", "predictor", "judge"} & set(bundle.parts)
    models = load_models(bundle, torch.device("cpu"))
    c = encoded(bundle.schema, [{"te_ms": 3.0}])
    pair = Condition(c), Condition(encoded(bundle.schema, [{"te_ms": 5.0}]))
    image = torch.rand(1, 1, 80, 96, 88)
    out = rediffused(
        models, image, pair, Rediffusion(2, 3.0, "ddpm"), [torch.Generator().manual_seed(0)]
    )
    assert out.shape == image.shape
    for more, expected in ((("--slices",), "--slices"), (("--conditions", "site"), "--tune")):
        code, _, said = cfgen(*usual, *more)
        assert code == 2
        assert expected in said
