"""What goes wrong with mined intents (DCIM): broken structure, vague descriptors, descriptors of another product."""

import re
from collections.abc import Sequence
from numbers import Real
from typing import Any

import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    ColumnPairMapMetricProvider,
    column_condition_partial,
    column_pair_condition_partial,
)

from validation.expectations.base import (
    STOP_WORDS,
    PairExpectation,
    RowExpectation,
    content_words,
    per_row,
    word_set,
    words,
)

# Praise that fits any product: a descriptor of such words alone gives the policy no intent to act on.
VAGUE_WORDS = STOP_WORDS | word_set(
    """
    good great nice excellent amazing awesome best better perfect cool lovely wonderful fantastic top high quality
    value product products item items useful helpful popular recommended worth money price premium very really thing
    things general various misc other
    """
)
# Keys, braces and fences that remain when JSON was cut up rather than parsed.
_DEBRIS = re.compile(r'[{}\[\]]|```|"\s*:|^\s*(text|confidence|descriptors?)\s*["\']?\s*:', re.IGNORECASE)

Descriptors = Sequence[dict[str, Any]]


def is_text(text: object) -> bool:
    """A non-blank string without debris of JSON."""
    return isinstance(text, str) and bool(words(text)) and not _DEBRIS.search(text)


def is_well_formed(descriptors: Descriptors) -> bool:
    """Every descriptor has a usable text, and none comes twice."""
    texts = [part.get("text") if isinstance(part, dict) else None for part in descriptors]
    return all(map(is_text, texts)) and len({str(text).casefold().strip() for text in texts}) == len(texts)


def is_vague(text: str) -> bool:
    """Whether a descriptor fits any product ("good quality", "nice")."""
    return all(word in VAGUE_WORDS for word in words(text))


def grounded_share(descriptors: Descriptors, own_text: str) -> float:
    """Share of the descriptors that use at least one content word of the item's own text; 1 when there are none."""
    own = content_words(own_text)
    hits = [bool(content_words(str(part["text"])) & own) for part in descriptors]
    return sum(hits) / len(hits) if hits else 1.0


class _Texts(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_texts"
    condition_value_keys = ("min_count",)

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, min_count: int, **_: Any) -> pd.Series:
        return per_row(column, lambda texts: len(texts) >= min_count and all(map(is_text, texts)))


class ExpectTextsToBeListed(RowExpectation):
    """A list of at least `min_count` texts, none blank and none debris of badly parsed JSON."""

    map_metric = "column_values.tessera_texts"
    success_keys = ("mostly", "min_count")
    min_count: int = 1


class _WellFormed(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_descriptors_well_formed"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return per_row(column, is_well_formed)


class ExpectDescriptorsToBeWellFormed(RowExpectation):
    """Descriptors as the prompt's JSON asks for: {text, confidence} with a usable text, and no descriptor twice."""

    map_metric = "column_values.tessera_descriptors_well_formed"


class _Count(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_list_length"
    condition_value_keys = ("min_count", "max_count")

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, min_count: int, max_count: int, **_: Any) -> pd.Series:
        return column.map(len).between(min_count, max_count)


class ExpectDescriptorCountToBeBetween(RowExpectation):
    """An item has between `min_count` and `max_count` descriptors."""

    map_metric = "column_values.tessera_list_length"
    success_keys = ("mostly", "min_count", "max_count")
    min_count: int = 1
    max_count: int = 20


def _in_unit_range(confidence: object) -> bool:
    return confidence is None or (isinstance(confidence, Real) and 0 <= float(confidence) <= 1)


class _Confidences(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_confidences"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return per_row(column, lambda parts: all(_in_unit_range(part["confidence"]) for part in parts))


class ExpectConfidencesToBeInRange(RowExpectation):
    """Every descriptor's confidence is absent or in [0, 1]; NaN is neither."""

    map_metric = "column_values.tessera_confidences"


class _NotVague(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_not_vague"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return per_row(column, lambda parts: not any(is_vague(str(part["text"])) for part in parts))


class ExpectDescriptorsNotToBeVague(RowExpectation):
    """At least `mostly` of the rows have no descriptor that fits any product."""

    map_metric = "column_values.tessera_not_vague"


class _Grounded(ColumnPairMapMetricProvider):
    condition_metric_name = "column_pair_values.tessera_grounded"
    condition_value_keys = ("min_share",)

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(
        cls, column_A: pd.Series, column_B: pd.Series, min_share: float, **_: Any
    ) -> pd.Series:
        shares = [grounded_share(parts, str(own)) for parts, own in zip(column_A, column_B, strict=True)]
        return pd.Series(shares, index=column_A.index, dtype=float) >= min_share


class ExpectDescriptorsToBeGrounded(PairExpectation):
    """At least `min_share` of an item's descriptors (`column_A`) use a word of its own text or caption (`column_B`)."""

    map_metric = "column_pair_values.tessera_grounded"
    success_keys = ("mostly", "min_share")
    min_share: float = 0.25

