"""A catalogue over another one, with columns that are made of its own or stand beside them."""

from collections.abc import Mapping, Sequence

from astropy import units as u

from .base import Catalogue


class Derived(Catalogue):
    """Forwards what holds for the columns of ``catalogue``; subclasses give `chunks`.

    Args:
        catalogue: the one whose rows these are; closed with this one.
        names: of all columns, those of ``catalogue`` that stay and the new ones.
        new: which of them are not ``catalogue``'s, even if one of its columns has that name.
        units: of the new ones.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        names: Sequence[str],
        new: Sequence[str],
        units: Mapping[str, u.UnitBase | None] | None = None,
    ) -> None:
        kept = [name for name in names if name not in new]
        all_units = {**(units or {}), **{name: catalogue.units.get(name) for name in kept}}
        super().__init__(catalogue.path, names, all_units, len(catalogue))
        self.constants = catalogue.constants
        self.descriptions = {n: d for n, d in catalogue.descriptions.items() if n in kept}
        self._catalogue, self._new = catalogue, frozenset(new)

    def close(self) -> None:
        self._catalogue.close()

    def is_boolean(self, column: str) -> bool:
        return column not in self._new and self._catalogue.is_boolean(column)

    def is_identifier(self, column: str) -> bool:
        return column not in self._new and self._catalogue.is_identifier(column)
