"""gems compared with kernel densities and Gaussians per cluster, and with galpy.

    python -m benchmarks.gems toy           # known actions, 300 stars of each cluster: 5 minutes
    python -m benchmarks.gems ceiling       # kernel densities of up to 30,000 stars of each
    python -m benchmarks.gems hosts         # ejections with errors in ten times as many field stars
    python -m benchmarks.gems new           # fifths of the clusters left out of training
    python -m benchmarks.gems potentials    # the shipped model, tested in seven Galaxies
    python -m benchmarks.gems speed         # needs galpy >= 1.12.1

`toy` has orbits of clusters without errors. In it and in `hosts` peers are scipy's kernel density
per cluster (Scott's bandwidth, in coordinates y of `models.gems.density`, where it is best, and in
actions as they are) and one Gaussian each, on the same stars. In `hosts` they take the same draws
of every star's errors, prior and field. `ceiling` asks how well any method may do in `toy`: by the
kernels, which come to the true densities with enough stars, on a part of the same test stars.
`new`: the log loss of cluster against field of stars of
clusters that were left out, and of the same stars by the network that was trained on all. Writes
benchmarks/gems.csv.
"""

import argparse
import csv
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1")

import lightning as L
import numpy as np
import torch
from scipy.stats import gaussian_kde, multivariate_normal
from torch import Tensor

from orrery import load
from orrery.datamodules.gems import GemsData
from orrery.models.gems import Gems
from orrery.models.gems.density import Mixture, coordinates, log_jacobian
from orrery.models.gems.evaluation import LEAST_MOMENTUM, calibration_error, purity_at
from orrery.models.gems.observation import phase_space_draws
from orrery.physics.ejections import population
from orrery.physics.ejections.clusters import milky_way_clusters
from orrery.physics.milky_way.actions import FAST, staeckel_actions
from orrery.physics.milky_way.potentials import POTENTIALS, milky_way

Row = dict[str, object]
LogDensity = Callable[[Tensor], Tensor]  # of coordinates (n, 3), for each host: (n, hosts)
COLUMNS = (
    "test", "method", "case", "seed", "n", "top1", "top5", "log_loss", "ece",
    "field_purity_at_half", "field_log_loss", "value",
)  # fmt: skip
TOY_STARS, TOY_KICK = 300, {"median": 30.0, "sigma": 0.5}
KDE_STARS, KDE_FIELD = 300, 5_000
CEILING_STARS, CEILING_TEST, CEILING_HOSTS = (300, 3000, 30_000), 6000, 25
N_HOSTS, N_POTENTIALS, DRAWS = 4, 20, 16  # stars of each cluster, draws of each star
SPEED_DRAWS, SPEED_HOSTS = 160, 4096  # stars of each cluster, and stars, of the tests of speed
SMALLEST = -60.0  # of a log density, relative to the largest
FOLDS = 5
NEW_STARS, NEW_FIELD, NEW_EPOCHS = 500, 20_000, 10
BASE = "mwpotential2014"


# --- methods ------------------------------------------------------------------------------------


def trained(J: Tensor, host: Tensor, data: GemsData, **settings: Any) -> Gems:
    """gems, trained on actions (n, 3) of stars of ``host`` (n,)."""
    L.seed_everything(data.seed, verbose=False)
    order = torch.randperm(len(J))
    n_val = len(J) // 20
    for name, index in (("val", order[:n_val]), ("train", order[n_val:])):
        data.rows[name] = {"J": J[index], "host": host[index], "row": torch.arange(len(index))}
    names = {"clusters": list(data.clusters.names), "potential": data.potential}
    model = Gems(**{**names, **settings})
    model.prepare(data)
    trainer = L.Trainer(
        max_epochs=model.fit.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, train_dataloaders=data.train_dataloader())
    model.calibrate(data)
    return model.eval()


def by_gems(model: Gems) -> LogDensity:
    return lambda y: torch.cat([model.hosts_table().log_p(part) for part in y.split(4096)])


