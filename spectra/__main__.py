"""``python -m spectra``, where the command itself is not on the path."""

from spectra.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
