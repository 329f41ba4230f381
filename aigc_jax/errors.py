"""Errors raised on purpose: the message is for the user, one line that says what to do.

Whoever catches `ValueError` or `FileNotFoundError` catches these; a command shows them without a
traceback, which every other error keeps.
"""


class UserError(Exception):
    """What a user can mend: a setting, an input, a disk, another process."""


class SettingError(UserError, ValueError):
    """A setting, flag or argument that cannot work."""


class UnknownKeyError(SettingError):
    """A section of a config with keys that nothing reads; `keys` are their names."""

    def __init__(self, message: str, keys: frozenset[str]) -> None:
        super().__init__(message)
        self.keys = keys


class MissingError(UserError, FileNotFoundError):
    """A run, file or folder that is not there."""


class RunError(UserError, RuntimeError):
    """A run that cannot go on."""
