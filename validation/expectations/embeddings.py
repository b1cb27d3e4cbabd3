"""What goes wrong with embeddings: NaN, vectors that are not normalised, mixed encoders, one vector for many items."""

from typing import Any

import numpy as np
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    column_condition_partial,
)

from validation.expectations.base import RowExpectation


def _reduced(column: pd.Series, reduce: Any) -> np.ndarray:
    """`reduce` of each vector -> [n]. Vectors may differ in length: those of one length are done together."""
    out = np.zeros(len(column))
    lengths = column.map(len).to_numpy(dtype=int)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        out[rows] = reduce(np.stack(list(column.iloc[rows])).astype(np.float64)) if length else 0.0
    return out


class _Finite(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_finite"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        finite = _reduced(column, lambda block: np.isfinite(block).all(axis=1))
        return pd.Series(finite.astype(bool), index=column.index)


class ExpectEmbeddingToBeFinite(RowExpectation):
    """A vector has at least one number, and no NaN and no infinity."""

    map_metric = "column_values.tessera_finite"


class _UnitNorm(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_unit_norm"
    condition_value_keys = ("tolerance",)

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, tolerance: float, **_: Any) -> pd.Series:
        norms = _reduced(column, lambda block: np.linalg.norm(block, axis=1))
        return pd.Series(np.abs(norms - 1) <= tolerance, index=column.index)


class ExpectEmbeddingToHaveUnitNorm(RowExpectation):
    """A vector's Euclidean norm is 1 within `tolerance`; a vector of zeros is what a failed encoder leaves."""

    map_metric = "column_values.tessera_unit_norm"
    success_keys = ("mostly", "tolerance")
    tolerance: float = 0.01


class _OneDimension(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_one_dimension"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        lengths = column.map(len)
        return lengths == lengths.mode().iloc[0] if len(lengths) else lengths == lengths


class ExpectEmbeddingsToHaveOneDimension(RowExpectation):
    """All vectors have the most frequent length; another one comes from another encoder."""

    map_metric = "column_values.tessera_one_dimension"


class _DistinctVectors(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_distinct_vectors"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        raw = column.map(lambda vector: np.asarray(vector, dtype=np.float32).tobytes())
        return ~raw.duplicated(keep="first")


class ExpectEmbeddingsToBeDistinct(RowExpectation):
    """At least `mostly` of the vectors are not bit for bit an earlier item's."""

    map_metric = "column_values.tessera_distinct_vectors"