def by_kernels(y: Tensor, host: Tensor, n_hosts: int, sizes: list[int]) -> LogDensity:
    """scipy's kernel densities, of at most ``sizes`` stars of each host."""
    densities = [
        gaussian_kde(y[host == i][:size].T.numpy())
        for i, size in zip(range(n_hosts), sizes, strict=True)
    ]
    return lambda at: torch.stack(
        [torch.from_numpy(density.logpdf(at.T.numpy())) for density in densities], 1
    )


def by_gaussians(y: Tensor, host: Tensor, n_hosts: int) -> LogDensity:
    normals = [
        multivariate_normal(part.mean(0).numpy(), np.cov(part.T.numpy()))
        for part in (y[host == i] for i in range(n_hosts))
    ]
    return lambda at: torch.stack(
        [torch.from_numpy(normal.logpdf(at.numpy())) for normal in normals], 1
    )


# --- tests --------------------------------------------------------------------------------------


def scores(log_p: Tensor, host: Tensor) -> Row:
    """Of log probabilities (n, hosts), not normalised; a host's own are not below `SMALLEST`."""
    log_p = torch.maximum(log_p, log_p.max(1, True).values + SMALLEST)
    p = log_p.softmax(1)
    true = p.gather(1, host[:, None])
    rank = (p > true).sum(1)
    best = p.max(1).values.numpy()
    return {
        "n": len(host),
        "top1": float((rank == 0).double().mean()),
        "top5": float((rank < 5).double().mean()),
        "log_loss": float(-true.log().mean()),
        "ece": calibration_error(best, (rank == 0).numpy()),
    }


