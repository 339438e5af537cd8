# %% [markdown]
# # A galaxy that had stopped forming stars at z = 3.7
#
# ZF-COSMOS-20115 ([Glazebrook et al. 2017](https://arxiv.org/abs/1702.01751)) was quiescent 1.7
# Gyr after the Big Bang. Here are its fluxes, as [Schreiber et al.
# (2018)](https://arxiv.org/abs/1709.03505) fit them, in columns that are numbered as EAZY's
# filters are; a `.translate` file gives such names to the columns of ZFOURGE and 3D-HST.
# [feniks](../feniks.md) gets neither the redshift nor what it is.

# %%
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table

from orrery import load
from orrery.figures.style import PALETTE, SETTINGS, TRUTH

plt.rcParams.update(SETTINGS)
fluxes = {  # EAZY's number of the filter: flux and error, µJy
    4: (0.0113, 0.0129), 6: (0.0359, 0.0180), 18: (6.63, 0.246), 19: (7.34, 0.538),
    78: (-0.0088, 0.0075), 79: (-0.0141, 0.0146), 81: (-0.0013, 0.0137), 82: (0.0799, 0.0179),
    83: (0.0707, 0.0226), 203: (0.263, 0.0201), 205: (0.624, 0.0176), 249: (0.0316, 0.0654),
    250: (0.196, 0.0491), 251: (0.298, 0.0925), 253: (0.770, 0.1676), 254: (0.715, 0.1718),
    255: (3.85, 0.0997), 256: (0.107, 0.0494), 257: (0.190, 0.0450), 258: (0.970, 0.0867),
    259: (3.90, 0.1183),
}  # fmt: skip
galaxy = Table({"id": [20115]})
for number, (flux, error) in fluxes.items():
    galaxy[f"F{number}"], galaxy[f"E{number}"] = [flux], [error]

# %% [markdown]
# A flux of 1 has the magnitude 23.9; in catalogues of zero point 25 say so. Bands of the network
# that the catalogue lacks are not observed, and are named in a warning.

# %%
feniks = load("feniks")
feniks.draws = 400  # of the posterior, for the figure
answer = feniks.predict(galaxy, flux_zero_point=23.9, keep=["id"])
names = ["p_candidate", "p_quiescent", "zred", "log_stellar_mass", "a_v", "t50", "flags"]
answer.round({name: 3 for name in names})
answer[names].pprint_all()

# %% [markdown]
# **When to distrust it.** Flag 1 is a galaxy that no model fits, 32 one with a second redshift,
# 128 one with fewer than five bands. `p_quiescent` rests on a prior in which a third of the
# galaxies at z 3 to 4.5 are quiescent: in a blind survey fewer are. Without bands beyond 3 µm
# dust looks like age.

# %%
micron, row = np.array(feniks.wavelengths) * 1e-4, answer[0]
seen, order = np.isfinite(row["flux_observed"]), np.argsort(micron)
fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.4), layout="constrained")
left.plot(micron[order], row["flux_model"][order], color=PALETTE[0], label="fit, in all bands")
left.errorbar(micron[seen], row["flux_observed"][seen], row["flux_error"][seen], fmt="o",
              color=PALETTE[1], label="observed")  # fmt: skip
left.set(xscale="log", xlim=(0.35, 5.5), xlabel="wavelength [µm]", ylabel="flux [µJy]")
left.set_xticks([0.4, 0.7, 1, 2, 4], labels=["0.4", "0.7", "1", "2", "4"])
left.xaxis.set_minor_locator(plt.NullLocator())
left.legend(loc="upper left")
redshifts = row["posterior"][:, feniks.names.index("zred")]
right.hist(redshifts, 20, density=True, color=PALETTE[0], alpha=0.6, label="from the photometry")
right.axvline(3.7145, color=TRUTH, label="of its spectrum, 3.7145")
right.set(xlabel="redshift", ylabel="p(z)", xlim=(3.3, 4.7), ylim=(0, 3.2))
right.legend(loc="upper right")
plt.show()

# %% [markdown]
# A catalogue is ranked by `p_candidate`; with a spectrum of some galaxies both are fitted
# together:
#
# ```sh
# python evaluate.py checkpoint=feniks data.path=zfourge.fits output=ranked.fits data.keep=[id] \
#     data.flux_zero_point=25
# python evaluate.py checkpoint=feniks data=feniks_spectra data.path=zfourge.fits \
#     data.spectra='spec/*.fits' output=joint.fits data.flux_zero_point=25
# ```
