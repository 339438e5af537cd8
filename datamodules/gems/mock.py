"""A request for mock stars: `evaluate.py data=gems_mock`."""

from collections.abc import Sequence

from orrery.datamodules.dataset import GenerationRequest
from orrery.datamodules.gems.settings import checked_duration, checked_potential, chosen_clusters


class MockRequest(GenerationRequest):
    """Stars thrown out of clusters: ``n_stars`` of each of ``clusters``, in any ``potential``.

    Settings as of `GemsData`; ``positions``: whether stars are moved on to today, which takes by
    far the longest.
    """

    def __init__(
        self,
        n_stars: int = 1000,
        clusters: str | Sequence[str] | None = None,
        potential: str = "mwpotential2014",
        duration: float = 5.0,
        positions: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(n_stars, seed)
        self.clusters = chosen_clusters(clusters)
        self.potential, self.duration = checked_potential(potential), checked_duration(duration)
        self.positions = positions

    @property
    def label(self) -> str:
        return f"{self.n:,} stars of each of {len(self.clusters)} clusters"
