"""Checks of the catalogue: photos, the order of interactions, and a split that does not leak."""

from typing import Any

import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnPairMapMetricProvider,
    MulticolumnMapMetricProvider,
    column_pair_condition_partial,
    multicolumn_condition_partial,
)

from validation.expectations.base import ManyExpectation, PairExpectation


class _PhotoFits(ColumnPairMapMetricProvider):
    condition_metric_name = "column_pair_values.tessera_photo_fits"

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, **_: Any) -> pd.Series:
        return (column_A == "ok") == column_B.notna()


class ExpectPhotoToFitStatus(PairExpectation):
    """An item has a photo path (`column_B`) exactly when its photo status (`column_A`) is "ok"."""

    map_metric = "column_pair_values.tessera_photo_fits"


class _InOrder(MulticolumnMapMetricProvider):
    condition_metric_name = "multicolumn_values.tessera_in_order"

    @multicolumn_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_list: pd.DataFrame, **_: Any) -> pd.Series:
        user, timestamp, position = (column_list[name] for name in column_list.columns)
        before = column_list.shift(1)
        user_0, timestamp_0, position_0 = (before[name] for name in before.columns)
        same = user == user_0
        later = (timestamp > timestamp_0) | ((timestamp == timestamp_0) & (position > position_0))
        return user_0.isna() | (same & later) | (user > user_0.fillna(""))


class ExpectInteractionsToBeInOrder(ManyExpectation):
    """Rows are sorted by user, and a user's by time, then position; `column_list` is user, timestamp, position."""

    map_metric = "multicolumn_values.tessera_in_order"


def leaves_last_out(train: Any, validation: Any, test: Any, history: Any) -> bool:
    """Whether train, validation and test, in this order, are the user's whole history in time order.

    Users with three interactions or more give one to validation and one to test; the others only train.
    """
    held_out = [item for item in (validation, test) if not pd.isna(item)]
    if not hasattr(history, "__len__") or len(held_out) != (2 if len(history) >= 3 else 0):
        return False
    return [*train, *held_out] == list(history)


class _LeavesLastOut(MulticolumnMapMetricProvider):
    condition_metric_name = "multicolumn_values.tessera_leaves_last_out"

    @multicolumn_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_list: pd.DataFrame, **_: Any) -> pd.Series:
        columns = (column_list[name] for name in column_list.columns)
        good = [leaves_last_out(*row) for row in zip(*columns, strict=True)]
        return pd.Series(good, index=column_list.index, dtype=bool)


class ExpectSplitToLeaveLastOut(ManyExpectation):
    """The last purchase is the test item, the one before it validation, the rest train: nothing leaks, nothing is lost.

    `column_list` is train, validation, test, history.
    """

    map_metric = "multicolumn_values.tessera_leaves_last_out"
