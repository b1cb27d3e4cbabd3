"""Purchase histories from Feast's feature server, as the served model asks for them."""

import time
from typing import Any

import httpx

from tessera.errors import ServiceError

# Environment variable: where this server finds the feature server, whatever a release's configuration says.
FEATURE_SERVER = "TESSERA_FEATURE_SERVER"
FEATURE = "user_history:item_ids"
TIMEOUT_S = 0.5
"""A batch waits for the lookup, those in it that need none too."""
PAUSE_S = 1.0
"""How long a feature server that was too slow is not asked again, so that it does not hold up batch after batch."""


class UserHistories:
    """Looks up many users' histories in one request.

    Args:
        url: base URL of the feature server; empty means that no user ids are taken.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client(timeout=timeout_s, trust_env=False)
        self._asked_again = 0.0

    def __call__(self, users: list[str]) -> list[list[str] | None]:
        """Histories in time order, None for an unknown user.

        Raises:
            ServiceError: there is no feature server, it is not up, too slow, or answers something else.
        """
        if not self._url:
            raise ServiceError("this server knows no feature server to look users up in; send a history.")
        if time.monotonic() < self._asked_again:
            raise ServiceError(f"the feature server at {self._url} was too slow a moment ago; send a history.")
        try:
            body = {"features": [FEATURE], "entities": {"user_id": users}, "full_feature_names": True}
            response = self._client.post(f"{self._url}/get-online-features", json=body)
            response.raise_for_status()
            return _column(response.json(), FEATURE.replace(":", "__"), len(users))
        except httpx.TimeoutException:
            self._asked_again = time.monotonic() + PAUSE_S
            problem = "did not answer in time"
        except httpx.HTTPStatusError as error:
            problem = f"answered {error.response.status_code}"
        except httpx.HTTPError as error:
            problem = f"is not up ({type(error).__name__})"
        except (ValueError, KeyError, IndexError, TypeError):
            problem = "answered something that is no feature row"
        raise ServiceError(f"the feature server at {self._url} {problem}; start it, or send a history.")


def _column(answer: Any, name: str, rows: int) -> list[list[str] | None]:
    values = answer["results"][answer["metadata"]["feature_names"].index(name)]["values"]
    if len(values) != rows:
        raise ValueError("another number of rows")
    return [[str(item) for item in value] if value else None for value in values]
