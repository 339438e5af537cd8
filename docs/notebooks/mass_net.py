# %% [markdown]
# # Masses over the Hertzsprung-Russell diagram
#
# [mass_net](../mass_net.md) has learned from the orbits of wide binaries what a star of some
# colour and absolute magnitude weighs. It needs three columns of `gaiadr3.gaia_source` (a query
# is on its page). Here are 4,000 stars within 400 pc in those columns, of the zoo's simulation of
# Gaia: dwarfs with the masses of [Pecaut & Mamajek (2013)](https://arxiv.org/abs/1307.2657),
# white dwarfs, giants, and unresolved binaries.

# %%
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table
from matplotlib.colors import LogNorm

from orrery import load
from orrery.figures.style import PALETTE, SETTINGS, TRUTH
from orrery.physics.wide_binaries.population import Population, simulate
from orrery.physics.wide_binaries.sequences import DWARFS

plt.rcParams.update(SETTINGS)
pairs = simulate(4000, Population(), seed=3)
units = {"phot_g_mean_mag": "mag", "bp_rp": "mag", "parallax": "mas", "parallax_error": "mas"}
stars = Table({name: pairs[f"{name}1"] for name in units}, units=units)

# %%
model = load("mass_net")
masses = model.predict(stars)
names = ["mass", "mass_q16", "mass_q84", "lnm_std", "n_near", "flags"]
masses.round({name: 3 for name in names})
masses[names][:5].pprint_all()

# %% [markdown]
# **What the error means.** The interval is that of the *mean* mass of stars at this place of the
# diagram, and rests on the number of pairs there (`n_near`); single stars scatter about it.
#
# **When to distrust it.** Flag 1 marks places that the pairs do not tell, 4 a poor parallax, 16
# those where the training pairs contradict the network: faint stars, of which there are few. On
# the binary sequence, above the dwarfs, the answer is the mass of two stars. And this
# checkpoint learned from simulated pairs: train on those of [El-Badry et al.
# (2021)](https://zenodo.org/records/4435257) for masses that Gaia measured.

# %%
abs_g = stars["phot_g_mean_mag"] + 5 * np.log10(stars["parallax"] / 100)
good = (masses["flags"] == 0) & (stars["parallax"] > 20 * stars["parallax_error"])
fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 6), layout="constrained")
left.plot(
    stars["bp_rp"][~good], abs_g[~good], ".", color="0.75", ms=3, label="flag, or poor parallax"
)
points = left.scatter(stars["bp_rp"][good], abs_g[good], c=masses["mass"][good], s=6,
                      norm=LogNorm(0.12, 2))  # fmt: skip
left.set(xlabel="BP − RP [mag]", ylabel=r"$M_G$ [mag]", xlim=(-0.8, 4.8), ylim=(16, -2))
left.legend(loc="lower left", markerscale=4)
bar = fig.colorbar(points, label=r"mass [$M_\odot$]")
bar.set_ticks([0.15, 0.3, 0.6, 1, 2], labels=["0.15", "0.3", "0.6", "1", "2"], minor=False)
bar.ax.minorticks_off()
dwarfs = model.mass(bp_rp=DWARFS[:, 0], abs_g=DWARFS[:, 2])
low, mass, high = (dwarfs[name] for name in ("mass_q16", "mass", "mass_q84"))
interval = np.array([mass - low, high - mass])
for flagged, label in ((False, "mass_net"), (True, "flagged")):
    here = (dwarfs["flags"] > 0) == flagged
    right.errorbar(DWARFS[here, 2], mass[here], interval[:, here], fmt="o", lw=1.5,
                   color=PALETTE[flagged], label=label)  # fmt: skip
right.plot(DWARFS[:, 2], DWARFS[:, 3], color=TRUTH, lw=1.8, label="Pecaut & Mamajek")
right.set(yscale="log", xlabel=r"$M_G$ [mag]", ylabel=r"mass of dwarfs [$M_\odot$]", xlim=(0, 16))
right.set_yticks([0.1, 0.2, 0.5, 1, 2], labels=["0.1", "0.2", "0.5", "1", "2"])
right.minorticks_off()
right.legend()
plt.show()

# %% [markdown]
# All stars of a file, dereddened by a column of E(B - V):
#
# ```sh
# python evaluate.py checkpoint=mass_net data.path=gaia_stars.fits output=masses.fits \
#     data.keep=[source_id] data.columns.ebv=EBV
# ```
