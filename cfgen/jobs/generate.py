"""Write brains of nobody: images in the template's space, their records, a manifest and a sheet."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfgen import __version__
from cfgen.batch.lists import write_lists
from cfgen.batch.resume import digests, fingerprint, finished
from cfgen.batch.rows import Made, Outcome, run_rows
from cfgen.bundle import Bundle
from cfgen.config import GENERATION, TEMPLATE_SPACE, DecoderKind, Generation
from cfgen.data.conditions import Schema, number_text
from cfgen.data.manifest import read_manifest
from cfgen.data.names import check_outputs
from cfgen.data.record import Software, SourceFile, key, this_software, write_record
from cfgen.data.table import Row
from cfgen.data.volume import (
    SYNTHETIC,
    Volume,
    file_sha256,
    read_volume,
    refuse_existing,
    write_new,
)
from cfgen.data.wanted import Nobody, outside_support
from cfgen.device import number_type
from cfgen.edit.decoder import check_decoder
from cfgen.edit.generation import PARTS, generate
from cfgen.edit.latent import has_null, load_models, require_null, without_conditions
from cfgen.edit.sidecar import BundleName, TargetValue, library_versions
from cfgen.errors import BundleError, Notice, UsageError
from cfgen.jobs.counterfactual_files import clear_leftovers
from cfgen.measure.region_masks import region_masks
from cfgen.scan.sheet import brain_sheet, chosen
from cfgen.space.grids import model_grid

log = logging.getLogger("cfgen")
SHEET = "sheet.png"


@dataclass(frozen=True)
class Options:
    """`masks` is a label map on the model grid, which every brain is made to follow."""

    how: Generation = GENERATION
    overwrite: bool = False
    masks: Path | None = None
    decoder: DecoderKind = "kl"


@dataclass(frozen=True)
class GenerationRecord:
    """The sidecar of a brain of nobody. No time and no path: the same run writes the same bytes.

    `number_type` is bf16 or fp32, what the networks ran in: results differ a little between them.
    """

    synthetic: bool
    description: str
    generated_by: list[Software]
    bundle: BundleName
    conditions: dict[str, TargetValue]
    seed: int
    sampler: Generation
    latent_mean: str
    grid: str
    skull_stripped: bool
    versions: dict[str, str]
    device: str
    number_type: str
    threads: int
    warnings: list[Notice]
    fingerprint: str
    space: str = key("SpatialReference")
    decoder: DecoderKind = "kl"
    masks: SourceFile | None = None


ENDINGS = {"image": ".nii.gz", "sidecar": ".json"}


def files_of(person: Nobody, out: Path) -> dict[str, Path]:
    return {kind: out / f"{person.name}{end}" for kind, end in ENDINGS.items()}


def check_generation(
    bundle: Bundle, people: Sequence[Nobody], out: Path, options: Options
) -> list[Path]:
    """The images' paths, where nothing speaks against them: parts of the bundle, the number of
    steps, guidance, masks, names of files. Raises BundleError, UsageError and ImageError."""
    for part in PARTS:
        bundle.part(part)
    require_null(options.how.guidance, has_null(bundle))
    if options.decoder == "diffusion":
        check_decoder(bundle)
    if options.masks is not None:
        _maps(bundle, options.masks)
    told = bundle.part("unet").config["net"].get("context_dim") is not None
    if not (told or bundle.part("latent_mean").config.get("conditional", True)):
        raise without_conditions(bundle)
    last = int(bundle.part("unet").config["schedule"].get("T", 1000))
    if options.how.steps > last:
        raise UsageError("--steps", f"{options.how.steps}", f"1 to {last}")
    count = Counter(p.name.lower() for p in people)
    double = next((p for p in people if count[p.name.lower()] > 1), None)
    if double is not None:
        problem = f"'{double.name}' is, or some file systems take it for, the name of another"
        raise UsageError(double.source or "generate", problem, fix="name the subjects apart")
    check_outputs(path for p in people for path in files_of(p, out).values())
    return [files_of(p, out)["image"] for p in people]


def _maps(bundle: Bundle, labels: Path) -> Tensor:
    """What a label map says of the regions that the bundle's network is told, (K, D, H, W)."""
    regions, grid = bundle.part("controlnet").config["regions"], bundle.preprocess.grid
    return torch.from_numpy(region_masks(read_volume(labels), regions, model_grid(grid))).float()


def warn(schema: Schema, people: Sequence[Nobody]) -> None:
    """Says which conditions training never saw the like of, each once."""
    for text, count in outside_support(schema, people).items():
        log.warning("warning: %s%s", text, f" ({count} brains)" if count > 1 else "")


