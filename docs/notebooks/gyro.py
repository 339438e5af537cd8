# %% [markdown]
# # Ages of stars from their rotation
#
# A star like the Sun spins down as it ages, so that its rotation period, which Kepler, TESS or
# Gaia measures, and its colour tell its age. Here are eleven stars of Kepler whose ages are known
# from their oscillations, dated by [gyro](../gyro.md). Periods and seismic ages are those of [van
# Saders et al. (2016)](https://arxiv.org/abs/1601.02631), colours are Gaia's. A survey's periods
# (of Kepler [McQuillan et al. 2014](https://arxiv.org/abs/1402.5694), in VizieR) are matched with
# `gaiadr3.gaia_source` in the [archive](https://gea.esac.esa.int/archive/).

# %%
import matplotlib.pyplot as plt
from astropy.table import QTable

from orrery import load
from orrery.figures.style import PALETTE, SETTINGS, TRUTH

plt.rcParams.update(SETTINGS)
names, units = ("KIC", "Prot", "e_Prot", "bp_rp", "Av", "logg", "seismic"), {"Prot": "d"}
units |= {"e_Prot": "d", "bp_rp": "mag", "Av": "mag"}
stars = QTable(names=names, units=units, dtype=[int] + 6 * [float], rows=[
    (3427720, 13.9, 2.1, 0.742, 0.00, 4.388, 2.23), (5184732, 19.8, 2.4, 0.829, 0.00, 4.270, 4.17),
    (6521045, 25.3, 2.8, 0.821, 0.11, 4.118, 6.24), (8006161, 29.8, 3.1, 0.981, 0.00, 4.502, 5.04),
    (9098294, 19.8, 1.3, 0.786, 0.00, 4.314, 7.28), (9955598, 34.7, 6.3, 0.958, 0.00, 4.506, 6.43),
    (10963065, 12.4, 1.2, 0.705, 0.00, 4.294, 4.36), (6196457, 16.4, 1.2, 0.798, 0.08, 4.053, 5.51),
    (12069424, 23.8, 1.7, 0.82, 0.00, 4.295, 7.07), (10454113, 14.6, 1.1, 0.709, 0.00, 4.315, 2.03),
    (11401755, 17.2, 1.4, 0.749, 0.16, 4.043, 5.85),
])  # fmt: skip

# %% [markdown]
# The columns do not have our names, so each is named by its role. Units of the table are
# converted, and colours are dereddened by the column of extinction.

# %%
columns = {"prot": "Prot", "e_prot": "e_Prot", "bp_rp0": "bp_rp", "a_v": "Av", "logg": "logg"}
ages = load("gyro").predict(stars, columns=columns, keep=["KIC"])
ages.round(2)
ages["KIC", "age_q16", "age_q50", "age_q84", "flags"].pprint_all()

# %% [markdown]
# **When to distrust it.** The warning is right: flag 4 says that a star is older than the oldest
# cluster that was learned from (M67, 3.9 Gyr), and its age an extrapolation. Flag 32 marks two
# stars that have begun to leave the main sequence, and have no age of a dwarf. Intervals are
# wide: these periods are known to 10%, and stars of the field differ in metallicity.

# %%
fig, axis = plt.subplots(figsize=(8.5, 6.5), layout="constrained")
evolved = (ages["flags"] & 32) > 0
kinds = (~evolved, PALETTE[0], "dwarfs"), (evolved, "white", "evolved, flag 32")
for chosen, face, label in kinds:
    low, median, high = (ages[f"age_{q}"].value[chosen] for q in ("q16", "q50", "q84"))
    axis.errorbar(stars["seismic"][chosen], median, (median - low, high - median), fmt="o",
                  color=PALETTE[0], mfc=face, lw=1.5, ms=10, label=label)  # fmt: skip
axis.plot([1, 12], [1, 12], color=TRUTH, label="equal")
axis.axhspan(3.9, 12, color=PALETTE[1], alpha=0.12, lw=0, label="older than all clusters (flag 4)")
axis.set(xlim=(1, 9), ylim=(0, 10), xlabel="seismic age [Gyr]", ylabel="age from rotation [Gyr]")
fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
plt.show()

# %% [markdown]
# A survey, in the columns of Gaia's archive, is streamed from file to file:
#
# ```sh
# python evaluate.py checkpoint=gyro data.path=kepler_gaia.fits output=ages.fits data.keep=[KIC] \
#     data.columns.prot=Prot data.columns.e_prot=e_Prot data.columns.bp_rp0=bp_rp \
#     data.columns.a_v=azero_gspphot data.columns.logg=logg_gspphot
# ```
