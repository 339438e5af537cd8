"""The Gaussian-process prior of the dust map against its kernel, and the sphere that it is on."""

import numpy as np
import pytest
import torch

from orrery.physics.gaussian_process import healpix
from orrery.physics.gaussian_process.icr import ICR, PLAIN, WIDE, Grid, grids, matern, memory
from orrery.physics.gaussian_process.kernel import clumpy

D = torch.float64
SCALE = 100.0  # pc


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def prior(nside=8, shells=12, stencil=WIDE, base=4, kernel=None, nearest=69, farthest=182):
    levels = grids(nside, shells, nearest, farthest, base)
    return ICR(levels, kernel or matern(SCALE), stencil).to(dtype=D)


def implied(icr, voxels):
    """Rows of A A^T, (rows, voxels)."""
    unit = torch.zeros(len(voxels), icr.shape[0] * icr.shape[1], dtype=D)
    unit[torch.arange(len(voxels)), voxels] = 1
    return icr.apply(icr.adjoint(unit.view(-1, *icr.shape))).flatten(1)


def exact(icr, voxels, kernel):
    position = icr.grid.positions.flatten(0, 1)
    return kernel(torch.cdist(position[voxels], position))


def some_voxels(icr, count=96):
    every = icr.shape[0] * icr.shape[1]
    return torch.randperm(every, generator=torch.Generator().manual_seed(1))[:count]


@pytest.mark.parametrize("nside", [1, 2, 4, 16])
def test_centres_lie_in_their_pixels(nside):
    every = torch.arange(healpix.count(nside))
    assert healpix.pixel(nside, 5 * healpix.centres(nside)).equal(every)


@pytest.mark.parametrize("nside", [2, 4, 16])
def test_children_lie_around_their_parent(nside):
    children = healpix.centres(2 * nside).view(-1, 4, 3)
    assert healpix.pixel(nside, children.sum(1)).equal(torch.arange(healpix.count(nside)))


@pytest.mark.parametrize("nside", [2, 4, 16])
def test_neighbours_are_mutual(nside):
    near = healpix.neighbours(nside, torch.arange(healpix.count(nside)))
    pairs = {(a, b) for a, row in enumerate(near.tolist()) for b in row if b >= 0}
    assert pairs == {(b, a) for a, b in pairs}
    assert int((near < 0).sum()) == 24, "three faces meet at 8 corners: a neighbour less for 3 each"


@pytest.mark.parametrize("size", [9, 13])
def test_a_neighbourhood_holds_the_neighbours_and_no_pixel_twice(size):
    every = torch.arange(healpix.count(8))
    around = healpix.neighbourhood(8, every, size)
    for pixel, row, near in zip(
        every.tolist(), around.tolist(), healpix.neighbours(8, every).tolist(), strict=True
    ):
        assert row[0] == pixel
        assert len(set(row)) == size
        assert set(near) - {-1} <= set(row)
    unit = healpix.centres(8)
    angle = torch.acos((unit[around] @ unit[every, :, None])[..., 0].clamp(max=1))
    assert float(angle.max()) < np.radians(2.5 * 7.33), "all within two and a half pixels"


def test_rotations_keep_all_angles_and_move_every_pixel():
    turns, unit = healpix.rotations(4), healpix.centres(4)
    for turn in turns:
        turned = unit[turn]
        torch.testing.assert_close(turned @ turned.T, unit @ unit.T, rtol=0, atol=1e-12)
    assert not bool((turns[1:] == turns[0]).any())


@pytest.mark.parametrize("nside", [2, 4, 16])
def test_neighbours_differ_in_colour_but_about_the_poles_and_corners(nside):
    colour, every = healpix.colours(nside), torch.arange(healpix.count(nside))
    for turn in healpix.rotations(nside):
        assert colour[turn].equal(colour)
    near = healpix.neighbours(nside, every)
    same = (near >= 0) & (colour[near] == colour[:, None])
    # the four pixels at a pole map to one another
    assert int(same[:, ::2].sum()) == 16
    assert int(same[:, 1::2].sum()) <= 56


def test_shells_are_of_equal_steps_and_hold_their_centres():
    grid = grids(8, 36, 69.0, 1250.0)[-1]
    assert float(grid.boundaries[0]) == pytest.approx(69)
    assert float(grid.boundaries[-1]) == pytest.approx(1250)
    assert float(grid.widths.sum()) == pytest.approx(1250 - 69)
    middle = (grid.boundaries[1:] * grid.boundaries[:-1]).sqrt()
    torch.testing.assert_close(grid.centres, middle)
    distance = torch.tensor([60.0, 69.01, 1249.9, 1300.0])
    _, shell = grid.voxel(torch.ones(4, 3), distance)
    assert shell.tolist() == [-1, 0, 35, 36]


def test_a_place_is_found_in_its_voxel():
    grid = Grid(4, 6, 4.0, 0.2)
    pixel, shell = grid.voxel(grid.positions, grid.positions.norm(dim=-1))
    assert pixel.equal(torch.arange(192)[:, None].expand(192, 6))
    assert shell.equal(torch.arange(6).expand(192, 6))


def test_fine_shells_lie_between_coarse_ones():
    coarse, fine = grids(8, 36, 69.0, 1250.0)
    assert (coarse.nside, coarse.shells) == (4, 36 // 2 + 2)
    inner = coarse.boundaries[1:-1]
    torch.testing.assert_close(inner, fine.boundaries[::2])


def test_numbers_of_shells_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match="take 36"):
        grids(16, 35, 69.0, 1250.0)
    with pytest.raises(ValueError, match="power of two"):
        grids(12, 36, 69.0, 1250.0)
    with pytest.raises(ValueError, match=r"0\.5, 1\.5 and 2\.5"):
        matern(SCALE, 1.0)


