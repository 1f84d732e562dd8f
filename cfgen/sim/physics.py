"""From tissue to MR signal: steady states of MPRAGE and SPGR, receive and transmit fields, noise.

Times are in ms, angles in degrees, field strength in tesla. With E(t) = exp(-t / T1), an MPRAGE
shot inverts (efficiency f), waits TD1 to the train of N readouts of flip angle a and spacing ES,
and waits TD2 to the next inversion:

    M1 = 1 - (1 + f M0) E(TD1)
    M2 = M1 c^N + (1 - e)(1 - c^N) / (1 - c),   e = E(ES),  c = cos(a) e
    M0 = 1 - (1 - M2) E(TD2)

which is affine in M0; its fixed point is the steady state, and the middle readout gives the
contrast: S = PD sin(a) |Mc| exp(-TE / T2*). SPGR is the Ernst equation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.data.acquisition import FIELDS_T, Manufacturer, SequenceName
from cfgen.data.acquisition_headers import header
from cfgen.data.schema import Value
from cfgen.errors import UsageError
from cfgen.space.sampling import gaussian_line

TISSUES = ("white", "grey", "fluid")
INVERSION_EFFICIENCY = 0.96
# T1 (ms) at 1.5, 3 and 7 T. 'apparent' is what MPRAGE of today's scanners looks like; Wright et al.
# 2008 (MAGMA) measured 'wright2008'. Fluid is 4300 everywhere.
T1_MS = {
    "apparent": {"white": (730.0, 950.0, 1270.0), "grey": (1080.0, 1450.0, 1750.0)},
    "wright2008": {"white": (646.0, 838.0, 1126.0), "grey": (1197.0, 1607.0, 1939.0)},
}
T1_FLUID_MS = 4300.0
# T2* (ms) at 1.5, 3 and 7 T: Peters et al. 2007 (MRI); fluid: our choice.
T2_STAR_MS = {
    "white": (66.0, 53.0, 27.0),
    "grey": (84.0, 66.0, 33.0),
    "fluid": (500.0, 300.0, 150.0),
}
PROTON_DENSITY = {"white": 0.70, "grey": 0.82, "fluid": 1.0}
# Of the white matter's signal at 3 T, 1 mm3 and no acceleration.
NOISE_AT_3T = 0.03
# Scanners of 3 T write 2.89 to 3 T.
FIELD_TOLERANCE = 0.06
# How far apart the values of the receive field are, and how far above nominal the flip angle is in
# the middle of the head, at 1.5, 3 and 7 T.
RECEIVE = {1.5: 0.10, 3.0: 0.25, 7.0: 0.50}
TRANSMIT = {1.5: 0.03, 3.0: 0.08, 7.0: 0.25}
# Ageing lengthens the T1 of white matter by this a year past 50 (Callaghan et al. 2014).
T1_AGEING = 0.0015


@dataclass(frozen=True)
class Acquisition:
    """A protocol. `tr_ms` is the time between inversions of MPRAGE and between pulses of SPGR;
    `slices` the readouts of a shot; `slice_mm` the thickness along z; `partial_fourier` the part
    of k-space along y that is sampled; `acceleration` the parallel imaging factor."""

    manufacturer: Manufacturer = "Siemens"
    field_tesla: float = 3.0
    sequence: SequenceName = "MPRAGE"
    tr_ms: float = 2300.0
    te_ms: float = 2.98
    ti_ms: float = 900.0
    flip_degrees: float = 9.0
    echo_spacing_ms: float = 7.1
    slices: int = 176
    slice_mm: float = 1.0
    partial_fourier: float = 1.0
    acceleration: float = 1.0


@dataclass(frozen=True)
class Tissue:
    """`t1_ms`, `t2_star_ms` and `proton_density` (of fluid's): numbers, or tensors (n,) of as many
    tissues."""

    t1_ms: float | Tensor
    t2_star_ms: float | Tensor
    proton_density: float | Tensor


def tissue(name: str, field_tesla: float, table: str = "apparent") -> Tissue:
    """White, grey or fluid at a field strength; between those of the tables along powers of it
    (Bottomley et al. 1984). Raises UsageError for one away from them."""
    tables = (
        (T1_FLUID_MS,) * len(FIELDS_T) if name == "fluid" else T1_MS[table][name],
        T2_STAR_MS[name],
    )
    for at, field in enumerate(FIELDS_T):
        if abs(field_tesla / field - 1) < FIELD_TOLERANCE:
            return Tissue(tables[0][at], tables[1][at], PROTON_DENSITY[name])
    if not FIELDS_T[0] <= field_tesla <= FIELDS_T[-1]:
        expected = f"{FIELDS_T[0]:g} to {FIELDS_T[-1]:g} T, where relaxation times are known"
        raise UsageError("field strength", f"{field_tesla:g} T", expected)
    t1, t2_star = (
        float(np.exp(np.interp(np.log(field_tesla), np.log(FIELDS_T), np.log(values))))
        for values in tables
    )
    return Tissue(t1, t2_star, PROTON_DENSITY[name])


def signal(matter: Tissue, scan: Acquisition, flip_scale: Tensor | float = 1.0) -> Tensor:
    """The signal of a tissue, float64; `flip_scale` (any shape) is the transmit field, 1 nominal.

    Raises UsageError when the readouts do not fit between the pulses.
    """
    angle = torch.as_tensor(flip_scale, dtype=torch.float64) * np.deg2rad(scan.flip_degrees)
    longitudinal = (
        _mprage(matter, scan, angle) if scan.sequence == "MPRAGE" else _spgr(matter, scan, angle)
    )
    decay = _decay(scan.te_ms, matter.t2_star_ms)
    return matter.proton_density * torch.sin(angle) * longitudinal.abs() * decay


def _decay(time_ms: float, constant_ms: float | Tensor) -> Tensor:
    return torch.exp(-time_ms / torch.as_tensor(constant_ms, dtype=torch.float64))


def _spgr(matter: Tissue, scan: Acquisition, angle: Tensor) -> Tensor:
    e1 = _decay(scan.tr_ms, matter.t1_ms)
    return (1 - e1) / (1 - torch.cos(angle) * e1)


def _mprage(matter: Tissue, scan: Acquisition, angle: Tensor) -> Tensor:
    train = scan.slices * scan.echo_spacing_ms
    td1, td2 = scan.ti_ms - train / 2, scan.tr_ms - scan.ti_ms - train / 2
    if td1 < 0 or td2 < 0:
        raise UsageError(
            "acquisition",
            f"{scan.slices} readouts of {scan.echo_spacing_ms:g} ms do not fit around "
            f"TI {scan.ti_ms:g} in TR {scan.tr_ms:g} ms",
            f"at most {2 * min(scan.ti_ms, scan.tr_ms - scan.ti_ms) / scan.echo_spacing_ms:.0f}",
            "shorten the train (readouts are a segment's, after partial Fourier and acceleration)",
        )
    f, e = INVERSION_EFFICIENCY, _decay(scan.echo_spacing_ms, matter.t1_ms)
    e1, e2 = _decay(td1, matter.t1_ms), _decay(td2, matter.t1_ms)
    c = torch.cos(angle) * e
    whole, half = c**scan.slices, c ** (scan.slices / 2)
    saturated = (1 - e) / (1 - c)
    # M0' = a + b M0
    b = -f * e1 * whole * e2
    a = 1 - e2 + e2 * ((1 - e1) * whole + saturated * (1 - whole))
    m1 = 1 - (1 + f * a / (1 - b)) * e1
    return m1 * half + saturated * (1 - half)


def protocol_of(scan: Acquisition) -> dict[str, Value]:
    """The parameters by the names of `data/acquisition.py`."""
    protocol: dict[str, Value] = {
        "manufacturer": scan.manufacturer,
        "field_tesla": scan.field_tesla,
        "sequence": scan.sequence,
        "te_ms": scan.te_ms,
        "flip_degrees": scan.flip_degrees,
        "slice_mm": scan.slice_mm,
        "acceleration": scan.acceleration,
    }
    if scan.sequence == "SPGR":
        return protocol | {"tr_excitation_ms": scan.tr_ms}
    return protocol | {
        "tr_preparation_ms": scan.tr_ms,
        "tr_excitation_ms": scan.echo_spacing_ms,
        "ti_ms": scan.ti_ms,
        "readouts": float(scan.slices),
    }


def reported(scan: Acquisition) -> dict[str, Value]:
    """The parameters as the manufacturer's DICOM headers give them (s and degrees, BIDS names)."""
    return header(protocol_of(scan)) | {"PartialFourier": scan.partial_fourier}


def acquire(
    maps: Tensor,
    scan: Acquisition,
    spacing_mm: float,
    age: float,
    texture: Tensor,
    transmit: Tensor,
    receive: Tensor,
    noise: Tensor | None,
) -> Tensor:
    """An image (D, H, W) of tissue maps (white, grey, fluid; D, H, W), white matter about 1.

    `texture` (3, D, H, W) scales each tissue, `transmit` the flip angle, `receive` the signal;
    `noise` (2, D, H, W), standard normal, gives Rician noise, None none. Thick slices and partial
    Fourier blur before the noise is added, as the scanner does.
    """
    image = torch.zeros(maps.shape[1:], dtype=torch.float32)
    reference = float(signal(tissue("white", scan.field_tesla), scan))
    for n, name in enumerate(TISSUES):
        matter = tissue(name, scan.field_tesla)
        if name == "white":
            matter = replace(matter, t1_ms=matter.t1_ms * (1 + T1_AGEING * max(0.0, age - 50)))
        # Smooth in the flip angle: a cubic through four of them is exact enough, and fast.
        image += maps[n] * texture[n] * _over_flip(matter, scan, transmit)
    image = blurred(image / reference * receive, scan, spacing_mm)
    if noise is None:
        return image
    sigma = noise_level(scan, spacing_mm)
    return torch.sqrt((image + sigma * noise[0]) ** 2 + (sigma * noise[1]) ** 2)


def _over_flip(matter: Tissue, scan: Acquisition, transmit: Tensor) -> Tensor:
    low, high = float(transmit.min()), float(transmit.max())
    knots = np.linspace(low, max(high, low + 0.02), 4)
    values = signal(matter, scan, torch.from_numpy(knots)).numpy()
    polynomial = np.polynomial.Polynomial.fit(knots, values, 3).convert().coef
    fitted = torch.full_like(transmit, float(polynomial[-1]))
    for coefficient in polynomial[-2::-1]:
        fitted = fitted * transmit + float(coefficient)
    return fitted


def by_field(table: Mapping[float, float], field_tesla: float) -> float:
    """A value of a table by field strength, linear between its entries."""
    return float(np.interp(field_tesla, list(table), list(table.values())))


def noise_level(scan: Acquisition, spacing_mm: float) -> float:
    """Standard deviation of the noise, of the white matter's signal: by field, voxel and speed-up,
    and by how strong this protocol's signal is beside an MPRAGE at 3 T."""
    usual = Acquisition()
    strength = float(signal(tissue("white", scan.field_tesla), scan)) / float(
        signal(tissue("white", 3.0), usual)
    )
    voxel_mm3 = spacing_mm**2 * max(scan.slice_mm, spacing_mm)
    gain = (scan.field_tesla / 3) * voxel_mm3 * strength / np.sqrt(scan.acceleration)
    return float(NOISE_AT_3T / gain)


def blurred(image: Tensor, scan: Acquisition, spacing_mm: float) -> Tensor:
    """Slices thicker than the grid along z, and k-space cut on one side along y."""
    if scan.slice_mm > spacing_mm:
        # Full width at half maximum of a slice, less that of the grid's own voxel.
        sigma = np.sqrt(scan.slice_mm**2 - spacing_mm**2) / 2.355 / spacing_mm
        line = gaussian_line(sigma)
        radius = len(line) // 2
        padded = F.pad(image[None, None], (radius, radius, 0, 0, 0, 0), mode="replicate")
        image = F.conv3d(padded, line.reshape(1, 1, 1, 1, -1))[0, 0]
    if scan.partial_fourier < 1:
        n = image.shape[1]
        spectrum = torch.fft.fft(image, dim=1)
        kept = torch.fft.fftfreq(n) * n > -n / 2 * (2 * scan.partial_fourier - 1)
        # The part that is missing is filled with zeros, as most scanners do.
        image = torch.fft.ifft(spectrum * kept[None, :, None], dim=1).abs()
    return image
