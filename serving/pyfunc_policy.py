"""`sid-policy` as an MLflow model: purchase histories in, recommended items out.

MLflow copies this file into the model and runs it when the model is loaded ("models from code"), so nothing is pickled;
the weights come from the policy bundle that lies beside it as an artefact.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

CODE = Path(__file__).with_name("code") / "tessera.zip"
if CODE.exists():  # in a registered model, which brings the package along
    sys.path.insert(0, str(CODE))

from tessera.errors import InputError  # noqa: E402


class PolicyModel(PythonModel):
    """Recommends with the constrained beam search over the catalogue of the bundle."""

    def load_context(self, context: Any) -> None:
        """Load the bundle; raises BundleError if it is damaged."""
        from tessera.decoding.recommender import Recommender

        self.recommender = Recommender.load(context.artifacts["bundle"])

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Recommend for every row.

        Args:
            model_input: column `history`, item ids in time order, each a list of strings or one string with commas.
            params: `k`, items to return for each row (10), and `exclude_history`, leave out what was bought (True).

        Returns:
            A frame with the index of `model_input` and the list columns item_ids, sids and scores (best first).

        Raises:
            InputError: the column is missing, a history has no known item, or k is not between 1 and the catalogue.
        """
        if "history" not in getattr(model_input, "columns", ()):
            raise InputError("the input has no column 'history'; give one with a list of item ids in each row.")
        options = params or {}
        answers = self.recommender.recommend(
            [_item_ids(history) for history in model_input["history"]],
            int(options.get("k", 10)),
            exclude_history=bool(options.get("exclude_history", True)),
        )
        return pd.DataFrame(
            {
                "item_ids": [[one.item_id for one in answer] for answer in answers],
                "sids": [[one.sid for one in answer] for answer in answers],
                "scores": [[float(one.score) for one in answer] for answer in answers],
            },
            index=model_input.index,
        )


def _item_ids(history: Any) -> list[str]:
    if isinstance(history, str):
        return [item for item in (part.strip() for part in history.split(",")) if item]
    if history is None or isinstance(history, float):  # a missing cell of a frame is NaN
        return []
    return [str(item) for item in history]


set_model(PolicyModel())
