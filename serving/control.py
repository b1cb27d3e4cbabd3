"""The key to Triton's control plane: who has it may load code into the server, stop a model and map shared memory.

Triton itself restricts its interfaces to requests that carry a header. The embedded server gets a new key at each
start; the key lies beside the model repository, readable by the server's user alone. In a cluster the key is a Secret
of the two containers that need it, and reaches them as the variable TESSERA_CONTROL_KEY.
"""

import os
from pathlib import Path

from tessera.errors import InputError, ServiceError
from tessera.files import new_key, read_key

HEADER = "tessera-control-key"
"""Of a request over HTTP; over gRPC Triton wants the name behind `GRPC_PREFIX`."""
GRPC_PREFIX = "triton-grpc-protocol-"
VARIABLE = "TESSERA_CONTROL_KEY"
FILE = "control.key"
INTERFACES = ("model-repository", "shared-memory", "trace", "logging", "model-config", "statistics")
"""All but inference, health and metadata. The last two only tell, but callers need neither inner addresses nor how
much others ask."""


def renew(repository: str | Path) -> str:
    """Make the key of a server that is about to start over this model repository."""
    return new_key(_file(repository))


def forget(repository: str | Path) -> None:
    """Remove the key of a server that has ended."""
    _file(repository).unlink(missing_ok=True)


def key_of(repository: str | Path) -> str:
    """The key of the server over this model repository: the embedded server's, else the environment's.

    Raises:
        ServiceError: there is none, or it belongs to another user.
    """
    if not _file(repository).exists() and (given := os.environ.get(VARIABLE)):
        return given
    try:
        return read_key(_file(repository))
    except InputError as error:
        raise ServiceError(
            f"the server over {repository} cannot be controlled: {error} For a Triton elsewhere, set {VARIABLE}."
        ) from None


def flags(key: str) -> list[str]:
    """Arguments of tritonserver that restrict the control plane to requests with this key, over both protocols."""
    restricted = f"{','.join(INTERFACES)}:{HEADER}={key}"
    return [f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"]


def _file(repository: str | Path) -> Path:
    return Path(repository).parent / FILE
