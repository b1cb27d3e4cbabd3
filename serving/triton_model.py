"""Triton's Python backend model: what `model.py` of every release in the model repository runs.

`execute` only queues: Triton's thread hands requests over and is free again, threads of this process decode them in
batches and send each its response.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as triton  # part of Triton's Python backend, not installable

from serving.answering import Answerer, Arrays, Refusal, is_probe
from serving.background import in_background
from serving.metrics import Counters
from serving.model_config import INPUTS
from serving.model_repository import Release, check_index, read_release
from serving.queueing import BATCH, INTERACTIVE, PROBE, Dispatcher
from serving.user_history import FEATURE_SERVER, UserHistories
from tessera.decoding.recommender import Recommender

log = logging.getLogger(__name__)
CPU_BATCH = 16
"""Rows decoded together on a core: more only take longer, and who comes next waits for them."""

# Names, because Triton completes its module only after it has imported this one.
_CODES = {"invalid": "INVALID_ARG", "missing": "NOT_FOUND", "unavailable": "UNAVAILABLE", "internal": "INTERNAL"}


class TritonPythonModel:
    """Loads the policy bundle beside `model.py`; not ready before it has decoded once."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up; an error here makes Triton refuse the release and keep the one before."""
        parameters = _parameters(args["model_config"])
        threads = int(parameters["threads"]) or int(os.environ.get("OMP_NUM_THREADS", 1))
        torch.set_num_threads(threads)
        release = read_release(Path(args["model_repository"]) / args["model_version"])
        recommender = in_background(lambda: _load(release, int(parameters["prefix_cache_mb"])))
        feature_server = os.environ.get(FEATURE_SERVER, parameters["feature_server"])
        answerer = Answerer(recommender, UserHistories(feature_server), release.index_version)
        self._dispatcher = Dispatcher(
            answerer,
            int(parameters["max_batch"]),
            int(parameters["max_queue"]),
            int(parameters["workers"]) or _default_workers(threads),
            0 if torch.cuda.is_available() else CPU_BATCH,
            partial(torch.set_num_threads, threads),  # which counts for the calling thread alone
        )
        self._counters = _counters(release.number, recommender.statistics, self._dispatcher.statistics)

    def execute(self, requests: list[Any]) -> None:
        """Queue requests; each gets its own response, an error where it is malformed, too many or too late."""
        for request in requests:
            reply = _reply_to(request)
            try:
                self._dispatcher.submit(partial(_inputs, request), reply, _priority(request), request.timeout() / 1e6)
            except Exception as error:  # a request without a reply would never end
                log.exception("a request could not be read")
                reply(Refusal(f"the request cannot be read ({type(error).__name__}); check its inputs."))

    def finalize(self) -> None:
        """Another release has taken over and the last response is sent, or the server ends."""
        self._dispatcher.close()
        if self._counters is not None:
            self._counters.close()


def _load(release: Release, prefix_cache_mb: int) -> Recommender:
    """The release's policy, warmed up: the first decodes pay for allocations, and readiness waits for them."""
    check_index(release)
    recommender = Recommender.load(release.policy, release.sids, prefix_cache_mb)
    items, k = recommender.item_ids, min(10, len(recommender.item_ids))
    for batch in (1, 2, 4, 8, 16):
        recommender.recommend([items[: recommender.max_history]] * batch, k, exclude_history=False)
    return recommender


def _parameters(model_config: str) -> dict[str, str]:
    return {name: value["string_value"] for name, value in json.loads(model_config)["parameters"].items()}


def _counters(release: int, *statistics: Any) -> Counters | None:
    try:
        return Counters(triton, release, *statistics)
    except triton.TritonModelException:  # a server without a metrics endpoint
        return None


def _default_workers(threads: int) -> int:
    """One on a GPU; else as many as this process has cores for, up to four: they share one interpreter."""
    return 1 if torch.cuda.is_available() else max(1, min(4, len(os.sched_getaffinity(0)) // threads))


def _priority(request: Any) -> int:
    """That of a health check, else from the parameter `traffic`; Triton keeps its own, `priority`, to itself."""
    if is_probe(_inputs(request, ("probe", "k"))):
        return PROBE
    sent = request.parameters()
    return BATCH if sent and json.loads(sent).get("traffic") == "batch" else INTERACTIVE


def _inputs(request: Any, names: Iterable[str] = INPUTS) -> dict[str, np.ndarray]:
    tensors = ((name, triton.get_input_tensor_by_name(request, name)) for name in names)
    return {name: tensor.as_numpy() for name, tensor in tensors if tensor is not None}


def _reply_to(request: Any) -> Callable[[Arrays | Refusal], None]:
    sender = request.get_response_sender()

    def reply(answer: Arrays | Refusal) -> None:
        sender.send(_response(answer), flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    return reply


def _response(answer: Arrays | Refusal) -> Any:
    if isinstance(answer, Refusal):
        code = getattr(triton.TritonError, _CODES[answer.kind])
        return triton.InferenceResponse(error=triton.TritonError(answer.message, code))
    return triton.InferenceResponse([triton.Tensor(name, array) for name, array in answer.items()])
