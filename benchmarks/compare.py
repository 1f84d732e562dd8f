"""The shipped model beside its baselines: edits of a cohort by each, then one `cfgen evaluate`.

    python benchmarks/compare.py --manifest val.csv --plain plain/ --out build/compare

    cfgen simulate --preset lifespan --n 64 --truth age=+20 --out build/sim
    python benchmarks/compare.py --manifest build/sim/manifest.csv --truth build/sim/truth.csv \
        --age=+20 --plain plain/ --out build/compare-sim

`cfgen` is the command's default, `residual` the edit by diffusion, `ridge` the latent mean alone
(`--depth 0`), `plain` a bundle of `train-ldm --latent-mean none`. Everybody is edited by every
--age, and to the other sex where no truth is given. Ten minutes a method and 30 people on two
cores; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from cfgen.bundle import read_bundle
from cfgen.data.manifest import read_manifest, write_manifest
from cfgen.evaluate.scans import conditions_of

DEFAULT = Path(__file__).parents[1] / "cfgen" / "bundles" / "default"


def cfgen(*words: object) -> None:
    command = Path(sys.executable).with_name("cfgen")
    subprocess.run([command, *map(str, words)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--age", action="append", help="default: -20 and +20")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    known = conditions_of(read_bundle(given.bundle))
    rows = read_manifest(given.manifest, known)
    ages = [f"--age={a}" for a in given.age or ("-20", "+20")]
    queries = {"age": (rows, ages)}
    if given.truth is None:
        for own, other in ("FM", "MF"):
            some = [r for r in rows if r.values.get("sex") == own]
            queries[other] = (some, [f"--sex={other}"])
    methods: dict[str, tuple[object, ...]] = {
        "cfgen": ("--bundle", given.bundle),
        "residual": ("--bundle", given.bundle, "--render", "residual"),
        "ridge": ("--bundle", given.bundle, "--render", "residual", "--depth", 0),
    }
    if given.plain:
        methods["plain"] = ("--bundle", given.plain, "--render", "residual")
    asked: list[object] = []
    for name, options in methods.items():
        made = []
        for query, (some, targets) in queries.items():
            folder, manifest = given.out / name / query, given.out / f"{query}.csv"
            write_manifest(manifest, some)
            cfgen("counterfactual", "--manifest", manifest, "--out", folder, *targets, *options,
                  "--no-picture", "--quiet")  # fmt: skip
            made += read_manifest(folder / "manifest.csv", known)
        write_manifest(given.out / f"{name}.csv", made)
        asked += ["--counterfactuals", f"{name}={given.out / name}.csv"]
    truth = ["--truth", given.truth] if given.truth else []
    # With --overwrite the scans would be prepared again, too.
    (given.out / "evaluation" / "metrics.csv").unlink(missing_ok=True)
    cfgen("evaluate", "--real", given.manifest, *asked, *truth, "--bundle", given.bundle,
          "--suite", given.suite, "--out", given.out / "evaluation")  # fmt: skip
    print((given.out / "evaluation" / "tables.md").read_text())


if __name__ == "__main__":
    main()
