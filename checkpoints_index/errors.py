"""What goes wrong with files."""


class CheckpointError(Exception):
    """A checkpoint's files are missing, broken, or not of a kind that is read here."""


class IncompleteCheckpointError(CheckpointError):
    """A checkpoint lacks a file, or a file its end: it is still being written, or was damaged."""
