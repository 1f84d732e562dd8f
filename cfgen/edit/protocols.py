"""Which protocols a scan is rendered under: as asked, or drawn; and what physics, or a diffusion
model, can't render."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from cfgen.data.acquisition import BRIGHTNESS, NAMES, SCALES, TEXTS, Protocol
from cfgen.data.acquisition_headers import known_name, read_columns
from cfgen.data.interventions import Change
from cfgen.data.schema import Schema, Value, Values
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
    rendered, `assumed` what the equations needed and nobody said.

    Scan and target are `renderings` to physics, and `told` to a diffusion model; `scales` (SCALES)
    are asked for beside the protocol.
    """

    label: str
    protocol: Protocol
    origin: str
    renderings: tuple[Rendering, Rendering] | None = None
    told: tuple[Values, Values] | None = None
    scales: dict[str, Value] = field(default_factory=dict)
    asked: dict[str, Value] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def is_null(self) -> bool:
        """Whether it is rendered as the scan's own is."""
        pair = self.renderings or self.told
        return pair is not None and pair[0] == pair[1] and not self.scales


@dataclass(frozen=True)
class Wanted:
    """A protocol that is asked of a scan whose own is `source`, and who asks."""

    label: str
    source: Protocol
    values: Protocol
    origin: str
    notices: tuple[Notice, ...] = ()


# What is rendered of what is wanted. Raises UsageError where nothing can be.
Aim = Callable[[Wanted], Target]


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


def check_names(pairs: Mapping[str, str], option: str, scales: bool = False) -> None:
    """Raises UsageError for a name that no protocol has, and that is none of the `scales`."""
    others = [v.name for v in SCALES]
    for name in pairs:
        if name in others and not scales:
            expected = "parameters; with --by diffusion --to may change it"
            raise UsageError(option, f"{name}, which no protocol sets", expected)
        if not (known_name(name) or name in others):
            expected = "BIDS' names, such as EchoTime or FlipAngle"
            raise UsageError(option, f"unknown parameter '{name}'", expected)


def check_changes(pairs: Mapping[str, str]) -> None:
    """Raises UsageError when physics knows none of them."""
    reading = read_columns(pairs, "--to", {"sequence": "MPRAGE", "manufacturer": "Siemens"})
    if set(reading.values) and set(reading.values) <= set(NO_EQUATION):
        keys = " and ".join(TEXTS[n] for n in reading.values)
        raise UsageError(
            "--to",
            f"{keys} alone, which no signal equation has",
            "field strength, sequence, times, flip angle, slice thickness",
            "give the other scanner's EchoTime, InversionTime, FlipAngle and so on",
        )


def changed(source: Protocol, pairs: Mapping[str, str], aim: Aim) -> Target:
    """The scan's protocol with what was asked for. Raises UsageError."""
    reading = read_columns(pairs, "--to", source)
    if reading.problems:
        raise UsageError("--to", "; ".join(reading.problems.values()))
    scales = Schema(SCALES)
    values = reading.values | {
        n: scales.check_value(n, text, f"--to {n}")
        for n, text in pairs.items()
        if n in scales.names
    }
    label = "_".join(Change(n, v).label() for n, v in values.items())
    notices = tuple(Notice("acquisition", text) for text in reading.notes)
    return aim(Wanted(label, source, {**source, **values}, "--to", notices))


def sampled(
    source: Protocol, draws: Iterator[tuple[str, Protocol]], count: int, aim: Aim
) -> list[Target]:
    """So many of the drawn protocols that can be rendered, in their order.

    Raises UsageError, with the last reason, where too few of them can be.
    """
    targets: list[Target] = []
    refused: CfgenError | None = None
    for origin, drawn in islice(draws, TRIES * count):
        label = f"iap{len(targets) + 1:02d}"
        # A protocol is whole: nothing of the scan's own numbers goes into it.
        wanted = {n: source[n] for n in NO_EQUATION if n in source} | dict(drawn)
        try:
            targets.append(aim(Wanted(label, source, wanted, origin)))
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


def by_physics(place: Place, effects: Effects) -> Aim:
    """Raises UsageError for a protocol that physics can't render, or nothing of which it would."""
    return partial(_by_physics, place, effects)


