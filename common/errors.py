"""Errors that the user can fix: the scripts print them without a traceback and exit with `EXIT_CODE`."""

EXIT_CODE = 2


class InputError(ValueError):
    """An input that cannot be used; the message says what is wrong, where, and what to do."""


class ArtifactError(InputError):
    """A model file that is damaged, of another format, or does not match its description."""
