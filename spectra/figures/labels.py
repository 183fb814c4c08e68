"""What the columns are called on an axis."""

from __future__ import annotations

from typing import NamedTuple


class Label(NamedTuple):
    """A quantity's symbol, its unit or short name, and one line on how to read it."""

    symbol: str
    name: str
    reading: str

    @property
    def axis(self) -> str:
        """The text beside an axis."""
        return f"{self.symbol} ({self.name})" if self.name else self.symbol


LABELS = {
    "delta_sigma": Label(
        "ΔΣ",
        "unit of the weights",
        "Mean change of the singular values; 0 is the base.",
    ),
    "delta_d": Label(
        "ΔD",
        "0 = base",
        "Mean turn of the singular vectors, index against index; 0 is the base, near 1 unrelated.",
    ),
    "delta_u": Label("ΔU", "left vectors", "The left half of ΔD: 1 − mean |⟨u_t, u_0⟩|."),
    "delta_v": Label("ΔV", "right vectors", "The right half of ΔD: 1 − mean |⟨v_t, v_0⟩|."),
    "sigma_0_mean": Label(
        "mean σ of W_0",
        "unit of the weights",
        "Mean singular value of the base: ΔΣ divided by it compares between matrices.",
    ),
    "sigma_max": Label("σ_max", "unit of the weights", "The largest singular value of W_t."),
    "sigma_min": Label("σ_min", "unit of the weights", "The smallest singular value of W_t."),
    "kappa": Label("κ", "σ_max/σ_min of W_t", "Condition number of W_t; 1 is best conditioned."),
    "kappa_p": Label("κ_p", "of W_p", "Condition number of the trained part U_p diag(S_p) V_pᵀ."),
    "kappa_u": Label("κ_u", "of U_p", "Condition number of U_p; 1 means orthonormal columns."),
    "kappa_v": Label("κ_v", "of V_p", "Condition number of V_p; 1 means orthonormal columns."),
    "ortho_u": Label("‖U_pᵀU_p − I‖", "Frobenius", "How far U_p is from orthonormal; 0 is exact."),
    "ortho_v": Label("‖V_pᵀV_p − I‖", "Frobenius", "How far V_p is from orthonormal; 0 is exact."),
    "matched_d": Label(
        "matched ΔD",
        "0 = base",
        "ΔD over best-matching vectors: those that swapped places do not count; 0 is the base.",
    ),
    "subspace_d": Label(
        "subspace drift",
        "16 leading",
        "Turn of the leading subspaces, mean 1 − cos of their angles; 0 is the base.",
    ),
    "intruders": Label(
        "intruder dimensions",
        "k = 10, ε = 0.5",
        "Of the 10 leading left vectors, those within cosine 0.5 of none of the base's.",
    ),
    "stable_rank": Label("stable rank", "‖W‖_F²/‖W‖₂²", "How many directions carry the weight."),
    "effective_rank": Label(
        "effective rank", "exp of entropy", "How evenly the singular values are spread."
    ),
    "frobenius_drift": Label(
        "‖W_t − W_0‖/‖W_0‖", "Frobenius", "Size of the whole update, relative to the base."
    ),
    "spectral_drift": Label(
        "‖W_t − W_0‖₂/‖W_0‖₂",
        "spectral",
        "Size of the update in its strongest direction, relative to the base.",
    ),
    "ill_determined": Label(
        "ill-determined",
        "share of σᵢ",
        "Singular values closer than 1e−5 σ_max to another: what their vectors do is arbitrary.",
    ),
    "sigma_noise": Label(
        "ΔΣ noise floor",
        "unit of the weights",
        "ΔΣ that rounding for storage alone would give; ΔΣ below it means nothing.",
    ),
    "d_noise": Label(
        "ΔD noise floor",
        "0 = base",
        "ΔD that rounding for storage alone would give; ΔD below it means nothing.",
    ),
    "residual": Label(
        "residual", "relative", "Largest measured error of the decompositions behind the numbers."
    ),
    "loss": Label("training loss", "nats per token", "Loss of the step on its own batch."),
    "grad_norm": Label("gradient norm", "before clipping", "Norm of the task's gradient."),
    "lr": Label("learning rate", "", "Learning rate of the step."),
    "ortho_loss": Label("L_reg", "unweighted", "Orthonormal regularizer, before its weight γ."),
    "seconds": Label("time", "s", "Seconds since training started."),
    "tokens": Label("tokens seen", "without padding", "Tokens of the batches seen so far."),
    "perplexity": Label(
        "perplexity", "held-out responses", "Perplexity of held-out answers to questions."
    ),
    "perplexity_other": Label(
        "perplexity, other text", "", "Perplexity on text of another kind: what was forgotten."
    ),
    "gsm8k": Label("GSM8K", "share solved", "Share of problems whose number is right."),
}
"""Label of every column that can be drawn; a column without one is called by its own name."""


RATIOS = frozenset({"kappa", "kappa_p", "kappa_u", "kappa_v", "residual"})
"""Columns read by their power of ten, of which one layer can be a thousand times another."""
LOG_FROM_RATIO = 100.0
"""Beyond two decades a linear scale shows the largest values only."""


def label_of(column: str) -> Label:
    """Return the label of `column`."""
    return LABELS.get(column, Label(column, "", ""))
