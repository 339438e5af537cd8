"""Warnings about a cluster's posterior, a sentence each; the mock that an evaluation infers."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.special import ndtr

from orrery.models.gc_emulator.inference import ClusterData
from orrery.models.gc_emulator.posterior import LOG_MASS, LOG_RH

PRIOR_END = 0.02  # fraction of a uniform prior that counts as its end
MAX_FRACTION_AT_END = 0.2  # of the draws
MAX_PRIOR_PULL_SIGMA = 3.0  # of mass, radius and distance from the means of their priors
MIN_UNCONSTRAINED_WIDTH = 0.8  # standard deviation of a posterior over that of its prior
MAX_RHAT = 1.01


@runtime_checkable
class HasMockCluster(Protocol):
    """Data of an emulator's training, which offer a cluster of known parameters to infer."""

    def mock_cluster(self) -> ClusterData | None:
        """None if no inference is asked for."""


def posterior_warnings(
    u: Tensor, metrics: Mapping[str, float], distance_index: int | None
) -> list[str]:
    """``u`` (sets, chains, draws, n): the sampled globals, of which `PARAMETERS` are the first.

    ``distance_index``: of a distance with a normal prior among them; None: there is none.
    """
    warnings = _at_prior_end(u) + _prior_pull(u) + _unconstrained_mass(u) + _sampling(metrics)
    return warnings if distance_index is None else warnings + _distance_pull(u[..., distance_index])


def _at_prior_end(u: Tensor) -> list[str]:
    """W0 and g, whose priors are uniform, at an end of them."""
    warnings = []
    for i, name in enumerate(("W0", "g")):
        quantile = ndtr(u[..., i])  # of the prior
        for end, at_end in (("lower", quantile < PRIOR_END), ("upper", quantile > 1 - PRIOR_END)):
            fraction = float(at_end.double().mean())
            if fraction > MAX_FRACTION_AT_END:
                warnings.append(
                    f"the posterior of {name} lies at the {end} end of the domain: {fraction:.0%} "
                    f"of the draws are in its last {PRIOR_END:.0%}"
                )
    return warnings


def _prior_pull(u: Tensor) -> list[str]:
    """Mass and radius far from the means of their priors, unlike any known cluster."""
    warnings = []
    for i, name, (mean, width), cause in (
        (2, "log10_mass", LOG_MASS, "stars that are not bound, or velocities in another unit"),
        (3, "log10_rh", LOG_RH, "stars that are not members, or positions in another unit"),
    ):
        pull = float(u[..., i].mean())
        if abs(pull) > MAX_PRIOR_PULL_SIGMA:
            warnings.append(
                f"{name} is {abs(pull):.1f} sigma {_side(pull)} its prior of {mean:g} ± {width:g}; "
                f"possible causes: {cause}"
            )
    return warnings


def _distance_pull(u: Tensor) -> list[str]:
    """A distance far from the mean of its prior."""
    pull = float(u.mean())
    if abs(pull) < MAX_PRIOR_PULL_SIGMA:
        return []
    return [
        f"the distance is {abs(pull):.1f} sigma {_side(pull)} its prior; possible causes: too "
        f"small a data.distance_error, or a common offset of the parallaxes"
    ]


def _unconstrained_mass(u: Tensor) -> list[str]:
    """A mass whose posterior is its prior."""
    if float(u[..., 2].std()) < MIN_UNCONSTRAINED_WIDTH:
        return []
    return [
        f"the mass is not constrained: log10_mass repeats its prior, {LOG_MASS[0]:g} ± "
        f"{LOG_MASS[1]:g}; add velocities"
    ]


def _sampling(metrics: Mapping[str, float]) -> list[str]:
    """Chains that disagree or diverge."""
    warnings = []
    if metrics["rhat_max"] > MAX_RHAT:
        warnings.append(
            f"the chains have not converged, R-hat is {metrics['rhat_max']:.3f}: run longer, "
            f"model.warmup=<n> model.draws=<n>"
        )
    if metrics["divergences"] > 0:
        warnings.append(
            f"{metrics['divergences']:.0f} trajectories diverged: part of the posterior may be "
            f"missing; a longer model.warmup=<n> adapts the step size better"
        )
    return warnings


def outlier_warnings(membership: Tensor) -> list[str]:
    """Stars in phase space that are probably not bound; ``membership`` (n,): probabilities."""
    outliers = int((membership < 0.5).sum())
    if not outliers:
        return []
    return [
        f"{outliers} of {len(membership):,} stars are probably not bound to the cluster and hardly "
        f"count ('probability' of the group 'members' is below 0.5); to take all stars as members: "
        f"data.outliers=false"
    ]


def _side(pull: float) -> str:
    return "below" if pull < 0 else "above"
