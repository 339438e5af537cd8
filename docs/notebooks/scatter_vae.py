# %% [markdown]
# # A noisy Gaia spectrum, and its missing half
#
# Gaia DR3 has BP/RP spectra of 220 million stars, as 55 + 55 coefficients with errors and
# correlations. [scatter_vae](../scatter_vae.md) has learned what such spectra look like, and says
# which spectrum is under the noise. Here are 300 stars in the archive's columns, of the zoo's
# simulation of the instrument; [its page](../scatter_vae.md#getting-spectra) says how real ones
# are downloaded. The second star appears once more in the last row, without its BP.

# %%
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table

from orrery import load
from orrery.figures.style import PALETTE, SETTINGS, TRUTH
from orrery.physics.gaia_xp import xp, xp_mock

plt.rcParams.update(SETTINGS)
stars = Table(xp_mock.simulate(300, np.random.default_rng(0), magnitudes=(16.5, 17.5)))
stars.add_row(stars[1])
archived = [name for name in stars.colnames if name.startswith(("source_id", "bp_c", "rp_c"))]
for name in archived[1:4]:
    stars[name][300] = np.nan
archived

# %%
answer = load("scatter_vae").predict(stars[archived], keep=["source_id"])
scalars = ["source_id", "g_mag", "bp_rp", "chi2", "p_value", "outlier_score", "flags"]
answer.round({name: 3 for name in scalars})
answer[scalars][[0, 1, 2, 300]].pprint_all()

# %% [markdown]
# **When to distrust it.** Flag 1 is an imputed BP, 2 a misfit (`p_value` below 1e-4), 4 a star at
# the rim of what was learned; with 2 or 4 an imputed BP means nothing. This checkpoint learned
# from simulated stars and calls real ones misfits: for those there is
# [scatter_vae_real](../../checkpoints/scatter_vae_real.md), or your own training.


# %%
def sampled(coefficients):
    """Flux, 1e-18 W / m2 / nm, at 336 to 1020 nm, of the coefficients of BP and RP."""
    parts = zip(xp.BANDS, coefficients, strict=True)
    return 1e18 * sum(c @ xp.sampling(x, xp.SAMPLED) * xp.overlap(x, xp.SAMPLED) for x, c in parts)


nm, star = answer.meta["wavelength"], stars[1]
observed = sampled([star["bp_coefficients"], star["rp_coefficients"]])
truth = sampled([star["true_bp"], star["true_rp"]])
fig, axes = plt.subplots(2, 2, figsize=(12, 7), sharex=True, sharey="row", layout="constrained",
                         height_ratios=(3, 1))  # fmt: skip
axes[0, 0].plot(nm, observed, color="0.6", lw=1.2, label="observed")
for (top, below), row, title in zip(axes.T, (1, 300), ("BP and RP", "RP alone"), strict=True):
    flux, error = (1e18 * answer[name][row] for name in ("spectrum", "spectrum_error"))
    for axis, y, e in ((top, flux, error), (below, 100 * (flux / truth - 1), 100 * error / truth)):
        axis.fill_between(nm, y - e, y + e, color=PALETTE[0], alpha=0.3, lw=0)
        axis.plot(nm, y, color=PALETTE[0], label="scatter_vae, 68%")
    top.plot(nm, truth, "--", color=TRUTH, lw=1.3, label="truth")
    below.axhline(0, color=TRUTH, ls="--", lw=1.3)
    top.legend(title=title)
    below.set(xlabel="wavelength [nm]", ylim=(-30, 30))
axes[0, 0].set(ylabel=r"flux [$10^{-18}$ W m$^{-2}$ nm$^{-1}$]", ylim=(0, 5.5))
axes[1, 0].set(ylabel="minus truth [%]")
plt.show()

# %% [markdown]
# All 220 million: `python -m orrery.datamodules.scatter_vae convert` makes shards of the
# archive's bulk files, and `python evaluate.py checkpoint=scatter_vae_real
# data.path='xp_shards/*.h5' output=xp.h5` streams them.
