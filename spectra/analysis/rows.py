"""One matrix at one step: from weights to a row of drift and a row of spectrum."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checkpoints_index import TrainedFactors, Weight
from spectra import metrics
from spectra.analysis.base_cache import BaseCache
from spectra.linalg import (
    LEADING,
    PRECISIONS,
    Decomposition,
    Turned,
    decompose,
    follow,
    follow_values,
    noise_sample,
    prefers_low_rank,
    product_singular_values,
    singular_values,
    spectral_norm,
)

logger = logging.getLogger(__name__)

UNREADABLE = "none"
"""The solver of a row whose matrix could not be decomposed."""

UNCHANGED = "unchanged"
"""The solver of a row whose matrix is the base's: nothing was computed."""

# From so many steps on, decomposing the base with vectors pays even where only values are wanted.
_STEPS_THAT_PAY = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class Quantities:
    """What is computed of every matrix, and how.

    Attributes
    ----------
    vectors : bool
        Singular vectors too, not values alone.
    solver : str
        One of `spectra.linalg.SOLVERS`.
    precision : str, optional
        In which the checkpoints' weights really are, where the files do not show it, such as
        ``"q4_0"`` for weights de-quantised from four bits: for the noise floor.
    """

    vectors: bool = True
    solver: str = "auto"
    precision: str | None = None


