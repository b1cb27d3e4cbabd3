"""Alerts and dashboard: expressions parse, and what they ask for is exported by somebody."""

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from manifest_objects import of_kind, walk

from components.images import ROOT
from serving.metrics import COUNTERS

Rendered = Callable[[str], list[dict[str, Any]]]

# Of kube-state-metrics and the kubelet.
KUBERNETES = {
    "kube_statefulset_replicas", "kube_statefulset_status_replicas_ready", "kube_pod_container_status_restarts_total",
    "kube_deployment_spec_replicas", "kube_deployment_status_replicas_available",
    "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes",
}  # fmt: skip


def names_in(expression: str) -> set[str]:
    """The metrics that an expression asks for; ValueError where it does not parse."""
    promql_parser.parse(expression)
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(by|on|without)\s*\([^)]*\)', " ", expression)
    words = set(re.findall(r"[a-zA-Z_:][\w:]*(?!\s*\()\b", bare))
    return {word for word in words if "_" in word} - {"clamp_min", "histogram_quantile"}


def exported() -> set[str]:
    """By Triton, its sidecar, Feast and Kubernetes; sources are read, because Feast takes seconds to import."""
    (feast,) = find_spec("feast").submodule_search_locations  # type: ignore[union-attr]
    sources = {"tessera_sync": ROOT / "serving" / "sync.py", "feast": Path(feast) / "metrics.py"}
    named = {
        name
        for prefix, path in sources.items()
        for name in re.findall(rf'"({prefix}_[a-z_]+)"', path.read_text(encoding="utf-8"))
    }
    return KUBERNETES | set(COUNTERS) | named | {f"{name}_bucket" for name in named}


def expressions(objects: list[dict[str, Any]]) -> list[str]:
    """Of rules, of the dashboard, and of KEDA's triggers."""
    found = [value for one in of_kind(objects, "PrometheusRule") for path, value in walk(one) if path[-1:] == ("expr",)]
    for one in of_kind(objects, "ConfigMap"):
        for text in one["data"].values() if "grafana_dashboard" in one["metadata"].get("labels", {}) else ():
            board = json.loads(text)
            found += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for one in of_kind(objects, "ScaledObject"):
        found += [trigger["metadata"]["query"] for trigger in one["spec"]["triggers"]]
    return found


def test_every_metric_is_exported_or_recorded(rendered: Rendered) -> None:
    objects = rendered("production")
    recorded = {
        rule["record"]
        for one in of_kind(objects, "PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    asked = expressions(objects)
    assert len(asked) > 25
    unknown = {expression: names_in(expression) - exported() - recorded for expression in asked}
    assert {expression: names for expression, names in unknown.items() if names} == {}


def test_the_autoscalers_go_by_the_requests_that_wait(rendered: Rendered) -> None:
    """Kubernetes' own in the base, KEDA's in its place in production."""
    (own,) = of_kind(rendered("../base"), "HorizontalPodAutoscaler")
    (keda,) = of_kind(rendered("production"), "ScaledObject")
    assert own["spec"]["metrics"][0]["pods"]["metric"]["name"] == "tessera_requests_waiting"
    assert names_in(keda["spec"]["triggers"][0]["metadata"]["query"]) == {"tessera_requests_waiting"}
    assert own["spec"]["scaleTargetRef"] == keda["spec"]["scaleTargetRef"]


def test_alerts_say_what_to_do(rendered: Rendered) -> None:
    alerts = [
        rule
        for one in of_kind(rendered("production"), "PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 10
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= set(rule["annotations"])


@pytest.mark.parametrize("expression", ["sum(rate(tessera_requests_total[5m])", "rate(tessera_requests_total[5x])"])
def test_a_broken_expression_is_seen(expression: str) -> None:
    with pytest.raises(ValueError):
        names_in(expression)


def test_a_metric_that_nobody_exports_is_seen() -> None:
    assert names_in('sum by (pod) (rate(tessera_request_total{namespace="tessera"}[5m]))') - exported()
