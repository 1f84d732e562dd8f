"""The files of a counterfactual: their names, what old runs left, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cfgen import __version__
from cfgen.batch.resume import fingerprint
from cfgen.config import EDIT, RATES, SEED, By, DecoderKind, Edit, Rates, Render
from cfgen.data.conditions import Values
from cfgen.data.volume import (
    SYNTHETIC,
    is_synthetic,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_like,
    write_new,
)
from cfgen.edit.engine import Engine
from cfgen.edit.samples import Sampled, Spread
from cfgen.edit.samples import record as samples_record
from cfgen.edit.sidecar import Sidecar
from cfgen.edit.way import way_of
from cfgen.errors import UsageError
from cfgen.measure.ruler import Regions
from cfgen.report.page import Run, write_page
from cfgen.scan.open import Opened
from cfgen.scan.pictures import counterfactual_picture

# Whose spread samples show.
SPREADS: dict[By, Spread] = {
    "conditions": "sampler",
    "tissue": "law of volumes",
    "masks": "sampler",
    "tissue+masks": "law of volumes and the sampler",
}


@dataclass(frozen=True)
class Options:
    """How counterfactuals are made, and which files beside the image are written."""

    # None: moved tissue where the bundle can, else the residual of an edit by conditions alone.
    by: By | None = None
    render: Render | None = None
    # Where a diffusion model makes something of the image; None: as it comes.
    edit: Edit | None = None
    decoder: DecoderKind = "kl"
    difference: bool = False
    picture: bool = True
    overwrite: bool = False
    seed: int = SEED
    # Go on with a scan that the gate refuses; the sidecar says so.
    force: bool = False
    # The image is the mean of so many samples (edit/samples.py).
    samples: int = 1
    # Also what the model sees of the scan; also the page of report/page.py.
    reconstruction: bool = False
    report: bool = False
    # Where a causal model is asked: at whose rate of ageing. Of moved tissue: whether the head's
    # size follows, whether noise stays where it is, and whether displacement and log-Jacobian are
    # written too.
    rates: Rates = RATES
    scale_head: bool = False
    keep_noise: bool = True
    field: bool = False

    @property
    def sampler(self) -> Edit:
        return self.edit or EDIT


@dataclass(frozen=True)
class Images:
    """A scan, its counterfactual over samples, and what a model sees of it (I, J, K)."""

    opened: Opened
    sampled: Sampled
    rebuilt: np.ndarray | None


def request(
    engine: Engine, hashes: Sequence[str], known: Values, label: str, options: Options
) -> str:
    """The fingerprint of one target: all that decides its image, before anything is computed;
    `hashes` are SHA-256 of the scan and of its mask, if there is one."""
    way = way_of(engine.bundle, options.by, options.render)
    recipe: list[object] = [engine.bundle.identity, engine.finder.how, way.by, way.render]
    if way.generates:
        recipe += [asdict(options.sampler), options.decoder]
    if way.causal:
        recipe += [options.rates, options.scale_head, options.keep_noise]
    return fingerprint(hashes, [*recipe, options.seed, options.samples, dict(known), label])


def output_files(image: Path, options: Options) -> dict[str, Path]:
    """The files of one target by what they are."""
    stem = image.with_name(strip_suffix(image))
    endings = {
        "sidecar": (".json", True),
        "difference": ("_diff.nii.gz", options.difference),
        "sd": ("_sd.nii.gz", options.samples > 1),
        "reconstruction": ("_rec.nii.gz", options.reconstruction),
        "field": ("_field.nii.gz", options.field),
        "jacobian": ("_jacobian.nii.gz", options.field),
        "report": (".html", options.report),
        "picture": (".png", options.picture),
    }
    wanted = {name: ending for name, (ending, asked) in endings.items() if asked}
    return {"image": image} | {n: stem.with_name(stem.name + e) for n, e in wanted.items()}


def clear_leftovers(files: dict[str, Path]) -> None:
    """Images that say they are ours, without their sidecar, are of a run that was killed."""
    image = files["image"]
    if image.exists() and not files["sidecar"].exists() and is_synthetic(image):
        for path in files.values():
            path.unlink(missing_ok=True)


def refuse_outputs(paths: Sequence[Path], overwrite: bool) -> None:
    """Raises UsageError where one exists, or two have one name."""
    if len(set(paths)) < len(paths):
        double = next(p for p in paths if list(paths).count(p) > 1)
        raise UsageError(double, "two outputs would have this name", fix="ask for fewer targets")
    for path in paths:
        refuse_existing(path, overwrite)


def write_images(images: Images, sidecar: Sidecar, paths: dict[str, Path]) -> Sidecar:
    """Every image and the picture of one target; the sidecar with what they are."""
    scan, sampled, label = images.opened.volume, images.sampled, sidecar.intervention
    data, origin = sampled.mean, f"{SYNTHETIC} {__version__}"
    description = f"{origin} counterfactual {label}"
    write_like(scan, data, paths["image"], description=description)
    if "difference" in paths:
        difference = scan.like(data - scan.data)
        write_new(difference, paths["difference"], np.float32, description=description)
    if "sd" in paths and sampled.sd is not None:
        sd = scan.like(sampled.sd)
        write_new(sd, paths["sd"], np.float32, description=f"{origin} SD of samples {label}")
        samples = samples_record(sampled, paths["sd"].name, SPREADS[sidecar.by or "conditions"])
        sidecar = replace(sidecar, samples=samples)
    if "reconstruction" in paths and images.rebuilt is not None:
        path = paths["reconstruction"]
        write_like(scan, images.rebuilt, path, description=f"{origin} reconstruction")
        sidecar = replace(sidecar, reconstruction=path.name)
    if "picture" in paths:
        title = f"{sidecar.sources[0].file}: counterfactual {label} (synthetic)"
        mask = images.opened.prepared.native_mask
        counterfactual_picture(scan.data, data, scan.grid, mask, paths["picture"], title)
    return sidecar


def write_report(
    engine: Engine,
    images: Images,
    sidecar: Sidecar,
    paths: dict[str, Path],
    after: Regions | None,
) -> None:
    """The page of what was written: the image is read back, as a reader of it would. `after` are
    its regions, where they were measured already."""
    scan, edited = images.opened.volume, read_volume(paths["image"])
    ruler, before = engine.ruler, images.opened.brain.regions
    regions = ruler.measure(scan) if before is None else ruler.read(before)
    after = after or ruler.measure(edited)
    sd = None if images.sampled.sd is None else scan.like(images.sampled.sd)
    rebuilt = None if images.rebuilt is None else scan.like(images.rebuilt)
    write_page(Run(scan, edited, sidecar, regions, after, rebuilt, sd), paths["report"])
