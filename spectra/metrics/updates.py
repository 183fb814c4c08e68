"""Quantities of the update W_t − W_0 as a whole."""

from __future__ import annotations


def frobenius_drift(update_norm: float, base_norm: float) -> float:
    """Size of the update relative to the base, ‖W_t − W_0‖_F/‖W_0‖_F.

    Parameters
    ----------
    update_norm, base_norm : float
        Frobenius norms of the update W_t − W_0 and of the base W_0.

    Returns
    -------
    float
        ≥ 0, without a unit; NaN where W_0 is the zero matrix.

    Examples
    --------
    >>> frobenius_drift(1.0, 4.0)
    0.25
    """
    return update_norm / base_norm if base_norm > 0 else float("nan")


def spectral_drift(update_norm: float, base_norm: float) -> float:
    """Size of the update's strongest direction relative to the base's, ‖W_t − W_0‖₂/‖W_0‖₂.

    Parameters
    ----------
    update_norm : float
        Spectral norm (largest singular value) of the update W_t − W_0.
    base_norm : float
        Spectral norm of the base W_0.

    Returns
    -------
    float
        ≥ 0, without a unit; NaN where W_0 is the zero matrix.

    Notes
    -----
    No singular value moved by more than ‖W_t − W_0‖₂ (Weyl), so ΔΣ is at most this times
    ‖W_0‖₂.

    Examples
    --------
    >>> spectral_drift(0.5, 2.0)
    0.25
    """
    return update_norm / base_norm if base_norm > 0 else float("nan")
