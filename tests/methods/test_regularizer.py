"""SORSA's regularizer: value, gradient, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spectra.methods import (
    SorsaConfig,
    SorsaLinear,
    add_regularizer_gradient,
    orthonormal_regularizer,
)
from spectra.methods.sorsa.regularizer import Reduction
from tests.methods.test_sorsa import adapted, layers, published, train_a_little


def layer(dtype: torch.dtype = torch.float64, r: int = 3) -> SorsaLinear:
    torch.manual_seed(0)
    base = nn.Linear(8, 6, bias=False, dtype=dtype)
    return SorsaLinear(base, "default", SorsaConfig(r=r))


def set_factors(target: SorsaLinear, u: torch.Tensor, vh: torch.Tensor) -> None:
    with torch.no_grad():
        target.sorsa_u["default"].copy_(u)
        target.sorsa_vh["default"].copy_(vh)


def skewed(seed: int = 1) -> SorsaLinear:
    """A layer whose factors are far from orthonormal."""
    generator = torch.Generator().manual_seed(seed)
    made = layer()
    u = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    set_factors(made, u, torch.randn(3, 8, generator=generator, dtype=torch.float64))
    assert made.sorsa_u["default"].dtype == torch.float64
    return made


def equation_8(target: SorsaLinear, power: int) -> float:
    u = target.sorsa_u["default"].detach().numpy()
    v = target.sorsa_vh["default"].detach().numpy().T
    total = 0.0
    for x in (u, v):
        deviation = x.T @ x
        deviation[range(len(deviation)), range(len(deviation))] -= 1.0
        total += math.sqrt((deviation**2).sum()) ** power
    return total


@pytest.mark.parametrize(("squared", "power"), [(False, 1), (True, 2)])
def test_value_is_equation_8(squared: bool, power: int) -> None:
    model = nn.ModuleList([skewed(1), skewed(2)])
    expected = sum(equation_8(m, power) for m in layers(model))
    total = orthonormal_regularizer(model, squared=squared, reduction="sum")
    assert total.item() == pytest.approx(expected, rel=1e-12)
    mean = orthonormal_regularizer(model, squared=squared, reduction="mean")
    assert mean.item() == pytest.approx(expected / 4, rel=1e-12)  # four factors


def test_value_agrees_with_the_published_function() -> None:
    model = adapted()
    train_a_little(model)
    theirs = nn.ModuleList()
    for ours in layers(model):
        holder = nn.Module()
        holder.sorsa_A = nn.Parameter(ours.sorsa_vh["default"].detach())
        holder.sorsa_B = nn.Parameter(ours.sorsa_u["default"].detach())
        theirs.append(holder)
    expected = published().calc_ortho(theirs).item()
    assert orthonormal_regularizer(model).item() == pytest.approx(expected, rel=1e-6)


class Regularized(nn.Module):
    """Calls the regularizer as its forward, so that its factors can be given from outside."""

    def __init__(self, inner: nn.Module, squared: bool, reduction: Reduction) -> None:
        super().__init__()
        self.inner = inner
        self.squared = squared
        self.reduction: Reduction = reduction

    def forward(self) -> torch.Tensor:
        return orthonormal_regularizer(self.inner, squared=self.squared, reduction=self.reduction)


def check_gradient(model: SorsaLinear, squared: bool, reduction: Reduction) -> bool:
    wrapped = Regularized(model, squared, reduction)

    def value(u: torch.Tensor, vh: torch.Tensor) -> torch.Tensor:
        factors = {"inner.sorsa_u.default": u, "inner.sorsa_vh.default": vh}
        return torch.func.functional_call(wrapped, factors)

    u = model.sorsa_u["default"].detach().clone().requires_grad_()
    vh = model.sorsa_vh["default"].detach().clone().requires_grad_()
    return torch.autograd.gradcheck(value, (u, vh))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_equals_finite_differences(squared: bool, reduction: Reduction) -> None:
    assert check_gradient(skewed(), squared, reduction)


def exactly_orthonormal(target: SorsaLinear) -> SorsaLinear:
    set_factors(target, torch.eye(6, 3), torch.eye(3, 8))
    return target


def test_at_orthonormal_factors_the_gradient_is_zero_and_finite() -> None:
    model = exactly_orthonormal(layer())
    loss = orthonormal_regularizer(model)
    loss.backward()
    for name in ("sorsa_u", "sorsa_vh"):
        assert torch.equal(
            getattr(model, name)["default"].grad, torch.zeros_like(getattr(model, name)["default"])
        )


def test_in_rounding_noise_the_gradient_is_a_small_part_of_its_full_length() -> None:
    """Freshly initialised factors are orthonormal to rounding; the task must lead."""
    model = adapted(r=8)
    orthonormal_regularizer(model, reduction="sum").backward()
    for made in layers(model):
        for name in ("sorsa_u", "sorsa_vh"):
            # Off the noise, 2‖U E‖/‖E‖ is the length: 2 for orthonormal U.
            assert getattr(made, name)["default"].grad.norm().item() < 0.2


def test_just_off_the_noise_the_gradient_has_full_length() -> None:
    model = exactly_orthonormal(layer(torch.float32))
    with torch.no_grad():
        model.sorsa_u["default"][0, 0] += 1e-3
    orthonormal_regularizer(model, reduction="sum").backward()
    assert model.sorsa_u["default"].grad.norm().item() == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize("multiple", [0.1, 0.5, 0.9, 1.1, 2.0, 10.0])
def test_below_the_noise_a_parabola_takes_over_from_the_norm(multiple: float) -> None:
    delta = 16 * torch.finfo(torch.float32).eps * math.sqrt(3)
    model = exactly_orthonormal(layer(torch.float32))
    with torch.no_grad():
        model.sorsa_u["default"][0, 0] = math.sqrt(1 + multiple * delta)
    entry = model.sorsa_u["default"][0, 0].item()
    distance = entry**2 - 1  # of UᵀU from I, as float32 stores it
    value = orthonormal_regularizer(model, reduction="sum")
    value.backward()
    slope = min(distance / delta, 1.0) * 2 * entry
    assert model.sorsa_u["default"].grad[0, 0].item() == pytest.approx(slope, rel=0.15)
    u_term = distance if distance >= delta else distance**2 / (2 * delta) + delta / 2
    assert value.item() == pytest.approx(u_term + delta / 2, rel=0.15)  # V is orthonormal


def test_without_smoothing_the_gradient_has_full_length_in_the_noise_too() -> None:
    model = exactly_orthonormal(layer(torch.float32))
    with torch.no_grad():
        model.sorsa_u["default"][0, 0] += 2 * torch.finfo(torch.float32).eps
    orthonormal_regularizer(model, reduction="sum", smooth=False).backward()
    assert model.sorsa_u["default"].grad.norm().item() == pytest.approx(2, rel=1e-5)
    assert not model.sorsa_vh["default"].grad.any()  # exactly orthonormal


def test_gamma_zero_leaves_the_gradients_of_the_task_untouched() -> None:
    model = adapted()
    tokens = torch.arange(20).reshape(2, 10)
    train_a_little(model)
    model(tokens, labels=tokens).loss.backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    loss = add_regularizer_gradient(model, gamma=0.0, max_lr=1e-3)
    assert loss > 0
    after = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_the_update_rule_adds_gamma_over_eta_times_the_gradient() -> None:
    model = skewed()
    value = orthonormal_regularizer(model)
    names = ("sorsa_u", "sorsa_vh")
    factors = [getattr(model, n)["default"] for n in names]
    expected = torch.autograd.grad(value, factors)
    for factor in factors:
        factor.grad = torch.ones_like(factor)
    returned = add_regularizer_gradient(model, gamma=5e-4, max_lr=3e-5)
    assert returned == pytest.approx(value.item())
    for factor, gradient in zip(factors, expected, strict=True):
        torch.testing.assert_close(factor.grad, 1 + (5e-4 / 3e-5) * gradient)
    assert model.sorsa_s["default"].grad is None


def test_mean_equals_sum_at_gamma_times_the_number_of_factors() -> None:
    gradients = []
    for reduction, gamma in (("sum", 1e-3), ("mean", 4e-3)):
        model = nn.ModuleList([skewed(1), skewed(2)])
        add_regularizer_gradient(model, gamma, 1e-2, reduction=reduction)  # type: ignore[arg-type]
        gradients.append(layers(model)[0].sorsa_u["default"].grad)
    torch.testing.assert_close(*gradients)


def test_descent_restores_orthonormality() -> None:
    model = skewed()
    before = orthonormal_regularizer(model).item()
    for _ in range(400):
        model.zero_grad()
        add_regularizer_gradient(model, gamma=1e-2, max_lr=1.0, squared=True)
        with torch.no_grad():
            for name in ("sorsa_u", "sorsa_vh"):
                parameter = getattr(model, name)["default"]
                parameter -= 2.0 * parameter.grad
    assert orthonormal_regularizer(model).item() < 0.01 * before


def test_a_model_without_sorsa_layers_has_no_regularizer() -> None:
    assert orthonormal_regularizer(nn.Linear(3, 3)).item() == 0.0
    assert add_regularizer_gradient(nn.Linear(3, 3), 1.0, 1.0) == 0.0


@pytest.mark.parametrize(("gamma", "max_lr"), [(-1.0, 1.0), (1.0, 0.0)])
def test_impossible_rates_are_refused(gamma: float, max_lr: float) -> None:
    with pytest.raises(ValueError, match="gamma must be >= 0 and max_lr > 0"):
        add_regularizer_gradient(nn.Linear(3, 3), gamma, max_lr)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_without_a_graph_is_that_of_the_value(
    reduction: Reduction, squared: bool, smooth: bool
) -> None:
    # Two ranks, and factors with and without noise alone.
    model = nn.ModuleList([skewed(1), layer(r=2), skewed(2)])
    chosen = {"squared": squared, "reduction": reduction, "smooth": smooth}
    parameters = [p for p in model.parameters() if p.requires_grad]
    value = orthonormal_regularizer(model, **chosen)  # type: ignore[arg-type]
    expected = torch.autograd.grad(value, parameters, materialize_grads=True)
    before = [torch.full_like(p, 2.0) for p in parameters]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient.clone()
    found = add_regularizer_gradient(model, 0.5, 0.25, **chosen)  # type: ignore[arg-type]
    assert found == pytest.approx(value.item(), rel=1e-12)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2.0 + 2.0 * gradient, rtol=1e-12, atol=1e-12)
