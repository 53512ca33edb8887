"""Errors that a user can act on: one line that names the thing, the cause and the remedy."""


class FlexyError(Exception):
    """Work failed after it had begun; completed work is kept. The command ends with status 1."""

    status = 1


class BadInputError(FlexyError):
    """The input is invalid, and no work was begun. The command ends with status 2."""

    status = 2
