"""What priors of a field share: a linear map from unit normal excitations, and its transpose."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class GaussianProcess(ABC):
    """s = A xi for xi ~ N(0, 1), whose covariance A A^T is about that of a kernel.

    A prior gives the products, both written by hand: autograd's transpose is several times slower.
    Each is the other's derivative.
    """

    shape: tuple[int, ...]  # of a field

    @property
    @abstractmethod
    def n_excitations(self) -> int: ...

    @abstractmethod
    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "GaussianProcess":
        """Moves it, in place."""

    @abstractmethod
    def _apply(self, xi: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, g: Tensor) -> Tensor: ...

    def apply(self, xi: Tensor) -> Tensor:
        """The field of excitations (samples, n_excitations): (samples, ``*shape``)."""
        return _Apply.apply(xi, self)  # type: ignore[no-untyped-call,no-any-return]

    def adjoint(self, g: Tensor) -> Tensor:
        """A^T g of (samples, ``*shape``): (samples, n_excitations)."""
        return _Adjoint.apply(g, self)  # type: ignore[no-untyped-call,no-any-return]


class Slope(GaussianProcess):
    """How the fields of ``more`` differ from those of ``less``, per ``step`` of what tells them
    apart: a central difference.
    """

    def __init__(self, less: GaussianProcess, more: GaussianProcess, step: float):
        self.less, self.more, self.step = less, more, step
        self.shape = less.shape

    @property
    def n_excitations(self) -> int:
        return self.less.n_excitations

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Slope":
        self.less.to(device, dtype)
        self.more.to(device, dtype)
        return self

    def _apply(self, xi: Tensor) -> Tensor:
        return (self.more.apply(xi) - self.less.apply(xi)) / self.step

    def _adjoint(self, g: Tensor) -> Tensor:
        return (self.more.adjoint(g) - self.less.adjoint(g)) / self.step


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, xi: Tensor, prior: GaussianProcess) -> Tensor:
        ctx.prior = prior
        return prior._apply(xi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.prior.adjoint(grad), None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, prior: GaussianProcess) -> Tensor:
        ctx.prior = prior
        return prior._adjoint(g)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.prior.apply(grad), None
