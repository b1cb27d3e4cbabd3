"""MLflow's accounts of the platform: a writer for who publishes, a reader for who serves.

    python -m serving.accounts      # as the administrator, whom MLflow itself makes at its first start

It may be run again at any time: passwords become what the environment says. The registry's models are made here, so
that the reader cannot make them and own them; all that MLflow holds may be read by both.
"""

import os
import sys

from serving.aliases import POLICY, TOKENIZER, registered
from serving.tracking import connect, experiment_id, speaking_of
from tessera.errors import InputError, TesseraError

WRITER, READER = "TESSERA_MLFLOW_WRITER", "TESSERA_MLFLOW_READER"
"""Environment variables with the accounts' names; with _PASSWORD behind, their passwords."""


def ensure(url: str, writer: tuple[str, str], reader: tuple[str, str]) -> None:
    """Make both accounts, or renew their passwords, and let the writer alone change the platform's models and runs.

    Args:
        url: MLflow's; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are the administrator's.
        writer, reader: name and password.

    Raises:
        InputError: the two are one account. ServiceError: MLflow does not answer, or refuses.
    """
    if writer[0] == reader[0]:
        raise InputError(f"the writer and the reader are both {reader[0]!r}; give them accounts of their own.")
    client = connect(url)
    with speaking_of(url):
        from mlflow.server import get_app_client

        accounts = get_app_client("basic-auth", url)
        for name, password in (writer, reader):
            if _is_there(accounts, name):
                accounts.update_user_password(name, password)
            else:
                accounts.create_user(name, password)
        for model in (TOKENIZER, POLICY):
            if registered(client, model) is None:
                client.create_registered_model(model)
            accounts.grant_user_permission(writer[0], "registered_model", model, "MANAGE")
        accounts.grant_user_permission(writer[0], "experiment", experiment_id(client, None), "MANAGE")


def _is_there(accounts: object, name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        accounts.get_user(name)  # type: ignore[attr-defined]
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def main() -> int:
    """Make the accounts that the environment names, or say in one sentence why not."""
    try:
        names = "MLFLOW_TRACKING_URI", WRITER, f"{WRITER}_PASSWORD", READER, f"{READER}_PASSWORD"
        if missing := [name for name in names if not os.environ.get(name)]:
            raise InputError(f"{', '.join(missing)} must be set.")
        url, *accounts = (os.environ[name] for name in names)
        ensure(url, (accounts[0], accounts[1]), (accounts[2], accounts[3]))
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
