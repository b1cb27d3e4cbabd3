"""Strict reading of model answers. What does not fit is refused with a reason that can be told to the model.

Each parser tries the text as it is, then once more after mechanical repair (code fences, text around the first JSON
object, trailing commas). Asking the model again is the caller's part (`providers.prompted`).
"""

import json
import re
from dataclasses import dataclass
from typing import Any

MAX_DESCRIPTORS = 8
MAX_LIST = 12
MIN_TEXT, MAX_TEXT = 2, 80
MIN_CAPTION, MAX_CAPTION = 15, 900
MIN_REWRITE, MAX_REWRITE = 5, 900
# What constrained decoding may choose from: grammars know no bounds of fractions, and models none finer than this.
CONFIDENCES = [step / 20 for step in range(1, 21)]

_FENCE = re.compile(r"```[a-zA-Z]*\s*|```")
_TRAILING_COMMA = re.compile(r",(\s*[\]}])")
_LABEL = re.compile(r"^(photo |product |image )?(caption|description)\s*:\s*", re.IGNORECASE)
_REWRITE_LABEL = re.compile(r"^(product )?(summary|paraphrase|reworded( text)?)\s*:\s*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very |so )?sorry|sorry\b|i (can(no|['’])t|am (unable|not able)|won['’]?t)|"
    r"as an? (ai|language model)|unfortunately, i\b|i do ?n['’]?o?t have (access|the ability)|"
    r"there is no (image|photo) )",
    re.IGNORECASE,
)


class ParseError(ValueError):
    """The answer cannot be used; the message says why, in words a model can act on."""


@dataclass(frozen=True)
class Descriptor:
    """A tag of two to six words; confidence in [0, 1], None if the model gave none."""

    text: str
    confidence: float | None = None


@dataclass(frozen=True)
class Intents:
    """The three steps of intent mining (DCIM): surface attributes, motives, descriptors."""

    surface: tuple[str, ...]
    motives: tuple[str, ...]
    descriptors: tuple[Descriptor, ...]


def parse_caption(raw: str) -> str:
    """A caption as one line of plain text.

    Raises:
        ParseError: empty, too short or long, or a refusal.
    """
    text = _squeeze(_FENCE.sub("", raw))
    text = _LABEL.sub("", text).strip("\"“” ")
    if _REFUSAL.match(text):
        raise ParseError(f"refused: {text[:80]!r}")
    if not MIN_CAPTION <= len(text) <= MAX_CAPTION:
        raise ParseError(f"the caption has {len(text)} characters, expected {MIN_CAPTION} to {MAX_CAPTION}")
    return text


def parse_rewrite(raw: str) -> str:
    """A summary or paraphrase as one line of plain text.

    Raises:
        ParseError: empty, too short or long, or a refusal.
    """
    text = _REWRITE_LABEL.sub("", _squeeze(_FENCE.sub("", raw))).strip("\"“” ")
    if _REFUSAL.match(text):
        raise ParseError(f"refused: {text[:80]!r}")
    if not MIN_REWRITE <= len(text) <= MAX_REWRITE:
        raise ParseError(f"the text has {len(text)} characters, expected {MIN_REWRITE} to {MAX_REWRITE}")
    return text


def parse_intents(raw: str) -> Intents:
    """The three lists of the intents prompt; duplicate descriptors (ignoring case) are merged into the first.

    Raises:
        ParseError: not such a JSON object, a wrong type, an empty or overlong list, or a confidence outside [0, 1].
    """
    value = _json_object(raw)
    surface = _texts(value, "surface", least=0)
    motives = _texts(value, "motives", least=1)
    entries = _list(value, "descriptors", least=1, most=MAX_DESCRIPTORS)
    merged: dict[str, Descriptor] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise ParseError('each of "descriptors" must be an object with "text" and "confidence"')
        text = _text(entry.get("text"), 'the "text" of a descriptor')
        merged.setdefault(text.casefold(), Descriptor(text, _confidence(entry.get("confidence"))))
    return Intents(surface, motives, tuple(merged.values()))


