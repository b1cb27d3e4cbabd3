"""Who may speak to whom, as the NetworkPolicies together decide it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from manifest_objects import Labels, Object, matches, of_kind

Rendered = Callable[[str], list[dict[str, Any]]]
Policies = Callable[[str], list[Object]]


@dataclass(frozen=True)
class Pod:
    """A pod by its labels; `namespace` has the labels of another namespace, None within the platform's own."""

    labels: Labels = field(default_factory=dict)
    namespace: Labels | None = None


def named(name: str) -> Pod:
    return Pod({"app.kubernetes.io/name": name})


RUN = Pod({"workflows.argoproj.io/workflow": "tessera-training-x7"})
WORKER = Pod({"jobset.sigs.k8s.io/jobset-name": "tessera-train"})
CLIENT = Pod({}, {"tessera.dev/client": "true"})
STRANGER = Pod({}, {"kubernetes.io/metadata.name": "default"})
MONITORING = Pod({}, {"kubernetes.io/metadata.name": "monitoring"})
GATEWAY = Pod({}, {"kubernetes.io/metadata.name": "envoy-gateway-system"})
KUBEFLOW = Pod({}, {"kubernetes.io/metadata.name": "kubeflow"})
TRITON, MLFLOW, FEAST = named("triton"), named("mlflow"), named("feast")
POSTGRES, REDIS, S3 = named("postgres"), named("redis"), named("s3")
ACCOUNTS = named("mlflow-accounts")
OPERATED = Pod({"feast.dev/name": "tessera"})


def may(objects: list[Object], source: Pod, target: Pod, port: int) -> bool:
    """Whether a connection is let out and let in; a namespace that is not ours has its own policies."""
    out = source.namespace is not None or _lets(objects, "Egress", source, target, port)
    return out and (target.namespace is not None or _lets(objects, "Ingress", target, source, port))


def _lets(objects: list[Object], way: str, pod: Pod, peer: Pod, port: int) -> bool:
    rules, side = way.lower(), "to" if way == "Egress" else "from"
    for one in of_kind(objects, "NetworkPolicy"):
        if way in one["spec"]["policyTypes"] and matches(one["spec"]["podSelector"], pod.labels):
            for rule in one["spec"].get(rules, []):
                ports = [given["port"] for given in rule.get("ports", [])]
                if (not ports or port in ports) and any(_is(peer, given) for given in rule[side]):
                    return True
    return False


def _is(peer: Pod, given: Object) -> bool:
    if "ipBlock" in given:
        return False  # pods are meant here
    if "namespaceSelector" in given:
        return peer.namespace is not None and matches(given["namespaceSelector"], peer.namespace)
    return peer.namespace is None and matches(given["podSelector"], peer.labels)


