"""What a person should be told of a cluster's posterior, a sentence each."""

from collections.abc import Mapping

from torch import Tensor
from torch.special import ndtr

from orrery.models.gc_emulator.posterior import LOG_MASS, LOG_RH

EDGE, CROWDED = 0.02, 0.2  # outer share of a prior, and how many draws are too many in it
PULLED = 3.0  # errors that mass and radius may be off their priors
UNMEASURED = 0.8  # width of a posterior over that of the prior
RHAT = 1.01  # beyond which chains do not agree


def warnings_of(u: Tensor, facts: Mapping[str, float], distance: int | None) -> list[str]:
    """``u`` (sets, chains, draws, n): the sampled globals, of which `PARAMETERS` are the first.

    ``distance``: which of them is that of a normal prior; None: it has no such prior.
    """
    found = _crowded(u) + _pulled(u) + _unmeasured(u) + _sampled(facts)
    return found if distance is None else found + _moved(u[..., distance])


def _crowded(u: Tensor) -> list[str]:
    """W0 and g, whose priors are uniform, at an end of them."""
    found = []
    for i, name in enumerate(("W0", "g")):
        share = ndtr(u[..., i])
        for end, near in (("lower", share < EDGE), ("upper", share > 1 - EDGE)):
            if float(near.double().mean()) > CROWDED:
                found.append(
                    f"the posterior of {name} is squeezed against the {end} end of the domain: "
                    f"{float(near.double().mean()):.0%} of the draws lie in its last {EDGE:.0%}"
                )
    return found


def _pulled(u: Tensor) -> list[str]:
    """Mass and radius far off their priors: no cluster that we know is like that."""
    found = []
    for i, name, (mean, width), cause in (
        (2, "log10_mass", LOG_MASS, "stars that are not bound, or velocities in another unit"),
        (3, "log10_rh", LOG_RH, "stars that are not members, or positions in another unit"),
    ):
        pull = float(u[..., i].mean())
        if abs(pull) > PULLED:
            found.append(
                f"{name} is {abs(pull):.1f} errors {'below' if pull < 0 else 'above'} its prior of "
                f"{mean:g} ± {width:g}: {cause}, would do that"
            )
    return found


def _moved(u: Tensor) -> list[str]:
    """A distance far off its prior."""
    pull = float(u.mean())
    if abs(pull) < PULLED:
        return []
    return [
        f"the distance is {abs(pull):.1f} errors {'below' if pull < 0 else 'above'} its prior: too "
        f"small a data.distance_error, or parallaxes with an offset in common, would do that"
    ]


def _unmeasured(u: Tensor) -> list[str]:
    """A mass that is as its prior has it."""
    if float(u[..., 2].std()) < UNMEASURED:
        return []
    return [
        f"these data say next to nothing of the mass: log10_mass is that of its prior, "
        f"{LOG_MASS[0]:g} ± {LOG_MASS[1]:g}; velocities would tell"
    ]


def _sampled(facts: Mapping[str, float]) -> list[str]:
    found = []
    if facts["rhat_max"] > RHAT:
        found.append(
            f"the chains do not agree, R-hat is {facts['rhat_max']:.3f}: more draws, "
            f"model.warmup=<n> model.draws=<n>"
        )
    if facts["divergences"] > 0:
        found.append(
            f"{facts['divergences']:.0f} trajectories diverged: a part of the posterior may be "
            f"missed; model.warmup=<n> makes steps that fit better"
        )
    return found
