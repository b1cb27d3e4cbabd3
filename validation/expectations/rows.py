"""Checks that every item table shares: coverage of the catalogue, failed rows, one value throughout."""

from typing import Any

import numpy as np
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    ColumnPairMapMetricProvider,
    column_condition_partial,
    column_pair_condition_partial,
)

from validation.expectations.base import PairExpectation, RowExpectation, per_row


class _OneRow(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_one_row"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return column == 1


class ExpectItemToHaveOneRow(RowExpectation):
    """Every item of the catalogue has exactly one row in the table that `column` counts."""

    map_metric = "column_values.tessera_one_row"


class _InCatalogue(ColumnPairMapMetricProvider):
    condition_metric_name = "column_pair_values.tessera_in_catalogue"

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, **_: Any) -> pd.Series:  # noqa: ARG002
        return column_B.astype(bool)


class ExpectItemToBeInCatalogue(PairExpectation):
    """The item id in `column_A` is one of the catalogue's; `column_B` says so."""

    map_metric = "column_pair_values.tessera_in_catalogue"


class _Succeeded(ColumnPairMapMetricProvider):
    condition_metric_name = "column_pair_values.tessera_succeeded"

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, **_: Any) -> pd.Series:  # noqa: ARG002
        return column_A == "ok"


class ExpectEnrichmentToHaveSucceeded(PairExpectation):
    """At least `mostly` of the rows have status "ok" (`column_A`); others are shown with their reason (`column_B`)."""

    map_metric = "column_pair_values.tessera_succeeded"


class _Text(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_not_blank"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return per_row(column, lambda text: any(character.isalnum() for character in str(text)))


class ExpectTextNotToBeBlank(RowExpectation):
    """A text has at least one letter or digit: not empty, not white space, not punctuation alone."""

    map_metric = "column_values.tessera_not_blank"


class _Agree(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_agree"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return column == column.mode().iloc[0] if len(column) else column == column


class ExpectColumnValuesToAgree(RowExpectation):
    """All rows hold the same value; those that differ from the most frequent one are unexpected."""

    map_metric = "column_values.tessera_agree"


class _Lists(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_lists"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        return per_row(column, lambda value: isinstance(value, np.ndarray | list))


class ExpectColumnValuesToBeLists(RowExpectation):
    """A column holds lists; the stock type checks know scalars only."""

    map_metric = "column_values.tessera_lists"
