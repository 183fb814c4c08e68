"""The columns of a run's Parquet files, with their types and meanings: one place for both."""

from __future__ import annotations

import pyarrow as pa

KEYS = ("step", "layer", "module")
"""What names one row of drift and of spectrum within a run."""

_KEY_FIELDS = [
    pa.field("run", pa.string()),
    pa.field("method", pa.string()),
    pa.field("module", pa.string()),
    pa.field("step", pa.int64()),
    pa.field("layer", pa.int64()),
]

DRIFT_QUANTITIES = {
    "delta_sigma": "ΔΣ, mean |σ_t − σ_0| (Eq. 1); in the unit of the weights",
    "delta_d": "ΔD, 1 − mean overlap of left and right singular vectors (Eq. 4)",
    "delta_u": "left half of ΔD: 1 − mean |⟨u_t, u_0⟩|",
    "delta_v": "right half of ΔD: 1 − mean |⟨v_t, v_0⟩|",
    "sigma_0_mean": "mean singular value of W_0; ΔΣ divided by it compares between matrices",
    "sigma_max": "largest singular value of W_t",
    "sigma_min": "smallest singular value of W_t",
    "kappa": "condition number of W_t, σ_max/σ_min",
    "kappa_p": "condition number of the trained part W_p = U_p diag(S_p) V_pᵀ",
    "kappa_u": "condition number of U_p",
    "kappa_v": "condition number of V_p",
    "ortho_u": "orthonormality error ‖U_pᵀU_p − I‖_F",
    "ortho_v": "orthonormality error ‖V_pᵀV_p − I‖_F",
    "matched_d": "ΔD over best-matching vectors, so that crossings do not count",
    "subspace_d": "drift of the leading 16-dimensional subspaces, mean 1 − cos of their angles",
    "intruders": "intruder dimensions among the 10 leading left vectors, at ε = 0.5",
    "stable_rank": "‖W_t‖_F² / ‖W_t‖₂²",
    "effective_rank": "exp of the entropy of σ/Σσ (Roy and Vetterli 2007)",
    "frobenius_drift": "‖W_t − W_0‖_F / ‖W_0‖_F",
    "spectral_drift": "‖W_t − W_0‖₂ / ‖W_0‖₂",
    "ill_determined": "share of singular values closer than 1e-5 σ_max to another: their vectors "
    "are arbitrary",
    "sigma_noise": "ΔΣ that rounding W_0 to this checkpoint's storage dtype alone would give",
    "d_noise": "ΔD that rounding W_0 to this checkpoint's storage dtype alone would give",
    "residual": "largest measured error of the decompositions behind the row (relative)",
}
"""Every float64 column of drift and its meaning, in the order of the file."""

DRIFT = pa.schema(
    [
        *_KEY_FIELDS,
        pa.field("rows", pa.int64()),
        pa.field("cols", pa.int64()),
        *(pa.field(name, pa.float64()) for name in DRIFT_QUANTITIES),
        pa.field("dtype", pa.string()),
        pa.field("solver", pa.string()),
        # Names the checkpoint, the base and the engine a row came from; a row whose source is
        # no longer the current one is stale and is computed again.
        pa.field("source", pa.string()),
    ]
)
"""One row per step × layer × module: the drift of one matrix from its base."""

SPECTRUM_ARRAYS = {
    "sigma": "singular values of W_t, largest first; length k",
    "sigma_change": "σ_t − σ_0 index by index, subtracted in float64: small changes keep their "
    "digits, and σ_0 is sigma − sigma_change; length k",
    "overlap_u": "|⟨u_t, u_0⟩| of the left singular vectors of the same index; length k",
    "overlap_v": "|⟨v_t, v_0⟩| of the right singular vectors of the same index; length k",
    "leading_u": "|U_0ᵀU_t| of the p = min(16, k) leading left singular vectors; p·p values row by "
    "row: row i is the base's vector i, column j the trained matrix's vector j",
    "leading_v": "|V_0ᵀV_t| of the p leading right singular vectors, likewise",
}
"""Every float32 array of spectrum and its meaning; those of vectors are null without vectors."""

SPECTRUM = pa.schema(
    [
        *_KEY_FIELDS,
        *(pa.field(name, pa.list_(pa.float32())) for name in SPECTRUM_ARRAYS),
        pa.field("source", pa.string()),
    ]
)
"""One row per step × layer × module: the arrays behind a drift row."""

TRAINING_QUANTITIES = {
    "loss": "training loss of the step, nats per token",
    "grad_norm": "norm of the task's gradient before clipping",
    "lr": "learning rate",
    "ortho_loss": "orthonormal regularizer L_reg (Eq. 8), unweighted",
    "seconds": "seconds since the run's training started, over all attempts; evaluations left out",
    "tokens": "tokens of the batches seen since the run's training started, padding left out",
    "perplexity": "perplexity of the response on held-out questions of the fine-tuning's kind",
    "perplexity_other": "perplexity on other text, of the pre-training's kind",
    "gsm8k": "share of GSM8K's problems that were solved (exact match of the number)",
}
"""Every float64 column of training and its meaning."""

TRAINING = pa.schema(
    [
        pa.field("step", pa.int64()),
        *(pa.field(name, pa.float64()) for name in TRAINING_QUANTITIES),
    ]
)
"""One row per recorded optimizer step."""
