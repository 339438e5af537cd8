"""What every output format shares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class About:
    """What is said about an output table besides its rows; see `Writer`."""

    units: Mapping[str, str]
    descriptions: Mapping[str, str]
    locations: Mapping[str, str]
    constants: Mapping[str, np.ndarray]
    meta: Mapping[str, str]


class Sink:
    """One output format: made with the first chunk, which fixes names, types and shapes."""

    holds_vectors = True

    def __init__(self, path: str, first: Mapping[str, np.ndarray], about: About) -> None:
        self.path, self.first, self.about = path, {n: v[:1] for n, v in first.items()}, about

    def write(self, chunk: Mapping[str, np.ndarray]) -> None:
        """Append rows; arrays are numbers, booleans or str objects, checked by `Writer`."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish a complete file."""
        raise NotImplementedError

    def abort(self) -> None:
        """Let go of the file, whatever its state."""
        raise NotImplementedError