class BaseMatrix:
    """W_0 and what is computed of it once for all steps.

    Parameters
    ----------
    w_0 : Tensor of shape (m, n)
        The base's weight, as stored.
    quantities : Quantities
        What to compute.
    cache : BaseCache, optional
        Where decompositions of bases are kept.
    steps : int
        How many steps are going to be asked for.
    """

    def __init__(
        self,
        w_0: Tensor,
        quantities: Quantities | None = None,
        cache: BaseCache | None = None,
        steps: int = 1,
    ) -> None:
        self.w_0 = w_0
        self.quantities = quantities or Quantities()
        self._cache = cache or BaseCache(max_bytes=0)
        self._steps = steps
        self._noise: dict[str, Row] = {}
        self._last: tuple[Weight, tuple[Row, Row]] | None = None

    def drift(self, weight: Weight, dtype: str = "float64") -> tuple[Row, Row]:
        """Return the quantities of W_t and its arrays, without the keys.

        Parameters
        ----------
        weight : Weight
            W_t as read from a checkpoint.
        dtype : str
            In which it was stored there.

        Returns
        -------
        drift : dict
            Columns of the drift table.
        spectrum : dict
            Columns of the spectrum table.

        Raises
        ------
        ValueError
            If W_t does not fit W_0, or either has NaN or infinite entries.
        torch.linalg.LinAlgError
            If no algorithm converges.
        """
        if self._last is not None and weight.same_as(self._last[0]):
            # The bytes of the step before: so are the numbers.
            drift, spectrum = self._last[1]
        else:
            drift, spectrum = self._drift(weight)
            self._last = weight, (drift, spectrum)
        return drift | self._noise_floor(weight, dtype), spectrum

    def _drift(self, weight: Weight) -> tuple[Row, Row]:
        weight.require_shape(self.w_0)
        if _changes_nothing(weight, self.w_0):
            drift, spectrum = self._unchanged()
        elif self.quantities.vectors:
            drift, spectrum = self._with_vectors(weight)
        else:
            drift, spectrum = self._values_only(weight)
        if weight.factors is not None:
            drift |= factor_quantities(weight.factors)
        return drift, spectrum

    def _with_vectors(self, weight: Weight) -> tuple[Row, Row]:
        found = follow(
            self._decomposition, lambda: weight.on(self.w_0), weight.update, self.quantities.solver
        )
        drift = self._value_quantities(found.s) | self._update_quantities(weight)
        drift |= vector_quantities(found)
        drift |= {"solver": found.solver, "residual": self._with_base_error(found.residual)}
        return drift, self._arrays(found.s) | {
            "overlap_u": _copied(found.overlap_u),
            "overlap_v": _copied(found.overlap_v),
            "leading_u": _square(found.leading_u),
            "leading_v": _square(found.leading_v),
        }

    def _values_only(self, weight: Weight) -> tuple[Row, Row]:
        base = self._decomposition if self._has_vectors(weight) else None
        found = follow_values(
            base, lambda: weight.on(self.w_0), weight.update, self.quantities.solver
        )
        drift = self._value_quantities(found.s) | self._update_quantities(weight)
        return drift | {"solver": found.solver, "residual": found.residual}, self._arrays(found.s)

    def _unchanged(self) -> tuple[Row, Row]:
        s = self._values
        drift = self._value_quantities(s)
        nothing = {"frobenius_drift": 0.0, "spectral_drift": 0.0}
        drift |= nothing if s[0] > 0 else dict.fromkeys(nothing, math.nan)
        drift |= {"solver": UNCHANGED, "residual": self._with_base_error(0.0)}
        if not self.quantities.vectors:
            return drift, self._arrays(s)
        unturned = ("delta_d", "delta_u", "delta_v", "matched_d", "subspace_d", "intruders")
        drift |= dict.fromkeys(unturned, 0.0)
        ones, leading = torch.ones_like(s), torch.eye(min(LEADING, len(s)), dtype=s.dtype)
        return drift, self._arrays(s) | {
            "overlap_u": _copied(ones),
            "overlap_v": _copied(ones),
            "leading_u": _square(leading),
            "leading_v": _square(leading),
        }

    def _value_quantities(self, s: Tensor) -> Row:
        return {
            "rows": self.w_0.shape[0],
            "cols": self.w_0.shape[1],
            "delta_sigma": metrics.singular_value_deviation(s, self._values),
            "sigma_0_mean": self._values.mean().item(),
            "sigma_max": s[0].item(),
            "sigma_min": s[-1].item(),
            "kappa": metrics.condition_number(s),
            "stable_rank": metrics.stable_rank(s),
            "effective_rank": metrics.effective_rank(s),
            "ill_determined": metrics.ill_determined_share(s),
        }

    def _arrays(self, s: Tensor) -> Row:
        return {"sigma": _copied(s), "sigma_change": _copied(s - self._values)}

    def _update_quantities(self, weight: Weight) -> Row:
        if weight.update is not None:
            s = product_singular_values(*_split(weight.update))
            total, largest = torch.linalg.vector_norm(s).item(), s.max().item()
        else:
            difference = weight.delta
            if difference is None:
                difference = weight.on(self.w_0) - self.w_0
            total = torch.linalg.matrix_norm(difference).item()
            largest = spectral_norm(difference)
        return {
            "frobenius_drift": metrics.frobenius_drift(
                total, torch.linalg.vector_norm(self._values).item()
            ),
            "spectral_drift": metrics.spectral_drift(largest, self._values[0].item()),
        }

    # The base

    @cached_property
    def _decomposition(self) -> Decomposition:
        return self._cache.decomposition(self.w_0, lambda: decompose(self.w_0))

    @cached_property
    def _values(self) -> Tensor:
        if self.quantities.vectors:
            return self._decomposition.s
        return self._cache.values(self.w_0, lambda: singular_values(self.w_0).s)

    def _has_vectors(self, weight: Weight) -> bool:
        """Whether the base's vectors are worth having where only values are asked for."""
        if weight.update is None or self.quantities.solver in ("gram", "svd"):
            return False
        if self.quantities.solver == "low-rank" or "_decomposition" in self.__dict__:
            return True
        rank = weight.update[0].shape[1]
        shape = (self.w_0.shape[0], self.w_0.shape[1])
        return self._steps >= _STEPS_THAT_PAY and prefers_low_rank(shape, rank, vectors=False)

    def _with_base_error(self, residual: float) -> float:
        base = self._decomposition.residual if self.quantities.vectors else 0.0
        return max(residual, base)

    # The noise floor

    def _noise_floor(self, weight: Weight, dtype: str) -> Row:
        precision = self.quantities.precision or dtype
        if (weight.dense is None and not weight.rounded) or precision == "float64":
            # An adapter leaves W_0 as it is: nothing is rounded where nothing is trained.
            return {"sigma_noise": 0.0} | ({"d_noise": 0.0} if self.quantities.vectors else {})
        if precision not in PRECISIONS:
            # A quantisation whose rounding is not reproduced here, such as GGUF's q4_k.
            return {"sigma_noise": None} | ({"d_noise": None} if self.quantities.vectors else {})
        if precision not in self._noise:
            vectors = self.quantities.vectors
            sigma: float | None
            try:
                sigma, turn = self._cache.noise(
                    self.w_0, precision, lambda: self._measure_noise(precision), vectors=vectors
                )
            except (ValueError, torch.linalg.LinAlgError) as error:
                # Such as a base beyond float16's range: the drift itself is none the worse.
                logger.warning("No noise floor of %s for this matrix: %s", precision, error)
                sigma = turn = None
            self._noise[precision] = {"sigma_noise": sigma} | ({"d_noise": turn} if vectors else {})
        return self._noise[precision]

    def _measure_noise(self, precision: str) -> tuple[float, float | None]:
        sample = noise_sample(self.w_0, precision)
        if not self.quantities.vectors:
            s = singular_values(sample).s
            return metrics.singular_value_deviation(s, self._values), None
        found = follow(self._decomposition, lambda: sample)
        return (
            metrics.singular_value_deviation(found.s, self._values),
            metrics.singular_vector_deviation(found.overlap_u, found.overlap_v),
        )


