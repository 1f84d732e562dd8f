"""Which of several processes this one is, as `torchrun` tells each; without it, one alone."""

from __future__ import annotations

import os


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """From 0 on."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def leads() -> bool:
    """Whether it is the one that speaks and writes files."""
    return number() == 0


def number_here() -> int:
    """Among those on the same machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if count() > 1 else 0


def count_here() -> int:
    """How many there are on the same machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count() > 1 else 1
