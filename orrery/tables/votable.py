"""VOTables, what archives send by default; read by astropy, and held in memory."""

import warnings
from xml.parsers.expat import ExpatError

from astropy.io.votable import parse_single_table
from astropy.io.votable.exceptions import VOTableSpecError

from .base import CUT_OFF, Catalogue
from .memory import MemoryCatalogue


def open_votable(path: str, group: str | None) -> Catalogue:
    """Open the first table of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # archives stretch the standard
            table = parse_single_table(path).to_table(use_names_over_ids=True)
    except (ExpatError, VOTableSpecError, ValueError, IndexError, OSError, *CUT_OFF) as error:
        raise OSError(f"{path}: not a VOTable, or it looks truncated ({error})") from error
    return MemoryCatalogue(table, path)