def generate_people(
    bundle: Bundle,
    people: Sequence[Nobody],
    out: Path,
    device: torch.device,
    options: Options = Options(),
) -> Outcome[Row]:
    """Make everybody's image and record in a folder; what is there, of the same request, is kept.

    A brain that fails is logged and collected, and SIGTERM or SIGINT stop between two. Raises
    CfgenError, as `check_generation`, before the first.
    """
    check_generation(bundle, people, out, options)
    models = load_models(bundle, device, masks=options.masks is not None, decoder=options.decoder)
    masks = None
    if options.masks is not None:
        assert models.control is not None
        masks = models.control.masks(_maps(bundle, options.masks))
    drift = models.drift(options.how.drift, options.how.steps)

    def work(person: Nobody) -> Made[Row]:
        wanted = _request(bundle, person, options)
        files, row = files_of(person, out), row_of(person, out)
        if not options.overwrite:
            record = finished(list(files.values()), files["sidecar"], GenerationRecord)
            if record is not None and record.fingerprint == wanted:
                return Made(row, "is there already")
            clear_leftovers(files)
        for path in files.values():
            refuse_existing(path, options.overwrite)
        image = generate(models, bundle, person.values, person.seed, options.how, masks)
        if not image.any():
            raise BundleError(bundle.path, "its model made no brain here", "a trained model")
        record = _record(bundle, person, device, options, wanted)
        # As it was: what the bundle has by itself is said too.
        sampler = replace(options.how, drift=drift.text() if drift else None)
        record = replace(record, sampler=sampler)
        _write(image.numpy(), person, files, record)
        return Made(row, "generated")

    return run_rows(people, lambda p: row_of(p, out), work, lambda _, made: made, what="brains")


def _request(bundle: Bundle, person: Nobody, options: Options) -> str:
    """All that decides an image."""
    recipe = [bundle.identity, person.values, person.seed, asdict(options.how), options.decoder]
    return fingerprint(digests(options.masks), recipe)


def row_of(person: Nobody, out: Path) -> Row:
    return Row(
        subject=person.name,
        image=files_of(person, out)["image"],
        values=person.values,
        extra={"seed": str(person.seed), "synthetic": "true"},
        source=person.source,
    )


def _record(
    bundle: Bundle, person: Nobody, device: torch.device, options: Options, wanted: str
) -> GenerationRecord:
    units = {v.name: v.unit for v in bundle.schema.variables}
    masks = None
    if options.masks is not None:
        masks = SourceFile(options.masks.name, file_sha256(options.masks))
    conditional = bool(bundle.part("latent_mean").config.get("conditional", True))
    return GenerationRecord(
        synthetic=True,
        description="A brain of nobody, made by a diffusion model under these conditions",
        generated_by=this_software(),
        bundle=BundleName.of(bundle),
        conditions={n: TargetValue(v, units[n]) for n, v in person.values.items()},
        seed=person.seed,
        sampler=options.how,
        latent_mean="of the conditions" if conditional else "of all scans alike",
        space=TEMPLATE_SPACE,
        grid=bundle.preprocess.grid,
        skull_stripped=True,
        versions=library_versions(),
        device=str(device),
        number_type=number_type(device),
        threads=torch.get_num_threads(),
        warnings=bundle.schema.support_notices(person.values),
        fingerprint=wanted,
        decoder=options.decoder,
        masks=masks,
    )


def _write(
    image: np.ndarray, person: Nobody, files: dict[str, Path], record: GenerationRecord
) -> None:
    # A run that is killed now must not leave an old record beside a new image.
    files["sidecar"].unlink(missing_ok=True)
    said = ", ".join(f"{n} {_text(v)}" for n, v in person.values.items())
    volume = Volume(image, model_grid(record.grid).affine)
    description = f"{SYNTHETIC} {__version__} generate {said}"
    write_new(volume, files["image"], np.float32, description=description)
    write_record(record, files["sidecar"])


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else number_text(value)


def write_outcome(outcome: Outcome[Row], people: Sequence[Nobody], out: Path) -> list[Path]:
    """manifest.csv of what is in the folder and, where rows failed, failed.csv, which can be given
    back as a table of conditions."""
    failed = [replace(row, extra=_without_synthetic(row)) for row in outcome.failed]
    tried = [row_of(p, out) for p in people]
    return write_lists(out, outcome.done, failed, tried)


def _without_synthetic(row: Row) -> dict[str, str]:
    return {name: text for name, text in row.extra.items() if name != "synthetic"}


def draw_sheet(out: Path, schema: Schema) -> Path | None:
    """The picture of what manifest.csv of a folder lists, by conditions; None where it lists
    nothing."""
    if not (out / "manifest.csv").exists():
        return None
    rows = read_manifest(out / "manifest.csv", schema)
    numbers = [v.name for v in schema.variables if v.kind == "continuous"]

    def order(row: Row) -> tuple[list[float], list[str], str]:
        texts = [str(row.values[n]) for n in schema.names if n not in numbers and n in row.values]
        return [float(row.values.get(n, 0.0)) for n in numbers], texts, row.subject

    rows = sorted((r for r in rows if not schema.missing(r.values)), key=order)
    shown = [rows[i] for i in chosen(len(rows))]
    images = [read_volume(row.image).data for row in shown]
    titles = [
        " ".join(_text(row.values[n]) for n in schema.names if n in row.values) for row in shown
    ]
    brain_sheet(images, titles, out / SHEET)
    return out / SHEET
