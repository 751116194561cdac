"""The one exception type for errors that the user can fix, and what a message quotes of other exceptions."""


class DmoleError(Exception):
    """An error that the user can fix.

    Args:
        message: what went wrong, and where (the file, task, site or option concerned).
        hint: what to do next, in one sentence; usually a command.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DmoleWarning(UserWarning):
    """Something that the user should know, and that does not stop the command; shown on stderr."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message; the name of its type where it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
