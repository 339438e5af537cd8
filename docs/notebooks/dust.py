# %% [markdown]
# # Extinction along a sightline
#
# [Zhang, Green & Rix (2023)](https://arxiv.org/abs/2303.03420) list the extinction E and the
# parallax of 220 million stars ([Zenodo](https://doi.org/10.5281/zenodo.7811871)).
# [dust](../dust.md) makes a three-dimensional map of them, with joint errors. The shipped map is
# of a synthetic sky: this page shows how a map is read, and the stars of that sky are its
# catalogue.

# %%
import matplotlib.pyplot as plt
import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table

from orrery import load
from orrery.datamodules.dust import DustData
from orrery.figures.style import PALETTE, SETTINGS

plt.rcParams.update(SETTINGS)
dust = load("dust")
data = DustData(8, 36, 69.0, 1250.0)
learned, stars = Table(data.simulate("fit")), Table(data.simulate("test"))
for name, unit in (("l", "deg"), ("b", "deg"), ("parallax", "mas"), ("parallax_error", "mas")):
    stars[name].unit = learned[name].unit = unit

# %% [markdown]
# A catalogue gets the extinction between us and each star, averaged over the distances that its
# parallax allows. These stars were not among those that the map was made of, and their own
# extinction tests it: `pull` is the difference over its error.

# %%
answer = dust.predict(stars)
print(f"{len(stars)} stars, {np.mean(np.abs(answer['pull']) < 1):.0%} within one error")
names = ["extinction", "extinction_std", "extinction_std_distance", "pull", "flags"]
answer.round({name: 3 for name in names})
answer[names][:5].pprint_all()

# %% [markdown]
# **When to distrust it.** Flag 2 is a star beyond the map, whose extinction is a lower limit; 4 a
# place behind all stars, where the map is its prior. Clouds smaller than a voxel are smeared out.
#
# `query` takes coordinates of astropy. Extinctions of neighbouring places err together, so that
# the error of a *difference* comes from samples, and not from the two errors.

# %%
place, pc = SkyCoord(102 * u.deg, 1 * u.deg, frame="galactic"), np.geomspace(70, 1200, 120)
line = SkyCoord(place.l, place.b, distance=pc * u.pc, frame="galactic")
samples = dust.query(line, "samples")  # (sample, distance)
cloud = samples[:, np.searchsorted(pc, 400)] - samples[:, np.searchsorted(pc, 300)]
print(f"E between 300 and 400 pc: {np.mean(cloud):.3f} ± {np.std(cloud):.3f}")

# %%
lon, lat = np.meshgrid(np.linspace(-180, 180, 241), np.linspace(-90, 90, 121))
sky = SkyCoord(lon * u.deg, lat * u.deg, distance=400 * u.pc, frame="galactic")
fig = plt.figure(figsize=(13, 4.8), layout="constrained")
left, right = fig.add_subplot(1, 2, 1, projection="mollweide"), fig.add_subplot(1, 2, 2)
image = left.pcolormesh(-np.deg2rad(lon), np.deg2rad(lat), dust.query(sky), cmap="magma")
left.plot(-place.l.rad, place.b.rad, "o", mfc="none", mec="white", ms=14, mew=2)
left.set(xticklabels=[], yticklabels=[], title="E to 400 pc, l increases to the left")
left.grid(alpha=0.3)
fig.colorbar(image, location="left", shrink=0.7)
low, median, high = np.quantile(samples, (0.16, 0.5, 0.84), 0)
right.fill_between(pc, low, high, color=PALETTE[0], alpha=0.3, lw=0)
right.plot(pc, median, color=PALETTE[0], label="map at the circle, 68%")
distance = SkyCoord(learned["l"], learned["b"], frame="galactic").separation(place)
near = learned[distance < 5 * u.deg]
right.errorbar(1e3 / near["parallax"], near["extinction"], near["extinction_error"], fmt="o",
               color=PALETTE[1], lw=1.5, label="stars within 5 deg")  # fmt: skip
right.set(xlabel="distance [pc]", ylabel="extinction E", xlim=(0, 1250), ylim=(0, None))
right.legend(loc="lower right")
plt.show()

# %% [markdown]
# A real map, and what it says of your sightlines:
#
# ```sh
# python train.py model=dust data.path=zgr23.h5 'data.train_where="quality_flags < 8"'
# python evaluate.py checkpoint=outputs/dust/<run>/best.ckpt data.path=sightlines.csv output=E.fits
# ```
