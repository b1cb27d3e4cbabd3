"""How pods run: resources, probes, images, and the restricted Pod Security Standard. See `manifest_links`."""

import re
from typing import Any

from croniter import croniter
from kubernetes.utils.quantity import parse_quantity
from manifest_objects import Object, name_of, of_kind, pods, secret_keys, walk

CLUSTER_SCOPED = {"Namespace"}
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def resources_are_given(objects: list[Object]) -> list[str]:
    return [
        f"{one.name}: container {container['name']} has no {what} of {resource}"
        for one in pods(objects)
        for container in one.containers
        for what in ("requests", "limits")
        for resource in ("cpu", "memory")
        if resource not in container.get("resources", {}).get(what, {})
    ]


def limits_are_at_least_requests(objects: list[Object]) -> list[str]:
    problems = []
    for one in objects:
        for path, value in walk(one):
            if path[-1:] != ("resources",) or not isinstance(value, dict):
                continue
            limits = value.get("limits", {})
            problems += [
                f"{name_of(one)}: the limit of {what}, {limits[what]}, is less than the request, {request}"
                for what, request in value.get("requests", {}).items()
                if what in limits and parse_quantity(str(limits[what])) < parse_quantity(str(request))
            ]
    return problems


def pods_may_fill_their_volumes(objects: list[Object]) -> list[str]:
    """The kubelet evicts a pod whose volumes on disk, layers and logs outgrow its containers' limits together."""
    problems = []
    for one in pods(objects):
        limits = [c.get("resources", {}).get("limits", {}) for c in one.spec.get("containers", [])]
        may = [parse_quantity(str(limit["ephemeral-storage"])) for limit in limits if "ephemeral-storage" in limit]
        volumes = [volume.get("emptyDir", {}) for volume in one.spec.get("volumes", [])]
        disks = [volume.get("sizeLimit", 0) for volume in volumes if volume.get("medium") != "Memory"]
        if may and sum(may) < (wanted := sum(parse_quantity(str(size)) for size in disks)):
            problems.append(f"{one.name}: its volumes may hold {wanted} bytes, its containers {sum(may)}")
    return problems


def servers_have_probes(objects: list[Object]) -> list[str]:
    """A container that others reach says whether it is ready and alive; the sidecar is judged by its metrics."""
    return [
        f"{one.name}: container {container['name']} has no {probe}"
        for one in pods(objects)
        for container in one.spec.get("containers", [])
        for probe in ("readinessProbe", "livenessProbe")
        if container.get("ports") and container["name"] != "sync" and probe not in container
    ]


def schedules_parse(objects: list[Object]) -> list[str]:
    """Five fields, as Kubernetes reads them: no seconds, no years."""
    problems = []
    for one in of_kind(objects, "CronJob"):
        line = one["spec"]["schedule"]
        if not (len(line.split()) == 5 and croniter.is_valid(line)):
            problems.append(f"{name_of(one)}: {line!r} is no schedule")
    return problems


def images_are_pinned(objects: list[Object]) -> list[str]:
    """The project's own by a digest of their code, others by a whole version or by their digest."""
    problems = []
    for one in objects:
        for path, value in walk(one):
            if path[-1:] != ("image",) or not isinstance(value, str) or "@sha256:" in value:
                continue
            name, _, tag = value.rsplit("/", 1)[-1].partition(":")
            wanted = r"[0-9a-f]{16}" if name.startswith("tessera-") else r"v?\d+\.\d+(\.\d+)?[-\w.]*"
            if not re.fullmatch(wanted, tag):
                problems.append(f"{name_of(one)}: the image {value} is not pinned")
    return problems


def pods_are_restricted(objects: list[Object]) -> list[str]:
    """The restricted Pod Security Standard, and a read-only root file system."""
    problems = []
    for one in pods(objects):
        if not one.spec:
            continue
        pod = one.spec.get("securityContext", {})
        wrong = [key for key in ("hostNetwork", "hostPID", "hostIPC") if one.spec.get(key)]
        wrong += [] if pod.get("runAsNonRoot") is True else ["runAsNonRoot"]
        profile = pod.get("seccompProfile", {}).get("type")
        wrong += [] if profile in ("RuntimeDefault", "Localhost") else ["seccompProfile"]
        wrong += ["sysctls"] if pod.get("sysctls") else []
        wrong += [f"volume {v['name']}" for v in one.spec.get("volumes", []) if not set(v) - {"name"} <= VOLUMES]
        for container in one.containers:
            wrong += [f"{what} of container {container['name']}" for what in _unrestricted(container)]
        problems += [f"{one.name}: {what} is not as the restricted profile has it" for what in wrong]
        if pod.get("runAsUser", 0) == 0:
            problems.append(f"{one.name}: it does not say as which user it runs")
    return problems


def _unrestricted(container: dict[str, Any]) -> list[str]:
    given = container.get("securityContext", {})
    capabilities = given.get("capabilities", {})
    right = {
        "allowPrivilegeEscalation": given.get("allowPrivilegeEscalation") is False,
        "privileged": not given.get("privileged"),
        "capabilities.drop": capabilities.get("drop") == ["ALL"],
        "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "runAsNonRoot": given.get("runAsNonRoot") is not False and given.get("runAsUser") != 0,
        "seccompProfile": given.get("seccompProfile", {}).get("type", "RuntimeDefault") != "Unconfined",
        "procMount": given.get("procMount", "Default") == "Default",
        "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        "readOnlyRootFilesystem": given.get("readOnlyRootFilesystem") is True,
    }
    return [what for what, holds in right.items() if not holds]


def only_who_needs_a_token_has_one(objects: list[Object]) -> list[str]:
    return [
        f"{one.name}: it mounts a token of the cluster's API"
        for one in pods(objects)
        if one.spec and one.spec.get("automountServiceAccountToken") is not False
    ]


def everything_is_in_the_namespace(objects: list[Object]) -> list[str]:
    return [
        f"{name_of(one)}: it is not in the namespace tessera"
        for one in objects
        if one["kind"] not in CLUSTER_SCOPED and one["metadata"].get("namespace") != "tessera"
    ]


def everything_is_denied_by_default(objects: list[Object]) -> list[str]:
    closed = any(
        not one["spec"]["podSelector"]
        and set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not one["spec"].get("ingress") and not one["spec"].get("egress")
        for one in of_kind(objects, "NetworkPolicy")
    )  # fmt: skip
    return [] if closed else ["no NetworkPolicy denies by default, in both directions, for all pods"]


def ways_in_have_tls(objects: list[Object]) -> list[str]:
    problems = []
    for one in of_kind(objects, "Gateway"):
        made = "cert-manager.io/cluster-issuer" in one["metadata"].get("annotations", {})
        for listener in one["spec"]["listeners"]:
            kept = [ref["name"] for ref in listener.get("tls", {}).get("certificateRefs", [])]
            if listener["protocol"] not in ("HTTPS", "TLS") or not kept:
                problems.append(f"{name_of(one)}: its listener {listener['name']} has no TLS")
            if not made and not set(kept) <= set(secret_keys(objects)):
                problems.append(f"{name_of(one)}: the Secret {kept} is not there")
    return problems
