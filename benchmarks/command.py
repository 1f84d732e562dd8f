"""The main command from process start to its end: median time, processor time and memory by scan.

    python benchmarks/command.py --from age=50,sex=F head_2mm.nii.gz head_1mm.nii.gz

Three runs of `cfgen counterfactual --age +20` each, and one more with a second target, `--age +10`:
the difference is what a further target costs. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cfgen.data.volume import read_volume

RUNS = 3


def measured(scan: Path, given: str, ages: tuple[str, ...]) -> tuple[float, float, float]:
    """Wall and processor seconds, and peak memory (GiB), of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cfgen.cli", "counterfactual", "--in", str(scan), "-q"]
        command += [f"--age={age}" for age in ages] + ["--from", given, "--out", folder]
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        if status:
            raise SystemExit(f"{scan}: the command failed")
        sidecar = json.loads(next(Path(folder).glob("*.json")).read_text())
        assert sidecar["Render"] == "tissue"
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def processor() -> str:
    """Its name, and which of the instructions that matter it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
    flags = next((x for x in lines if x.startswith("flags")), "")
    known = [f for f in ("avx512f", "avx512_bf16", "amx_bf16") if f in flags.split()]
    return f"{name} ({', '.join(known) or 'no AVX512'}), {os.cpu_count()} processors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--from", dest="given", default="age=50,sex=F")
    arguments = parser.parse_args()
    print(processor())
    for path in arguments.scans:
        scan = read_volume(path)
        runs = [measured(path, arguments.given, ("+20",)) for _ in range(RUNS)]
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        further = measured(path, arguments.given, ("+20", "+10"))[0] - wall
        spacing = " x ".join(f"{s:.2g}" for s in scan.grid.spacing)
        voxels = scan.data.size / 1e6
        print(
            f"{path.name}: {spacing} mm, {voxels:.1f} M voxels; {wall:.1f} s, processor "
            f"{cpu:.1f} s, {memory:.2f} GiB; a further target {further:.1f} s"
        )


if __name__ == "__main__":
    main()
