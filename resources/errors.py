"""Errors a person can act on: one line that names the thing, the cause and the remedy."""


class FlexyError(Exception):
    """Work that had begun failed; what was already made stays. The command ends with status 1."""

    status = 1


class BadInputError(FlexyError):
    """What was asked for cannot be done as asked; nothing was begun. The command ends with status 2."""

    status = 2
