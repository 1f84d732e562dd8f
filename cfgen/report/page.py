"""The page of one counterfactual: one HTML file that needs nothing but a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cfgen import __version__
from cfgen.data.table import read_table
from cfgen.data.volume import (
    Volume,
    file_sha256,
    read_volume,
    write_atomically,
)
from cfgen.data.volumes import read_region_volume, sums
from cfgen.edit.sidecar import Sidecar, read_sidecar
from cfgen.errors import ImageError, ManifestError
from cfgen.measure.ruler import Regions, Ruler
from cfgen.report import text as report_text
from cfgen.report.layers import STOPS, Display, display, planes
from cfgen.space.grids import largest_component


@dataclass(frozen=True)
class Run:
    """A counterfactual as it was written, with what is shown beside it, all on the scan's grid."""

    factual: Volume
    edited: Volume
    sidecar: Sidecar
    before: Regions
    after: Regions
    reconstruction: Volume | None = None
    sd: Volume | None = None
    # Volumes that the edit should have reached, where others than the sidecar's are.
    targets: report_text.Volumes = field(default_factory=dict)


def read_run(
    edited_path: Path, factual_path: Path | None, ruler: Ruler, last: Run | None = None
) -> Run:
    """A counterfactual from its files: the image, its sidecar, the scan that it was made of (given,
    or beside it), and reconstruction and SD where the sidecar names them. The regions of that scan
    are those of the `last` run if it was made of the same one.

    Raises ImageError when one is missing or is not the file that the sidecar tells of.
    """
    edited = read_volume(edited_path)
    sidecar = read_sidecar(edited_path)
    source = sidecar.sources[0]
    scan_path = factual_path or edited_path.parent / Path(source.file).name
    if not scan_path.is_file():
        raise ImageError(
            scan_path,
            "no such file",
            f"the scan that {edited_path.name} was made of",
            "give --factual",
        )
    digest = file_sha256(scan_path)
    if digest != source.sha256:
        raise ImageError(
            scan_path,
            f"is not the scan that {edited_path.name} was made of: SHA-256 {digest[:12]}",
            f"{source.sha256[:12]} ({source.file})",
            "give that file with --factual",
        )
    factual = read_volume(scan_path)

    def beside(name: str | None) -> Volume | None:
        if not name:
            return None
        path = edited_path.parent / Path(name).name
        if not path.is_file():
            return None
        volume = read_volume(path, blank=True)
        _same_grid(volume, factual)
        return volume

    _same_grid(edited, factual)
    known = last if last and last.sidecar.sources[0].sha256 == digest else None
    return Run(
        factual,
        edited,
        sidecar,
        known.before if known else ruler.measure(factual),
        ruler.measure(edited),
        beside(sidecar.reconstruction),
        beside(sidecar.samples.standard_deviation if sidecar.samples else None),
    )


def _same_grid(volume: Volume, scan: Volume) -> None:
    if not volume.grid.matches(scan.grid):
        name = scan.path.name if scan.path else "the scan"
        raise ImageError(volume.path, f"is not on the grid of {name}", "the files of one run")


def read_targets(path: Path) -> report_text.Volumes:
    """Volumes of one scan from a table as `segment --volumes` writes it.

    Raises ManifestError when it has other columns, other numbers or more than one scan.
    """
    table = read_table(path)
    needed = ("structure", "side", "volume_mm3")
    absent = [name for name in needed if table.column(name) is None]
    if absent:
        raise ManifestError(
            path, f"no column {', '.join(absent)}", "a table of 'cfgen segment --volumes'"
        )
    scans = {(table.cell(c, "subject"), table.cell(c, "session")) for _, c in table.lines}
    if len(scans) > 1:
        raise ManifestError(path, f"volumes of {len(scans)} scans", "those of one")
    return sums(read_region_volume(table, line, cells) for line, cells in table.lines)


def show(run: Run) -> Display:
    """The layers of a run's pictures."""
    volumes = {"factual": run.factual.data, "counterfactual": run.edited.data}
    if run.reconstruction is not None:
        volumes["reconstruction"] = run.reconstruction.data
    if run.sd is not None:
        volumes["sd"] = run.sd.data
    return display(volumes, run.factual.grid, _brain(run))


def _brain(run: Run) -> np.ndarray:
    """Where the brain is, nearly: the box of the pictures and their window need no more."""
    if run.before.mask is not None and run.before.mask.any():
        return run.before.mask
    data = run.factual.data
    return largest_component(data > 0.1 * float(np.percentile(data, 99)))


def write_page(run: Run, path: Path, shown: Display | None = None, index: str = "") -> None:
    """Write the page of a run; `index` is the address of the list that it belongs to, if any."""
    text = template("single.html").render(_page(run, shown or show(run)), index=index)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _page(run: Run, shown: Display) -> dict[str, Any]:
    """What the template is filled with."""
    sidecar = run.sidecar
    edited = run.edited.path.name if run.edited.path else "counterfactual"
    groups = report_text.region_groups(run.before.volumes, run.after.volumes, run.targets, sidecar)
    digest = file_sha256(run.edited.path) if run.edited.path else ""
    files = [("counterfactual", f"{edited}, SHA-256 {digest}")]
    return {
        "version": __version__,
        "statement": report_text.STATEMENT,
        "scan": sidecar.sources[0].file,
        "label": sidecar.intervention,
        "edited": edited,
        "conditions": report_text.conditions(sidecar),
        "flags": report_text.flags(sidecar),
        "layers": shown.layers,
        "planes": planes(shown),
        "note": shown.note,
        "no_reconstruction": run.reconstruction is None,
        "groups": groups,
        "has_targets": any(line.target is not None for _, lines in groups for line in lines),
        "has_samples": any(line.interval for _, lines in groups for line in lines),
        "samples": sidecar.samples.count if sidecar.samples else None,
        "missing": "" if groups else run.before.missing or run.after.missing,
        "recorded": any(r.achieved is not None for r in sidecar.regions),
        "measured_by": run.before.by,
        "measures": sidecar.gate.measures,
        "provenance": report_text.provenance(sidecar, files),
        "methods": report_text.methods(sidecar, run.before.by),
        "stops": STOPS,
        "data": _data(shown),
    }


def _data(shown: Display) -> dict[str, Any]:
    """What the page's script needs to know of the layers."""
    return {
        "shape": shown.shape,
        "start": shown.start,
        "affine": shown.affine.round(5).tolist(),
        "stops": STOPS,
        "layers": [
            {
                "name": layer.name,
                "title": layer.title,
                "kind": layer.kind,
                "low": layer.low,
                "high": layer.high,
                "shown": layer.shown,
            }
            for layer in shown.layers
        ],
    }


@cache
def _environment() -> jinja2.Environment:
    """Everything is escaped: names of subjects and files are anyone's text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cfgen.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"mm3": mm3, "percent": percent, "number": number}
    return environment


def template(name: str) -> jinja2.Template:
    """A page of `templates/`."""
    return _environment().get_template(name)


def mm3(value: float) -> str:
    """'12 345': a thin space between thousands."""
    return f"{value:,.0f}".replace(",", "\u2009")


def percent(value: float | None) -> str:
    """'+4.2', with a real minus sign; a dash where there is none."""
    if value is None:
        return "\u2013"
    # Adding 0 takes the sign off -0.
    near = round(value, 1) + 0.0
    return f"{near:+.1f}".replace("-", "\u2212") if near else "0.0"


def number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\u2212")
