"""Triton's Python backend model: what `model.py` of every release in the model repository runs.

Triton's dynamic batcher hands `execute` the requests of a batch; their histories have any lengths (the inputs are
declared ragged), and all are decoded together.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as triton  # part of Triton's Python backend, not installable

from serving.answering import Answerer, Arrays, Refusal
from serving.user_history import FEATURE_SERVER, UserHistories
from tessera.decoding.recommender import Recommender

INPUTS = ("history", "history_ids", "user_id", "k", "exclude", "allow", "include_history")
# Names, because Triton completes its module only after it has imported this one.
_CODES = {"invalid": "INVALID_ARG", "missing": "NOT_FOUND", "unavailable": "UNAVAILABLE", "internal": "INTERNAL"}


class TritonPythonModel:
    """Loads the policy bundle beside `model.py`; not ready before it has decoded once."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up; an error here makes Triton refuse the release and keep the one before."""
        parameters = _parameters(args["model_config"])
        if threads := int(parameters["threads"]) or _default_threads():
            torch.set_num_threads(threads)
        folder = Path(args["model_repository"]) / args["model_version"] / "policy"
        recommender = Recommender.load(folder)
        # The first decodes pay for allocations and thread pools; readiness waits for them.
        some, k = recommender.item_ids[:8], min(10, len(recommender.item_ids))
        for batch in (1, len(some)):
            recommender.recommend([[item] for item in some[:batch]], k, exclude_history=False)
        feature_server = os.environ.get(FEATURE_SERVER, parameters["feature_server"])
        self._answerer = Answerer(recommender, UserHistories(feature_server))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch; each request gets its own response, an error where it is malformed."""
        return [_response(answer) for answer in self._answerer.answer([_inputs(request) for request in requests])]


def _parameters(model_config: str) -> dict[str, str]:
    return {name: value["string_value"] for name, value in json.loads(model_config)["parameters"].items()}


def _default_threads() -> int:
    """Up to four of the cores this process may use: a beam is too small for more. OMP_NUM_THREADS has the last word."""
    return 0 if "OMP_NUM_THREADS" in os.environ else min(4, len(os.sched_getaffinity(0)))


def _inputs(request: Any) -> dict[str, np.ndarray]:
    tensors = ((name, triton.get_input_tensor_by_name(request, name)) for name in INPUTS)
    return {name: tensor.as_numpy() for name, tensor in tensors if tensor is not None}


def _response(answer: Arrays | Refusal) -> Any:
    if isinstance(answer, Refusal):
        code = getattr(triton.TritonError, _CODES[answer.kind])
        return triton.InferenceResponse(error=triton.TritonError(answer.message, code))
    return triton.InferenceResponse([triton.Tensor(name, array) for name, array in answer.items()])
