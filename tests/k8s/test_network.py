"""Who may speak to whom, as the NetworkPolicies together decide it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from manifest_objects import Labels, Object, matches, of_kind

Rendered = Callable[[str], list[dict[str, Any]]]


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
INGRESS = Pod({}, {"kubernetes.io/metadata.name": "ingress-nginx"})
KUBEFLOW = Pod({}, {"kubernetes.io/metadata.name": "kubeflow"})
TRITON, MLFLOW, FEAST = named("triton"), named("mlflow"), named("feast")
POSTGRES, REDIS, S3 = named("postgres"), named("redis"), named("s3")
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


NEEDED = [
    (TRITON, MLFLOW, 5000), (TRITON, FEAST, 6566),
    (CLIENT, TRITON, 8000), (CLIENT, TRITON, 8001), (CLIENT, FEAST, 6566),
    (RUN, TRITON, 8000), (RUN, TRITON, 8002), (RUN, TRITON, 8003), (RUN, MLFLOW, 5000), (RUN, FEAST, 6566),
    (RUN, KUBEFLOW, 8887), (WORKER, WORKER, 29500), (WORKER, MLFLOW, 5000),
    (MONITORING, TRITON, 8002), (MONITORING, TRITON, 8003), (MONITORING, FEAST, 8000),
]  # fmt: skip
STORES = [
    (MLFLOW, POSTGRES, 5432), (MLFLOW, S3, 8333), (FEAST, POSTGRES, 5432), (FEAST, REDIS, 6379),
    (RUN, POSTGRES, 5432), (RUN, REDIS, 6379), (RUN, S3, 8333),
    (named("postgres-backup"), POSTGRES, 5432), (named("s3-bucket"), S3, 8333),
]  # fmt: skip
CLOSED = [
    (STRANGER, TRITON, 8000), (STRANGER, MLFLOW, 5000), (STRANGER, FEAST, 6566), (STRANGER, POSTGRES, 5432),
    (CLIENT, MLFLOW, 5000), (CLIENT, TRITON, 8002), (CLIENT, REDIS, 6379), (MONITORING, TRITON, 8000),
    (TRITON, POSTGRES, 5432), (TRITON, REDIS, 6379), (TRITON, S3, 8333), (TRITON, TRITON, 8000), (TRITON, KUBEFLOW, 80),
    (REDIS, MLFLOW, 5000), (POSTGRES, S3, 8333), (MLFLOW, TRITON, 8000), (FEAST, MLFLOW, 5000), (RUN, WORKER, 29500),
]  # fmt: skip


@pytest.mark.parametrize("overlay", ["local", "production"])
def test_what_is_needed_is_allowed(rendered: Rendered, overlay: str) -> None:
    objects = rendered(overlay)
    wanted = NEEDED + (STORES if overlay == "local" else [(INGRESS, TRITON, 8000)])
    assert [one for one in wanted if not may(objects, *one)] == []


def test_the_operators_pods_take_the_place_of_the_deployments(rendered: Rendered) -> None:
    objects = rendered("production-operator")
    wanted = [tuple(OPERATED if end == FEAST else end for end in one) for one in NEEDED if MONITORING not in one]
    assert [one for one in wanted if not may(objects, *one)] == []


@pytest.mark.parametrize("overlay", ["local", "production", "production-operator"])
def test_all_else_is_closed(rendered: Rendered, overlay: str) -> None:
    objects = rendered(overlay)
    assert [one for one in CLOSED if may(objects, *one)] == []


def test_names_are_resolved_by_everybody(rendered: Rendered) -> None:
    system = Pod({}, {"kubernetes.io/metadata.name": "kube-system"})
    assert all(may(rendered("local"), one, system, 53) for one in (TRITON, MLFLOW, FEAST, RUN, POSTGRES))
