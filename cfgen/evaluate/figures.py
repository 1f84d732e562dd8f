"""Figures of an evaluation, as SVG and PNG; safe for colour-blind readers (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfgen.data.volume import write_atomically
from cfgen.evaluate.edits import WHOLE
from cfgen.evaluate.longitudinal import CHANGE_PER_YEAR, STUDY
from cfgen.evaluate.scans import Made, Seen
from cfgen.evaluate.sets import SHARES
from cfgen.evaluate.suite import TRAJECTORY, Evaluation
from cfgen.evaluate.truth import COPY
from cfgen.metrics.result import ALL, REAL, Result

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """All figures that the results suffice for; the paths."""
    figures = {
        "age_by_change": _bars(evaluation.results),
        "effectiveness_and_identity": _pareto(evaluation.results),
        "effect_sizes": _forest(evaluation.results),
        "age_asked_and_seen": _agreement(evaluation),
        "volume_change_by_age": _response(evaluation),
        "change_a_year": _years(evaluation.results),
        "trajectories": _paths(evaluation),
    }
    paths = []
    for name, figure in figures.items():
        if figure is None:
            continue
        for kind in ("svg", "png"):
            path = folder / f"{name}.{kind}"
            metadata = {"Date": None} if kind == "svg" else {"Software": None}

            def save(
                to: Path, figure: Any = figure, kind: str = kind, metadata: Any = metadata
            ) -> None:
                figure.savefig(to, format=kind, metadata=metadata, dpi=150)

            write_atomically(path, save)
            paths.append(path)
    return paths


def _figure(width: float = 7.0, height: float = 4.2, panels: int = 1) -> tuple[Any, Any]:
    """A figure and the axes of its `panels`, side by side."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The same picture has the same bytes.
    mpl.rcParams["svg.hashsalt"] = "cfgen"
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _methods(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(r.method for r in results if r.method != REAL))


def _bars(results: Sequence[Result]) -> Any:
    """Age error by the change that was asked for (CDM Tab. 2), over the judge's own error."""
    judged = [r for r in results if (r.metric, r.variable, r.by) == ("mae", "age", "judge")]
    rows = [r for r in judged if np.isfinite(r.asked)]
    if not rows:
        return None
    changes = sorted({r.asked for r in rows})
    methods = _methods(rows)
    figure, (axes,) = _figure()
    width = 0.8 / len(methods)
    for k, method in enumerate(methods):
        by_change = {r.asked: r for r in rows if r.method == method}
        at = [i for i, years in enumerate(changes) if years in by_change]
        bars = [by_change[changes[i]] for i in at]
        place = np.array(at) + (k - (len(methods) - 1) / 2) * width
        colour = COLOURS[k % len(COLOURS)]
        axes.bar(place, [r.value for r in bars], width, color=colour, label=method)
        ends = np.array([[r.low, r.high] for r in bars]).T
        axes.vlines(place, *ends, color="#000000", lw=0.8)
    floor = next((r for r in judged if r.method == REAL), None)
    if floor is not None:
        axes.axhline(floor.value, color="#555555", ls="--", lw=1, label="judge on real scans")
    axes.set_xticks(range(len(changes)), [f"{years:+g}" for years in changes])
    axes.set_xlabel("change of age that was asked for (years)")
    axes.set_ylabel("mean absolute error of age (years)")
    # Above: the bars may reach anywhere.
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _pareto(results: Sequence[Result]) -> Any:
    """How far the target was reached against how much was changed."""
    figure, (axes,) = _figure(5.4, 4.2)
    drawn = False
    for k, method in enumerate(_methods(results)):
        by_key = {
            (r.metric, r.variable, r.group, r.variant): r
            for r in results
            if r.method == method and r.by == "judge"
        }
        slope = by_key.get(("slope", "age", ALL, ""))
        kept = by_key.get(("perceptual_to_factual", "", "", WHOLE))
        if slope is None or kept is None:
            continue
        drawn = True
        axes.plot(
            kept.value,
            slope.value,
            MARKERS[k % len(MARKERS)],
            ms=9,
            color=COLOURS[k % len(COLOURS)],
            label=method,
        )
    if not drawn:
        return None
    axes.axhline(1, color="#555555", ls="--", lw=1)
    axes.set_xlabel("perceptual distance to the factual scan (less is closer)")
    axes.set_ylabel("years seen for a year asked")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _forest(results: Sequence[Result]) -> Any:
    """Cohen's d of every region, made against real (PCGM Fig. 4)."""
    rows = [
        r for r in results if r.metric == "cohens_d" and r.variant == SHARES and r.method != COPY
    ]
    if not rows:
        return None
    regions = list(dict.fromkeys(r.region for r in rows))
    methods = _methods(rows)
    figure, (axes,) = _figure(6.4, 0.24 * len(regions) + 1.2)
    for k, method in enumerate(methods):
        by_region = {r.region: r for r in rows if r.method == method}
        for i, region in enumerate(regions):
            r = by_region[region]
            y = i + 0.5 * (k - (len(methods) - 1) / 2) / len(methods)
            axes.plot([r.low, r.high], [y, y], color=COLOURS[k % len(COLOURS)], lw=1)
            axes.plot(
                r.value,
                y,
                MARKERS[k % len(MARKERS)],
                ms=4,
                color=COLOURS[k % len(COLOURS)],
                label=method if i == 0 else None,
            )
    for edge in (-0.2, 0.2):
        axes.axvline(edge, color="#999999", ls=":", lw=1)
    _name_regions(axes, regions)
    axes.set_xlabel("Cohen's d, counterfactual against real (shares of the head)")
    return figure


