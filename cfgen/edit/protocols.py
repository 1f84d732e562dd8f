"""Which protocols a scan is rendered under: as asked, or drawn; and what physics can't render."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from cfgen.data.acquisition import NAMES, TEXTS, Protocol
from cfgen.data.acquisition_headers import known_name, read_columns
from cfgen.data.interventions import Change
from cfgen.data.schema import Value
from cfgen.edit.contrast import signals
from cfgen.edit.rerender import Effects, Rendering, Resolution
from cfgen.errors import CfgenError, Notice, UsageError
from cfgen.sim.protocols import stated

# No signal equation has them.
NO_EQUATION = tuple(name for name in TEXTS if name != "sequence")
# Draws that are looked at for each that is wanted: of some pools few can be rendered.
TRIES = 20
_PREPARED = ("tr_preparation_ms", "ti_ms", "readouts")


@dataclass(frozen=True)
class Target:
    """A protocol to render: `label` is in file names, `asked` is what was asked for and not
    rendered, `assumed` what the equations needed and nobody said."""

    label: str
    protocol: Protocol
    renderings: tuple[Rendering, Rendering]
    origin: str
    asked: dict[str, Value] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def is_null(self) -> bool:
        """Whether it is rendered as the scan's own is."""
        return self.renderings[0] == self.renderings[1]


@dataclass(frozen=True)
class Place:
    """A scan's grid, as far as resolution goes: voxels (mm) and the axis of its slices."""

    spacing: tuple[float, float, float]
    axis: int

    def resolution(self, protocol: Protocol) -> Resolution:
        """What is resolved; a voxel where it was not said, or is less."""
        voxel = self.spacing[self.axis]
        plane = min(s for a, s in enumerate(self.spacing) if a != self.axis)
        return Resolution(
            max(float(protocol.get("slice_mm", voxel)), voxel),
            max(float(protocol.get("in_plane_mm", plane)), plane),
            self.axis,
        )


def parse_changes(pairs: Mapping[str, str]) -> None:
    """Raises UsageError for a name that no protocol has, or when physics knows none of them."""
    for name in pairs:
        if not known_name(name):
            raise UsageError(
                "--to", f"unknown parameter '{name}'", "BIDS' names, such as EchoTime or FlipAngle"
            )
    reading = read_columns(pairs, "--to", {"sequence": "MPRAGE", "manufacturer": "Siemens"})
    if set(reading.values) and set(reading.values) <= set(NO_EQUATION):
        keys = " and ".join(TEXTS[n] for n in reading.values)
        raise UsageError(
            "--to",
            f"{keys} alone, which no signal equation has",
            "field strength, sequence, times, flip angle, slice thickness",
            "give the other scanner's EchoTime, InversionTime, FlipAngle and so on",
        )


def changed(source: Protocol, pairs: Mapping[str, str], place: Place, effects: Effects) -> Target:
    """The scan's protocol with what was asked for. Raises UsageError."""
    reading = read_columns(pairs, "--to", source)
    if reading.problems:
        raise UsageError("--to", "; ".join(reading.problems.values()))
    label = "_".join(Change(n, v).label() for n, v in reading.values.items())
    notices = tuple(Notice("acquisition", text) for text in reading.notes)
    wanted = {**source, **reading.values}
    return _target(label, source, wanted, place, effects, "--to", notices)


def sampled(
    source: Protocol,
    draws: Iterator[tuple[str, Protocol]],
    count: int,
    place: Place,
    effects: Effects,
) -> list[Target]:
    """So many of the drawn protocols that physics can render, in their order.

    Raises UsageError, with the last reason, where too few of them can be.
    """
    targets: list[Target] = []
    refused: CfgenError | None = None
    for origin, drawn in islice(draws, TRIES * count):
        label = f"iap{len(targets) + 1:02d}"
        # A protocol is whole: nothing of the scan's own numbers goes into it.
        wanted = {n: source[n] for n in NO_EQUATION if n in source} | dict(drawn)
        try:
            targets.append(_target(label, source, wanted, place, effects, origin))
        except CfgenError as error:
            refused = error
        if len(targets) == count:
            return targets
    why = refused or "the pool is empty"
    raise UsageError(
        "--sample",
        f"{len(targets)} of {count} protocols can be rendered; the last: {why}",
        "protocols with field strength, sequence, times and flip angle",
    )


def _target(
    label: str,
    source: Protocol,
    wanted: Mapping[str, Value],
    place: Place,
    effects: Effects,
    origin: str,
    notices: tuple[Notice, ...] = (),
) -> Target:
    """Raises UsageError for a protocol that physics can't render, or nothing of which it would."""
    unrendered = _unrendered(effects)
    asked = {n: wanted[n] for n in wanted if n in unrendered and wanted[n] != source.get(n)}
    protocol = {n: v for n, v in wanted.items() if n not in asked}
    protocol |= {n: source[n] for n in asked if n in source}
    if protocol.get("sequence") == "SPGR":
        protocol = {n: v for n, v in protocol.items() if n not in _PREPARED}
    protocol = {n: protocol[n] for n in NAMES if n in protocol}
    if asked and protocol == {n: source[n] for n in NAMES if n in source}:
        raise UsageError(
            origin,
            f"nothing of it is rendered: {', '.join(asked)}",
            "what the equations know, or --resolution and --noise for slices and acceleration",
        )
    own, assumed = stated(source, "the scan's protocol")
    scan, assumed_too = stated(protocol, "the target protocol")
    signals(own, scan)
    renderings = (
        Rendering(own, place.resolution(source)),
        Rendering(scan, place.resolution(protocol)),
    )
    if asked:
        notices += (Notice("not-rendered", f"asked for and not rendered: {', '.join(asked)}"),)
    texts = tuple(f"of the scan: {t}" for t in assumed)
    texts += tuple(f"of the target: {t}" for t in assumed_too)
    if texts:
        notices += (Notice("assumed", f"nobody says, and the equations need: {'; '.join(texts)}"),)
    return Target(label, protocol, renderings, origin, asked, texts, notices)


def _unrendered(effects: Effects) -> set[str]:
    names = set(NO_EQUATION)
    if effects.noise == "keep":
        names.add("acceleration")
        if not effects.resolution:
            names |= {"slice_mm", "in_plane_mm"}
    return names
