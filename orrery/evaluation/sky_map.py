"""Maps of the sky in the layout of the dustmaps package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orrery.files import written_atomically


def write_sky_map(path: str | Path, arrays: Mapping[str, Any], meta: Mapping[str, str]) -> None:
    """A map of dust in the layout that the dustmaps package reads (`Edenhofer2023Query`).

    ``arrays``: ``nside``; ``centres`` and ``boundaries`` of the shells, pc; and either ``mean`` and
    ``std`` of the extinction per pc, (shells, pixels), nested Galactic HEALPix, or ``samples``,
    (samples, shells, pixels). ``nearer_mean`` and ``nearer_std``, or ``nearer_samples`` (samples,):
    extinction up to the first boundary, in all directions. The file appears when it is complete.
    """
    from astropy.io import fits

    path = Path(path)
    if path.suffix != ".fits":
        raise ValueError(f"output={path}: a map is written as FITS, <name>.fits")
    within = f"{arrays['boundaries'][0]:g} PC"
    hdus: list[Any] = [fits.PrimaryHDU()]
    hdus[0].header.update({key[:8].upper(): str(value)[:60] for key, value in meta.items()})

    def image(name: str, values: np.ndarray, contents: str) -> None:
        hdu = fits.ImageHDU(values.astype("f4"), name=name)
        hdu.header["NSIDE"], hdu.header["ORDERING"] = arrays["nside"], "NEST"
        hdu.header["CTYPE"] = contents
        hdus.append(hdu)

    inner = f"nner density integrated within {within.lower()}"
    if "samples" in arrays:
        image("SAMPLES", arrays["samples"], "extinction density")
        nearer = np.zeros_like(arrays["samples"][:, 0]) + arrays["nearer_samples"][:, None]
        image(f"INTEGRATED INNER {within}", nearer, f"I{inner}")
    else:
        mean, std = (
            np.full_like(arrays["mean"][0], arrays[f"nearer_{m}"]) for m in ("mean", "std")
        )
        image("MEAN", arrays["mean"], "extinction density")
        image(f"MEAN OF INTEGRATED INNER {within}", mean, f"I{inner}")
        image("STD.", arrays["std"], "std. of extinction density")
        image(f"STD. OF INTEGRATED INNER {within}", std, f"std. of i{inner}")
    for what in ("centres", "boundaries"):
        name = f"radial pixel {'centers' if what == 'centres' else what}"
        column = fits.Column(name, "D", unit="pc", array=arrays[what])
        hdus.append(fits.BinTableHDU.from_columns([column], name=name.upper()))
    with written_atomically(path) as part, open(part, "wb") as file:
        fits.HDUList(hdus).writeto(file)
