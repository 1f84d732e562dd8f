"""What a network says where it is told how widely each voxel of a latent varies.

Voxels of a latent differ in spread by orders of magnitude: those outside of the head hardly vary,
and the fine channels of a brain little. All get the same noise, so that what varies most is decided
first. A network that says v itself has to say the noise of a quiet voxel exactly, and what it says
wrong is left in new latents as grain.

Of a residual r with standard deviation s in r_t = a r + b eps, a the signal and b the noise, the
best linear guess of v = a eps - b r and what it leaves over are

    E[v | r_t] = a b (1 - s^2) / (a^2 s^2 + b^2) r_t,    s / sqrt(a^2 s^2 + b^2),

and the network says how far v is from the guess, in units of what it leaves: a network that says 0
leaves a voxel as people have it, and its errors are no larger than that. With s = 1 the guess is 0
and the unit 1, v itself. (Karras et al. 2022, section 5, for one s and other parametrisations.)
"""

from __future__ import annotations

from torch import Tensor

from cfgen.diffusion.schedule import Schedule


def v_of(
    output: Tensor, zt: Tensor, t: Tensor, schedule: Schedule, spread: Tensor | None
) -> Tensor:
    """v (B, C, d, h, w) of a network's output at zt and times t (B,), given the `spread`
    (C, d, h, w) of the residual; without one the output is v."""
    if spread is None:
        return output
    signal, noise = schedule.levels(t, zt)
    total = (signal * spread).square() + noise.square()
    guess = signal * noise * (1 - spread.square()) / total * zt
    return guess + spread / total.sqrt() * output
