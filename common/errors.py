"""The errors that are a person's to mend: front doors print them without a traceback and exit with `EXIT_CODE`."""

EXIT_CODE = 2


class InputError(ValueError):
    """What was given cannot be used; the message says what is wrong, where, and what to do."""


class ArtifactError(InputError):
    """A model file that is damaged, foreign, or does not do what its description says."""
