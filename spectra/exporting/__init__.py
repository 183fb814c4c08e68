"""From an adapter of any method to what every server loads: a LoRA adapter, or a merged model."""

from spectra.exporting.export import DTYPES, Exported, export

__all__ = ["DTYPES", "Exported", "export"]
