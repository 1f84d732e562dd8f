"""The shipped causal model's slopes by decade beside NiChart's centiles and OASIS-2's people.

    python benchmarks/scm_slopes.py

A Markdown table, log % a decade (10 are 10.5 %): of IXI's law with its standard error over the
bootstrap members, in brackets of NiChart's median at equal head size (`cfgen/causal/centiles.py`);
last what one person changes by in OASIS-2 (nondemented, 60 to 97 years; `cfgen/causal/rates.py`).
People who differ in age differ otherwise than one person changes: the last column is no target of
the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from cfgen.bundle import read_bundle
from cfgen.causal.centiles import median_slope
from cfgen.causal.rates import yearly
from cfgen.causal.scm import load_scm
from cfgen.causal.scm_check import DECADES, decade_slope, regions_that_age


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("cfgen/bundles/default"))
    model = load_scm(read_bundle(parser.parse_args().bundle))
    ensemble = model.ensemble()
    print("| region | " + " | ".join(f"{a:.0f} y" for a in DECADES) + " | one person, OASIS-2 |")
    print("|---" * (len(DECADES) + 2) + "|")
    agree = total = 0
    for region in regions_that_age(model.graph):
        cells = []
        for age in DECADES:
            ours = 100 * decade_slope(model, region, age)
            error = 100 * float(np.std([decade_slope(m, region, age) for m in ensemble]))
            norm = median_slope(region, age)
            text = "" if norm is None else f" ({100 * norm:+.1f})"
            cells.append(f"{ours:+.1f} ± {error:.1f}{text}")
            if norm is not None and abs(norm) > 0.01:
                total += 1
                agree += ours * norm > 0
        one = yearly(region)
        # A lobe was not measured by itself.
        known = one is not None and one.measured_on == region
        cells.append(f"{10 * one.percent:+.1f} ± {10 * one.se:.1f}" if one and known else "")
        print(f"| {region} | " + " | ".join(cells) + " |")
    print(f"\nsigns as NiChart's where its slope is above 1 % a decade: {agree} of {total}")


if __name__ == "__main__":
    main()
