"""How a brain is found: by other programs, by the segmenter, or as it was told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cfgen.data.volume import read_volume, write_new
from cfgen.errors import ImageError, ToolError
from cfgen.measure import segmenter
from cfgen.measure.segmenter import Posteriors, Segmentation
from cfgen.nets.segmenter import Segmenter, SegmenterConfig
from cfgen.scan.brain import BrainFinder, find_brain
from cfgen.scan.open import Opened


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


def test_the_segmenter_runs_once_a_scan_whoever_found_the_brain(stripped_scan, monkeypatch):
    """At once on a whole head, else when its posteriors are asked for."""
    scan = read_volume(stripped_scan)
    calls = []
    grid = scan.grid
    posteriors = Posteriors(torch.zeros(2, 3, 3, 3), torch.zeros(3, 3, 3), grid)

    def segment(net, seen, device):
        calls.append(seen)
        return Segmentation(scan.data > 300, np.zeros(grid.shape), [], 0.9, posteriors)

    monkeypatch.setattr(segmenter, "segment", segment)
    finder = BrainFinder(segmenter=Segmenter(SegmenterConfig(2, (8, 8), norm_groups=4)))
    head = scan.like(scan.data + 5 + np.random.default_rng(0).random(scan.data.shape))
    for seen, how, source, count in (
        (head, "auto", "segmenter", 1),
        (scan, "auto", "stripped", 0),
        (scan, "none", "stripped", 0),
    ):
        calls.clear()
        brain = find_brain(seen, None, replace(finder, how=how))
        assert (brain.source, len(calls)) == (source, count)
        opened = Opened(seen, brain, [], [], None)
        assert opened.posteriors is posteriors
        assert opened.posteriors is posteriors
        assert len(calls) == 1
        assert calls[0] is seen
    assert Opened(scan, find_brain(scan, None, BrainFinder()), [], [], None).posteriors is None
