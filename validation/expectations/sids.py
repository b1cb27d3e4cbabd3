"""What goes wrong with semantic IDs: codes out of range, a SID that is not its codes, a collapsed codebook."""

from typing import Any

import numpy as np
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnAggregateExpectation
from great_expectations.expectations.metrics.column_aggregate_metric_provider import (
    ColumnAggregateMetricProvider,
    column_aggregate_value,
)
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    ColumnPairMapMetricProvider,
    column_condition_partial,
    column_pair_condition_partial,
)

from validation.expectations.base import PairExpectation, RowExpectation, per_row


def utilisation(codes: list[np.ndarray], codebook_size: int | None = None) -> list[float]:
    """Per level, distinct codes used over the codes that the items could need there, at most 1.

    That is min(codebook size, items that share their prefix so far): at level 1 all items; further down, an item that
    is alone already has nothing left to be told from, as in a catalogue smaller than its codebook. Without a size, the
    largest code seen anywhere stands for it (codebooks of the levels are equally large).
    """
    if not codes:
        return []
    levels = min(len(row) for row in codes)
    matrix = np.stack([np.asarray(row[:levels]) for row in codes])
    size = codebook_size or int(matrix.max(initial=0)) + 1
    shares = []
    for level in range(levels):
        _, group, count = np.unique(matrix[:, :level], axis=0, return_inverse=True, return_counts=True)
        together = int((count[group.ravel()] > 1).sum()) if level else len(matrix)
        used = len(np.unique(matrix[:, level]))
        shares.append(round(min(1.0, used / max(1, min(size, together))), 4))
    return shares


class _CodesInRange(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_codes_in_range"
    condition_value_keys = ("codebook_size",)

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, codebook_size: int, **_: Any) -> pd.Series:
        return per_row(column, lambda codes: len(codes) > 0 and min(codes) >= 0 and max(codes) < codebook_size)


class ExpectCodesToBeInRange(RowExpectation):
    """Every code of an item is at least 0 and below `codebook_size`."""

    map_metric = "column_values.tessera_codes_in_range"
    success_keys = ("mostly", "codebook_size")
    codebook_size: int


class _OneDepth(ColumnMapMetricProvider):
    condition_metric_name = "column_values.tessera_one_depth"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:
        lengths = column.map(len)
        return lengths == lengths.mode().iloc[0] if len(lengths) else lengths == lengths


class ExpectSidsToHaveOneDepth(RowExpectation):
    """All items have as many codes as most of them: SIDs of different depth cannot share an index."""

    map_metric = "column_values.tessera_one_depth"


class _SidIsCodes(ColumnPairMapMetricProvider):
    condition_metric_name = "column_pair_values.tessera_sid_is_codes"

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, **_: Any) -> pd.Series:
        return column_A == column_B.map(lambda codes: "_".join(map(str, codes)))


class ExpectSidToEqualCodes(PairExpectation):
    """The SID in `column_A` is the codes in `column_B`, joined by "_"."""

    map_metric = "column_pair_values.tessera_sid_is_codes"


class _Utilisation(ColumnAggregateMetricProvider):
    metric_name = "column.tessera_utilisation"
    value_keys = ("codebook_size",)

    @column_aggregate_value(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, codebook_size: int | None, **_: Any) -> list[float]:
        return utilisation(list(column.dropna()), codebook_size)


class ExpectLevelsToBeUtilised(ColumnAggregateExpectation):
    """At every level, the items use at least `min_utilisation` of the codes that they could."""

    metric_dependencies = ("column.tessera_utilisation",)
    success_keys = ("min_utilisation", "codebook_size")
    min_utilisation: float = 0.1
    codebook_size: int | None = None

    def _validate(self, metrics: dict, *_: Any, **__: Any) -> Any:
        levels = metrics["column.tessera_utilisation"]
        observed = ", ".join(f"level {number}: {share:.1%}" for number, share in enumerate(levels, start=1))
        success = all(share >= self.min_utilisation for share in levels)
        return {"success": success, "result": {"observed_value": observed}}
