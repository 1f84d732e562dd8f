"""Fit the causal model of volumes to a table of people, and put it into a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from cfgen.bundle import Bundle, copy_bundle, read_bundle, write_part
from cfgen.causal.causal_graph import AGE, EVERY_VOLUME, CausalGraph, Sketch, spread_out
from cfgen.causal.centiles import median_slope
from cfgen.causal.graph_files import default_graph, read_graph
from cfgen.causal.scm import PART, Scm, load_scm
from cfgen.causal.scm_check import DECADES, Check, check_scm, decade_slope, regions_that_age
from cfgen.causal.scm_fit import fit_scm, graph_of
from cfgen.config import ScmFit
from cfgen.data.cohort_table import CohortTable, read_cohort_table, train_rows
from cfgen.data.table import SHOWN
from cfgen.data.volume import refuse_existing
from cfgen.data.volume_columns import HEAD, REGIONS
from cfgen.errors import ManifestError, UsageError

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Inputs:
    """`table` of conditions, and of volumes unless they are in `volumes`; `graph` None is the
    default; variables of `missing` may lack values."""

    table: Path
    volumes: Path | None = None
    graph: Path | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cohort:
    """People to learn from: `columns` of the graph's nodes, one entry a visit."""

    graph: CausalGraph
    columns: Mapping[str, np.ndarray]
    subjects: tuple[str, ...]
    names: str


@dataclass(frozen=True)
class Fitted:
    bundle: Bundle
    scm: Scm
    check: Check
    people: int


def read_inputs(inputs: Inputs) -> Cohort:
    """Everything that is needed to fit, checked.

    Raises UsageError for a graph that is none or does not fit the table, ManifestError for a table
    that cannot be read and for values that are missing, by line and column.
    """
    sketch = default_graph() if inputs.graph is None else read_graph(inputs.graph)
    table = train_rows(read_cohort_table(inputs.table, inputs.volumes))
    sketch = _of_table(sketch, table)
    _warn_of_misspelt(table)
    if not any(d.kind == "volume" and n != HEAD for n, d in sketch.nodes.items()):
        named = ", ".join(n for n in table.volumes if n != HEAD)
        raise UsageError(
            sketch.where,
            "has no volume of a region",
            f"a node that is one of {named}",
            f"a node '{EVERY_VOLUME}' stands for all of them",
        )
    _refuse_missing(sketch, table, inputs.missing)
    columns = {name: table.columns[name] for name in sketch.nodes}
    graph = graph_of(sketch, columns)
    for node in graph.nodes:
        if node.kind == "discrete" and columns[node.name].dtype.kind == "f":
            texts = [f"{x:g}" if x == x else "" for x in columns[node.name]]
            columns[node.name] = np.array(texts)
    return Cohort(graph, columns, table.subjects, table.names)


def _of_table(sketch: Sketch, table: CohortTable) -> Sketch:
    """The sketch for a table.

    Beside its lobes the whole cortex is a variable only by name. What is optional and the same in
    everybody (one site, women alone) is none.
    """
    volumes = list(table.volumes)
    lobes = any(name.startswith("cortex_") for name in volumes)
    if lobes and "cortex" in volumes and "cortex" not in sketch.nodes:
        volumes.remove("cortex")
    same = [n for n, d in sketch.nodes.items() if d.optional and _is_same(table, n)]
    absent = [n for n, d in sketch.nodes.items() if d.optional and n not in table.columns]
    for name, why in [(n, "the same in everybody") for n in same] + [
        (n, "no column") for n in absent
    ]:
        log.info("%s is left out: %s", name, why)
    whole = spread_out(sketch, volumes, [c for c in table.columns if c not in same])
    empty = [n for n in whole.nodes if table.missing(n) == list(table.sources)]
    if empty:
        raise ManifestError(
            table.path,
            f"column {empty[0]} has no value",
            "values",
            f"fill it in, or leave {empty[0]} out of the graph",
        )
    return whole


def _warn_of_misspelt(table: CohortTable) -> None:
    """A column that is nearly a region's name would be left out without a word."""
    regions = [name for name in REGIONS if name not in table.volumes]
    for column in table.columns:
        near = get_close_matches(column.lower(), regions, 1, cutoff=0.85)
        if near and column not in table.volumes:
            log.warning(
                "%s: column %s is no region, did you mean %s?", table.path.name, column, near[0]
            )


def _is_same(table: CohortTable, name: str) -> bool:
    values = table.columns.get(name)
    return values is not None and values.dtype.kind != "f" and len(set(values) - {""}) == 1


