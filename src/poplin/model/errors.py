"""The two kinds of failure: one that needs a person, and one that time may mend."""


class PoplinError(Exception):
    """What is wrong, where, and what to do about it. The base of every error an operator may see.

    `where` names the object, file or peer; `remedy` is an imperative sentence. Both may be empty.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.remedy}" if self.remedy else text


class InvalidInputError(PoplinError):
    """Input that stays wrong however often it is tried: configuration, an API object, a command line."""


class TemporaryError(PoplinError):
    """A failure worth a retry: the API server is away, the kernel answered EBUSY, a peer is not ready."""


class KernelError(TemporaryError):
    """The kernel refused a request. `errno` is its number (positive); `where` names the object."""

    def __init__(self, what: str, *, errno: int, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.errno = errno
