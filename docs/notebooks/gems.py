# %% [markdown]
# # Which cluster threw this star out?
#
# Stars that were thrown out of a globular cluster keep nearly its orbital actions.
# [gems](../gems.md) compares a star's six coordinates, with their errors, with the orbits of 150
# clusters, and says how probable each is as its home. Gaia DR3's stars with a radial velocity
# have the columns (a query is on its page); distances are those of giants from photometry. These
# stars are simulated: 40 of each of three clusters, and a field.

# %%
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table

from orrery import load
from orrery.datamodules.gems import GemsData
from orrery.figures.style import PALETTE, SETTINGS

plt.rcParams.update(SETTINGS)
clusters = ["NGC 3201", "M13", "M68"]
data = GemsData(clusters=clusters, n_test_per_cluster=40, field_ratio=3, duration=0.05, seed=2)
stars = Table(data.simulate("test"))
true_host = np.array(stars["host"])
stars.remove_column("host")
units = {"ra": "deg", "dec": "deg", "distance": "kpc", "pmra": "mas/yr", "pmdec": "mas/yr"}
units |= {"radial_velocity": "km/s"}
for name in stars.colnames:
    stars[name].unit = units[name.removesuffix("_error")]

# %%
hosts = load("gems").predict(stars)
names = ["host", "p_host", "host_2", "p_host_2", "p_field", "log_bayes", "flags"]
hosts.round({name: 4 for name in ("p_host", "p_host_2", "p_field", "log_bayes")})
hosts[names][np.argsort(-hosts["p_host"])[:50:10]].pprint_all()

# %% [markdown]
# **When to distrust it.** Flag 8 is a star within a cluster's tidal radius: a member more likely
# than an ejected star. Flag 2 is one without a radial velocity, 4 one without a good distance, 16
# one unlike all that was simulated. Clusters on similar orbits share the probability: look at
# `host_2` before you publish a host. And the prior matters: 91% of all stars are taken to be of
# the field (`model.field_prior`), which for millions of stars is too few.

# %%
host = np.array([str(name) for name in hosts["host"]])
chosen = (hosts["p_host"] > 0.7) & (hosts["flags"] & 8 == 0)
right = np.mean(host[chosen] == true_host[chosen])
print(f"{chosen.sum()} stars with p_host > 0.7, {right:.0%} of them right;", end=" ")
print(f"their mean p_host is {np.mean(hosts['p_host'][chosen]):.0%}")

# %%
fig, (plane, bars) = plt.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained")
plane.plot(hosts["L_z"], 1e-5 * hosts["energy"], ".", color="0.7", ms=5, label="no host")
for name, colour in zip(sorted(set(host[chosen])), PALETTE, strict=False):
    mine = hosts[chosen & (host == name)]
    plane.errorbar(mine["L_z"], 1e-5 * mine["energy"], 1e-5 * mine["energy_error"],
                   mine["L_z_error"], "o", color=colour, ms=6, lw=1.2, label=name)  # fmt: skip
plane.set(xlabel=r"$L_z$ [kpc km/s]", ylabel=r"energy [$10^5$ km$^2$/s$^2$]")
plane.set(xlim=(-4000, 4000), ylim=(-2, 0), xticks=range(-4000, 4001, 2000))
plane.legend(loc="lower left")
star = hosts[np.argmin(np.abs(hosts["p_host"] - 0.6))]
bars.barh(range(6), [star["p_field"], *(star[f"p_host{i}"] for i in ("_5", "_4", "_3", "_2", ""))],
          color=["0.7"] + 5 * [PALETTE[0]])  # fmt: skip
labels = ["field", *(star[f"host{i}"] for i in ("_5", "_4", "_3", "_2", ""))]
bars.set_yticks(range(6), labels=labels)
bars.set(xlabel="probability", xlim=(0, 1), title="hosts of an undecided star")
plt.show()

# %% [markdown]
# A million stars of the field, one in a thousand of which was thrown out of a cluster:
#
# ```sh
# python evaluate.py checkpoint=gems data.path=gaia_6d.fits output=hosts.fits \
#     data.keep=[source_id] model.field_prior=0.999
# ```
