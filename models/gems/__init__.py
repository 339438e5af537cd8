"""gems: which globular cluster a star was thrown out of, from its actions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import (
    Batch,
    Component,
    Constant,
    Data,
    Evaluation,
    Exported,
    Fit,
    ObjectRequest,
    Output,
    PredictedRows,
)
from orrery.models.gems.density import (
    N_MOMENTS,
    N_MONOMIALS,
    FieldMixture,
    Mixture,
    MixtureNetwork,
    Moments,
    coordinates,
    log_jacobian,
    moments,
)
from orrery.models.gems.exported import exported
from orrery.models.gems.hosts import PRIORS, TABLE, Hosts
from orrery.models.gems.observation import phase_space_draws
from orrery.models.gems.outputs import BIT, N_LISTED, mock_outputs, outputs
from orrery.models.gems.recent import Recent, recent_ejections
from orrery.physics.ejections.clusters import Clusters, read_clusters
from orrery.physics.ejections.mock import mock_catalogue
from orrery.physics.ejections.population import (
    action_vector,
    cluster_table,
    sprayed_actions,
    three_body_kicks,
)
from orrery.physics.milky_way.actions import FAST, Actions, staeckel_actions
from orrery.physics.milky_way.potentials import milky_way

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.table import Table

DRAWS_OF_UNKNOWN = 8  # times as many draws of stars with an unknown velocity or distance
N_SPRAYED = 2000  # stars of each new cluster
POOR_DISTANCE = 0.2  # relative error above which a distance counts as unknown
DRAWS_AT_ONCE = 8192  # of all stars together


@runtime_checkable
class HasClusters(Protocol):
    """Data that know the clusters that are learned; `datamodules.gems.GemsData` is one."""

    def cluster_table(self) -> Tensor:
        """The rows of `models.gems.hosts.TABLE`, (rows, clusters)."""


@runtime_checkable
class AsksForAMock(Protocol):
    """A request of `mock_catalogue`; `datamodules.gems.MockRequest` is one."""

    n: int
    seed: int
    clusters: Clusters
    potential: str
    duration: float
    positions: bool


class Gems(Component):
    """Probability of every globular cluster, and of the field, to be where a star comes from.

    After arXiv:2310.09331. Stars that encounters throw out of a cluster's core have nearly its
    actions J = (J_R, L_z, J_z). A network learns the density p(J | cluster) of simulated ejections
    as a Gaussian mixture, from the first moments of what the cluster sprays, so that it answers for
    clusters that it was not trained on; another mixture is the field's. In a Galaxy in which phases
    are mixed the density of positions and velocities is p(J) / (2 pi)^3, which is averaged over the
    errors of a star's measurements.

    In: the batch of `datamodules.gems`. Out: see `outputs`.

    Args:
        clusters: names, decided by the data.
        potential: in which actions are computed, decided by the data.
        duration: Gyr, over which clusters have ejected stars, decided by the data.
        components: of the mixture of each cluster.
        field_components: of the mixture of the field.
        width: neurons of the network's two hidden layers.
        lr: peak learning rate.
        weight_decay: of the matrices.
        epochs: passes over the simulated stars.
        prior: of clusters, "flat"; by "mass"; or by "rate" of encounters in their cores.
        field_prior: probability, before its actions are known, that a star is of the field.
        draws: of a star's position and velocity within its errors.
        new_clusters: a table of clusters (ECSV) that were not trained on, as further hosts.
    """

    prediction_settings: ClassVar = frozenset(("prior", "field_prior", "draws", "new_clusters"))

    description_mean: Tensor
    description_std: Tensor
    moment_mean: Tensor
    moment_scale: Tensor
    table: Tensor
    mixture_coefficients: Tensor
    mixture_log_weight: Tensor
    mixture_mean: Tensor
    mixture_covariance: Tensor
    field_coefficients: Tensor
    log_density_sorted: Tensor

    def __init__(
        self,
        clusters: list[str],
        potential: str = "mwpotential2014",
        duration: float = 5.0,
        components: int = 12,
        field_components: int = 64,
        width: int = 128,
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        epochs: int = 20,
        prior: str = "flat",
        field_prior: float = 0.91,
        draws: int = 24,
        new_clusters: str | None = None,
    ) -> None:
        super().__init__(
            Fit(
                epochs=epochs,
                lr=lr,
                weight_decay=weight_decay,
                high_lr=frozenset(("network.common", "field.parameters_")),
                result="last",
            )
        )
        if prior not in PRIORS:
            raise ValueError(f"model.prior={prior}; it is one of {', '.join(PRIORS)}")
        if not 0 <= field_prior < 1:
            raise ValueError(f"model.field_prior={field_prior}; expected a probability below 1")
        self.new_clusters = read_clusters(new_clusters) if new_clusters else None
        if self.new_clusters and (again := set(self.new_clusters.names) & set(clusters)):
            raise ValueError(
                f"model.new_clusters={new_clusters}: {', '.join(sorted(again))} was trained on, "
                f"and would be a host twice; give new ones another name"
            )
        self._new_hosts: Hosts | None = None  # made when they are needed, from the weights
        self.names = [*clusters, *(self.new_clusters.names if self.new_clusters else ())]
        self.clusters, self.potential, self.duration = list(clusters), potential, duration
        self.prior, self.field_prior, self.draws = prior, field_prior, draws
        self.network = MixtureNetwork(components, width)
        self.field = FieldMixture(field_components)
        n, double = len(self.clusters), torch.float64
        # moments of coordinates of what clusters spray, and of the field in the last row
        self.register_buffer("moment_mean", torch.zeros(n + 1, 3, dtype=double))
        self.register_buffer("moment_scale", torch.eye(3, dtype=double).repeat(n + 1, 1, 1))
        self.register_buffer("description_mean", torch.zeros(N_MOMENTS))
        self.register_buffer("description_std", torch.ones(N_MOMENTS))
        self.register_buffer("table", torch.ones(len(TABLE), n, dtype=double))
        # of the monomials of coordinates in ln(weight x density) of each Gaussian
        size = n, components, N_MONOMIALS
        self.register_buffer("mixture_coefficients", torch.zeros(size, dtype=double))
        self.register_buffer("mixture_log_weight", torch.zeros(size[:2], dtype=double))
        self.register_buffer("mixture_mean", torch.zeros(*size[:2], 3, dtype=double))
        unit = torch.eye(3, dtype=double).repeat(*size[:2], 1, 1)
        self.register_buffer("mixture_covariance", unit)
        size = 1, field_components, N_MONOMIALS
        self.register_buffer("field_coefficients", torch.zeros(size, dtype=double))
        # of validation stars, weighed by the prior, quantiles of ln p(coordinates)
        self.register_buffer("log_density_sorted", torch.zeros(1001, dtype=double))

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Data) -> None:
        """Moments of what each cluster sprays, and the table of clusters."""
        batch = data.training_batch()
        y, n = coordinates(batch["J"]), len(self.clusters)
        clusters = moments(y, batch["host"], n)
        field = moments(y, (batch["host"] != n).long(), 1)
        self.moment_mean.copy_(torch.cat([clusters.mean, field.mean]))
        self.moment_scale.copy_(torch.cat([clusters.scale, field.scale]))
        description = clusters.description()
        self.description_mean.copy_(description.mean(0))
        self.description_std.copy_(description.std(0, correction=0).clamp_min(1e-3))
        if not isinstance(data, HasClusters):
            raise TypeError(f"{type(data).__name__} knows no clusters")
        self.table.copy_(data.cluster_table())

    def cluster_moments(self) -> Moments:
        return Moments(self.moment_mean[:-1], self.moment_scale[:-1])

    def mixtures(self, of: Moments) -> Mixture:
        """Of clusters in scaled coordinates, (clusters, components, ...)."""
        description = of.description().to(self.description_mean)
        return self.network((description - self.description_mean) / self.description_std)

    def loss(self, batch: Batch) -> Tensor:
        """-ln p of stars' coordinates, whitened by their host's moments; mean over the batch."""
        host = batch["host"]
        y = coordinates(batch["J"]).double() - self.moment_mean[host]
        scale = self.moment_scale[host]
        z = torch.linalg.solve_triangular(scale, y[..., None], upper=False)[..., 0].float()
        field = host == len(self.clusters)
        log_p = torch.zeros_like(z[:, 0])
        mixtures = self.mixtures(self.cluster_moments())
        log_p = log_p.index_put((~field,), mixtures.log_p(z[~field], host[~field]))
        log_p = log_p.index_put((field,), self.field().log_p(z[field], host[field] * 0))
        return -log_p.mean()

    @torch.no_grad()
    def calibrate(self, data: Data) -> None:
        """Tabulate the mixtures, and how dense action space is at the validation stars."""
        field = Moments(self.moment_mean[-1:], self.moment_scale[-1:])
        of_clusters = _in_coordinates(self.mixtures(self.cluster_moments()), self.cluster_moments())
        self.mixture_coefficients.copy_(of_clusters.coefficients())
        self.mixture_log_weight.copy_(of_clusters.log_weight)
        self.mixture_mean.copy_(of_clusters.mean)
        self.mixture_covariance.copy_(of_clusters.covariance())
        self.field_coefficients.copy_(_in_coordinates(self.field(), field).coefficients())
        batch = data.validation_batch()
        y, host = coordinates(batch["J"]).double(), batch["host"]
        weight = (
            self.log_prior().exp()[host]
            / torch.bincount(host, minlength=len(self.clusters) + 1)[host]
        )
        log_p = torch.logsumexp(self.hosts_table().log_p(y) + self.log_prior(), 1)
        order = log_p.argsort()
        share = weight[order].cumsum(0) / weight.sum()
        levels = torch.linspace(0, 1, len(self.log_density_sorted)).to(share)
        index = torch.searchsorted(share, levels).clamp_max(len(order) - 1)
        self.log_density_sorted.copy_(log_p[order][index])

    # --- prediction ---------------------------------------------------------------------------

    def hosts_table(self) -> Hosts:
        """Clusters that were learned, those of ``new_clusters``, and the field."""
        learned = Hosts(
            self.cluster_moments(), self.mixture_coefficients, self.mixture_log_weight,
            self.mixture_mean, self.mixture_covariance, self.table, self.field_coefficients,
        )  # fmt: skip
        if self.new_clusters is None:
            return learned
        if self._new_hosts is None:
            self._new_hosts = self._sprayed(self.new_clusters)
        return learned.joined(self._new_hosts)

    @torch.no_grad()
    def _sprayed(self, clusters: Clusters) -> Hosts:
        """New clusters, by the network from the moments of what they spray."""
        J = sprayed_actions(
            N_SPRAYED, clusters, self.potential, self.duration, three_body_kicks, seed=0
        )
        host = torch.arange(len(clusters)).expand(J.shape[:2])
        bound = J.isfinite().all(-1)
        new = moments(coordinates(J[bound]), host[bound], len(clusters))
        mixture = _in_coordinates(self.mixtures(new), new)
        return Hosts(
            new, mixture.coefficients(), mixture.log_weight, mixture.mean, mixture.covariance(),
            cluster_table(clusters, three_body_kicks), self.field_coefficients,
        )  # fmt: skip

    def log_prior(self) -> Tensor:
        """ln of the prior of each host, the field the last, (clusters + 1,)."""
        return self.hosts_table().log_prior(self.prior, self.field_prior)

    @property
    def outputs(self) -> dict[str, Any]:
        return outputs(self.names)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        unknown = ~batch["radial_velocity"].isfinite() | ~batch["distance"].isfinite()
        unknown |= batch["distance_error"] > POOR_DISTANCE * batch["distance"]
        parts: list[tuple[Tensor, dict[str, Tensor]]] = []
        for mask, draws in ((~unknown, self.draws), (unknown, DRAWS_OF_UNKNOWN * self.draws)):
            for index in mask.nonzero()[:, 0].split(max(1, DRAWS_AT_ONCE // draws)):
                if len(index):
                    part = {name: values[index] for name, values in batch.items()}
                    parts.append((index, self._rows(part, draws)))
        order = torch.cat([index for index, _ in parts]).argsort()
        names = parts[0][1]
        return {name: torch.cat([rows[name] for _, rows in parts])[order] for name in names}

    def _rows(self, batch: Batch, n_draws: int) -> dict[str, Tensor]:
        """Predicted rows, with ``n_draws`` draws of each star."""
        draws = phase_space_draws(batch, n_draws)
        actions = staeckel_actions(
            draws.x, draws.v, milky_way(self.potential).axisymmetric, precision=FAST
        )
        y = coordinates(action_vector(actions))
        inside = actions.bound & y.isfinite().all(-1)
        y = torch.where(inside[..., None], y, 1.0)
        log_weight = torch.where(inside, draws.log_weight + log_jacobian(y), -torch.inf)
        hosts = self.hosts_table()
        log_p = hosts.log_likelihood(y, log_weight)
        recent = recent_ejections(batch["ra"], batch["dec"], draws, hosts, self.duration)
        log_p[:, :-1] = torch.logaddexp(log_p[:, :-1], recent.log_p)
        return self._summary(batch, log_p, log_weight, actions, recent)

    def _summary(
        self, batch: Batch, log_p: Tensor, log_weight: Tensor, actions: Actions, recent: Recent
    ) -> dict[str, Tensor]:
        """Rows from ln of the likelihood of each host, (batch, clusters + 1), and draws."""
        log_joint = log_p + self.log_prior()
        bound = actions.bound.any(1)
        p = torch.where(bound[:, None], log_joint.softmax(1), torch.nan)
        clusters = p[:, :-1]
        best, host = clusters.nan_to_num(-1.0).topk(min(N_LISTED, len(self.names)), dim=1)
        host = torch.where(bound[:, None], host, -1)
        best = torch.where(bound[:, None], best, torch.nan)
        rows: dict[str, Tensor] = {}
        for i in range(host.shape[1]):
            suffix = f"_{i + 1}" if i else ""
            rows[f"host{suffix}"], rows[f"p_host{suffix}"] = host[:, i], best[:, i]
        rows["p_field"] = p[:, -1]
        others = torch.where(bound, log_p[:, :-1].max(1).values - log_p[:, -1], torch.nan)
        rows["log_bayes"] = others
        likeliest = host[:, :1].clamp_min(0)
        share = (recent.log_p - log_p[:, :-1]).gather(1, likeliest)[:, 0].exp()
        rows["p_recent"] = torch.where(bound, share, torch.nan)
        time = recent.time.gather(1, likeliest)[:, 0]
        rows["t_recent"] = torch.where(bound & (share > 0.5), time, torch.nan)
        inside = actions.bound
        for name in ("J_R", "L_z", "J_z", "energy"):
            mean, std = _mean_and_std(getattr(actions, name), inside)
            rows[name], rows[f"{name}_error"] = mean, std
        density = log_joint.logsumexp(1) - log_weight.logsumexp(1)  # mean over the draws
        rank = torch.searchsorted(self.log_density_sorted, density) / len(self.log_density_sorted)
        rows["ood"] = torch.where(bound, 1 - rank.clamp(0, 1), torch.nan)
        rows["flags"] = self._flags(batch, actions.bound, rows["ood"])
        rows["p_clusters"] = clusters
        if "host" in batch:
            learned = len(self.clusters)  # in the data the field comes after these
            true = torch.where(batch["host"] == learned, len(self.names), batch["host"])
            rows["host_true"] = true
            p_true = p.gather(1, true.clamp_min(0)[:, None])[:, 0]
            rows["p_true"] = torch.where(true >= 0, p_true, torch.nan)
            above = (clusters > p_true[:, None]).sum(1)
            known = (true >= 0) & (true < len(self.names)) & bound
            rows["rank_true"] = torch.where(known, above + 1.0, torch.nan)
        return {
            name: values.float() if values.is_floating_point() else values.int()
            for name, values in rows.items()
        }

    def _flags(self, batch: Batch, bound: Tensor, ood: Tensor) -> Tensor:
        place = (batch[name] for name in ("ra", "dec", "distance", "distance_error"))
        near = self.hosts_table().within_reach(*place)
        relative = batch["distance_error"] / batch["distance"]
        masks = {
            "unbound": bound.double().mean(1) < 0.5,
            "no_radial_velocity": ~batch["radial_velocity"].isfinite(),
            "poor_distance": ~(relative <= POOR_DISTANCE),
            "in_cluster": near.any(1),
            "unusual": ood > 0.999,
        }
        flags = torch.zeros_like(bound[:, 0], dtype=torch.int16)
        for name, mask in masks.items():
            flags |= BIT[name] * mask.short()
        return flags

    def hosts(self, coords: "SkyCoord", **errors: Any) -> "Table":
        """Hosts of stars at ``coords``, with distances and velocities: a row each, see `outputs`.

        Errors are Quantities or numbers in kpc, mas/yr and km/s: ``distance_error``,
        ``pmra_error``, ``pmdec_error``, ``pmra_pmdec_corr``, ``radial_velocity_error``; 0 if not
        given. NaN velocities are unknown. For a catalogue call ``predict(table)``.
        """
        from astropy import units as u
        from astropy.coordinates import UnitSphericalCosLatDifferential, UnitSphericalDifferential
        from astropy.table import Table

        on_the_sky = UnitSphericalCosLatDifferential, UnitSphericalDifferential
        units = {
            "distance_error": u.kpc, "pmra_error": u.mas / u.yr, "pmdec_error": u.mas / u.yr,
            "pmra_pmdec_corr": u.one, "radial_velocity_error": u.km / u.s,
        }  # fmt: skip
        if unknown := errors.keys() - units.keys():
            raise ValueError(f"hosts(): no error {', '.join(unknown)}; there are {list(units)}")
        if not coords.data.differentials or coords.spherical.distance.unit == u.one:
            raise ValueError("hosts(): coords need distances and velocities, in any frame")
        stars = coords.icrs.reshape(-1) if coords.shape != () else coords.icrs.reshape(1)
        if np.isnan(stars.pm_ra_cosdec).any() and not coords.is_equivalent_frame(coords.icrs):
            raise ValueError(
                "hosts(): a velocity of these coords is NaN, with which astropy cannot convert "
                "their frame: give ICRS coords, in which a NaN radial velocity is unknown"
            )
        columns = {
            "ra": stars.ra, "dec": stars.dec, "distance": stars.distance.to(u.kpc),
            "pmra": stars.pm_ra_cosdec.to(u.mas / u.yr), "pmdec": stars.pm_dec.to(u.mas / u.yr),
            "radial_velocity": stars.radial_velocity.to(u.km / u.s),
        }  # fmt: skip
        # without a radial velocity astropy converts to other frames as if it were 0
        if isinstance(coords.data.differentials["s"], on_the_sky):
            if not coords.is_equivalent_frame(coords.icrs):
                raise ValueError("hosts(): coords without radial velocities need to be ICRS")
            columns["radial_velocity"] = np.full(len(stars), np.nan) * u.km / u.s
        for name, unit in units.items():
            values = u.Quantity(errors.get(name, 0.0), unit)
            if values.shape not in ((), (1,), coords.shape):
                raise ValueError(
                    f"hosts(): {name} has the shape {values.shape}; expected one number, or one "
                    f"for each star, {coords.shape}"
                )
            columns[name] = np.broadcast_to(values.reshape(-1), len(stars), subok=True)
        return self.predict(Table(columns), columns={name: name for name in columns})

    # --- mock catalogues ----------------------------------------------------------------------

    def generated(self, request: ObjectRequest) -> Iterator[dict[str, np.ndarray]]:
        """Stars thrown out of the request's clusters, by physics alone: no weights are used."""
        asked = _asks_for_a_mock(request)
        yield from mock_catalogue(
            asked.n, asked.clusters, asked.potential, asked.duration, asked.seed, asked.positions
        )

    def generated_columns(self, request: ObjectRequest) -> dict[str, Output | Constant]:
        asked = _asks_for_a_mock(request)
        return mock_outputs(asked.clusters.names, asked.positions)

    def domain_of_validity(self) -> list[str]:
        return [
            f"stars bound to the Galaxy, with a proper motion; hosts are the {len(self.clusters)} "
            f"clusters trained on, and those of model.new_clusters",
            f"actions in the potential {self.potential}; docs/gems.md says what is lost in others",
            "stars that encounters of three stars threw out of a cluster's core; tidal tails are "
            "slower and narrower",
            f"a prior of {self.field_prior} of the field, unless model.field_prior is set: of real "
            f"surveys it is larger",
            "a smooth field: streams, dwarf galaxies and dissolved clusters are not in it; their "
            "stars may be given a host",
            f"`flags`, {self.columns['flags'].text}",
        ]

    # --- evaluation ---------------------------------------------------------------------------

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        from orrery.models.gems.evaluation import evaluate

        return evaluate(self, rows, data)

    def exported(self) -> Exported:
        """Densities of actions in every host."""
        return exported(self)


def _in_coordinates(whitened: Mixture, by: Moments) -> Mixture:
    """Float64: precisions of narrow clusters times squares of coordinates lose digits."""
    return Mixture(*(values.double() for values in whitened)).unwhitened(by)


def _asks_for_a_mock(request: ObjectRequest) -> AsksForAMock:
    if not isinstance(request, AsksForAMock):
        raise ValueError("gems draws stars of clusters: data=gems_mock data.n_stars=1000")
    return request


def _mean_and_std(values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Over the draws that are ``inside``, (batch,); NaN where there are none."""
    count = inside.sum(1)
    values = torch.where(inside, values, 0.0)
    mean = values.sum(1) / count
    square = torch.where(inside, (values - mean[:, None]).square(), 0.0).sum(1) / count
    return mean, square.sqrt()
