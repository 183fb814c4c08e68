"""What goes wrong with files."""


class CheckpointError(Exception):
    """A checkpoint's files are missing, broken, or not of a kind that is read here."""
