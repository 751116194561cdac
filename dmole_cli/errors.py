"""The one exception type for failures that a user can repair."""


class DmoleError(Exception):
    """A failure with a way out.

    Args:
        message: what went wrong, and where (the file, task, site or option concerned).
        hint: what to do next, in one sentence; usually a command.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
