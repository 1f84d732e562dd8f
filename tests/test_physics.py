"""MR signal: the closed forms against the Bloch equations step by step, and known contrasts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfgen.errors import UsageError
from cfgen.sim.physics import (
    INVERSION_EFFICIENCY,
    Acquisition,
    acquire,
    blurred,
    noise_level,
    reported,
    signal,
    tissue,
)


def bloch_mprage(of, scan, shots=60):
    """Longitudinal magnetisation pulse by pulse until it repeats itself."""

    def relax(m, t):
        return 1 + (m - 1) * np.exp(-t / of.t1_ms)

    angle, m = np.deg2rad(scan.flip_degrees), 1.0
    half, train = scan.slices // 2, scan.slices * scan.echo_spacing_ms
    for _ in range(shots):
        m = relax(-INVERSION_EFFICIENCY * m, scan.ti_ms - train / 2)
        for n in range(scan.slices):
            if n == half:
                centre = m
            m = relax(m * np.cos(angle), scan.echo_spacing_ms)
        m = relax(m, scan.tr_ms - scan.ti_ms - train / 2)
    return of.proton_density * np.sin(angle) * abs(centre) * np.exp(-scan.te_ms / of.t2_star_ms)


@pytest.mark.parametrize("name", ["white", "grey", "fluid"])
@pytest.mark.parametrize("field", [1.5, 3.0, 7.0])
def test_mprage_is_the_steady_state_of_the_bloch_equations(name, field):
    scan = Acquisition(field_tesla=field, tr_ms=2400, ti_ms=1000, slices=160)
    of = tissue(name, field)
    assert float(signal(of, scan)) == pytest.approx(bloch_mprage(of, scan), rel=1e-10)


@pytest.mark.parametrize(
    ("scan", "grey", "fluid"),
    [
        (
            Acquisition(field_tesla=1.5, tr_ms=2400, ti_ms=1000, te_ms=3.5, flip_degrees=8),
            0.63,
            0.13,
        ),
        (Acquisition(slices=168), 0.54, 0.17),
        (Acquisition(tr_ms=2000, ti_ms=880, te_ms=2.0, flip_degrees=8, slices=192), 0.58, 0.22),
        (
            Acquisition(
                field_tesla=7.0, tr_ms=2600, ti_ms=1050, te_ms=2.5, flip_degrees=6, slices=192
            ),
            0.53,
            0.16,
        ),
        (
            Acquisition(field_tesla=1.5, sequence="SPGR", tr_ms=35, flip_degrees=30, te_ms=5),
            0.74,
            0.30,
        ),
        (Acquisition(sequence="SPGR", tr_ms=20, flip_degrees=20, te_ms=4), 0.72, 0.38),
        (Acquisition(sequence="SPGR", tr_ms=13, flip_degrees=20, te_ms=5), 0.69, 0.36),
    ],
)
def test_contrasts_with_the_t1_of_wright(scan, grey, fluid):
    """Grey matter and fluid, of white matter: ADNI-1, ADNI-2, UK Biobank, 7 T, and three SPGR."""
    found = [
        float(signal(tissue(n, scan.field_tesla, "wright2008"), scan))
        for n in ("white", "grey", "fluid")
    ]
    assert found[1] / found[0] == pytest.approx(grey, abs=0.015)
    assert found[2] / found[0] == pytest.approx(fluid, abs=0.015)


def test_spgr_is_brightest_at_the_ernst_angle():
    of = tissue("white", 3.0)
    scan = Acquisition(sequence="SPGR", tr_ms=20, flip_degrees=1.0)
    angles = torch.linspace(1, 60, 5901)
    best = float(angles[signal(of, scan, angles).argmax()])
    assert best == pytest.approx(np.degrees(np.arccos(np.exp(-20 / of.t1_ms))), abs=0.02)


def test_noise_falls_with_field_voxel_and_time():
    usual = noise_level(Acquisition(), 1.0)
    assert usual == pytest.approx(0.03)
    assert noise_level(Acquisition(), 2.0) == pytest.approx(usual / 8)
    assert noise_level(Acquisition(acceleration=2.0), 1.0) == pytest.approx(usual * 2**0.5)
    weaker = Acquisition(field_tesla=1.5)
    strength = float(signal(tissue("white", 1.5), weaker)) / float(
        signal(tissue("white", 3.0), Acquisition())
    )
    assert noise_level(weaker, 1.0) == pytest.approx(2 * usual / strength)


def test_noise_is_rician():
    """Mean and spread of a magnitude: sqrt(pi / 2) sigma where there is no signal."""
    torch.manual_seed(0)
    scan, shape = Acquisition(), (40, 40, 40)
    flat = torch.ones(shape)
    nothing, noise = torch.zeros(3, *shape), torch.randn(2, *shape)
    image = acquire(nothing, scan, 1.0, 40.0, torch.ones(3, *shape), flat, flat, noise)
    sigma = noise_level(scan, 1.0)
    assert float(image.mean()) == pytest.approx(np.sqrt(np.pi / 2) * sigma, rel=0.01)
    assert float(image.std()) == pytest.approx(np.sqrt(2 - np.pi / 2) * sigma, rel=0.02)


def test_thick_slices_spread_along_z_alone():
    point = torch.zeros(21, 21, 21)
    point[10, 10, 10] = 1
    found = blurred(point, Acquisition(slice_mm=3.0), 1.0)
    assert float(found.sum()) == pytest.approx(1, rel=1e-5)
    z = torch.arange(21.0) - 10
    assert float((found * z**2).sum()) ** 0.5 == pytest.approx(np.sqrt(8) / 2.355, rel=0.02)
    assert float(found[10, 10].sum()) == pytest.approx(1, rel=1e-5)


def test_partial_fourier_blurs_and_keeps_what_is_smooth():
    flat = torch.ones(8, 32, 8)
    scan = Acquisition(partial_fourier=0.75)
    assert torch.allclose(blurred(flat, scan, 1.0), flat, atol=1e-5)
    point = torch.zeros(8, 32, 8)
    point[4, 16, 4] = 1
    assert float(blurred(point, scan, 1.0)[4, 16, 4]) == pytest.approx(0.75, abs=0.05)


def test_headers_follow_the_manufacturers_habits():
    """Siemens writes the time between inversions as TR, GE and Philips the echo spacing."""
    siemens = reported(Acquisition())
    ge = reported(Acquisition(manufacturer="GE"))
    assert siemens["RepetitionTime"] == 2.3
    assert ge["RepetitionTime"] == pytest.approx(0.0071)
    assert ge["InversionTime"] == pytest.approx(0.45)


def test_readouts_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="do not fit around TI 300"):
        signal(tissue("white", 3.0), Acquisition(ti_ms=300))
    with pytest.raises(UsageError, match=r"0\.5 T"):
        tissue("white", 0.5)


def test_a_varying_flip_angle_follows_the_closed_form():
    flips = torch.linspace(0.7, 1.3, 1000).reshape(10, 10, 10)
    scan, one, shape = (
        Acquisition(field_tesla=7.0, ti_ms=1050, tr_ms=2600),
        torch.ones(1),
        (10, 10, 10),
    )
    maps = torch.zeros(3, *shape)
    maps[1] = 1
    flat = torch.ones(shape)
    image = acquire(maps, scan, 1.0, 40.0, torch.ones(3, *shape), flips, flat * one, None)
    exact = signal(tissue("grey", 7.0), scan, flips) / signal(tissue("white", 7.0), scan)
    assert float((image - exact).abs().max()) < 2e-3 * float(exact.max())
