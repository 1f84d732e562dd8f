"""How scanners come to their parameters: maker and field strength cause times, angles, slices.

Typical protocols (ADNI, UK Biobank, MS-SMART) with the spread between sites. Noise is kept under an
intervention, like everything else in the simulator; a parameter that is set stays as it is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cfgen.data.acquisition import (
    FIELDS_T,
    MAKERS,
    PARAMETERS,
    SEQUENCES,
    TEXTS,
    Manufacturer,
    Protocol,
    SequenceName,
    parameter,
)
from cfgen.errors import UsageError
from cfgen.sim.physics import Acquisition

# MPRAGE: at 1.5, 3 and 7 T; then what Siemens, GE and Philips add.
TI_MS, TI_MAKER = (1000.0, 900.0, 1050.0), (0.0, 0.0, -50.0)
TR_MS = (2400.0, 2300.0, 2600.0)
TE_MS, TE_MAKER = (3.5, 2.98, 2.5), (0.0, -0.1, 0.15)
FLIP_DEGREES, FLIP_MAKER = (8.0, 9.0, 6.0), (0.0, 2.0, 0.0)
ECHO_SPACING_MS = (7.1, 7.0, 6.9)
SLICES = 176
# Readouts of one shot reach this close to the inversion; more slices take several shots.
TRAIN_PART = 0.95
# What the signal equation of a sequence needs; the time between its repetitions last.
NEEDED = {
    "MPRAGE": ("field_tesla", "flip_degrees", "te_ms", "ti_ms", "tr_preparation_ms"),
    "SPGR": ("field_tesla", "flip_degrees", "te_ms", "tr_excitation_ms"),
}


@dataclass(frozen=True)
class Scanner:
    """Roots of the acquisition, and its noise: six numbers in (0, 1)."""

    manufacturer: Manufacturer
    field_tesla: float
    sequence: SequenceName
    noise: tuple[float, ...]


def one_scanner() -> Scanner:
    """A Siemens at 3 T with its usual MPRAGE."""
    return Scanner("Siemens", 3.0, "MPRAGE", (0.5,) * 6)


def draw_scanner(u: np.ndarray, age: float, confounding: float) -> Scanner:
    """A scanner of nine uniform numbers. With probability `confounding` the cohort decides, not
    chance: under 45 years a Siemens at 3 T, over it a GE at 1.5 T."""
    if u[0] < confounding:
        young = age < 45
        return Scanner("Siemens" if young else "GE", 3.0 if young else 1.5, "MPRAGE", tuple(u[3:]))
    v = (u[0] - confounding) / (1 - confounding)
    maker = MAKERS[int(np.searchsorted((0.5, 0.75), v))]
    field_tesla = FIELDS_T[int(np.searchsorted((0.35, 0.95), u[1]))]
    if field_tesla == 7.0 and maker != "Siemens":
        field_tesla = 3.0
    sequence: SequenceName = "MPRAGE" if u[2] < 0.8 else "SPGR"
    return Scanner(maker, field_tesla, sequence, tuple(u[3:]))


def acquisition(scanner: Scanner, given: Mapping[str, float] | None = None) -> Acquisition:
    """The protocol of a scanner; `given` parameters (PARAMETERS) stay as they are given.

    Raises UsageError for an unknown parameter.
    """
    given = given or {}
    unknown = sorted(set(given) - set(PARAMETERS))
    if unknown:
        raise UsageError("acquisition", f"unknown parameter '{unknown[0]}'", ", ".join(PARAMETERS))
    from scipy.special import ndtri

    z = ndtri(np.clip(scanner.noise, 1e-6, 1 - 1e-6))
    f, m = FIELDS_T.index(scanner.field_tesla), MAKERS.index(scanner.manufacturer)
    third = int(np.clip(scanner.noise[4] * 3, 0, 2))
    if scanner.sequence == "SPGR":
        u = scanner.noise
        usual = Acquisition(
            scanner.manufacturer,
            scanner.field_tesla,
            "SPGR",
            tr_ms=9 + 21 * u[0],
            te_ms=3 + 3 * u[1],
            ti_ms=0.0,
            flip_degrees=15 + 20 * u[2],
            echo_spacing_ms=0.0,
            slices=SLICES,
            slice_mm=round(1.2 + 1.3 * u[5], 1),
        )
        return replace(usual, **given)  # type: ignore[arg-type]
    usual = Acquisition(
        scanner.manufacturer,
        scanner.field_tesla,
        "MPRAGE",
        tr_ms=TR_MS[f] + 80 * z[0],
        te_ms=TE_MS[f] + TE_MAKER[m] + 0.15 * z[1],
        ti_ms=TI_MS[f] + TI_MAKER[m] + 30 * z[2],
        flip_degrees=FLIP_DEGREES[f] + FLIP_MAKER[m] + (-1.0, 0.0, 1.0)[third],
        echo_spacing_ms=ECHO_SPACING_MS[m] + 0.3 * z[3],
        slice_mm=1.0 if scanner.noise[5] < 0.5 else 1.2 if scanner.noise[5] < 0.9 else 1.5,
    )
    scan = replace(usual, **given)  # type: ignore[arg-type]
    return replace(scan, slices=min(SLICES, _most_readouts(scan, scan.echo_spacing_ms)))


def stated(protocol: Protocol, where: object) -> tuple[Acquisition, list[str]]:
    """A protocol that the equations can take, and what had to be assumed for it, in words.

    Raises UsageError for a sequence without equations, a parameter that they need and nobody said,
    and a protocol that no scanner can run.
    """
    sequence = protocol.get("sequence")
    if sequence not in SEQUENCES:
        raise UsageError(
            where,
            f"no signal equation for the sequence {sequence}" if sequence else "sequence unknown",
            f"{' or '.join(SEQUENCES)} ({TEXTS['sequence']})",
        )
    missing = [n for n in NEEDED[sequence] if n not in protocol]
    if missing:
        keys = " and ".join(parameter(n).key for n in missing)
        raise UsageError(
            where,
            f"{keys} unknown",
            f"what the {sequence} equation needs",
            f"say --from {keys}=...",
        )
    maker = protocol.get("manufacturer")
    numbers = {n: float(protocol[n]) for n in protocol if n not in TEXTS}
    scan = Acquisition(
        manufacturer=maker if maker in MAKERS else "Siemens",
        field_tesla=numbers["field_tesla"],
        sequence=sequence,
        tr_ms=numbers[NEEDED[sequence][-1]],
        te_ms=numbers["te_ms"],
        flip_degrees=numbers["flip_degrees"],
        slice_mm=numbers.get("slice_mm", 1.0),
        acceleration=numbers.get("acceleration", 1.0),
    )
    if sequence == "SPGR":
        return replace(scan, ti_ms=0.0, echo_spacing_ms=0.0), []
    return _trained(replace(scan, ti_ms=numbers["ti_ms"]), numbers)


def _trained(scan: Acquisition, numbers: Mapping[str, float]) -> tuple[Acquisition, list[str]]:
    """With the train of readouts of an MPRAGE, which headers seldom tell."""
    assumed = []
    spacing = numbers.get("tr_excitation_ms")
    if spacing is None:
        spacing = ECHO_SPACING_MS[MAKERS.index(scan.manufacturer)]
        assumed.append(f"{parameter('tr_excitation_ms').key} {spacing / 1000:g} s")
    wanted = int(numbers.get("readouts", SLICES))
    slices = min(wanted, _most_readouts(scan, spacing))
    if "readouts" not in numbers or slices < wanted:
        assumed.append(f"{slices} readouts a shot ({parameter('readouts').key})")
    return replace(scan, echo_spacing_ms=spacing, slices=slices), assumed


def _most_readouts(scan: Acquisition, echo_spacing_ms: float) -> int:
    room_ms = 2 * min(scan.ti_ms, scan.tr_ms - scan.ti_ms) * TRAIN_PART
    return int(room_ms / echo_spacing_ms)
