"""Tables 1, 3 and 4 of cDDGM on simulated people, with what the truth says beside.

    python benchmarks/acquisition_tables.py --out build/iap --cohort randomised

Reads what benchmarks/acquisition_measure.py left and prints: what the predictor reads of test
people's own scans; how near to scans edits to another person's whole protocol are, and to the
truth; what predictor and probes take them for; and errors by target. OUT/pareto-COHORT.png has
every setting's error against the truth beside what it does to anatomy and to judges.

`error` is the mean error against the truth over that of doing nothing; `worst region` the largest
change of volume once the contrast is undone, mean over people. `fooled` is of probes that learned
from real scans, `told` the area under the curve of probes that learned to tell these very edits
from real scans that have the level (0.5: they cannot), by level and weighed by people.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from acquisition_people import ANOTHER
from acquisition_readable import fitted_guess, most_readable, reading_score

from cfgen.evaluate.probe import (
    AGAIN,
    EDITED,
    FOOLED,
    FROZEN,
    Scanned,
    levels_of,
    target_results,
)
from cfgen.metrics.distribution import frechet, frechet_floor, kernel_distance
from cfgen.metrics.result import Result
from cfgen.scan.pictures import new_figure

TEXTS = ("manufacturer", "sequence")
PROBED = (*TEXTS, "field_tesla")


@dataclass(frozen=True)
class Measured:
    """Lines, and features (n, K) of each: `appearance` and `embedding`."""

    lines: list[dict]
    appearance: np.ndarray
    embedding: np.ndarray

    def only(self, wanted: Callable[[dict], bool]) -> Measured:
        there = [n for n, line in enumerate(self.lines) if wanted(line)]
        lines = [self.lines[n] for n in there]
        return Measured(lines, self.appearance[there], self.embedding[there])

    def mean(self, name: str) -> float:
        known = [line[name] for line in self.lines if name in line]
        return float(np.mean(known)) if known else float("nan")

    @property
    def features(self) -> np.ndarray:
        return np.concatenate([self.appearance, self.embedding], 1)


def load(path: Path) -> Measured:
    arrays = np.load(path.with_suffix(".npz"))
    return Measured(json.loads(path.read_text()), arrays["appearance"], arrays["embedding"])


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def read_right(lines: Sequence[dict]) -> dict[str, tuple[str, float]]:
    """By parameter 'accuracy', or 'MSE' in its own units squared, of those that have it."""
    found: dict[str, list[float]] = defaultdict(list)
    kind = {}
    for line in lines:
        for name, guess in line["read"].items():
            true = line["protocol"].get(name)
            if true is None:
                continue
            kind[name] = "accuracy" if isinstance(true, str) else "MSE"
            right = chosen(name, guess, lines) == true if isinstance(true, str) else 0.0
            found[name].append(right if isinstance(true, str) else (guess[0] - float(true)) ** 2)
    return {name: (kind[name], float(np.mean(values))) for name, values in found.items()}


def chosen(name: str, guess: Sequence[float], lines: Sequence[dict]) -> str:
    """The level that a predictor takes an image for; `lines` have all of them."""
    levels = sorted({line["protocol"][name] for line in lines if name in line["protocol"]})
    if len(guess) == 1:
        return levels[int(guess[0] > 0.5)]
    return levels[int(np.argmax(guess))]


def probed(edits: Measured, real: Measured) -> list[Result]:
    """Of every parameter and level that edits were made to."""
    found = []
    for name in PROBED:
        leveller = levels_of([line["protocol"][name] for line in real.lines])
        scans = [
            Scanned(f, line["person"], str(leveller(line["protocol"][name])))
            for f, line in zip(real.features, real.lines, strict=True)
        ]
        by_target: dict[str, list[Scanned]] = defaultdict(list)
        for features, line in zip(edits.features, edits.lines, strict=True):
            before, after = (str(leveller(line[k][name])) for k in ("own", "protocol"))
            if before != after:
                by_target[after].append(Scanned(features, f"test {line['person']}", before))
        for target, some in by_target.items():
            found += target_results(Result(variable=name, group=target), some, scans, 0)
    return found


def over_levels(results: Sequence[Result], metric: str, variant: str) -> float:
    some = [r for r in results if (r.metric, r.variant) == (metric, variant)]
    if not some:
        return float("nan")
    return float(np.average([r.value for r in some], weights=[r.n for r in some]))


def judged(own: Measured, training: Measured) -> str:
    """By parameter what is read of test people's own scans: by the predictor, by trees that learned
    from `training` how scans look, and by who knows the signals."""
    read = read_right(own.lines)
    names = sorted(read, key=lambda name: (read[name][0], name))
    most, lines = most_readable(names), []
    for name in names:
        kind, value = read[name]
        seen, unseen = (m.only(lambda x, name=name: name in x["protocol"]) for m in (training, own))
        learned, truth = ([x["protocol"][name] for x in m.lines] for m in (seen, unseen))
        looks = reading_score(fitted_guess(seen.appearance, learned, unseen.appearance), truth)
        if kind == "accuracy":
            usual = max(truth.count(v) for v in truth) / len(truth)
            cells = [f"{100 * v:.0f} %" for v in (value, looks, most[name], usual)]
        else:
            cells = [f"{v:.3g}" for v in (value, looks, most[name], np.var(truth))]
        lines.append([f"{name}, {kind}", str(len(truth)), *cells])
    heads = ["parameter", "scans", "predictor", "trees on its looks", "trees on true signals"]
    return table([*heads, "the commonest, or the mean"], lines)


def summary(found: dict[str, Measured], own: Measured, real: Measured) -> tuple[str, str, dict]:
    near, fooled, points = [], [], {}
    for label, edits in found.items():
        some = edits.only(lambda line: line["target"] == ANOTHER)
        error = some.mean("mae") / some.mean("nothing")
        kid = kernel_distance(own.embedding, some.embedding, 0)[0]
        near.append(
            [
                label,
                f"{error:.2f}",
                f"{some.mean('bias'):+.3f}",
                f"{some.mean('ssim'):.3f}",
                f"{some.mean('ssim_scan'):.3f}",
                f"{some.mean('ssim_shuffled'):.3f}",
                f"{frechet(own.embedding, some.embedding):.2f}",
                f"{kid:.4f}",
                f"{some.mean('worst'):.2f}",
                f"{some.mean('explained'):.2f}",
            ]
        )
        results = probed(some, real)
        right = read_right(some.lines)
        share = over_levels(results, FOOLED, FROZEN)
        told = over_levels(results, EDITED, AGAIN)
        cells = [f"{100 * right[n][1]:.0f} %" if n in right else "" for n in TEXTS]
        numbers = (n for n in right if right[n][0] == "MSE")
        of_spread = [right[n][1] / spread(own, n) for n in numbers]
        fooled.append(
            [label, *cells, f"{np.mean(of_spread):.2f}", f"{100 * share:.0f} %", f"{told:.2f}"]
        )
        points[label] = (error, some.mean("worst"), share, told)
    floor, half = frechet_floor(own.embedding, 0)
    heads = ["edit", "error", "bias", "SSIM to the truth", "to the scan", "to the other's scan"]
    heads += [f"Frechet (halves of {half}: {floor:.2f})", "KID", "worst region, %", "explained"]
    asked = ["edit", *(f"{n}, predictor" for n in TEXTS), "MSE over variance"]
    return (
        table(heads, near),
        table([*asked, "fooled, frozen", "told, trained again"], fooled),
        points,
    )


def spread(own: Measured, name: str) -> float:
    return float(np.var([x["protocol"][name] for x in own.lines if name in x["protocol"]]))


def by_target(found: dict[str, Measured]) -> str:
    targets = list(dict.fromkeys(x["target"] for m in found.values() for x in m.lines))
    lines = []
    for label, edits in found.items():
        cells = []
        for target in targets:
            some = edits.only(lambda line, target=target: line["target"] == target)
            if some.lines:
                ratio = some.mean("mae") / some.mean("nothing")
                cells.append(f"{ratio:.2f}; {some.mean('worst'):.2f} %")
            else:
                cells.append("")
        lines.append([label, *cells])
    return table(["edit", *targets], lines)


def pareto(points: dict[str, tuple[float, float, float, float]], path: Path) -> None:
    figure, axes = new_figure(1, 3, 13.0, 4.2)
    panels = (
        (1, 0, "largest change of a region, %", "error over doing nothing"),
        (0, 2, "error over doing nothing", "share that fools a frozen probe"),
        (0, 3, "error over doing nothing", "told by a probe trained again"),
    )
    models = list(dict.fromkeys(label.split("/")[0] for label in points))
    for panel, (x, y, xlabel, ylabel) in zip(axes[0], panels, strict=True):
        for label, figures in points.items():
            model, _, setting = label.partition("/")
            marker = "x" if setting.endswith("locked") else "o"
            panel.plot(figures[x], figures[y], marker, color=f"C{models.index(model)}")
            if model == "beside":
                panel.annotate(setting, (figures[x], figures[y]), fontsize=7)
        if x == 1:
            panel.set_xscale("symlog", linthresh=0.1)
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel)
    for n, model in enumerate(models):
        axes[0][0].plot([], [], "o", color=f"C{n}", label=model)
    axes[0][0].legend(fontsize=7, title="crosses: locked", title_fontsize=7)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", default="randomised")
    options = parser.parse_args()
    folder = options.out / "measured" / options.cohort
    own, training = load(folder / "own.json"), load(folder / "training.json")
    real = Measured(
        [
            {**line, "person": f"{group} {line['person']}"}
            for group, some in (("test", own), ("training", training))
            for line in some.lines
        ],
        np.concatenate([own.appearance, training.appearance]),
        np.concatenate([own.embedding, training.embedding]),
    )
    paths = sorted(folder.glob("*/*.json"), key=lambda p: (p.parent.name, p.stat().st_mtime))
    found = {f"{p.parent.name}/{p.stem}": load(p) for p in paths}
    near, fooled, points = summary(found, own, real)
    print(judged(own, training), near, fooled, by_target(found), sep="\n")
    pareto(points, options.out / f"pareto-{options.cohort}.png")


if __name__ == "__main__":
    main()
