"""What goes wrong with captions: boilerplate, refusals, loops, and one caption for many items."""

import re
from typing import Any

import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    column_condition_partial,
)

from validation.expectations.base import STOP_WORDS, RowExpectation, per_row, word_set, words

# Words that say nothing about which product is seen. A caption of these alone is boilerplate.
GENERIC_WORDS = STOP_WORDS | word_set(
    """
    image images photo photos photograph picture product products item items object objects thing things shown showing
    shows show displayed displays display depicts depicting featuring features seen visible there here background white
    plain simple front view close up closeup studio shot single one some e commerce online listing catalog catalogue
    good nice great beautiful quality high
    """
)

# A model that talks of itself or of a missing photo. "can't" alone is no refusal: "you can't go wrong with it".
_REFUSAL = re.compile(
    r"""\b(i(\s+am|['’]m)\s+(sorry|unable|not\s+able)|i\s+(cannot|can\s*not|can['’]t|won['’]t|do\s+not|don['’]t)\s+
        (see|view|assist|help|provide|describe|identify|process|access|analy[sz]e|determine|have)|
        as\s+an?\s+(ai|artificial\s+intelligence|(large\s+)?language\s+model|assistant)|
        (unable|not\s+able)\s+to\s+(see|view|process|access|describe|analy[sz]e)\s+(the|this|your|any)|
        no\s+(image|photo|picture)\s+(was|is|has\s+been)?\s*(provided|attached|uploaded|found)|
        please\s+(provide|upload|share|attach)\s+(an?|the|your)\b)""",
    re.IGNORECASE | re.VERBOSE,
)


def is_boilerplate(caption: str) -> bool:
    """Whether no word is left that could tell this product from another."""
    found = words(caption)
    return bool(found) and all(word in GENERIC_WORDS for word in found)


def is_refusal(caption: str) -> bool:
    """Whether the model speaks of itself or asks for the photo instead of describing it."""
    return _REFUSAL.search(caption) is not None


def is_loop(caption: str, min_distinct: float) -> bool:
    """Whether a caption of 20 words or more says the same few words again and again."""
    found = words(caption)
    return len(found) >= 20 and len(set(found)) / len(found) < min_distinct


class _NotBoilerplate(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_not_boilerplate"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return per_row(column, lambda caption: not is_boilerplate(str(caption)))


class ExpectCaptionNotToBeBoilerplate(RowExpectation):
    """A caption says more than "an image of a product on a white background"."""

    map_metric = "column_values.tessera_not_boilerplate"


class _NotRefusal(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_not_refusal"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return per_row(column, lambda caption: not is_refusal(str(caption)))


class ExpectCaptionNotToBeRefusal(RowExpectation):
    """A caption is not "I cannot see the image" or "As an AI language model"."""

    map_metric = "column_values.tessera_not_refusal"


class _NotLoop(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_not_loop"
    condition_value_keys = ("min_distinct",)

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, min_distinct: float, **_: Any) -> pd.Series:
        return per_row(column, lambda caption: not is_loop(str(caption), min_distinct))


class ExpectCaptionNotToLoop(RowExpectation):
    """A long caption does not repeat itself: at least `min_distinct` of its words are distinct."""

    map_metric = "column_values.tessera_not_loop"
    success_keys = ("mostly", "min_distinct")
    min_distinct: float = 0.3


class _Distinct(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_distinct_text"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return ~column.map(lambda text: " ".join(words(str(text)))).duplicated(keep="first")


class ExpectCaptionsToBeDistinct(RowExpectation):
    """At least `mostly` of the captions are not a repetition of an earlier row's, case and punctuation aside."""

    map_metric = "column_values.tessera_distinct_text"
