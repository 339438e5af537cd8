"""Simulation-based calibration: many clusters drawn from the prior, each with its stars."""

from orrery.datamodules.dataset import Dataset
from orrery.physics.clusters.observations import SimulatedSets


class GCCalibration(Dataset):
    """``n_sets`` data sets of ``n_stars`` stars each, in phase space or on the ``sky``.

    On the sky directions, parallaxes and proper motions have an error of ``error`` mas and mas/yr,
    there are no velocities along the line of sight, and the distance has the prior ``distance`` to
    ``distance_error``, kpc.
    """

    def __init__(
        self,
        n_sets: int = 100,
        n_stars: int = 200,
        sky: bool = False,
        error: float = 0.1,
        distance: float = 1.0,
        distance_error: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.n_sets, self.n_stars, self.sky = n_sets, n_stars, sky
        self.error, self.distance, self.distance_error = error, distance, distance_error

    def observations(self) -> SimulatedSets:
        distance = self.distance, self.distance_error
        return SimulatedSets(self.n_sets, self.n_stars, self.sky, self.error, distance, self.seed)
