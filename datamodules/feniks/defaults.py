"""Bands, depths and priors of `FeniksData` that are taken unless the user states others."""

from collections.abc import Mapping, Sequence
from typing import Any

SPECTRAL_NETWORK = "sed_emulator_spectra"  # the shipped checkpoint that makes galaxies
MEDIUM = (427, 464, 484, 505, 527, 574, 624, 679, 709, 738, 767, 827)  # Suprime-Cam's
# Those of surveys of distant galaxies: the fields COSMOS, UDS and of HST
BANDS = {
    "u": "cfht_megacam_us_9301",
    **{band: f"hsc_{band}" for band in "grizy"},
    "B": "subaru_suprimecam_B",
    "V": "subaru_suprimecam_V",
    "Rc": "subaru_suprimecam_Rc",
    **{f"{band}p": f"subaru_suprimecam_{band}p" for band in "riz"},
    **{f"ia{number}": f"subaru_suprimecam_ia{number}" for number in MEDIUM},
    **{f"vista_{band}": f"vista_vircam_{band}" for band in ("Y", "J", "H", "Ks")},
    **{band: f"ukirt_wfcam_{band}" for band in "JHK"},
    **{f"f{number}w": f"acs_wfc_f{number}w" for number in (606, 814)},
    **{f"f{number}w": f"wfc3_ir_f{number}w" for number in (105, 125, 140, 160)},
    **{f"irac{number}": f"spitzer_irac_ch{number}" for number in (1, 2, 3, 4)},
    # FENIKS splits K: 2.06 and 2.31 um, 0.25 and 0.27 um wide; there is no public curve
    "Kb": "tophat:19350:21850",
    "Kr": "tophat:21750:24450",
}
# AB, 5 sigma, of a deep survey in the near infrared such as that of the UDS field
DEPTH = {
    "u": 27.2, "g": 27.3, "r": 26.9, "i": 26.7, "z": 26.3, "y": 25.3, "vista_Y": 25.1, "J": 25.6,
    "H": 25.1, "K": 25.3, "Kb": 24.9, "Kr": 24.9, "irac1": 25.3, "irac2": 25.2,
}  # fmt: skip
# Ratios of star formation rates, the youngest first, that let a third of galaxies at z 3 to 4.5 be
# quiescent: massive galaxies quench within 100 Myr, and rates rise with time before, as those of
# young galaxies do. Ten times more within the last 30 or 100 Myr than before is left out.
RATIOS = (
    ["student_t", -6.0, 1.0, 0.0, 0.5],
    ["student_t", -6.0, 1.0, 0.0, 1.0],
    ["student_t", -6.0, 2.0, 0.0, 0.7],
    *3 * [["student_t", -6.0, 6.0, 0.3, 0.5]],
)
PARAMETERS: Mapping[str, Sequence[Any]] = {
    "logmass": ["uniform", 8.5, 12.5],
    "logzsol": ["normal", -1.98, 0.19, -0.2, 0.5],
    **{f"logsfr_ratio_{i}": prior for i, prior in enumerate(RATIOS, 1)},
    "dust2": ["student_t", 0.0, 4.0, 0.0, 0.5],
    "dust_index": ["uniform", -1.0, 0.4],
    "dust1_fraction": ["normal", 0.0, 2.0, 1.0, 0.3],
    "gas_logz": ["uniform", -2.0, 0.5],
    "gas_logu": ["uniform", -4.0, -1.0],
    "zred": ["uniform", 0.2, 6.0],
}