def parse_labels(raw: str, count: int) -> list[int]:
    """The labels of `count` descriptors, each 0 or 1.

    Raises:
        ParseError: not {"labels": [...]} with exactly `count` zeros and ones.
    """
    labels = _list(_json_object(raw), "labels", least=1, most=10_000)
    if any(isinstance(label, bool) or label not in (0, 1) or not isinstance(label, int) for label in labels):
        raise ParseError('each of "labels" must be 0 or 1')
    if len(labels) != count:
        raise ParseError(f'"labels" has {len(labels)} entries for {count} tags')
    return list(labels)


def intents_schema() -> dict[str, Any]:
    """JSON Schema of the intents answer, for endpoints that constrain decoding."""
    text = {"type": "string", "minLength": MIN_TEXT, "maxLength": MAX_TEXT}
    tag = {
        "type": "object",
        "properties": {"text": text, "confidence": {"enum": CONFIDENCES}},
        "required": ["text", "confidence"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "surface": {"type": "array", "items": text, "minItems": 1, "maxItems": 8},
            "motives": {"type": "array", "items": text, "minItems": 1, "maxItems": 5},
            "descriptors": {"type": "array", "items": tag, "minItems": 1, "maxItems": 6},
        },
        "required": ["surface", "motives", "descriptors"],
        "additionalProperties": False,
    }


def labels_schema(count: int) -> dict[str, Any]:
    """JSON Schema of the quality answer for `count` descriptors."""
    labels = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": {"labels": labels}, "required": ["labels"], "additionalProperties": False}


def _json_object(raw: str) -> dict[str, Any]:
    """The answer as a JSON object, after at most one mechanical repair."""
    if not raw.strip():
        raise ParseError("the answer is empty")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nesting without end
        if _REFUSAL.match(raw):
            raise ParseError(f"refused: {_squeeze(raw)[:80]!r}") from None
        value = _repaired(raw)
    if not isinstance(value, dict):
        raise ParseError("the answer is not a JSON object")
    return value


def _repaired(raw: str) -> Any:
    text = _TRAILING_COMMA.sub(r"\1", _FENCE.sub("", raw))
    start = text.find("{")
    if start < 0:
        raise ParseError("the answer holds no JSON object")
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except json.JSONDecodeError as error:
        raise ParseError(f"the answer is not valid JSON ({error.msg} at character {error.pos})") from None
    except ValueError:
        raise ParseError("the answer holds a number of too many digits") from None
    except RecursionError:
        raise ParseError("the answer is nested too deeply") from None


def _list(value: dict[str, Any], key: str, least: int, most: int) -> list[Any]:
    entries = value.get(key)
    if not isinstance(entries, list):
        raise ParseError(f'"{key}" must be a list')
    if not least <= len(entries) <= most:
        raise ParseError(f'"{key}" has {len(entries)} entries, expected {least} to {most}')
    return entries


def _texts(value: dict[str, Any], key: str, least: int) -> tuple[str, ...]:
    merged: dict[str, str] = {}
    for entry in _list(value, key, least, MAX_LIST):
        text = _text(entry, f'each of "{key}"', most=200)
        merged.setdefault(text.casefold(), text)
    return tuple(merged.values())


def _text(value: Any, what: str, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise ParseError(f"{what} must be a string")
    text = _squeeze(value)
    if not MIN_TEXT <= len(text) <= most:
        raise ParseError(f"{what} has {len(text)} characters, expected {MIN_TEXT} to {most}")
    return text


def _confidence(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN is not either
        raise ParseError(f"confidence must be a number between 0 and 1, not {repr(value)[:40]}")
    return float(value)


def _squeeze(text: str) -> str:
    """One line without control characters or lone surrogates, which neither SQL nor parquet would store."""
    text = text.encode("utf-8", "ignore").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
