"""How a brain is found: by other programs, by the segmenter, or as it was told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cfgen.data.volume import read_volume, write_new
from cfgen.errors import ImageError, ToolError
from cfgen.scan.brain import BrainFinder, find_brain


def program(folder: Path, name: str, lines: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)


def test_a_program_on_the_path_gives_the_mask(stripped_scan, tmp_path, monkeypatch):
    scan = read_volume(stripped_scan)
    mask = tmp_path / "made.nii.gz"
    write_new(scan.like(scan.data > 300), mask, np.uint8)
    program(tmp_path, "mri_synthstrip", f'test -f "$2" && cp {mask} "$6"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = find_brain(scan, None, BrainFinder("synthstrip"))
    assert np.array_equal(found.mask, scan.data > 300)
    assert (found.source, found.note) == ("synthstrip", "mri_synthstrip")


def test_a_program_that_fails_or_is_missing_is_named(stripped_scan, tmp_path, monkeypatch):
    scan = read_volume(stripped_scan)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="hd-bet not found on PATH"):
        find_brain(scan, None, BrainFinder("hd-bet"))
    program(tmp_path, "hd-bet", "echo no weights >&2; exit 3")
    with pytest.raises(ToolError, match=r"exit code 3 \(no weights\)"):
        find_brain(scan, None, BrainFinder("hd-bet"))


def test_a_mask_on_another_grid_is_refused(stripped_scan, tmp_path, monkeypatch):
    scan = read_volume(stripped_scan)
    mask = tmp_path / "made.nii.gz"
    moved = scan.affine.copy()
    moved[0, 3] += 5
    write_new(type(scan)(scan.data, moved), mask, np.uint8)
    program(tmp_path, "mri_synthstrip", f'cp {mask} "$6"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ToolError, match="another grid"):
        find_brain(scan, None, BrainFinder("synthstrip"))


def test_none_takes_the_foreground(stripped_scan):
    scan = read_volume(stripped_scan)
    found = find_brain(scan, None, BrainFinder("none"))
    assert found.source == "stripped"
    assert found.mask[scan.data > 0].mean() > 0.999
    assert found.mask[scan.data == 0].mean() < 0.02


def test_a_head_needs_a_part_that_finds_brains(stripped_scan):
    scan = read_volume(stripped_scan)
    head = scan.like(scan.data + 5 + np.random.default_rng(0).random(scan.data.shape))
    with pytest.raises(ImageError, match="neither segmenter nor head template"):
        find_brain(head, None, BrainFinder())
