"""By what a counterfactual is made, how it reaches the scan, and what that needs of a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from cfgen.bundle import Bundle
from cfgen.config import By, Render
from cfgen.errors import UsageError

# What each needs of a bundle beside its autoencoder and diffusion model, which are missed where
# they are loaded.
PARTS: dict[By, tuple[str, ...]] = {
    "conditions": (),
    "tissue": ("scm", "segmenter"),
    "masks": ("controlnet", "scm", "segmenter"),
    "tissue+masks": ("controlnet", "scm", "segmenter"),
}
# The first of each is its default.
RENDERS: dict[By, tuple[Render, ...]] = {
    "conditions": ("residual", "warp", "latent"),
    "tissue": ("tissue",),
    "masks": ("residual", "warp", "latent"),
    "tissue+masks": ("tissue",),
}


@dataclass(frozen=True)
class Way:
    by: By
    render: Render

    @property
    def moves(self) -> bool:
        """Whether the scan's own tissue is moved."""
        return self.render == "tissue"

    @property
    def masked(self) -> bool:
        """Whether a diffusion model is told masks of regions."""
        return self.by in ("masks", "tissue+masks")

    @property
    def causal(self) -> bool:
        """Whether a causal model says how large regions are to be."""
        return self.by != "conditions"

    @property
    def generates(self) -> bool:
        """Whether a diffusion model makes something of the image."""
        return self.by != "tissue"


def way_of(bundle: Bundle, by: By | None = None, render: Render | None = None) -> Way:
    """As asked; moved tissue where nothing is asked and the bundle can, else the conditions alone.

    Raises UsageError where the two do not go together, and BundleError when the bundle lacks a part
    for them.
    """
    if by is None:
        can = all(part in bundle.parts for part in PARTS["tissue"])
        moved = render == "tissue" or (render is None and can)
        by = "tissue" if moved else "conditions"
    elif render is not None and render not in RENDERS[by]:
        fits = ", ".join(way for way, renders in RENDERS.items() if render in renders)
        raise UsageError(
            "--render", f"{render} with --by {by}", f"--by {fits.replace(', ', ' or ')}"
        )
    for part in PARTS[by]:
        bundle.part(part)
    return Way(by, render or RENDERS[by][0])
