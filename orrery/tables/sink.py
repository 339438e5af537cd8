"""What every output format shares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TableMetadata:
    """Metadata of an output table; see `Writer`."""

    units: Mapping[str, str]
    descriptions: Mapping[str, str]
    locations: Mapping[str, str]
    constants: Mapping[str, np.ndarray]
    meta: Mapping[str, str]


class Sink:
    """One output format: made with the first chunk, which fixes names, types and shapes."""

    holds_vectors = True

    def __init__(self, path: str, first: Mapping[str, np.ndarray], metadata: TableMetadata) -> None:
        self.path, self.metadata = path, metadata
        self.first = {name: values[:1] for name, values in first.items()}

    def write(self, chunk: Mapping[str, np.ndarray]) -> None:
        """Append rows; arrays are numbers, booleans or str objects, checked by `Writer`."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish a complete file."""
        raise NotImplementedError

    def abort(self) -> None:
        """Let go of the file, whatever its state."""
        raise NotImplementedError