def _refuse_missing(sketch: Sketch, table: CohortTable, allowed: tuple[str, ...]) -> None:
    unknown = [name for name in allowed if name not in sketch.nodes]
    if unknown:
        expected = ", ".join(sketch.nodes)
        raise UsageError("--missing", f"'{unknown[0]}' is not in the graph", expected)
    gaps = {name: table.missing(name) for name in sketch.nodes}
    for name in allowed:
        declared, values = sketch.nodes[name], table.columns[name]
        if gaps[name] and declared.kind != "volume" and values.dtype.kind == "f":
            raise UsageError(
                "--missing",
                f"'{name}' is a number and no volume",
                "volumes and categories",
                f"leave {', '.join(gaps[name][:SHOWN])} out of the table",
            )
    faults = [
        f"{source} column {name}: missing"
        for name, sources in gaps.items()
        if name not in allowed
        for source in sources
    ]
    if faults:
        names = [name for name in gaps if gaps[name] and name not in allowed]
        options = " ".join(f"--missing {name}" for name in names)
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise ManifestError(
            table.path,
            f"{len(faults)} missing value{'s' if len(faults) > 1 else ''}",
            "a value in every line",
            f"fill them in, leave the lines out, or average over them: {options}"
            + "".join(f"\n  {f}" for f in [*faults[:SHOWN], *more]),
        )


def read_prior(path: Path) -> Scm:
    """The normative law of a bundle. Raises BundleError when it has none."""
    return load_scm(read_bundle(path))


def fit(
    cohort: Cohort,
    source: Path,
    out: Path,
    settings: ScmFit,
    normative: Scm | None = None,
    *,
    overwrite: bool = False,
) -> Fitted:
    """Fit, check on people held out, and write the bundle with its part `scm`.

    Raises UsageError when people are too few, ImageError when `out` is there already.
    """
    refuse_existing(out / "bundle.json", overwrite)
    bundle = read_bundle(source)
    people = len(set(cohort.subjects))
    log.info("%d people, %d visits, volumes of %s", people, len(cohort.subjects), cohort.names)
    scm = fit_scm(cohort.graph, cohort.columns, settings, normative, cohort.subjects)
    check = check_scm(scm, cohort.columns, settings, normative, cohort.subjects)
    tensors, config = scm.to_tensors()
    trained: dict[str, Any] = {
        "people": people,
        "visits": len(cohort.subjects),
        "volumes": cohort.names,
        "settings": vars(settings),
        "normative": normative is not None,
        "held_out": {n: vars(score) for n, score in check.nodes.items()},
        "round_trip": check.round_trip,
    }
    written = write_part(copy_bundle(bundle, out), PART, tensors, config, trained)
    return Fitted(written, scm, check, people)


def slopes(scm: Scm) -> dict[str, dict[float, tuple[float, float | None]]]:
    """Region -> age -> (log % a decade of the model, of the normative centiles or None)."""
    low, high = scm.graph.node(AGE).support or (0.0, 120.0)
    return {
        region: {
            age: (100 * decade_slope(scm, region, age), _normative(region, age))
            for age in DECADES
            if low <= age <= high
        }
        for region in regions_that_age(scm.graph)
    }


def _normative(region: str, age: float) -> float | None:
    """Log % a decade of the median of healthy people; None where there is no norm."""
    slope = median_slope(region, age)
    return None if slope is None else 100 * slope


def describe_json(fitted: Fitted, *, with_slopes: bool) -> dict[str, Any]:
    """Equations, scores and slopes as data."""
    described: dict[str, Any] = {
        "bundle": str(fitted.bundle.path),
        "people": fitted.people,
        "equations": fitted.scm.equations(),
        "held_out": {n: vars(score) for n, score in fitted.check.nodes.items()},
        "round_trip": fitted.check.round_trip,
        "categories_kept": fitted.check.categories_kept,
        "correlations": fitted.check.correlations,
    }
    if with_slopes:
        described["slopes_log_percent_a_decade"] = {
            region: {f"{age:g}": values for age, values in ages.items()}
            for region, ages in slopes(fitted.scm).items()
        }
    return described


def describe(fitted: Fitted, *, with_slopes: bool) -> str:
    """The same as a page of text."""
    check = fitted.check
    lines = [*fitted.scm.equations(), "", "on people held out:"]
    lines.append(f"  {'':28}{'NLL':>8}{'KS':>8}{'p':>8}")
    for name, score in check.nodes.items():
        uniform = f"{score.ks:8.3f}{score.ks_p:8.3f}" if score.ks is not None else ""
        lines.append(f"  {name:28}{score.nll:8.3f}{uniform}")
    kept = "kept" if check.categories_kept else "NOT kept"
    lines.append(f"  round trip: {check.round_trip:.1e}; categories {kept}")
    lines.append(f"  correlation of residuals: {check.mean_correlation:.2f} on average;")
    lines += [f"    {a} and {b} {r:+.2f}" for a, b, r in check.correlations[:5]]
    if with_slopes:
        lines += ["", *_slope_lines(fitted.scm)]
    return "\n".join(lines)


def _slope_lines(scm: Scm) -> list[str]:
    table = slopes(scm)
    ages = sorted({age for row in table.values() for age in row})
    normed = any(norm is not None for row in table.values() for _, norm in row.values())
    beside = " (in brackets healthy people's median)" if normed else ""
    lines = [f"log % a decade{beside}:"]
    lines.append(f"  {'age':28}" + "".join(f"{age:>16g}" for age in ages))
    for region, row in table.items():
        cells = []
        for age in ages:
            ours, norm = row[age]
            cells.append(f"{ours:+8.1f}" + (f" ({norm:+5.1f})" if norm is not None else " " * 8))
        lines.append(f"  {region:28}" + "".join(cells))
    return lines
