"""The one exception type for errors that the user can fix."""


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
