"""The engine's and the queue's counters on Triton's Prometheus endpoint, beside Triton's own."""

import logging
import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

from serving.model_config import MODEL

PERIOD_S = 1.0

# Name -> counter of the recommender or the queue, and what it means. Each process of a release (labels "version" and
# "process") counts anew, so readers sum over them.
COUNTERS: Mapping[str, tuple[str, str]] = {
    "tessera_requests_total": ("requests", "Histories decoded, one for each row of a request that was not refused"),
    "tessera_decodes_total": ("decodes", "Batches decoded"),
    "tessera_decode_seconds_total": ("decode_s", "Seconds spent decoding, without the queue and the transport"),
    "tessera_beams_total": ("beams", "Beams searched"),
    "tessera_prefix_cache_hits_total": ("prefix_hits", "Histories whose prompt was continued from the cache"),
    "tessera_prefix_cache_misses_total": ("prefix_misses", "Histories whose prompt was computed from scratch"),
    "tessera_invalid_items_total": ("invalid", "Answers that are no item of the catalogue; always 0"),
    "tessera_queue_seconds_total": ("waited_s", "Seconds that requests waited before they were decoded"),
    "tessera_busy_total": ("busy", "Requests refused because the queue was full"),
    "tessera_late_total": ("late", "Requests refused because they had waited as long as they wanted to"),
    "tessera_failed_total": ("failed", "Requests that the policy failed on, with nothing wrong with them"),
}

log = logging.getLogger(__name__)


class Counters:
    """Copies statistics to Prometheus every second, because each update is a message between processes.

    Args:
        triton: Triton's Python backend module.
        release: its number.
        statistics: objects that have, together, the attributes that COUNTERS names.
    """

    def __init__(self, triton: Any, release: int, *statistics: Any) -> None:
        self._read = {
            name: partial(getattr, next(one for one in statistics if hasattr(one, attribute)), attribute)
            for name, (attribute, _) in COUNTERS.items()
        }
        self._published = dict.fromkeys(COUNTERS, 0.0)
        self._families = {
            name: triton.MetricFamily(name=name, description=meaning, kind=triton.MetricFamily.COUNTER)
            for name, (_, meaning) in COUNTERS.items()
        }
        # A release may be loaded again under its number, beside the process that serves it. Triton gives two processes
        # with the same labels one counter and frees it when the first of them ends, under the hands of the second
        # (triton-inference-server/server#8663).
        labels = {"model": MODEL, "version": str(release), "process": str(os.getpid())}
        self._metrics = {name: family.Metric(labels=labels) for name, family in self._families.items()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_publishing, name="tessera-metrics", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Add what was counted since the last time."""
        for name, read in self._read.items():
            now = float(read())
            if now > self._published[name]:
                self._metrics[name].increment(now - self._published[name])
                self._published[name] = now

    def close(self) -> None:
        """Publish for the last time; a metric must go before its family."""
        self._ended.set()
        self._thread.join()
        self.publish()
        self._metrics.clear()
        self._families.clear()

    def _keep_publishing(self) -> None:
        while not self._ended.wait(PERIOD_S):
            try:
                self.publish()
            except Exception:  # without metrics, but serving
                log.exception("the counters could not be published")
                return