def vector_quantities(found: Turned) -> Row:
    """Return the drift columns of the singular vectors."""
    return {
        "delta_d": metrics.singular_vector_deviation(found.overlap_u, found.overlap_v),
        "delta_u": metrics.mean_turn(found.overlap_u),
        "delta_v": metrics.mean_turn(found.overlap_v),
        "matched_d": metrics.matched_vector_deviation(found.near_u, found.near_v),
        "subspace_d": metrics.subspace_deviation(found.leading_u, found.leading_v),
        "intruders": float(metrics.intruder_dimensions(found.leading_u)),
    }


def factor_quantities(factors: TrainedFactors) -> Row:
    """Return κ of W_p, U_p and V_p, and both orthonormality errors.

    Raises
    ------
    ValueError
        If a factor has NaN or infinite entries.
    """
    s = product_singular_values(factors.u, factors.s, factors.vh)
    return {
        "kappa_p": metrics.condition_number(s),
        "kappa_u": metrics.condition_number(singular_values(factors.u).s),
        "kappa_v": metrics.condition_number(singular_values(factors.vh).s),
        "ortho_u": metrics.orthonormality_error(factors.u),
        "ortho_v": metrics.orthonormality_error(factors.vh.T),
    }


def unreadable_row(shape: tuple[int, int]) -> Row:
    """Return the row of a matrix that could not be decomposed: no numbers, and it says so."""
    return {"rows": shape[0], "cols": shape[1], "solver": UNREADABLE}


def _copied(array: Tensor) -> np.ndarray:
    # Rows wait to be written, and S_0 may lie on the map of a whole kept decomposition.
    return array.numpy().copy()


def _square(leading: Tensor) -> np.ndarray:
    """Return the absolute overlaps of p leading vectors with p leading ones, row by row."""
    p = leading.shape[1]
    return _copied(leading[:p].abs().clamp(max=1.0).flatten())


def _split(update: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    b, a = update
    return b, torch.ones(b.shape[1], dtype=torch.float64), a


def _changes_nothing(weight: Weight, w_0: Tensor) -> bool:
    if weight.dense is not None:
        return bool((weight.dense == w_0).all())
    if weight.delta is not None:
        return not bool(weight.delta.any())
    return weight.update is None or not all(bool(factor.any()) for factor in weight.update)
