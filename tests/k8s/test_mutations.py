"""Each check catches the fault that it is for: one seeded fault a line, in manifests that are right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from manifest_checks import CHECKS, Check, how, links
from manifest_schemas import schema_problems

Object = dict[str, Any]
Rendered = Callable[[str], list[Object]]


@dataclass(frozen=True)
class Fault:
    """A fault and the check that must see it.

    `where` is KIND/NAME, `path` the keys to what is set, or deleted where `value` is None.
    """

    check: Check
    where: str
    path: str
    value: Any = None
    overlay: str = "local"

    def __str__(self) -> str:
        return f"{self.check.__name__}: {self.where} {self.path}"

    def seed(self, objects: list[Object]) -> None:
        """Put the fault into the objects."""
        kind, name = self.where.split("/")
        (one,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)
        *way, last = [int(key) if key.isdigit() else key for key in self.path.split("|")]
        for key in way:
            one = one[key]
        if self.value is None:
            del one[last]
        else:
            assert one.get(last) != self.value if isinstance(one, dict) else one[last] != self.value
            one[last] = self.value


def schemas(objects: list[Object]) -> list[str]:
    return schema_problems(objects, "1.37")


TRITON, FEAST, MLFLOW = "StatefulSet/triton", "Deployment/feast", "Deployment/mlflow"
ROUTE, POD = "GRPCRoute/recommendations", "spec|template|spec"
PROD, OPERATOR, BASE = "production", "production-operator", "../base"

FAULTS = [
    # A strict API server.
    Fault(schemas, TRITON, "spec|replicas", "three"),
    Fault(schemas, TRITON, f"{POD}|containers|0|imagePullPolice", "Always"),
    Fault(schemas, FEAST, "spec|selector"),
    Fault(schemas, "Service/triton", "kind", "Servce"),
    Fault(schemas, "Service/triton", "apiVersion", "v2"),
    Fault(schemas, "HorizontalPodAutoscaler/triton", "spec|metrics|0|pods|metric", "tessera_requests_waiting", BASE),
    Fault(schemas, "ScaledObject/triton", "spec|minReplicas", 3, PROD),
    Fault(schemas, "ServiceMonitor/triton", "spec|endpoints|0|interval", 15, PROD),
    Fault(schemas, "PrometheusRule/tessera", "spec|groups|0|rules|0|expression", "up", PROD),
    Fault(schemas, "ExternalSecret/tessera-s3", "spec|secretStoreRef|kind", "Vault", PROD),
    Fault(schemas, "FeatureStore/tessera", "spec|services|onlineStore|persistence|store|type", "reddis", OPERATOR),
    Fault(schemas, ROUTE, "spec|rules|0|matches|0|method|type", "Prefix", PROD),
    Fault(schemas, "SecurityPolicy/recommendations", "spec|jwtt", {}, PROD),
    Fault(schemas, "BackendTrafficPolicy/recommendations", "spec|rateLimit|local|rules|0|limit|unit", "Minutes", PROD),
    Fault(schemas, "FeatureStore/tessera", "apiVersion", "feast.dev/v2", OPERATOR),
    # Selectors.
    Fault(links.workloads_select_their_own_pods, FEAST, "spec|selector|matchLabels|app.kubernetes.io/name", "feats"),
    Fault(links.workloads_select_their_own_pods, TRITON, "spec|template|metadata|labels|app.kubernetes.io/name", "x"),
    Fault(links.services_reach_pods, "Service/mlflow", "spec|selector|app.kubernetes.io/name", "ml-flow"),
    Fault(links.budgets_and_spreads_select_pods, "PodDisruptionBudget/feast", "spec|selector|matchLabels", {"a": "b"}),
    Fault(links.budgets_and_spreads_select_pods, TRITON,
          f"{POD}|topologySpreadConstraints|0|labelSelector|matchLabels", {"app.kubernetes.io/name": "tritn"}),
    Fault(links.policies_select_pods, "NetworkPolicy/redis", "spec|podSelector|matchLabels", {"app": "redis"}),
    Fault(links.policies_select_pods, "NetworkPolicy/mlflow", "spec|ingress|0|from|0|podSelector|matchLabels",
          {"app.kubernetes.io/name": "trito"}),
    Fault(links.policies_select_pods, "NetworkPolicy/feast-stores", "spec|podSelector|matchLabels|feast.dev/name",
          "tesera", OPERATOR),
    Fault(how.everything_is_denied_by_default, "NetworkPolicy/default-deny", "spec|policyTypes", ["Ingress"]),
    Fault(how.everything_is_denied_by_default, "NetworkPolicy/default-deny", "spec|egress", [{}]),
    Fault(links.monitors_reach_services, "ServiceMonitor/feast", "spec|selector|matchLabels", {"app": "feast"}, PROD),
    Fault(links.scalers_reach_workloads, "HorizontalPodAutoscaler/triton", "spec|scaleTargetRef|name", "tritn", BASE),
    Fault(links.scalers_reach_workloads, "ScaledObject/triton", "spec|scaleTargetRef|kind", "Deployment", PROD),
    # Ports.
    Fault(links.service_ports_exist, "Service/triton", "spec|ports|1|targetPort", "grcp"),
    Fault(links.service_ports_exist, "Service/mlflow", "spec|ports|0|targetPort", 5001),
    Fault(links.probe_ports_exist, FEAST, f"{POD}|containers|0|readinessProbe|httpGet|port", "https"),
    Fault(links.policy_ports_exist, "NetworkPolicy/feast", "spec|ingress|0|ports|0|port", 6567),
    Fault(links.monitors_reach_services, "ServiceMonitor/triton", "spec|endpoints|0|port", "metric", PROD),
    Fault(links.backends_of_services_exist, ROUTE, "spec|rules|0|backendRefs|0|port", 8004, PROD),
    Fault(links.routes_and_policies_reach_the_gateway, ROUTE, "spec|parentRefs|0|name", "eg", PROD),
    Fault(links.routes_and_policies_reach_the_gateway, ROUTE, "spec|hostnames|0", "x.com", PROD),
    Fault(links.routes_and_policies_reach_the_gateway, "SecurityPolicy/recommendations", "spec|targetRefs|0|name", "x",
          PROD),
    Fault(links.backends_of_services_exist, TRITON, "spec|serviceName", "triton-headless"),
    Fault(links.addresses_exist, "ConfigMap/tessera", "data|TESSERA_FEATURE_SERVER", "http://feast:6567"),
    Fault(links.addresses_exist, "ConfigMap/tessera", "data|TESSERA_REPLICAS", "http://triton-{}.tritons:8000"),
    Fault(links.addresses_exist, "ConfigMap/tessera", "data|MLFLOW_TRACKING_URI", "http://ml-flow:5000"),
    Fault(links.addresses_exist, "ConfigMap/tessera", "data|TESSERA_FEATURE_SERVER", "http://feast:6566", OPERATOR),
    # What is named exists.
    Fault(links.volumes_exist, TRITON, f"{POD}|containers|0|volumeMounts|0|name", "release"),
    Fault(links.volumes_exist, "Job/volume", f"{POD}|volumes|0|persistentVolumeClaim|claimName", "shared"),
    Fault(links.volumes_exist, FEAST, f"{POD}|containers|0|volumeMounts", []),
    Fault(links.config_maps_and_secrets_exist, FEAST, f"{POD}|containers|0|envFrom|1|secretRef|name", "feast"),
    Fault(links.config_maps_and_secrets_exist, MLFLOW, f"{POD}|containers|0|envFrom|0|configMapRef|name", "config"),
    Fault(links.config_maps_and_secrets_exist, TRITON,
          f"{POD}|initContainers|0|env|0|valueFrom|secretKeyRef|key", "MLFLOW_USER"),
    Fault(links.config_maps_and_secrets_exist, MLFLOW,
          f"{POD}|initContainers|0|env|0|valueFrom|secretKeyRef|key", "MLFLOW_DATABASE", PROD),
    Fault(links.config_maps_and_secrets_exist, "StatefulSet/postgres", f"{POD}|volumes|0|configMap|name", "databases"),
    Fault(links.config_maps_and_secrets_exist, "FeatureStore/tessera",
          "spec|services|onlineStore|persistence|store|secretRef|name", "redis", OPERATOR),
    Fault(links.operators_secrets_have_their_keys, "ExternalSecret/tessera-feast-stores",
          "spec|target|template|data|redis", None, OPERATOR),
    Fault(links.accounts_and_roles_exist, TRITON, f"{POD}|serviceAccountName", "serving"),
    Fault(links.accounts_and_roles_exist, "RoleBinding/tessera-pipelines", "subjects|0|name", "pipelines"),
    Fault(links.accounts_and_roles_exist, "RoleBinding/tessera-pipelines", "roleRef|name", "pipelines"),
    Fault(how.ways_in_have_tls, "Gateway/recommendations", "spec|listeners|0|protocol", "HTTP", PROD),
    Fault(how.ways_in_have_tls, "Gateway/recommendations", "spec|listeners|0|tls", None, PROD),
    Fault(how.ways_in_have_tls, "Gateway/recommendations", "metadata|annotations", {}, PROD),
    Fault(how.everything_is_in_the_namespace, "ConfigMap/tessera", "metadata|namespace", "default"),
    # Resources and probes.
    Fault(how.resources_are_given, TRITON, f"{POD}|containers|1|resources|limits|memory"),
    Fault(how.resources_are_given, "CronJob/postgres-backup",
          "spec|jobTemplate|spec|template|spec|containers|0|resources"),
    Fault(how.limits_are_at_least_requests, TRITON, f"{POD}|containers|0|resources|requests|memory", "4Gi"),
    Fault(how.limits_are_at_least_requests, FEAST, f"{POD}|containers|0|resources|limits|cpu", "499m"),
    Fault(how.limits_are_at_least_requests, "FeatureStore/tessera",
          "spec|services|onlineStore|server|resources|limits|memory", "900Mi", OPERATOR),
    Fault(how.pods_may_fill_their_volumes, TRITON, f"{POD}|containers|0|resources|limits|ephemeral-storage", "7Gi"),
    Fault(how.pods_may_fill_their_volumes, MLFLOW, f"{POD}|volumes|1|emptyDir|sizeLimit", "6Gi"),
    Fault(how.servers_have_probes, MLFLOW, f"{POD}|containers|0|livenessProbe"),
    Fault(how.schedules_parse, "CronJob/postgres-backup", "spec|schedule", "17 25 * * *"),
    Fault(how.schedules_parse, "CronJob/postgres-backup", "spec|schedule", "0 17 2 * * *"),
    # The restricted profile.
    Fault(how.pods_are_restricted, TRITON, f"{POD}|hostNetwork", True),
    Fault(how.pods_are_restricted, TRITON, f"{POD}|securityContext|runAsNonRoot", False),
    Fault(how.pods_are_restricted, TRITON, f"{POD}|securityContext|runAsUser", 0),
    Fault(how.pods_are_restricted, FEAST, f"{POD}|securityContext|seccompProfile"),
    Fault(how.pods_are_restricted, FEAST, f"{POD}|volumes|0|hostPath", {"path": "/tmp"}),
    Fault(how.pods_are_restricted, FEAST, f"{POD}|containers|0|securityContext"),
    Fault(how.pods_are_restricted, FEAST, f"{POD}|containers|0|securityContext|privileged", True),
    Fault(how.pods_are_restricted, FEAST, f"{POD}|containers|0|securityContext|readOnlyRootFilesystem", False),
    Fault(how.pods_are_restricted, MLFLOW, f"{POD}|initContainers|0|securityContext|capabilities|drop", ["NET_RAW"]),
    Fault(how.pods_are_restricted, MLFLOW, f"{POD}|initContainers|0|securityContext|capabilities|add", ["SYS_ADMIN"]),
    Fault(how.pods_are_restricted, MLFLOW, f"{POD}|containers|0|ports|0|hostPort", 5000),
    Fault(how.only_who_needs_a_token_has_one, MLFLOW, f"{POD}|automountServiceAccountToken", True),
    # Images.
    Fault(how.images_are_pinned, TRITON, f"{POD}|containers|0|image", "tessera-python-serve:latest"),
    Fault(how.images_are_pinned, TRITON, f"{POD}|containers|0|image", "tessera-python-serve"),
    Fault(how.images_are_pinned, "StatefulSet/redis", f"{POD}|containers|0|image", "registry:5000/redis"),
    Fault(how.images_are_pinned, "StatefulSet/redis", f"{POD}|containers|0|image", "docker.io/library/redis:7"),
    Fault(how.images_are_pinned, "FeatureStore/tessera", "spec|services|onlineStore|server|image",
          "tessera-python-publish", OPERATOR),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_fault_is_caught(rendered: Rendered, fault: Fault) -> None:
    objects = rendered(fault.overlay)
    fault.seed(objects)
    assert fault.check(objects)


def test_every_check_has_a_fault() -> None:
    assert {fault.check for fault in FAULTS} == {schemas, *CHECKS}
