"""Stable Diffusion on axial slices, as Latent Drifting uses it: the extra `cfgen[sd]`."""
