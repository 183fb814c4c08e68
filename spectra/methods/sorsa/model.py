"""The SORSA tuner."""

from __future__ import annotations

from spectra.methods.core.model import TunerModel
from spectra.methods.sorsa.layer import SorsaLinear


class SorsaModel(TunerModel):
    """A model whose chosen linear layers are adapted by SORSA; ``get_peft_model`` makes it.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Section 4.
    """

    prefix: str = "sorsa_"
    tuner_layer_cls = SorsaLinear
