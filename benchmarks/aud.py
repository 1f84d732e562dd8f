r"""Do counterfactuals repeat a study? PCGM's task 3 on the simulator's 222 people with alcohol use
disorder and 199 controls.

    python benchmarks/aud.py scans --out build/aud --workers 2
    python benchmarks/aud.py edits --out build/aud --by tissue
    python benchmarks/aud.py edits --out build/aud --by masks tissue+masks \
        --bundle build/control/concatenate --depth 1 --steps 20
    python benchmarks/aud.py table --out build/aud
    python benchmarks/aud.py power --out build/aud

`scans` draws everybody and his true counterfactual in the other group (preset 'aud', 2 mm) and
measures both by the shipped segmenter. `edits` makes the counterfactuals and measures them: the law
of volumes of each fifth of the people is fitted to the others, on their true volumes, or with
--law measured on the segmenter's; as in PCGM the disorder has no arrow to the occipital lobe.
--by conditions asks the bundle's diffusion model alone (CDM), if it knows the disorder. `table`
prints for every way, and beside them for `copy` (the scan itself), `asked` (what the law asks for,
as if the image had it) and `oracle` (the true counterfactual), how many of Table 3's thirty cells
are right, p, paired p, Cohen's d and equivalence (`metrics/aud.py`), the slope of achieved on asked
changes by lobe, and the occipital lobe's change over the mean change of the five. `power` draws
the study fifty times by volumes alone, with the disorder and without. OUT/edits/WAY has a file a
person, OUT/pictures some people; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from aud_people import (
    FOLDS,
    PEOPLE,
    PICTURED,
    Person,
    draw_person,
    laws,
    measured,
    on_grid,
    read_person,
    segmenter,
)
from aud_tables import ADJUSTED, REPLICATIONS, draw, power, table
from cycle_autoencoder import DEFAULT
from sampling_options import add_sampling, sampling_of

from cfgen.bundle import read_bundle
from cfgen.config import By, Edit
from cfgen.data.volume import write_atomically
from cfgen.device import pick_device
from cfgen.edit.edits import Drawing, Edits, Question, TissueEdits, edit_latents
from cfgen.edit.engine import Engine
from cfgen.edit.filled import FilledEdits
from cfgen.edit.masked import edit_by_masks
from cfgen.edit.volumes import Law
from cfgen.errors import CfgenError
from cfgen.scan.brain import BrainFinder
from cfgen.scan.open import Opened

WAYS: tuple[By, ...] = ("conditions", "tissue", "masks", "tissue+masks")


def opened_of(person: Person, device: str) -> Opened:
    """The scan as it lies on the model grid, its brightness levelled by the true white matter."""
    level = person.level.astype(np.float32)
    return on_grid(person.image, level, log_field(person.image, level), device)


def log_field(image: np.ndarray, level: np.ndarray) -> np.ndarray:
    """ln of what brightness was divided by (D, H, W): a polynomial of order 3, in which it lies."""
    axes = [np.linspace(-1, 1, n) for n in image.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    terms = [x**i * y**j * z**k for i in range(4) for j in range(4 - i) for k in range(4 - i - j)]
    some = (level > 0.2) & (level < 1.1)
    some &= np.cumsum(some.ravel()).reshape(some.shape) % 20 == 0
    ratio = np.log(image[some] / level[some])
    beta = np.linalg.lstsq(np.stack([t[some] for t in terms], 1), ratio, rcond=None)[0]
    return np.sum([b * t for b, t in zip(beta, terms, strict=True)], 0).astype(np.float32)


@cache
def engine_of(bundle: Path, device: str) -> Engine:
    torch_device = pick_device(device)
    finder = BrainFinder("auto", None, segmenter(device), torch_device)  # type: ignore[arg-type]
    return Engine(read_bundle(bundle), finder, torch_device)


@dataclass(frozen=True)
class How:
    out: Path
    by: By
    bundle: Path
    law: str
    device: str
    edit: Edit

    @property
    def folder(self) -> Path:
        name = self.by if self.law == "true" else f"{self.by}-measured"
        if self.edit.guidance != 1:
            name += f"-g{self.edit.guidance:g}"
        return self.out / "edits" / name


def question_of(person: Person, opened: Opened, law: Law) -> Question:
    here = {**person.measured, **person.conditions}
    return Question(opened, law, here, [{**here, "aud": 0.0 if person.ill else 1.0}])


def edits_of(how: How, tissue: TissueEdits) -> Edits:
    if how.by == "tissue":
        return tissue
    engine, drawing = engine_of(how.bundle, how.device), Drawing(how.edit)
    if how.by == "conditions":
        asked = tissue.question
        return edit_latents(engine, asked.opened, asked.factual, asked.targets, drawing)
    masked = edit_by_masks(engine, tissue, drawing)
    return masked if how.by == "masks" else FilledEdits(masked)


def edit_person(number: int, hows: Sequence[How]) -> str:
    """OUT/edits/WAY/NUMBER.json of every way: what the law asks for and what is measured in the
    image. Who is not drawn yet is drawn."""
    torch.set_num_threads(1)
    left = [how for how in hows if not (how.folder / f"{number:03d}.json").exists()]
    if not left:
        return ""
    out, device = left[0].out, left[0].device
    draw_person(number, out, device)
    person = read_person(out, number)
    if person is None:
        return ""
    law = Law(laws(out, left[0].law)[number % FOLDS], "cohort")
    # All ways move the same tissue.
    tissue, said = TissueEdits(question_of(person, opened_of(person, device), law)), []
    for how in left:
        error = edit_by(how, person, tissue)
        said += [f"{number}, {how.by}: {error}"] if error else []
    return "\n".join(said)


def edit_by(how: How, person: Person, tissue: TissueEdits) -> str:
    path = how.folder / f"{person.number:03d}.json"
    found: dict[str, object] = {"asked": tissue.question.world(0).changes}
    try:
        edits = edits_of(how, tissue)
        image = next(edits.images(0))
        account = edits.account(0)
        found["made"] = measured(image, how.device)
    except CfgenError as error:
        failed = json.dumps(found | {"error": str(error)})
        write_atomically(path, lambda p: p.write_text(failed))
        return str(error)
    if account is not None:
        # Of a region's map that was moved: how far it is from what was asked for.
        found["worst"] = account.causal.worst_volume_error
    if person.number < PICTURED:
        np.save(path.with_suffix(".npy"), image.astype(np.float32))
    write_atomically(path, lambda p: p.write_text(json.dumps(found)))
    return ""


def for_all(job: Callable[[int], str | None], people: range, workers: int) -> None:
    """By processes where there are several."""
    if workers == 1:
        for number in people:
            said = job(number)
            if said:
                print(said, flush=True)
        return
    # Not forked: a process that has used a GPU cannot be.
    with get_context("spawn").Pool(workers) as pool:
        for said in pool.imap_unordered(job, people):
            if said:
                print(said, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("scans", "edits", "table", "power", "pictures"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--by", choices=WAYS, nargs="+", default=["tissue"])
    parser.add_argument("--n", type=int, default=PEOPLE, help="people, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--law", choices=("true", "measured"), default="true")
    add_sampling(parser)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shared", action="store_true", help="table of whom every way has made")
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = options.out
    for name in ("scans", "facts"):
        (out / name).mkdir(parents=True, exist_ok=True)
    people = range(options.first, min(options.first + options.n, PEOPLE))
    if options.stage == "scans":
        job = partial(draw_person, out=out, device=options.device)
        for_all(job, people, options.workers)
    elif options.stage == "edits":
        edit = sampling_of(options)
        hows = [
            How(out, by, options.bundle, options.law, options.device, edit) for by in options.by
        ]
        for how in hows:
            how.folder.mkdir(parents=True, exist_ok=True)
        for_all(partial(edit_person, hows=hows), people, options.workers)
    elif options.stage == "power":
        print(power(out, options.replications))
    elif options.stage == "pictures":
        draw(out)
    else:
        for how_adjusted in ADJUSTED:
            text = table(out, how_adjusted, shared=options.shared)
            (out / how_adjusted.file).write_text(text, encoding="utf-8")
            print(text)


if __name__ == "__main__":
    main()
