"""A recommendation request: checked before it is sent, written as Triton's tensors, and its answer read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tessera_rec_client.errors import InvalidRequest, ServerError
from tessera_rec_client.results import Item, Recommendations

MODEL = "tessera"
Priority = Literal["interactive", "batch"]
PRIORITIES = get_args(Priority)


@dataclass(frozen=True)
class Query:
    """One request; a history, a user, or both: then the history is asked with and the user has the cached list."""

    history: tuple[str, ...]
    user: str | None
    k: int
    exclude: tuple[str, ...]
    allow: tuple[str, ...] | None
    include_history: bool
    priority: str
    diversity: float = 0.0

    def tensors(self) -> list[tuple[str, str, list[Any]]]:
        """(name, Triton datatype, values) of each input that is needed; every shape is [1, len(values)]."""
        asked = ("history", "BYTES", list(self.history)) if self.history else ("user_id", "BYTES", [self.user])
        more = [("exclude", "BYTES", list(self.exclude)), ("allow", "BYTES", list(self.allow or ()))]
        flags: list[tuple[str, str, list[Any]]] = []
        flags += [("include_history", "BOOL", [True])] if self.include_history else []
        flags += [("diversity", "FP32", [self.diversity])] if self.diversity else []
        return [asked, ("k", "INT32", [self.k]), *(one for one in more if one[2]), *flags]


def query(
    history: Sequence[str] | None,
    user: str | None,
    k: int,
    exclude: Sequence[str],
    allow: Sequence[str] | None,
    include_history: bool,
    priority: str,
    diversity: float = 0.0,
) -> Query:
    """Check a request.

    Raises:
        InvalidRequest: neither history nor user, an empty one, ids that are no strings, k below 1, no such priority, or
            a diversity outside 0 to 1.
    """
    if history is None and user is None:
        raise InvalidRequest("give a history, a user, or both.")
    if priority not in PRIORITIES:
        raise InvalidRequest(f"priority is {priority!r}; choose {' or '.join(map(repr, PRIORITIES))}.")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < 2**31:
        raise InvalidRequest(f"k is {k!r}; ask for a whole number of items, at least 1.")
    if isinstance(diversity, bool) or not isinstance(diversity, int | float) or not 0 <= diversity <= 1:
        raise InvalidRequest(f"diversity is {diversity!r}; give a number between 0 and 1.")
    if history is not None and not (items := ids(history, "history")):
        raise InvalidRequest("the history is empty; give at least one item id, or a user.")
    if allow is not None and not ids(allow, "allow"):
        raise InvalidRequest("the allow list is empty and allows nothing; leave it out to allow every item.")
    return Query(
        items if history is not None else (),
        key(user, "user") if user is not None else None,
        k,
        ids(exclude, "exclude"),
        ids(allow, "allow") if allow is not None else None,
        bool(include_history),
        priority,
        float(diversity),
    )


def ids(values: Sequence[str], name: str) -> tuple[str, ...]:
    """The ids as a tuple, refused unless each is a non-empty string."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidRequest(f"{name} is {values!r}; give a list of item ids.")
    return tuple(key(value, name) for value in values)


def key(value: str, name: str) -> str:
    """The id itself, refused unless it is a non-empty string."""
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{name} holds {value!r}; ids are non-empty strings.")
    return value


def seconds(timeout: float, name: str = "timeout") -> float:
    """The timeout itself, refused unless it is a number of seconds above 0."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise InvalidRequest(f"{name} is {timeout!r}; give a number of seconds above 0.")
    return float(timeout)


def recommendations(outputs: Mapping[str, Sequence[Any]]) -> Recommendations:
    """Read the flat output tensors of an answer.

    Raises:
        ServerError: an output is missing, or they do not fit together.
    """
    try:
        columns = zip(outputs["item_ids"], outputs["sids"], outputs["scores"], strict=True)
        items = tuple(Item(str(item), str(sid), float(score)) for item, sid, score in columns)
        (policy,), (tokenizer,) = outputs["policy_version"], outputs["tokenizer_version"]
    except (KeyError, ValueError, TypeError) as error:
        raise ServerError(f"the server's answer is no recommendation ({error!r}); check what serves there.") from None
    return Recommendations(items, str(policy), str(tokenizer))


def address(url: str, schemes: Mapping[str, bool], default_port: int) -> tuple[str, bool]:
    """Split an address into host:port and whether it is encrypted.

    Args:
        schemes: the schemes that fit, and whether each is encrypted.
    """
    match = re.fullmatch(r"(?:([a-z]+)://)?(\[[0-9a-fA-F:.]+\]|[^/:\s\[\]]+)(?::(\d{1,5}))?/?", url) if url else None
    if match is None or (match[1] is not None and match[1] not in schemes):
        names = " or ".join(f"{scheme}://host:port" for scheme in schemes)
        raise InvalidRequest(f"{url!r} is no address; write host:port or {names}.")
    return f"{match[2]}:{match[3] or default_port}", bool(match[1]) and schemes[match[1]]
