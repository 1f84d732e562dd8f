"""The rooms of the house: who may import whom, no circles, small files, a light command line."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cfgen"
# From the ground up. A room imports from the floors below its own alone; rooms of one floor do not
# know each other.
FLOORS = (
    ("__init__",),
    ("errors", "config", "streams", "processes"),
    ("progress",),
    ("data",),
    ("space",),
    ("kernels",),
    ("nets", "diffusion", "metrics"),
    ("device",),
    ("bundle",),
    ("causal",),
    ("sim",),
    ("measure",),
    ("scan",),
    ("edit",),
    ("sd",),
    ("batch",),
    ("train",),
    ("report", "evaluate"),
    ("jobs",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES = 400

Imports = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Name below `cfgen` -> file; a package is its folder's name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of cfgen that a file imports, anywhere in it, for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("cfgen."):
                    yield alias.name.removeprefix("cfgen.")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cfgen":
            assert node.level == 0
            base = (node.module or "").removeprefix("cfgen").removeprefix(".")
            for alias in node.names:
                inside = f"{base}.{alias.name}".removeprefix(".")
                yield inside if inside in known else base or "__init__"


def read_imports() -> Imports:
    known = modules()
    return {
        name: set(imported(ast.parse(path.read_text("utf-8")), known)) - {name}
        for name, path in known.items()
    }


def upward(imports: Imports) -> list[str]:
    """'a.b -> c.d' of every import that does not go down, to another room."""
    return sorted(
        f"{name} -> {target}"
        for name, targets in imports.items()
        for target in targets
        if (own := name.split(".")[0]) != (other := target.split(".")[0])
        and FLOOR[other] >= FLOOR[own]
    )


def circles(imports: Imports) -> list[str]:
    """Modules that import themselves by way of others."""
    reached = {name: set(targets) for name, targets in imports.items()}
    for middle in imports:
        for name in imports:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return sorted(name for name, targets in reached.items() if name in targets)


def test_every_room_stands_on_a_floor() -> None:
    assert {name.split(".")[0] for name in modules()} <= set(FLOOR)


def test_imports_go_down() -> None:
    assert upward(read_imports()) == []


def test_only_the_command_line_imports_jobs_and_only_jobs_import_training() -> None:
    allowed = {"jobs": {"jobs", "cli"}, "train": {"train", "jobs"}, "cli": {"cli"}}
    for name, targets in read_imports().items():
        for target in targets:
            room = target.split(".")[0]
            assert name.split(".")[0] in allowed.get(room, FLOOR), f"{name} -> {target}"


def test_no_circle() -> None:
    assert circles(read_imports()) == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [("metrics.image", "scan.prepare"), ("scan.render", "train.fit"), ("nets.unet", "sim.physics")],
)
def test_a_planted_upward_import_is_found(planted: str, said: str) -> None:
    imports = {name: set(targets) for name, targets in read_imports().items()}
    source = PACKAGE.joinpath(*planted.split(".")).with_suffix(".py").read_text("utf-8")
    source += f"\n\ndef late() -> None:\n    from cfgen.{said} import anything\n"
    imports[planted] |= set(imported(ast.parse(source), modules()))
    assert upward(imports) == [f"{planted} -> {said}"]


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_files_are_small() -> None:
    lines = {n: len(p.read_text("utf-8").splitlines()) for n, p in modules().items()}
    assert {n: k for n, k in lines.items() if k > MOST_LINES} == {}


def test_what_is_installed_is_imported() -> None:
    """A dependency that nobody imports is a download for nothing."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["sd"]]
    names = {re.split(r"[<>=\[]", line)[0] for line in lines}
    names = {"ants" if n == "antspyx" else n for n in names}
    names = {{"scikit-learn": "sklearn", "pillow": "PIL"}.get(n, n) for n in names}
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    assert names - found == set()
    assert found - names - set(sys.stdlib_module_names) == {"cfgen"}


def test_help_loads_no_heavy_library() -> None:
    heavy = "torch monai ants nilearn pandas scipy numpy nibabel SimpleITK sklearn matplotlib "
    heavy += "diffusers transformers"
    code = (
        "import sys; sys.argv = ['cfgen', '--help']\n"
        "from cfgen.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        f"print('LOADED', sorted(set({heavy.split()!r}) & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "LOADED []"
    assert "counterfactual" in said.stdout
