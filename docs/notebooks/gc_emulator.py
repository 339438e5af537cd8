# %% [markdown]
# # The mass of 47 Tucanae
#
# How many stars there are at each radius, and how fast they move, weighs a globular cluster.
# [gc_emulator](../gc_emulator.md) gives lowered isothermal models, and their derivatives, in
# milliseconds. The counts are of [de Boer et al. (2019)](https://arxiv.org/abs/1901.08072), less
# a background, the velocity dispersions of [Kamann et al.
# (2018)](https://arxiv.org/abs/1710.07257) and [Baumgardt & Hilker
# (2018)](https://arxiv.org/abs/1804.08359), a part of each. Profiles of most clusters come with
# [GCfit](https://gcfit.readthedocs.io).

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from orrery import load
from orrery.figures.style import PALETTE, SETTINGS, TRUTH

plt.rcParams.update(SETTINGS)
counts = np.array([  # radius, arcmin; stars per arcmin2, error
    (0.069, 24857, 1035), (0.127, 23520, 325), (0.226, 19030, 263), (0.402, 12118, 336),
    (0.510, 9108, 126), (0.861, 4320, 180), (1.33, 2267, 94.4), (2.00, 1075, 29.8),
    (3.00, 543.7, 7.5), (4.40, 255.5, 3.5), (5.47, 162.6, 4.5), (9.66, 43.5, 1.2),
    (13.0, 18.3, 0.25), (17.3, 7.48, 0.32), (20.7, 3.78, 0.16), (25.2, 1.48, 0.067),
    (32.0, 0.451, 0.023), (40.5, 0.109, 0.008),
])  # fmt: skip
speeds = np.array([  # radius, arcsec; dispersion, km/s, error
    (4.2, 12.37, 0.97), (8.9, 13.10, 0.88), (13.6, 12.29, 0.52), (21.9, 12.23, 0.31),
    (34.7, 12.02, 0.18), (53.6, 11.41, 0.13), (68.1, 11.53, 0.74), (128, 8.81, 0.57),
    (221, 8.76, 0.57), (315, 7.13, 0.47), (399, 7.57, 0.49), (487, 6.97, 0.46),
    (590, 6.20, 0.41), (740, 5.99, 0.41), (976, 5.37, 0.36), (1571, 3.89, 0.29),
])  # fmt: skip
counts[:, 0] *= 4520 * np.deg2rad(1 / 60)  # pc, at 4.52 kpc
speeds[:, 0] *= 4520 * np.deg2rad(1 / 3600)

# %% [markdown]
# Of the counts only the shape is used, with an error of 10% for what the model leaves out. The
# emulator's derivatives lead to the best model in a few steps, and give the errors.

# %%
emulator = load("gc_emulator").emulator.requires_grad_(False)
(R, N, e_N), (R_v, sigma, e_v) = (torch.tensor(table.T) for table in (counts, speeds))
e_log = torch.hypot(e_N / N, torch.tensor(0.1))


def profiles(u, R):
    """Surface density, Msun / pc2, and dispersion, km/s, at R, pc, of W0, g, log10 M, log10 r_h."""
    model = emulator.cluster(u[:1], u[1:2], 10 ** u[2:3], 10 ** u[3:]).projected(R[None] ** 2)
    return model.surface_density[0], model.v2_los[0].sqrt()


def residuals(u):
    """Over their errors, of the logarithms of counts and of dispersions."""
    ratio = (N / profiles(u, R)[0]).log()
    ratio = ratio - (ratio / e_log**2).sum() / (1 / e_log**2).sum()
    return torch.cat([ratio / e_log, (sigma - profiles(u, R_v)[1]) / e_v])


best = torch.tensor([8.0, 1.5, 5.9, 0.8], dtype=torch.float64)
for _ in range(10):  # Gauss and Newton
    J = torch.autograd.functional.jacobian(residuals, best)
    best = best - torch.linalg.lstsq(J, residuals(best)).solution
errors = torch.linalg.inv(J.T @ J).diagonal().sqrt()
for row in zip(("W0", "g", "log10 M [Msun]", "log10 r_h [pc]"), best, errors, strict=True):
    print("{:15} {:.3f} ± {:.3f}".format(*row))
print(f"chi2 {residuals(best).square().sum():.0f}, {len(N) + len(sigma) - 5} degrees of freedom")

# %% [markdown]
# **When to distrust it.** All stars of this model have one mass, and the counts are of bright,
# heavy ones, which have sunk to the centre. So the model falls below the outer dispersions, and
# its mass below the $8$ to $9 \times 10^5$ Msun of models with many masses, by more than the
# error says: chi^2 of all points together hides it.

# %%
r = torch.logspace(-1.1, 1.75, 200, dtype=torch.float64)
amplitude = (N / profiles(best, R)[0]).log().mean().exp()
curves = (amplitude * profiles(best, r)[0], profiles(best, r)[1])
fig, axes = plt.subplots(1, 2, figsize=(12, 5.4), layout="constrained")
for axis, curve, points in zip(axes, curves, ((R, N, N * e_log), (R_v, sigma, e_v)), strict=True):
    axis.plot(r, curve, color=PALETTE[0], label="lowered isothermal model")
    axis.errorbar(*points, fmt="o", color=TRUTH, ms=7, lw=1.5, label="47 Tucanae")
    axis.set(xscale="log", xlabel="projected radius [pc]")
    axis.set_xticks([0.1, 1, 10], labels=["0.1", "1", "10"])
axes[0].set(yscale="log", ylabel=r"stars [arcmin$^{-2}$]", ylim=(0.05, 6e4))
axes[1].set(ylabel="line-of-sight dispersion [km/s]", ylim=(0, 15))
axes[0].legend(loc="lower left")
plt.show()

# %% [markdown]
# With priors, an error of the distance and proper motions, by HMC: `python evaluate.py
# checkpoint=gc_emulator data=gc_profile data.path=NGC0104.hdf output=47tuc.nc`.