def _name_regions(axes: Any, regions: Sequence[str]) -> None:
    """A line a region from the top down, zero marked, and the methods' legend."""
    axes.axvline(0, color="#555555", lw=1)
    axes.set_yticks(range(len(regions)), [r.replace("_", " ") for r in regions], fontsize=7)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)


def _agreement(evaluation: Evaluation) -> Any:
    """Bland-Altman of the age seen in a counterfactual and its target."""
    figure, (axes,) = _figure(6.4, 4.2)
    drawn = False
    for k, (method, edits) in enumerate(evaluation.methods.items()):
        aged = [m for m in edits if "age" in m.changed and "age" in m.seen.guesses["judge"]]
        if not aged:
            continue
        drawn = True
        seen = np.array([m.seen.guesses["judge"]["age"] for m in aged])
        target = np.array([float(m.target["age"]) for m in aged])
        error = seen - target
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(
            (seen + target) / 2,
            error,
            MARKERS[k % len(MARKERS)],
            ms=3,
            alpha=0.5,
            color=colour,
            label=f"{method}: {error.mean():+.1f} ± {1.96 * error.std():.1f}",
        )
        axes.axhline(error.mean(), color=colour, lw=1)
    if not drawn:
        return None
    axes.set_xlabel("mean of age seen and target (years)")
    axes.set_ylabel("age seen - target (years)")
    axes.legend(frameon=False, fontsize=8, title="mean ± 1.96 SD of edits", title_fontsize=8)
    return figure


def _response(evaluation: Evaluation) -> Any:
    """Change of region volumes a decade, beside what real people differ by."""
    rows = [r for r in evaluation.results if r.metric == "change_per_decade"]
    methods = _methods(rows)
    if not methods:
        return None
    regions = list(dict.fromkeys(r.region for r in rows))
    figure, (axes,) = _figure(6.4, 0.24 * len(regions) + 1.2)
    people = {r.region: r.value for r in rows if r.method == REAL}
    axes.plot(
        [people.get(g, np.nan) for g in regions],
        range(len(regions)),
        "|",
        ms=10,
        color="#000000",
        label="real people of different age",
    )
    for k, method in enumerate(methods):
        by_region = {r.region: r.value for r in rows if r.method == method}
        axes.plot(
            [by_region[g] for g in regions],
            range(len(regions)),
            MARKERS[k % len(MARKERS)],
            ms=4,
            color=COLOURS[k % len(COLOURS)],
            label=method,
        )
    _name_regions(axes, regions)
    axes.set_xlabel("change of volume a decade (%)")
    return figure


def _years(results: Sequence[Result]) -> Any:
    """Yearly change of edits in later life, beside that within people who were scanned again."""
    rows = [r for r in results if r.metric == CHANGE_PER_YEAR and r.method != COPY]
    methods = _methods(rows)
    if not methods:
        return None
    regions = list(dict.fromkeys(r.region for r in rows))
    figure, (axes,) = _figure(6.4, 0.24 * len(regions) + 1.2)
    for k, method in enumerate([REAL, *methods]):
        some = [r for r in rows if r.method == method]
        colour = "#000000" if method == REAL else COLOURS[(k - 1) % len(COLOURS)]
        y = np.array([regions.index(r.region) for r in some]) + 0.5 * k / (len(methods) + 1)
        for place, r in zip(y, some, strict=True):
            axes.plot([r.low, r.high], [place, place], color=colour, lw=1)
        axes.plot(
            [r.value for r in some],
            y,
            "|" if method == REAL else MARKERS[(k - 1) % len(MARKERS)],
            ms=8 if method == REAL else 4,
            color=colour,
            ls="",
            label=f"within people ({STUDY})" if method == REAL else method,
        )
    _name_regions(axes, regions)
    axes.set_xlabel("change of log volume a year (%), 95 % intervals")
    return figure


def _paths(evaluation: Evaluation) -> Any:
    """From each person's scan to the counterfactuals of other ages, over the real people; visits of
    one person are joined (PCGM Fig. 3)."""
    aged = {
        name: [m for m in edits if m.changed == ("age",)]
        for name, edits in evaluation.methods.items()
        if name != COPY
    }
    aged = {name: edits for name, edits in aged.items() if edits}
    if not aged:
        return None
    from matplotlib.ticker import LogLocator, NullLocator

    figure, panels = _figure(3.4 * len(aged) + 0.6, 3.6, len(aged))
    visits: dict[str, list[tuple[float, float]]] = {}
    for r in evaluation.real:
        if "age" in r.row.values:
            at = (float(r.row.values["age"]), _millilitres(r.seen))
            visits.setdefault(r.person, []).append(at)
    for k, (name, edits) in enumerate(aged.items()):
        axes = panels[k]
        for series in visits.values():
            axes.plot(
                *zip(*sorted(series), strict=True), "o-", ms=3, lw=1, color="#888888", zorder=1
            )
        paths: dict[int, list[Made]] = {}
        for m in edits:
            paths.setdefault(id(m.real), []).append(m)
        for path in paths.values():
            start = (float(path[0].real.row.values["age"]), _millilitres(path[0].real.seen))
            points = sorted(
                [start, *((float(m.target["age"]), _millilitres(m.seen)) for m in path)]
            )
            axes.plot(*zip(*points, strict=True), "-", lw=0.8, color=COLOURS[k % len(COLOURS)])
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("age (years)")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        if k == 0:
            axes.set_ylabel(f"{TRAJECTORY.replace('_', ' ')} (mL)")
    return figure


def _millilitres(seen: Seen) -> float:
    return seen.volumes[TRAJECTORY] / 1e3
