# %% [markdown]
# # Which star of a stream stands out?
#
# A high-resolution survey such as S5 ([Ji et al. 2020](https://arxiv.org/abs/2008.07568); its
# tables are on the pages of the journal) measures some twenty elements of a few stars of a
# stream. [abundances](../abundances.md) has learned how elements go together, and says of each
# star and element how unusual it is. These ten stars are made up, with the errors of such a
# survey; one of them lacks magnesium.

# %%
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table

from orrery import load
from orrery.figures.style import PALETTE, SETTINGS, TRUTH

plt.rcParams.update(SETTINGS)
random, n = np.random.default_rng(5), 10
ratios = {"mg": 0.3, "ca": 0.28, "ti": 0.22, "cr": -0.12, "mn": -0.35, "ni": -0.05, "ba": -0.1}
stars = Table({"name": [f"Indus_{i + 1}" for i in range(n)], "fe_h": random.normal(-2.0, 0.25, n)})
stars["fe_h_error"] = np.full(n, 0.1)
for element, ratio in (ratios | {"eu": 0.35}).items():
    error = 0.2 if element in ("ba", "eu") else 0.1
    stars[f"{element}_fe"] = random.normal(ratio, error, n)
    stars[f"{element}_fe_error"] = np.full(n, error)
stars["mg_fe"][3] -= 0.9
stars["mn_fe"][::3] = np.nan  # not measured
stars["eu_limit"] = (stars["fe_h"] < -2.1).astype(int)  # europium is an upper limit there

# %% [markdown]
# Names of columns are understood as most tables write them (`[Mg/Fe]`, `MgFe`, `mg_fe`). The
# solar scale has to be stated, and of limits how many sigma they are.

# %%
answer = load("abundances").predict(stars, keep=["name"], solar="asplund2009", limit_significance=5)
names = ["name", "p_value", "most_unusual", "mg_p_value", "p_alpha_poor", "n_limits", "flags"]
answer.round({name: 4 for name in names})
answer[names].pprint_all()

# %% [markdown]
# **When to distrust it.** Of ten ordinary stars one has p = 0.1: only a p-value far below one
# over the number of stars says something. Of europium and other elements beyond zinc some 30
# stars are all that was learned from. Flag 1 is a star of which nothing was measured, 2 one with
# a single element, 4 one with more or less iron than 99.9% of those that were learned from.
#
# The figure has what was measured of two stars, and what their *other* elements say of each.

# %%
elements = ["fe", *ratios, "eu"]
fig, axes = plt.subplots(2, 1, figsize=(11, 7.5), sharex=True, layout="constrained")
limited = int(np.argmax(stars["eu_limit"]))
for axis, row in zip(axes, (3, limited), strict=True):
    for level, alpha in ((95, 0.25), (68, 0.45)):
        low, high = (np.array([answer[f"{x}_h_{end}{level}"][row] for x in elements])
                     for end in ("low", "high"))  # fmt: skip
        axis.bar(
            elements, high - low, 0.6, low, color=PALETTE[0], alpha=alpha, lw=0, label=f"{level}%"
        )
    star = stars[row]
    value = star["fe_h"] + np.array([0, *(star[f"{x}_fe"] for x in elements[1:])])
    error = np.array([star["fe_h_error"], *(star[f"{x}_fe_error"] for x in elements[1:])])
    limits = np.array(elements) == ("eu" if star["eu_limit"] else "")
    axis.errorbar(elements, value, np.where(limits, 0.3, error), fmt="o", color=TRUTH, capsize=4,
                  uplims=limits, label="measured, or limit")  # fmt: skip
    axis.set_title(f"{star['name']}: p = {answer['p_value'][row]:.2g}", loc="left")
    axis.set(ylabel="[X/H] [dex]")
axes[1].set_xticks(range(len(elements)), labels=[x.title() for x in elements])
axes[0].legend(ncols=3, loc="upper left")
plt.show()

# %% [markdown]
# The published table is read as it is; a second command compares its streams:
#
# ```sh
# python evaluate.py checkpoint=abundances data.path=ajabacb6t6_mrt.txt output=stars.ecsv
# python evaluate.py checkpoint=abundances data=abundance_structures data.path=ajabacb6t6_mrt.txt \
#     data.group_by=stream output=comparison.ecsv
# ```
