"""The likelihood of correlated coefficients, against torch's own normal."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from orrery.models.scatter_vae.likelihood import covariant_nll, lowrank_nll, whitener
from orrery.physics.gaia_xp.correlations import check_positive_definite, low_rank, unpack


@pytest.fixture(autouse=True)
def one_thread():
    """MKL divides small matrices among threads, which slows torch's own linalg a hundredfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stars(batch: int, n: int, condition: float = 1e2) -> tuple[Tensor, Tensor, Tensor]:
    """r, t (batch, n) and R (batch, n, n), float64; r is drawn from N(0, K)."""
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(batch, n, n + 1, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(noise[:, :, :n]).Q
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    C = (Q * values) @ Q.mT
    root = C.diagonal(dim1=1, dim2=2).sqrt()
    R = C / root[:, :, None] / root[:, None, :]
    t = torch.rand(batch, n, generator=generator, dtype=torch.float64) / condition
    L = torch.linalg.cholesky(R + torch.diag_embed(t))
    return (L @ noise[:, :, n:])[..., 0], t, R


def pack(R: Tensor) -> Tensor:
    return torch.stack([R[:, i, j] for j in range(R.shape[1]) for i in range(j)], 1)


def normal_nll(r: Tensor, t: Tensor, R: Tensor) -> Tensor:
    return -MultivariateNormal(torch.zeros_like(r), R + torch.diag_embed(t)).log_prob(r)


def gradients(nll: Tensor, *by: Tensor) -> tuple[Tensor, ...]:
    weight = torch.linspace(1, 2, len(nll), dtype=nll.dtype)
    return torch.autograd.grad(nll @ weight, by)


def test_the_triangle_is_read_column_by_column():
    found = unpack(torch.tensor([[1, 2, 3, 4, 5, 6]]).half() / 8, 4) * 8
    assert found[0].tolist() == [[8, 1, 2, 4], [1, 8, 3, 5], [2, 3, 8, 6], [4, 5, 6, 8]]
    assert found.dtype == torch.float32
    with pytest.raises(ValueError, match=r"4 coefficients should be \(batch, 6\).*\(1, 5\)"):
        unpack(torch.zeros(1, 5), 4)


@pytest.mark.parametrize("n", [2, 51, 55])
def test_the_value_and_its_gradient_are_those_of_the_normal(n):
    r, t, R = stars(70, n)
    r.requires_grad_(), t.requires_grad_()
    nll, expected = covariant_nll(r, t, pack(R)), normal_nll(r, t, R)
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(gradients(nll, r, t), gradients(expected, r, t))
    inverse, log_det = whitener(t, pack(R))
    y = (inverse @ r[..., None])[..., 0]
    torch.testing.assert_close(log_det, torch.logdet(R + torch.diag_embed(t)))
    torch.testing.assert_close(y.square().sum(1), 2 * expected - log_det - n * 1.8378770664093453)


def test_the_gradient_is_that_of_finite_differences():
    r, t, R = stars(3, 4)
    packed = pack(R)
    inputs = (r.requires_grad_(), t.requires_grad_())
    assert torch.autograd.gradcheck(lambda r, t: covariant_nll(r, t, packed), inputs)


@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_float32_suffices_at_a_condition_number_of_1e4(precision):
    r, t, R = stars(64, 55, 1e4)
    packed = pack(R).float()
    r, t = r.float().requires_grad_(), t.float().requires_grad_()
    exact = covariant_nll(r.double(), t.double(), packed.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        nll = covariant_nll(r, t, packed)
    assert nll.dtype == torch.float32
    assert (nll - exact).abs().max() < 1e-4 * exact.abs().mean()
    for one, other in zip(gradients(nll, r, t), gradients(exact, r, t), strict=True):
        assert ((one - other).norm(dim=1) / other.norm(dim=1)).max() < 1e-3


def test_threads_do_not_change_a_bit():
    r, t, R = stars(200, 55)
    r, t, packed = r.float().requires_grad_(), t.float().requires_grad_(), pack(R).half()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        nll = covariant_nll(r, t, packed)
        found.append((nll, *gradients(nll, r, t), *whitener(t, packed), low_rank(packed, 55, 3)))
        assert torch.get_num_threads() == threads
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True)
    )


def test_a_matrix_that_is_not_positive_definite_is_named():
    r, t, R = (x.float() for x in stars(100, 5))
    packed = pack(R)
    check_positive_definite(packed, 5)
    packed[7], packed[93, 0] = -0.9, torch.nan
    with pytest.raises(ValueError, match=r"2 stars is not positive definite: rows 7, 93;"):
        check_positive_definite(packed, 5)
    with pytest.raises(ValueError, match="rows 7, 93;"):
        whitener(t, packed)
    r.requires_grad_()
    nll = covariant_nll(r, t, packed)
    (by_r,) = torch.autograd.grad(nll.sum(), r)
    assert nll.isnan().nonzero()[:, 0].tolist() == [7, 93]
    assert by_r.isnan().all(1).nonzero()[:, 0].tolist() == [7, 93]
    # intrinsic scatter can mend it
    assert covariant_nll(r, t + 10, packed).isnan().nonzero()[:, 0].tolist() == [93]


@pytest.mark.parametrize("k", [0, 1, 4])
def test_low_rank_is_exact_for_matrices_of_that_form(k):
    r, t, _ = stars(70, 20)
    U = torch.randn(70, 20, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U = 0.8 * torch.nn.functional.normalize(U, dim=2)
    R = U @ U.mT
    R.diagonal(dim1=1, dim2=2).fill_(1)
    r.requires_grad_(), t.requires_grad_()
    nll, expected = lowrank_nll(r, t, U), normal_nll(r, t, R)
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(gradients(nll, r, t), gradients(expected, r, t))
    found = low_rank(pack(R), 20, k)
    assert (found @ found.mT - U @ U.mT).norm() <= 0.02 * (U @ U.mT).norm()


def test_no_rank_is_no_correlation():
    r, t, R = stars(5, 12)
    expected = -Normal(0, (1 + t).sqrt()).log_prob(r).sum(1)
    torch.testing.assert_close(lowrank_nll(r, t, low_rank(pack(R), 12, 0)), expected)


def test_a_factor_leaves_something_to_the_diagonal_and_comes_closer_with_rank():
    R = stars(70, 20, 1e4)[2]
    missed = []
    for k in (0, 5, 10, 19, 20):
        U = low_rank(pack(R), 20, k)
        assert U.shape == (70, 20, k)
        assert (U.square().sum(2) < 1).all()
        outside = (U @ U.mT - R) * (1 - torch.eye(20))
        missed.append(float(outside.norm()))
    assert missed == sorted(missed, reverse=True)
