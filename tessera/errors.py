"""The errors a user is meant to read: one sentence that says what is wrong and what to do."""


class TesseraError(Exception):
    """Base of every expected failure; the command line prints it without a traceback and exits with 2."""


class InputError(TesseraError):
    """The caller's data or arguments cannot be used as they are."""


class BundleError(TesseraError):
    """A bundle is truncated, altered, of another schema version, or belongs to another tokenizer."""


class ModelCallError(TesseraError):
    """An enrichment model could not be reached or did not answer; nothing was recorded for the item."""


class GateError(TesseraError):
    """A quality gate refused the data; the message names the expectations and points to Data Docs."""


class ServiceError(TesseraError):
    """A server (Triton, Feast, MLflow, a database) is not up or refused the request."""