def toy_parts(data: GemsData, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Half of 600 stars of each cluster to learn from, half to test on."""
    J = population.sprayed_actions(
        2 * TOY_STARS, data.clusters, BASE, data.duration, data.kick, seed, errors=False
    )
    host = torch.arange(J.shape[1]).expand(TOY_STARS, -1)
    return [(part[part.isfinite().all(-1)], host[part.isfinite().all(-1)])
            for part in J.split(TOY_STARS)]  # fmt: skip


def toy(seed: int) -> Iterator[Row]:
    """gems and its peers on stars whose actions are known."""
    data = GemsData(kick=TOY_KICK, seed=seed, batch_size=4096)
    (train, train_host), (test, test_host) = toy_parts(data, seed)
    n = len(data.clusters)
    model = trained(*with_field(train, train_host, data), data, epochs=20)
    y, at = coordinates(train), coordinates(test)
    methods: dict[str, tuple[LogDensity, Tensor]] = {
        "gems": (lambda x: by_gems(model)(x)[:, :-1], at),
        "kernels": (by_kernels(y, train_host, n, [TOY_STARS] * n), at),
        "kernels, actions": (by_kernels(train, train_host, n, [TOY_STARS] * n), test),
        "Gaussians": (by_gaussians(y, train_host, n), at),
        "Gaussians, actions": (by_gaussians(train, train_host, n), test),
    }
    for name, (log_density, stars) in methods.items():
        yield {"test": "toy", "method": name, "seed": seed, **scores(log_density(stars), test_host)}


def ceiling(seed: int) -> Iterator[Row]:
    """Kernel densities (Scott's bandwidth, coordinates y) of ever more stars of each cluster.

    A test star is compared with the `CEILING_HOSTS` clusters likeliest by their Gaussians.
    """
    data = GemsData(kick=TOY_KICK, seed=seed)
    test, host = toy_parts(data, seed)[1]
    some = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[:CEILING_TEST]
    at, host = coordinates(test[some]), host[some]
    J = population.sprayed_actions(
        max(CEILING_STARS), data.clusters, BASE, data.duration, data.kick, seed + 1000, errors=False
    )
    for size in CEILING_STARS:
        y = [coordinates(part[part.isfinite().all(1)]) for part in J[:size].unbind(1)]
        learned_from = torch.arange(len(y)).repeat_interleave(torch.tensor([len(x) for x in y]))
        gaussians = by_gaussians(torch.cat(y), learned_from, len(y))(at)
        near = gaussians.topk(CEILING_HOSTS, 1).indices
        log_p = torch.full_like(gaussians, -torch.inf)
        for k, stars in enumerate(y):
            rows = (near == k).any(1).nonzero()[:, 0]
            log_p[rows, k] = kernel_density(stars, at[rows])
        row = {"test": "ceiling", "method": "kernels", "case": f"{size} stars", "seed": seed}
        yield row | scores(log_p, host)


def kernel_density(stars: Tensor, at: Tensor) -> Tensor:
    """ln of scipy's `gaussian_kde` of ``stars`` (n, 3) at (m, 3), (m,), in float32: faster."""
    bandwidth = len(stars) ** (-1 / 7)
    root = bandwidth * torch.linalg.cholesky(stars.T.cov())
    z, w = (torch.linalg.solve_triangular(root, (x - stars.mean(0)).T, upper=False).T.float()
            for x in (stars, at))  # fmt: skip
    constant = len(stars) * (2 * torch.pi) ** 1.5
    parts = [torch.cdist(part, z).square_().mul_(-0.5).logsumexp(1) for part in w.split(512)]
    log_p = torch.cat([*parts, at.new_zeros(0)])
    return log_p.double() - np.log(constant) - root.diagonal().log().sum()


def with_field(J: Tensor, host: Tensor, data: GemsData) -> tuple[Tensor, Tensor]:
    """The stars and as many of the field."""
    field = data.field_actions(len(J))
    field = field[field.isfinite().all(1)]
    return torch.cat([J, field]), torch.cat(
        [host, host.new_full((len(field),), len(data.clusters))]
    )


def hosts(seed: int) -> Iterator[Row]:
    """Physical ejections with errors of a survey at 10 kpc, in ten times as many field stars."""
    data = GemsData(seed=seed, n_test_per_cluster=N_HOSTS)
    data.setup("fit")
    rows = {k: torch.cat([data.rows[s][k] for s in ("train", "val")]) for k in ("J", "host")}
    n = len(data.clusters)
    model = load("gems")
    y = coordinates(rows["J"])
    peers = {
        "kernels": by_kernels(y, rows["host"], n + 1, [KDE_STARS] * n + [KDE_FIELD]),
        "Gaussians": by_gaussians(y, rows["host"], n + 1),
    }
    galaxy = milky_way(data.potential).axisymmetric
    collected: dict[str, list[Tensor]] = {name: [] for name in ("gems", *peers)}
    true = []
    for batch in data.prediction_batches():
        draws = phase_space_draws(batch, DRAWS)
        actions = staeckel_actions(draws.x, draws.v, galaxy, precision=FAST)
        at = coordinates(population.action_vector(actions))
        inside = actions.bound
        at = torch.where(inside[..., None], at, 1.0)
        weight = torch.where(inside, draws.log_weight + log_jacobian(at), -torch.inf)
        predicted = model.predict_step(batch)
        p = torch.cat([predicted["p_clusters"], predicted["p_field"][:, None]], 1)
        answered = inside.any(1) & p.isfinite().all(1)
        true.append(batch["host"][answered])
        collected["gems"].append(p[answered].double())
        for name, log_density in peers.items():
            log_p = log_density(at.flatten(0, 1)).unflatten(0, at.shape[:2]) + weight[..., None]
            log_p = log_p.logsumexp(1)[answered] + model.log_prior()
            log_p = torch.maximum(log_p, log_p.max(1, True).values + SMALLEST)
            collected[name].append(log_p.softmax(1))
    host = torch.cat(true)
    ejected = (host < n).numpy()
    for name, parts in collected.items():
        p = torch.cat(parts)
        p_ejected = (1 - p[:, -1]).numpy()
        correct = np.where(ejected, p_ejected, 1 - p_ejected).clip(1e-12)
        row = scores(p[ejected, :-1].clamp_min(1e-30).log(), host[ejected]) | {
            "field_purity_at_half": purity_at(p_ejected, ejected, 0.5),
            "field_log_loss": float(-np.log(correct).mean()),
            "n": len(host),
        }
        yield {"test": "hosts", "method": name, "seed": seed, **row}


def new(seed: int) -> Iterator[Row]:
    """Stars of clusters that were left out of training, each fifth in turn, against the field."""
    data = GemsData(seed=seed, n_per_cluster=NEW_STARS, n_field=NEW_FIELD)
    data.setup("fit")
    rows = {k: torch.cat([data.rows[s][k] for s in ("train", "val")]) for k in ("J", "host")}
    n = len(data.clusters)
    test = population.sprayed_actions(200, data.clusters, BASE, data.duration, data.kick, seed + 1)
    host = torch.arange(n).expand(test.shape[:2])
    bound = test.isfinite().all(-1)
    y, host = coordinates(test[bound]), host[bound]
    full = trained(rows["J"], rows["host"], data, epochs=NEW_EPOCHS)
    moments_of_all = full.cluster_moments()
    left_out = torch.zeros(len(y), dtype=torch.float64)
    with torch.no_grad():
        for fold in range(FOLDS):
            out = torch.arange(n) % FOLDS == fold
            kept = ~out[rows["host"].clamp_max(n - 1)] | (rows["host"] == n)
            number = torch.cat([(~out).cumsum(0) - 1, (~out).sum()[None]])
            names = [name for name, gone in zip(data.clusters.names, out, strict=True) if not gone]
            fewer = GemsData(seed=seed, clusters=names)
            model = trained(rows["J"][kept], number[rows["host"][kept]], fewer, epochs=NEW_EPOCHS)
            mine = out[host]
            mixture = model.mixtures(moments_of_all)
            mixture = Mixture(*(x.double() for x in mixture)).unwhitened(moments_of_all)
            log_p = mixture.log_p(y[mine], host[mine])
            left_out[mine] = _against_field(log_p, full.hosts_table().log_p(y[mine])[:, -1])
        known = full.hosts_table().log_p(y)
        trained_on = _against_field(known.gather(1, host[:, None])[:, 0], known[:, -1])
    for case, loss in (("left out", left_out), ("trained on", trained_on)):
        yield {
            "test": "new", "method": "gems", "case": case, "seed": seed, "n": len(loss),
            "field_log_loss": float(loss.mean()),
        }  # fmt: skip


def _against_field(log_p: Tensor, log_p_field: Tensor) -> Tensor:
    """-ln of the probability of the cluster, of even odds with the field."""
    return -torch.nn.functional.logsigmoid(log_p - log_p_field)


def potentials(seed: int) -> Iterator[Row]:
    """Stars sprayed in each Galaxy for a Gyr, by the shipped model, in the base's actions."""
    model = load("gems")
    clusters, galaxy = milky_way_clusters(), milky_way(BASE).axisymmetric
    for name in POTENTIALS:
        generator = torch.Generator().manual_seed(seed + 1)
        orbits = population.cluster_orbits(clusters, name, 1.0, generator)
        core = population.core_structure(clusters)
        kick = population.three_body_kicks
        stars = population.eject(N_POTENTIALS, orbits, core, kick, generator)
        x, v = population.to_today(stars, name)
        J = population.action_vector(staeckel_actions(x, v, galaxy))
        bound = J.isfinite().all(-1)
        host = torch.arange(J.shape[1]).expand(bound.shape)[bound]
        with torch.no_grad():
            log_p = by_gems(model)(coordinates(J[bound]))[:, :-1]
        row = {"test": "potentials", "method": "gems", "case": name, "seed": seed}
        yield row | scores(log_p, host)


def speed(seed: int) -> Iterator[Row]:
    """Microseconds per star's actions and Gyr of orbits per second, of gems and galpy; hosts."""
    from galpy.actionAngle import actionAngleStaeckel
    from galpy.orbit import Orbit
    from galpy.potential import MWPotential2014

    torch.set_num_threads(1)
    clusters = milky_way_clusters()
    generator = torch.Generator().manual_seed(seed)
    x, v = (
        part.flatten(0, 1) for part in population.cluster_draws(SPEED_DRAWS, clusters, generator)
    )
    galaxy = milky_way(BASE)
    usual = staeckel_actions(x, v, galaxy.axisymmetric).bound
    usual &= torch.linalg.vector_norm(torch.linalg.cross(x, v), dim=-1) > LEAST_MOMENTUM
    x, v = x[usual], v[usual]
    n = len(x)
    cylindrical = _cylindrical(x, v)
    staeckel = actionAngleStaeckel(pot=MWPotential2014, delta=0.45, c=True)
    cases: dict[tuple[str, str], tuple[Callable[[], Any], float]] = {
        ("actions_us", "gems"): (lambda: staeckel_actions(x, v, galaxy.axisymmetric), 1e6 / n),
        ("actions_us", "gems, of draws"): (
            lambda: staeckel_actions(x, v, galaxy.axisymmetric, precision=FAST), 1e6 / n,
        ),
        ("actions_us", "galpy, one focal length"): (lambda: staeckel(*cylindrical), 1e6 / n),
    }  # fmt: skip
    for (test, method), (call, factor) in cases.items():
        yield {"test": test, "method": method, "n": n, "value": factor * cpu_seconds(call)}
    span = 0.2  # Gyr
    seconds = cpu_seconds(lambda: population.integrate(x, v, galaxy, 0.0, -span), 2)
    yield {"test": "orbit_gyr_per_second", "method": "gems", "n": n, "value": span * n / seconds}
    orbits = Orbit(np.stack(cylindrical_with_angle(x, v), 1))
    orbits.turn_physical_off()
    times = np.linspace(0, -span * GYR, 3)
    seconds = cpu_seconds(
        lambda: orbits.integrate(
            times, MWPotential2014, method="dop853_c", progressbar=False, numcores=1
        ),
        2,
    )
    yield {
        "test": "orbit_gyr_per_second", "method": "galpy, dop853_c", "n": n,
        "value": span * n / seconds,
    }  # fmt: skip
    model = load("gems")
    batch = next(GemsData(seed=seed, n_test_per_cluster=N_HOSTS).prediction_batches())
    star = {name: values[:SPEED_HOSTS] for name, values in batch.items()}
    unknown = {**star, "radial_velocity": star["radial_velocity"] * torch.nan}
    for method, rows in (("gems", star), ("gems, no radial velocity", unknown)):
        seconds = cpu_seconds(functools.partial(model.predict_step, rows))
        n = len(rows["ra"])
        yield {"test": "hosts_per_second", "method": method, "n": n, "value": n / seconds}


GYR = 1 / (8.0 / 220.0 * 0.9777922216731284)  # in galpy's units


def _cylindrical(x: Tensor, v: Tensor) -> tuple[np.ndarray, ...]:
    """R, v_R, v_T, z, v_z in galpy's units of 8 kpc and 220 km/s, left-handed as galpy's."""
    R = x[:, :2].norm(dim=1)
    v_R = (x[:, :2] * v[:, :2]).sum(1) / R
    v_T = (x[:, 1] * v[:, 0] - x[:, 0] * v[:, 1]) / R
    return tuple(c.numpy() for c in (R / 8, v_R / 220, v_T / 220, x[:, 2] / 8, v[:, 2] / 220))


def cylindrical_with_angle(x: Tensor, v: Tensor) -> tuple[np.ndarray, ...]:
    return (*_cylindrical(x, v), np.zeros(len(x)))


def cpu_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The least of some runs, after one to warm up."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


# --- command line -------------------------------------------------------------------------------

TESTS = {
    "toy": toy, "ceiling": ceiling, "hosts": hosts, "new": new, "potentials": potentials,
    "speed": speed,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("test", choices=TESTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gems.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in TESTS[options.test](options.seed):
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
        print(shown, flush=True)
        rows.append(shown)
    write(rows, options.out)


def write(rows: Iterable[Row], path: Path) -> None:
    """Rows into the file, in the place of those of the same tests and seeds."""
    rows = list(rows)
    new_keys = {(row["test"], str(row.get("seed", ""))) for row in rows}
    kept: list[Row] = []
    if path.exists():
        with path.open() as file:
            kept = [r for r in csv.DictReader(file) if (r["test"], r["seed"]) not in new_keys]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


if __name__ == "__main__":
    main()
