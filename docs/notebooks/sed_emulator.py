# %% [markdown]
# # Masses and star formation rates of galaxies
#
# COSMOS2020 ([Weaver et al. 2022](https://arxiv.org/abs/2110.13923)) has fluxes of a million
# galaxies in columns such as `HSC_g_FLUX` and `UVISTA_Ks_FLUX` (of its catalogue Farmer, µJy).
# [sed_emulator](../sed_emulator.md) fits them with a network in place of stellar population
# synthesis. Here are 60 mock galaxies in these columns, which the network itself makes, with
# noise.

# %%
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table

from orrery import load
from orrery.figures.style import PALETTE, SETTINGS, TRUTH

plt.rcParams.update(SETTINGS)
model, random, n = load("sed_emulator"), np.random.default_rng(3), 60
true = {"zred": random.uniform(0.6, 2.8, n), "logmass": random.uniform(9.3, 11.5, n)}
true |= {"logzsol": random.normal(-0.4, 0.15, n), "dust2": random.gamma(2, 0.2, n)}
true |= {"dust_index": random.normal(-0.2, 0.15, n), "dust1_fraction": np.ones(n)}
true |= {f"logsfr_ratio_{i}": random.normal(0, 0.3, n) for i in range(1, 7)}
fluxes = 10 ** (0.4 * (23.9 - model.magnitudes(true)["magnitude"]))  # µJy, (galaxy, band)

names = {"u": "CFHT_u", "irac1": "IRAC_CH1", "irac2": "IRAC_CH2"}
names |= {band: f"HSC_{band}" for band in "grizy"}
names |= {f"vista_{band}": f"UVISTA_{band}" for band in ("Y", "J", "H", "Ks")}
galaxies = Table({"ID": np.arange(n)})
for band, name in names.items():
    flux = fluxes[:, model.bands.index(band)]
    error = np.hypot(0.02 if band in "ugrizy" else 0.05, 0.02 * flux)
    galaxies[f"{name}_FLUX"], galaxies[f"{name}_FLUXERR"] = random.normal(flux, error), error

# %% [markdown]
# Every band of the network gets its column, or `"none"`. Redshifts are fitted, too.

# %%
columns = {f"flux_{band}": "none" for band in model.bands}
for band, name in names.items():
    columns |= {f"flux_{band}": f"{name}_FLUX", f"flux_err_{band}": f"{name}_FLUXERR"}
fits = model.predict(galaxies, columns=columns, units={"flux": "uJy"}, keep=["ID"])
scalars = ["ID", "zred", "log_stellar_mass", "log_sfr", "chi2_rank", "n_constrained", "flags"]
fits.round({name: 2 for name in scalars})
fits[scalars][:5].pprint_all()

# %% [markdown]
# **When to distrust it.** Flag 1 is a galaxy that no model fits, 2 one at the edge of a prior, 4
# one of which the prior speaks, 32 one with a second redshift. The *ugrizy* of this checkpoint
# are those of LSST: for real galaxies of COSMOS train on CFHT's and HSC's filters, which takes
# minutes.

# %%
x, y = fits["log_stellar_mass"], fits["log_sfr"]
row, micron = fits[int(np.nanargmax(x))], np.array(model.wavelengths) * 1e-4
order, seen = np.argsort(micron), np.isfinite(row["flux_observed"])
fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained")
left.plot(micron[order], row["flux_model"][order], color=PALETTE[0], label="fit, in 20 bands")
left.errorbar(micron[seen], row["flux_observed"][seen], row["flux_error"][seen], fmt="o",
              color=PALETTE[1], label="observed")  # fmt: skip
left.set(xscale="log", ylim=(0, None), xlabel="wavelength [µm]", ylabel="flux [µJy]")
left.set_xticks([0.4, 0.7, 1, 2, 4], labels=["0.4", "0.7", "1", "2", "4"])
left.xaxis.set_minor_locator(plt.NullLocator())
left.legend(loc="lower right")
errors = [(v - fits[f"{v.name}_q16"], fits[f"{v.name}_q84"] - v) for v in (y, x)]
right.errorbar(x, y, *errors, fmt="none", ecolor="0.6", lw=1.2, zorder=1)
points = right.scatter(x, y, c=fits["zred"], s=50, zorder=2)
doubtful = fits["flags"] > 0
right.plot(x[doubtful], y[doubtful], "o", mfc="none", mec=TRUTH, ms=14, label="flagged")
fig.colorbar(points, label="redshift")
right.set(xlabel=r"$\log_{10}$ stellar mass [$M_\odot$]", ylabel=r"$\log_{10}$ SFR [$M_\odot$/yr]")
right.legend(loc="upper left")
plt.show()

# %% [markdown]
# Train on the bands of your survey, then fit it, for example with HSC's alone:
#
# ```sh
# python train.py model=sed_emulator data.population=bc03_miles \
#     'data.bands={g: hsc_g, r: hsc_r, i: hsc_i, z: hsc_z, y: hsc_y}'
# python evaluate.py checkpoint=outputs/sed_emulator/<run>/best.ckpt output=fits.fits \
#     data.path=COSMOS2020_FARMER.fits data.keep=[ID] \
#     data.columns.flux='HSC_{band}_FLUX' data.columns.flux_err='HSC_{band}_FLUXERR'
# ```
