# %% [markdown]
# # Redshifts of galaxies from six bands
#
# The Rubin Observatory lists fluxes in *ugrizy*, in nJy, in its `Object` table
# ([DP1](https://dp1.lsst.io)). [zephyr](../zephyr.md) turns them into p(z), the probability
# density of the redshift. Here are 2,000 galaxies in those columns, of the zoo's own simulation,
# so that their redshifts are known; 2% of them were not observed in *u*.

# %%
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table

from orrery import load
from orrery.datamodules.zephyr import ZephyrData
from orrery.figures.style import PALETTE, SETTINGS, TRUTH

plt.rcParams.update(SETTINGS)
simulated = ZephyrData(n_test=2000, seed=1).simulate("test")
galaxies = Table({"objectId": np.arange(2000), "z_spec": simulated["redshift"]})
for band in "ugrizy":
    for name, flux in (("Flux", "flux"), ("FluxErr", "flux_err")):
        galaxies[f"{band}_cModel{name}"] = 1e3 * simulated[f"{flux}_{band}"]
        galaxies[f"{band}_cModel{name}"].unit = "nJy"
galaxies["u_cModelFlux"][::50] = np.nan

# %% [markdown]
# Bands are found by a pattern of columns. Units are those of the table; a negative flux is a
# valid measurement, and NaN is a band that was not observed.

# %%
columns = {"flux": "{band}_cModelFlux", "flux_err": "{band}_cModelFluxErr", "redshift": "z_spec"}
pz = load("zephyr").predict(galaxies, columns=columns, keep=["objectId"])
pz.round({name: 3 for name in ("z_q16", "z_median", "z_q84", "ood")})
pz["objectId", "z_q16", "z_median", "z_q84", "ood", "flags"][:5].pprint_all()

# %% [markdown]
# **When to distrust it.** Bit 1 of `flags` is a band that was not observed, bit 16 a p(z) wider
# than 0.3 (1 + z), and bits 4 and 8 galaxies unlike those of the training set, as is an `ood`
# near 1. The median of a p(z) with two peaks may lie between them: look at p(z) itself, which the
# table holds.

# %%
kinds = {"band missing": 1, "unusual": 4, "large error": 8, "wide": 16}
{name: int(np.sum(pz["flags"] & bit > 0)) for name, bit in kinds.items()}

# %%
wide, z_true = pz["flags"] & 16 > 0, pz["z_true"]
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
left.plot(z_true[~wide], pz["z_median"][~wide], ".", color=PALETTE[0], ms=4, label="narrow p(z)")
left.plot(z_true[wide], pz["z_median"][wide], "x", color=PALETTE[1], label="wide p(z), flag 16")
left.plot([0, 3], [0, 3], color=TRUTH, lw=1.5)
left.set(xlabel="true redshift", ylabel="median of p(z)", xlim=(0, 3), ylim=(0, 3))
left.legend(loc="upper left")
for i, row in enumerate([*np.flatnonzero(~wide)[[3, 40]], *np.flatnonzero(wide)[[6, 10]]]):
    density = i + 0.85 * pz["pz"][row] / pz["pz"][row].max()
    right.fill_between(pz.meta["z_grid"], i, density, color=PALETTE[i // 2], alpha=0.7, lw=0)
    right.plot([z_true[row]] * 2, [i, i + 0.9], color=TRUTH, label="truth" if i == 0 else None)
right.set(xlabel="redshift", xlim=(0, 3.2), yticks=[], title="p(z) of four galaxies, scaled")
right.legend(loc="lower right")
plt.show()

# %% [markdown]
# This checkpoint learned from simulated galaxies. For CFHT *u* and HSC *grizy* of COSMOS2020
# there is [zephyr_cosmos](../../checkpoints/zephyr_cosmos.md), of real ones:
#
# ```sh
# python evaluate.py checkpoint=zephyr_cosmos data.path=COSMOS2020_CLASSIC.fits output=pz.hdf5 \
#     data.keep=[ID] data.columns.mag='HSC_{band}_MAG_AUTO' data.columns.mag_u=CFHT_u_MAG_AUTO \
#     data.columns.mag_err='HSC_{band}_MAGERR_AUTO' data.columns.mag_err_u=CFHT_u_MAGERR_AUTO
# ```