HTTP, GRPC, METRICS, SYNC = 8000, 8001, 8002, 8003  # Triton's, the last its sidecar's; the first two take control calls
ALLOWED = {
    "a sidecar reads the registry": (TRITON, MLFLOW, 5000),
    "Triton looks histories up": (TRITON, FEAST, 6566),
    "a service asks for recommendations": (CLIENT, TRITON, GRPC),
    "a service looks features up": (CLIENT, FEAST, 6566),
    "a roll-out asks replicas over HTTP": (RUN, TRITON, HTTP),
    "a roll-out asks replicas over gRPC": (RUN, TRITON, GRPC),
    "a roll-out reads Triton's metrics": (RUN, TRITON, METRICS),
    "a roll-out reads the sidecar's metrics": (RUN, TRITON, SYNC),
    "a run registers": (RUN, MLFLOW, 5000),
    "a run looks features up": (RUN, FEAST, 6566),
    "a run speaks to Kubeflow": (RUN, KUBEFLOW, 8887),
    "workers of a training speak to each other": (WORKER, WORKER, 29500),
    "workers log to the registry": (WORKER, MLFLOW, 5000),
    "accounts are made": (ACCOUNTS, MLFLOW, 5000),
    "Prometheus reads Triton's metrics": (MONITORING, TRITON, METRICS),
    "Prometheus reads the sidecar's metrics": (MONITORING, TRITON, SYNC),
    "Prometheus reads Feast's metrics": (MONITORING, FEAST, 8000),
}
STORES = {
    "MLflow keeps its tables": (MLFLOW, POSTGRES, 5432),
    "MLflow keeps bundles": (MLFLOW, S3, 8333),
    "Feast reads definitions": (FEAST, POSTGRES, 5432),
    "Feast reads values": (FEAST, REDIS, 6379),
    "a run keeps the catalogue": (RUN, POSTGRES, 5432),
    "a run publishes features": (RUN, REDIS, 6379),
    "databases are dumped": (named("postgres-backup"), POSTGRES, 5432),
    "the bucket is made": (named("s3-bucket"), S3, 8333),
}
DENIED = {
    "a service and Triton's HTTP port": (CLIENT, TRITON, HTTP),
    "a service and Triton's metrics": (CLIENT, TRITON, METRICS),
    "a service and the sidecar": (CLIENT, TRITON, SYNC),
    "a service and the registry": (CLIENT, MLFLOW, 5000),
    "a service and Feast's metrics": (CLIENT, FEAST, 8000),
    "a service and PostgreSQL": (CLIENT, POSTGRES, 5432),
    "a service and Redis": (CLIENT, REDIS, 6379),
    "a service and the bucket": (CLIENT, S3, 8333),
    **{f"a stranger and {port} of {name}": (STRANGER, pod, port) for name, pod, port in [
        ("Triton", TRITON, HTTP), ("Triton", TRITON, GRPC), ("Triton", TRITON, METRICS), ("Triton", TRITON, SYNC),
        ("MLflow", MLFLOW, 5000), ("Feast", FEAST, 6566), ("Feast", FEAST, 8000), ("PostgreSQL", POSTGRES, 5432),
        ("Redis", REDIS, 6379), ("the bucket", S3, 8333), ("a run", RUN, 8080), ("a training", WORKER, 29500),
    ]},
    "the gateway and Triton's HTTP port": (GATEWAY, TRITON, HTTP),
    "the gateway and Triton's metrics": (GATEWAY, TRITON, METRICS),
    "the gateway and the registry": (GATEWAY, MLFLOW, 5000),
    "the gateway and Feast": (GATEWAY, FEAST, 6566),
    "Prometheus and recommendations": (MONITORING, TRITON, GRPC),
    "Prometheus and Triton's HTTP port": (MONITORING, TRITON, HTTP),
    "Prometheus and the registry": (MONITORING, MLFLOW, 5000),
    "Triton and PostgreSQL": (TRITON, POSTGRES, 5432),
    "Triton and Redis": (TRITON, REDIS, 6379),
    "Triton and the bucket": (TRITON, S3, 8333),
    "Triton and another replica's HTTP port": (TRITON, TRITON, HTTP),
    "Triton and another replica": (TRITON, TRITON, GRPC),
    "Triton and Kubeflow": (TRITON, KUBEFLOW, 80),
    "a run and the bucket": (RUN, S3, 8333),
    "a run and a training's workers": (RUN, WORKER, 29500),
    "a training's workers and the bucket": (WORKER, S3, 8333),
    "a training's workers and Triton": (WORKER, TRITON, HTTP),
    "who makes accounts and Triton": (ACCOUNTS, TRITON, HTTP),
    "who makes accounts and PostgreSQL": (ACCOUNTS, POSTGRES, 5432),
    "Redis and the registry": (REDIS, MLFLOW, 5000),
    "PostgreSQL and the bucket": (POSTGRES, S3, 8333),
    "MLflow and Triton": (MLFLOW, TRITON, HTTP),
    "Feast and the registry": (FEAST, MLFLOW, 5000),
    "Feast and the bucket": (FEAST, S3, 8333),
}  # fmt: skip


@pytest.fixture(scope="module")
def policies(rendered: Rendered) -> Policies:
    """The NetworkPolicies of an overlay."""
    return cache(lambda overlay: of_kind(rendered(overlay), "NetworkPolicy"))


@pytest.mark.parametrize("flow", ALLOWED)
@pytest.mark.parametrize("overlay", ["local", "production"])
def test_it_is_allowed(policies: Policies, overlay: str, flow: str) -> None:
    assert may(policies(overlay), *ALLOWED[flow])


@pytest.mark.parametrize("flow", STORES)
def test_it_is_allowed_to_reach_its_store(policies: Policies, flow: str) -> None:
    assert may(policies("local"), *STORES[flow])


def test_the_gateway_asks_over_grpc(policies: Policies) -> None:
    assert may(policies("production"), GATEWAY, TRITON, GRPC)
    assert not may(policies("local"), GATEWAY, TRITON, GRPC)


@pytest.mark.parametrize("flow", [flow for flow, one in ALLOWED.items() if MONITORING not in one])
def test_the_operators_pods_take_the_place_of_the_deployments(policies: Policies, flow: str) -> None:
    source, target, port = ALLOWED[flow]
    assert may(policies("production-operator"), *(OPERATED if end == FEAST else end for end in (source, target)), port)


@pytest.mark.parametrize("flow", DENIED)
@pytest.mark.parametrize("overlay", ["local", "production", "production-operator"])
def test_it_is_denied(policies: Policies, overlay: str, flow: str) -> None:
    source, target, port = DENIED[flow]
    assert not may(policies(overlay), source, target, port)
    if overlay == "production-operator" and FEAST in (source, target):
        assert not may(policies(overlay), *(OPERATED if end == FEAST else end for end in (source, target)), port)


@pytest.mark.parametrize("pod", [TRITON, MLFLOW, FEAST, RUN, POSTGRES, ACCOUNTS])
def test_names_are_resolved_by_everybody(policies: Policies, pod: Pod) -> None:
    system = Pod({}, {"kubernetes.io/metadata.name": "kube-system"})
    assert may(policies("local"), pod, system, 53)
