"""What the custom Expectations share: readable examples, and the word lists' small text helpers."""

import re
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from great_expectations.expectations.expectation import (
    ColumnMapExpectation,
    ColumnPairMapExpectation,
    MulticolumnMapExpectation,
)

_LONGEST = 160


class Readable:
    """Mixin before GX's map Expectations: shows unexpected values as short text, not as 384 numbers or raw structs."""

    def _validate(self, metrics: dict, runtime_configuration: Any = None, execution_engine: Any = None) -> Any:
        shown = {name: _shown(value) if name.endswith(_LISTS) else value for name, value in metrics.items()}
        return super()._validate(shown, runtime_configuration, execution_engine)  # type: ignore[misc]


class RowExpectation(Readable, ColumnMapExpectation):
    """A yes or no about each value of one column; nulls are left out."""


class PairExpectation(Readable, ColumnPairMapExpectation):
    """A yes or no about each row of two columns; nulls are looked at too."""

    # The base leaves ignore_row_if out, and then ignores a default given here.
    domain_keys: ClassVar[tuple[str, ...]] = (*ColumnPairMapExpectation.domain_keys, "ignore_row_if")  # type: ignore[assignment]
    ignore_row_if: str = "neither"


class ManyExpectation(Readable, MulticolumnMapExpectation):
    """A yes or no about each row of several columns; nulls are looked at too."""

    ignore_row_if: Literal["all_values_are_missing", "any_value_is_missing", "never"] = "never"


_LISTS = (".unexpected_values", ".unexpected_index_list")


def _shown(values: Any) -> Any:
    return None if values is None else [_shown_row(value) for value in values]


def _shown_row(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: describe(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(describe(part) for part in value)
    return describe(value)


def describe(value: Any) -> Any:
    """A table's value for a person: vectors by size and norm, codes as a SID, descriptors with their confidence."""
    if isinstance(value, list | np.ndarray):
        return _describe_list(np.asarray(value, dtype=object) if isinstance(value, list) else value)
    if isinstance(value, str) and len(value) > _LONGEST:
        return value[: _LONGEST - 1] + "…"
    return value.item() if isinstance(value, np.generic) else value


def _describe_list(values: np.ndarray) -> str:
    if values.dtype.kind == "f":
        return f"{len(values)} numbers, norm {np.linalg.norm(values):.4g}"
    if values.dtype.kind in "iu":
        return "[" + ", ".join(map(str, values)) + "]"
    return describe("; ".join(_describe_part(part) for part in values) or "(empty list)")


def _describe_part(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    confidence = part.get("confidence")
    return f"{part.get('text')!r}" + ("" if confidence is None else f" ({confidence:.2f})")


def per_row(column: pd.Series, test: Any) -> pd.Series:
    """`test` of each value as a boolean column, also for a table without rows."""
    return pd.Series([bool(test(value)) for value in column], index=column.index, dtype=bool)


_WORD = re.compile(r"[^\W_]+", re.UNICODE)


def words(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation."""
    return _WORD.findall(text.casefold())


def word_set(text: str) -> frozenset[str]:
    """A list of words, written as running text."""
    return frozenset(words(text))


STOP_WORDS = word_set(
    "a an and are as at be by for from has have in into is it its of on or that the their this to was with you your"
)


def content_words(text: str) -> set[str]:
    """Words that carry meaning, with the commonest English endings off so that "hiking" meets "hikes"."""
    return {_stem(word) for word in words(text) if word not in STOP_WORDS and len(word) > 1}


def _stem(word: str) -> str:
    for ending in ("ings", "ing", "ies", "ers", "er", "ed", "es", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
