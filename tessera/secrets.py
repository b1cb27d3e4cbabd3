"""Secrets: refused where they would be written down, and blotted out of what is said.

Settings are written to files, pages and MLflow, and command lines are seen by other users of the machine. So no setting
holds a secret: the environment does.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from tessera.errors import InputError

_WORDS = (
    r"(?:[\w-]*(?:password|passwd|secret|token|api[-_]?key|access[-_]?key|signature|credentials?)|pwd|auth|sig|key)"
)
_QUERY = re.compile(rf"(?<=[?&;#,])({_WORDS})=([^&;#,\s]+)", re.IGNORECASE)
_VARIABLE = re.compile(r"(?:PASSWORD|PASSWD|SECRET|TOKEN|_KEY|CREDENTIALS?)$")
# A user alone may be a token to a web server; to a database it is none. Databases take a "/" in a password as it is.
_WEB = re.compile(r"(?<=://)([^/?#]+)@")
_USER = re.compile(r"(?<=://)([^:/@]*):([^@]+)@")
SHORTEST = 6  # a shorter secret is part of ordinary words
INSTEAD = {
    "catalogue.url": "give the whole URL in TESSERA_CATALOGUE_URL instead",
    "mlflow_url": "give the URL without it, and the account in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
    "or, where the URL is a PostgreSQL's, the password in PGPASSWORD",
    "MLFLOW_TRACKING_URI": "give the URL without it, and the account in MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD",
    "base_url": "give the URL without it, and the key in OPENAI_API_KEY",
    "api_key_env": "put the key into an environment variable, and give the variable's name, such as OPENAI_API_KEY",
    "endpoint": "give the URL without it, and the token in TESSERA_KFP_TOKEN",
}  # fmt: skip


def holds_secret(text: str) -> bool:
    """Whether a text is a URL with a password, with an account of a web server, or with a key among its parameters."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        return False
    account = _WEB if scheme.lower().endswith(("http", "https")) else _USER
    return bool(account.search(text) or _QUERY.search(unquote(text)))


def refuse(name: str, value: str) -> None:
    """Refuse a setting or flag whose value holds a secret; the message says where it belongs, and not what it is.

    Raises:
        InputError: it does.
    """
    name = name.replace("-", "_")
    of_variable = name.endswith("api_key_env")
    if not (holds_secret(value) or (of_variable and not re.fullmatch(r"[A-Za-z_]\w*", value))):
        return
    instead = next((said for end, said in INSTEAD.items() if name.endswith(end)), "leave it out")
    what = "is not the name of a variable, and may be the key itself" if of_variable else "holds a password or a key"
    raise InputError(f"{name} {what}, and settings are written to files, pages and MLflow; {instead}.")


def refuse_in(settings: Any, above: str = "") -> None:
    """Refuse settings, a tree of dataclasses, of which a text holds a secret.

    Raises:
        InputError: one does.
    """
    for field in fields(settings):
        value, name = getattr(settings, field.name), f"{above}{field.name}"
        if is_dataclass(value):
            refuse_in(value, f"{name}.")
            continue
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                refuse(name, text)


def public(url: str) -> str:
    """A URL without its secrets, for messages."""
    shown = _QUERY.sub(r"\1=***", url)
    return _WEB.sub("***@", shown) if url.lower().startswith("http") else _USER.sub(r"\1:***@", shown)


def hidden(text: str) -> str:
    """A text without the secrets that the environment holds, as they are and as URLs write them."""
    for secret in sorted({form for one in _environment() for form in _written(one)}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _VARIABLE.search(name) or name == "TESSERA_NOTIFY_URL":
            yield value
        yield from (found[-1] for found in _QUERY.findall(value))
        yield from (found[-1] for found in _USER.findall(value))


def _written(secret: str) -> set[str]:
    plain = unquote(secret)
    forms = {secret, plain, quote(plain), quote(plain, safe=""), quote_plus(plain)}
    return {form for form in forms if len(form) >= SHORTEST}
