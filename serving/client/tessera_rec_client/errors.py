"""What can go wrong, by what the caller can do about it; every message is one sentence."""


class TesseraClientError(Exception):
    """Base of all errors of this client."""


class InvalidRequest(TesseraClientError, ValueError):
    """The request cannot be answered as it is: change it."""


class NotFound(TesseraClientError, LookupError):
    """The item, semantic ID or user is not known: check the id."""


class ServerUnavailable(TesseraClientError, ConnectionError):
    """The server is not up, or has nothing to serve yet: start it, or try again later."""


class Busy(ServerUnavailable):
    """The server has as many requests waiting as it takes: try again a little later, or ask less."""


class DeadlineExceeded(TesseraClientError, TimeoutError):
    """No answer within the timeout: try again, or allow more time."""


class ServerError(TesseraClientError):
    """The server failed, or answered something this client does not understand: look into its log."""


class WrongAnswer(ServerError):
    """The answer to somebody else's request came back, and is not given out: ask again."""
