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
        self._timeout_s = timeout_s
        self._client = self._connected()
        self._asked_again = 0.0

    def __call__(self, users: list[str]) -> list[list[str] | None]:
        """Histories in time order, None for an unknown user; the answer names the users that it is of.

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
            answer = response.json()
            if _column(answer, "user_id") == users:
                return [list(map(str, one)) if one else None for one in _column(answer, FEATURE.replace(":", "__"))]
            self._client = self._connected()  # whoever asks over the old connection gets another's answer too
            problem = "answered for other users than were asked"
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

    def _connected(self) -> httpx.Client:
        return httpx.Client(timeout=self._timeout_s, trust_env=False)


def _column(answer: Any, name: str) -> list[Any]:
    return list(answer["results"][answer["metadata"]["feature_names"].index(name)]["values"])
