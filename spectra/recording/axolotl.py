"""The hook as a plugin of Axolotl, which takes callbacks from its YAML file only so.

.. code-block:: yaml

    plugins:
      - spectra.recording.axolotl.SpectraPlugin
    spectra:
      run: runs/a
      every: 50
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from spectra.recording.callback import SpectraCallback


class SpectraArgs(BaseModel):
    """What the YAML file may say beside Axolotl's own keys: `SpectraCallback`'s arguments."""

    spectra: dict[str, Any] | None = None


class SpectraPlugin(BasePlugin):  # type: ignore[misc, unused-ignore]
    """Adds a `SpectraCallback` to the trainer that Axolotl builds."""

    def get_input_args(self) -> str:
        """Return where the schema of our key is."""
        return f"{__name__}.{SpectraArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[SpectraCallback]:
        """Return the callback, or none where the file has no key of ours."""
        return [SpectraCallback(**cfg.spectra)] if cfg.spectra else []
