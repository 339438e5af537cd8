"""Bands and priors that are taken unless the user states others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# LSST, VISTA, IRAC and NIRCam
BANDS = {
    **{band: f"lsst_baseline_{band}" for band in "ugrizy"},
    **{f"vista_{band}": f"vista_vircam_{band}" for band in ("Z", "Y", "J", "H", "Ks")},
    "irac1": "spitzer_irac_ch1",
    "irac2": "spitzer_irac_ch2",
    **{
        f"f{number}w": f"jwst_f{number}w"
        for number in ("090", "115", "150", "200", "277", "356", "444")
    },
}
# As in Prospector-alpha (Leja et al. 2019, ApJ 876, 3), where the generator has the parameter
PARAMETERS: Mapping[str, Sequence[Any]] = {
    "logmass": ["uniform", 8.0, 12.0],
    "logzsol": ["uniform", -1.98, 0.19],
    **{f"logsfr_ratio_{i}": ["student_t", -5.0, 5.0, 0.0, 0.3] for i in range(1, 7)},
    "dust2": ["normal", 0.0, 4.0, 0.3, 1.0],
    "dust_index": ["uniform", -1.0, 0.4],
    "dust1_fraction": ["normal", 0.0, 2.0, 1.0, 0.3],
    "gas_logz": ["uniform", -2.0, 0.5],
    "gas_logu": ["uniform", -4.0, -1.0],
    "zred": ["uniform", 0.5, 3.0],
}


def by_label(bands: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Label -> filter. Filters of a list are labelled by their names, files without the ending."""
    if isinstance(bands, str):
        raise ValueError(
            f"data.bands={bands}; expected label: filter, such as {{g: hsc_g}}, or a list"
        )
    if isinstance(bands, Mapping):
        return {str(label): str(text) for label, text in bands.items()}
    labels = [Path(text).stem if Path(text).suffix else str(text) for text in bands]
    if len(set(labels)) < len(labels):
        raise ValueError(f"data.bands: two filters of the list would be called the same: {labels}")
    return dict(zip(labels, map(str, bands), strict=True))