def _by_physics(place: Place, effects: Effects, wished: Wanted) -> Target:
    source, wanted, origin = wished.source, wished.values, wished.origin
    notices = wished.notices
    unrendered = _unrendered(effects)
    asked = {n: wanted[n] for n in wanted if n in unrendered and wanted[n] != source.get(n)}
    protocol = _without(asked, wished)
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
    notices += _left(asked)
    texts = tuple(f"of the scan: {t}" for t in assumed)
    texts += tuple(f"of the target: {t}" for t in assumed_too)
    if texts:
        notices += (Notice("assumed", f"nobody says, and the equations need: {'; '.join(texts)}"),)
    return Target(
        wished.label,
        protocol,
        origin,
        renderings=renderings,
        asked=asked,
        assumed=texts,
        notices=notices,
    )


def by_model(schema: Schema) -> Aim:
    """Of a diffusion model whose conditions are these. Raises UsageError for what its training
    never saw the like of, and for a protocol of which it was told nothing."""
    return partial(_by_model, schema)


def _by_model(schema: Schema, wished: Wanted) -> Target:
    source, wanted, origin = wished.source, wished.values, wished.origin
    changes = {n: v for n, v in wanted.items() if v != source.get(n)}
    for name, value in changes.items():
        if name in schema.names:
            _require_seen(schema, name, value, origin)
    scales = {v.name: wanted[v.name] for v in SCALES if v.name in changes}
    # Brightness is put back by hand: no model is needed for it.
    rendered = {*schema.names, BRIGHTNESS}
    asked = {n: v for n, v in changes.items() if n not in rendered}
    if asked and len(asked) == len(changes):
        raise UsageError(
            origin,
            f"{', '.join(asked)}, of which the bundle's model was told nothing",
            f"one of {', '.join(schema.names)}",
        )
    protocol = _without(asked, wished)
    notices = wished.notices + tuple(
        Notice("extrapolation", f"the scan's {n.text}")
        for n in schema.support_notices({n: v for n, v in source.items() if n in protocol})
    )
    pair = told(schema, source), told(schema, {**protocol, **scales})
    return Target(
        wished.label,
        protocol,
        origin,
        told=pair,
        scales=scales,
        asked=asked,
        notices=notices + _left(asked),
    )


def told(schema: Schema, protocol: Protocol) -> dict[str, Value]:
    """What of a protocol the conditions can say; a text that training never saw is not known."""
    levels = {v.name: v.levels for v in schema.variables}
    return {n: x for n, x in protocol.items() if n in levels and (not levels[n] or x in levels[n])}


def _require_seen(schema: Schema, name: str, value: Value, origin: str) -> None:
    variable = schema.variable(name)
    if variable.levels:
        if value not in variable.levels:
            expected = f"one of {', '.join(variable.levels)}, which the model's training has seen"
            raise UsageError(origin, f"{name} '{value}'", expected)
        return
    for notice in schema.support_notices({name: value}):
        expected = "what the bundle's training has seen"
        raise UsageError(origin, notice.text, expected, "--by physics has equations, not a range")


def _without(asked: Mapping[str, Value], wished: Wanted) -> dict[str, Value]:
    """The protocol that is wanted, with the scan's own of what is `asked` and not rendered."""
    protocol = {n: v for n, v in wished.values.items() if n not in asked}
    protocol |= {n: wished.source[n] for n in asked if n in wished.source}
    if protocol.get("sequence") == "SPGR":
        protocol = {n: v for n, v in protocol.items() if n not in _PREPARED}
    return {n: protocol[n] for n in NAMES if n in protocol}


def _left(asked: Mapping[str, Value]) -> tuple[Notice, ...]:
    if not asked:
        return ()
    return (Notice("not-rendered", f"asked for and not rendered: {', '.join(asked)}"),)


def _unrendered(effects: Effects) -> set[str]:
    names = set(NO_EQUATION)
    if effects.noise == "keep":
        names.add("acceleration")
        if not effects.resolution:
            names |= {"slice_mm", "in_plane_mm"}
    return names
