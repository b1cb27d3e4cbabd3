"""Checks of the quality labels and item scores (QARM)."""

from collections.abc import Sequence
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
    ColumnPairMapMetricProvider,
    MulticolumnMapMetricProvider,
    column_pair_condition_partial,
    multicolumn_condition_partial,
)

from tessera.enrichment.scoring import quality_score
from validation.expectations.base import ManyExpectation, PairExpectation


def expected_score(labels: Sequence[int], descriptors: Sequence[dict[str, Any]]) -> float | None:
    """The score that the labels give; None where labels and descriptors do not fit, another check's finding."""
    if not len(labels) or len(labels) != len(descriptors):
        return None
    return quality_score(list(labels), [part["confidence"] for part in descriptors])


class _LabelsFit(ColumnPairMapMetricProvider):
    condition_metric_name = "column_pair_values.tessera_labels_fit"

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, **_: Any) -> pd.Series:
        fits = [
            len(labels) == len(parts) and bool(np.isin(labels, (0, 1)).all())
            for labels, parts in zip(column_A, column_B, strict=True)
        ]
        return pd.Series(fits, index=column_A.index, dtype=bool)


class ExpectLabelsToFitDescriptors(PairExpectation):
    """One label, 0 or 1, in `column_A` for each of the item's descriptors in `column_B`."""

    map_metric = "column_pair_values.tessera_labels_fit"


class _ScoreIsMean(MulticolumnMapMetricProvider):
    condition_metric_name = "multicolumn_values.tessera_score_is_mean"
    condition_value_keys = ("tolerance",)

    @multicolumn_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_list: pd.DataFrame, tolerance: float, **_: Any) -> pd.Series:
        score, labels, descriptors = (column_list[name] for name in column_list.columns)
        expected = [expected_score(*row) for row in zip(labels, descriptors, strict=True)]
        gap = (score - pd.Series(expected, index=score.index, dtype=float)).abs()
        return ~(gap > tolerance)


class ExpectScoreToBeWeightedMean(ManyExpectation):
    """The item score is the confidence-weighted mean of its labels; `column_list` is score, labels, descriptors."""

    map_metric = "multicolumn_values.tessera_score_is_mean"
    success_keys = ("mostly", "tolerance")
    tolerance: float = 1e-3


class _LabelShare(ColumnAggregateMetricProvider):
    metric_name = "column.tessera_label_share"
    value_keys = ("from_count",)

    @column_aggregate_value(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, from_count: int, **_: Any) -> dict[str, float]:
        labels = np.concatenate([np.zeros(0), *column.dropna()])
        share = float(labels.mean()) if len(labels) >= from_count else 0.5
        return {"share": round(share, 4), "labels": len(labels)}


class ExpectLabelsToBeBalanced(ColumnAggregateExpectation):
    """The share of labels that are 1 lies between `min_share` and `max_share`, once there are `from_count` labels."""

    metric_dependencies = ("column.tessera_label_share",)
    success_keys = ("min_share", "max_share", "from_count")
    min_share: float = 0.1
    max_share: float = 0.9
    from_count: int = 50

    def _validate(self, metrics: dict, *_: Any, **__: Any) -> Any:
        seen = metrics["column.tessera_label_share"]
        judged = seen["labels"] >= self.from_count
        observed = f"{seen['share']:.1%} of {seen['labels']} labels are 1" if judged else f"{seen['labels']} labels"
        success = not judged or self.min_share <= seen["share"] <= self.max_share
        return {"success": success, "result": {"observed_value": observed}}