@pytest.mark.parametrize("stencil", [PLAIN, WIDE])
@pytest.mark.parametrize("samples", [1, 3])
def test_adjoint_is_the_transpose(stencil, samples):
    icr = prior(stencil=stencil, base=2)
    xi, g = normal(samples, icr.n_excitations), normal(samples, *icr.shape, seed=1)
    forth, back = icr.apply(xi), icr.adjoint(g)
    assert forth.shape == g.shape
    assert back.shape == xi.shape
    for i in range(samples):
        assert float((forth[i] * g[i]).sum()) == pytest.approx(float((xi[i] * back[i]).sum()))


@pytest.mark.parametrize("nside, shells", [(8, 12), (16, 20)])
def test_nothing_is_read_before_it_is_written(nside, shells):
    """Neighbours that are missing weigh nothing, and 0 times what memory holds may be nan."""
    for level in prior(nside, shells).levels:
        for turn in level.turns:
            assert int(turn.inputs.max()) < turn.start


def test_samples_do_not_depend_on_their_company():
    icr = prior()
    xi = normal(3, icr.n_excitations)
    together = icr.apply(xi)
    for one, alone in zip(together, xi, strict=True):
        torch.testing.assert_close(icr.apply(alone[None])[0], one)
    back = icr.adjoint(together)
    torch.testing.assert_close(icr.adjoint(together[:1])[0], back[0])


def test_gradients_are_the_adjoint():
    icr = prior(nside=4, shells=8, base=2)
    xi = normal(1, icr.n_excitations).requires_grad_()
    g = normal(1, *icr.shape, seed=1)
    (grad,) = torch.autograd.grad(icr.apply(xi), xi, g)
    torch.testing.assert_close(grad, icr.adjoint(g))
    field = g.clone().requires_grad_()
    (grad,) = torch.autograd.grad(icr.adjoint(field), field, xi.detach())
    torch.testing.assert_close(grad, icr.apply(xi.detach()))


def test_clumps_are_a_share_of_the_variance_at_half_the_scale():
    distance, kernel = torch.linspace(0, 300, 7, dtype=D), clumpy(SCALE, 1.5, 0.25)
    known = 0.75 * matern(SCALE)(distance) + 0.25 * matern(SCALE / 2)(distance)
    torch.testing.assert_close(kernel(distance), known)
    with pytest.raises(ValueError, match="a share of the variance"):
        clumpy(SCALE, 1.5, 1.0)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_the_base_has_the_exact_covariance(nu):
    kernel = matern(SCALE, nu)
    icr = prior(nside=4, shells=8, base=4, kernel=kernel)
    voxels = some_voxels(icr)
    torch.testing.assert_close(implied(icr, voxels), exact(icr, voxels, kernel), rtol=0, atol=2e-6)


def relative(found, known):
    return float((found - known).norm() / known.norm())


@pytest.mark.parametrize("stencil, error, local", [(WIDE, 0.01, 0.006), (PLAIN, 0.025, 0.05)])
def test_implied_covariance_is_the_kernel(stencil, error, local):
    """Of the reference sky, 27,648 voxels from 69 to 1250 pc."""
    icr = prior(shells=36, farthest=1250, stencil=stencil)
    voxels = some_voxels(icr, 192)
    found, known = implied(icr, voxels), exact(icr, voxels, matern(SCALE))
    assert relative(found, known) < error
    near = (known > matern(SCALE)(torch.tensor(100.0))) & (known < 0.999999)
    off = ((found - known).abs() * near).sum(1) / near.sum(1)
    assert float(off[near.any(1)].mean()) < local


def test_variance_is_one():
    """To the jitter with the plain stencil above an exact base; to 4% with turns, 1% on average."""
    for stencil, tolerance in ((PLAIN, 3e-6), (WIDE, 0.04)):
        icr = prior(shells=36, farthest=1250, stencil=stencil)
        voxels = some_voxels(icr)
        variance = implied(icr, voxels)[torch.arange(len(voxels)), voxels]
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=tolerance)
        assert float(variance.mean()) == pytest.approx(1, abs=0.01)


def test_a_block_has_the_exact_covariance_given_the_grid_around():
    """The eight voxels of a block among themselves, from an exact base."""
    icr = prior(shells=36, farthest=1250, stencil=PLAIN)
    block = (torch.tensor([100, 101, 102, 103])[:, None] * 36 + torch.tensor([20, 21])).flatten()
    found, known = implied(icr, block), exact(icr, block, matern(SCALE))
    torch.testing.assert_close(found[:, block], known[:, block], rtol=0, atol=5e-6)


def test_the_sky_looks_the_same_after_a_quarter_turn():
    icr = prior()
    turn = healpix.rotations(8)[1]
    found = implied(icr, torch.tensor([5, int(turn[0]) * 12 + 5]))
    here, there = found.view(2, *icr.shape)
    torch.testing.assert_close(there[turn], here)


def test_draws_have_the_variance_of_the_kernel_in_float32():
    icr = ICR(grids(8, 12, 69, 182), matern(20.0))
    xi = torch.randn(64, icr.n_excitations, generator=torch.Generator().manual_seed(0))
    field = icr.apply(xi)
    assert field.dtype == torch.float32
    assert field.shape == (64, 768, 12)
    assert float(field.square().mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("stencil", [PLAIN, WIDE])
def test_memory_is_known_before(stencil):
    levels = grids(16, 20, 69.0, 300.0)
    icr = ICR(levels, matern(SCALE), stencil)
    held = [icr.base, icr.places, icr.order]
    for level in icr.levels:
        held += [tensor for turn in level.turns for tensor in turn[:3]]
    assert memory(levels, stencil) == sum(tensor.nbytes for tensor in held)
