"""Slices of nobody by a fine-tuned Stable Diffusion: pictures, their records, a table, a sheet."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cfgen import __version__
from cfgen.data.conditions import Value, number_text
from cfgen.data.names import check_outputs
from cfgen.data.record import Software, this_software, write_record
from cfgen.data.schema import Schema
from cfgen.data.table import write_table
from cfgen.data.volume import SYNTHETIC, refuse_existing, write_atomically
from cfgen.data.wanted import Nobody, asked_for, seed_of
from cfgen.errors import UsageError
from cfgen.progress import working
from cfgen.scan.pictures import new_figure, save_figure
from cfgen.scan.sheet import chosen
from cfgen.sd.model import SdModel, unet_sha256
from cfgen.sd.prompts import prompt
from cfgen.sd.sampling import Sampling, generate
from cfgen.sd.sidecar import SdModelName, library_versions
from cfgen.streams import Purpose, torch_stream

log = logging.getLogger("cfgen")
SHEET, TABLE = "sheet.png", "slices.csv"
_COLUMNS = 8


@dataclass(frozen=True)
class SliceOfNobody:
    """The record of a slice. No time and no path: the same run writes the same bytes."""

    synthetic: bool
    description: str
    generated_by: list[Software]
    model: SdModelName
    conditions: dict[str, Value]
    prompt: str
    seed: int
    drift: list[float]
    trained_drift: list[float]
    sampler: str
    steps: int
    guidance: float
    device: str
    versions: dict[str, str]


def people_of(
    schema: Schema, ages: Sequence[str], sexes: str | None, sets: Sequence[str], n: int, seed: int
) -> list[Nobody]:
    """As `asked_for`, of the conditions that are asked for; without any they are 'slice_1', ..."""
    names = [text.partition("=")[0].strip() for text in sets]
    for name in names:
        schema.variable(name, f"--set {name}")
    said = {*names, *(["age"] if ages else []), *(["sex"] if sexes else [])}
    if not said:
        return [Nobody(f"slice_{k}", {}, seed_of(seed, f"slice_{k}")) for k in range(1, n + 1)]
    told = Schema(tuple(v for v in schema.variables if v.name in said))
    return asked_for(told, ages, sexes, sets, n, seed)


def check_slices(
    model: SdModel, people: Sequence[Nobody], out: Path, overwrite: bool
) -> list[Path]:
    """The pictures' paths. Raises UsageError for a model that edits, and for files that exist."""
    if model.edits:
        found = "is an InstructPix2Pix model, which edits slices"
        raise UsageError(model.folder, found, "a text-to-image model, or cfgen sd-edit")
    images = [out / f"{person.name}.png" for person in people]
    files = [*images, *(path.with_suffix(".json") for path in images), out / SHEET, out / TABLE]
    check_outputs(files)
    for path in files:
        refuse_existing(path, overwrite)
    return images


def prompt_of(model: SdModel, person: Nobody) -> str:
    """In the wording that the model was trained with; of diverse ones the seed's own."""
    style = model.card.style
    template = style.templates[person.seed % len(style.templates)]
    return prompt(person.values, style, template, model.card.noun)


def sd_generate(
    model: SdModel, people: Sequence[Nobody], out: Path, sampling: Sampling, overwrite: bool
) -> list[Path]:
    """Everybody's slice as a grey PNG of 8 bits with a record beside it; front is up.

    A slice depends on its conditions, its seed, the model and the sampling alone.
    """
    images = check_slices(model, people, out, overwrite)
    weights, pictures, rows = unet_sha256(model.folder), [], []
    with working("slices", len(people)) as step:
        for person, path in zip(people, images, strict=True):
            stream = torch_stream(person.seed, Purpose.NOBODY, step=1)
            noise = torch.randn(1, *model.latent_shape, generator=stream)
            text = prompt_of(model, person)
            made = model.decode(generate(model, [text], noise, sampling, person.seed))[0]
            grey = ((made.mean(0).cpu() + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8)
            record = SliceOfNobody(
                synthetic=True,
                description=f"{SYNTHETIC} {__version__} sd-generate",
                generated_by=this_software(),
                model=SdModelName(model.folder.resolve().name, weights),
                conditions=dict(person.values),
                prompt=text,
                seed=person.seed,
                drift=list(sampling.drift.delta),
                trained_drift=list(model.card.drift),
                sampler=sampling.sampler,
                steps=sampling.edit.steps,
                guidance=sampling.edit.guidance,
                device=str(model.device),
                versions=library_versions(),
            )
            write_picture(grey, path, record.description)
            write_record(record, path.with_suffix(".json"))
            pictures.append(grey)
            rows.append(_row(person, path, text))
            step()
    write_table(out / TABLE, rows)
    _draw_sheet(pictures, people, out / SHEET)
    return images


def write_picture(grey: np.ndarray, path: Path, description: str) -> None:
    """(S, S) uint8 as a PNG that says what it is."""
    said = PngInfo()
    said.add_text("Description", description)
    image = Image.fromarray(grey)
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=said))


def _row(person: Nobody, path: Path, text: str) -> dict[str, str]:
    values = {n: v if isinstance(v, str) else number_text(v) for n, v in person.values.items()}
    known = {"subject": person.name, "image": path.name, **values}
    return known | {"prompt": text, "seed": str(person.seed), "synthetic": "1"}


def _draw_sheet(pictures: Sequence[np.ndarray], people: Sequence[Nobody], path: Path) -> None:
    shown = chosen(len(pictures))
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = new_figure(rows, columns, 1.4 * columns, 1.6 * rows)
    for place in axes.flat:
        place.axis("off")
    for place, n in zip(axes.flat, shown, strict=False):
        place.imshow(pictures[n], cmap="gray", vmin=0, vmax=255)
        place.set_title(people[n].name, fontsize=6, pad=2)
    save_figure(figure, path)
