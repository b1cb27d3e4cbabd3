"""Looking into rendered manifests: pods wherever they are described, and what they refer to."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Labels = dict[str, str]

# Labels of pods that others make: Argo Workflows those of a run, JobSet the workers of a training.
MADE_ELSEWHERE = ("workflows.argoproj.io/workflow", "jobset.sigs.k8s.io/jobset-name")


@dataclass(frozen=True)
class Pods:
    """The pods of a workload. `spec` is empty where an operator writes it."""

    name: str
    owner: Object
    labels: Labels
    spec: Object

    @property
    def containers(self) -> list[Object]:
        """Init containers too."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]

    @property
    def ports(self) -> dict[str, int]:
        """Numbers by name."""
        return {port["name"]: port["containerPort"] for one in self.containers for port in one.get("ports", [])}


def name_of(one: Object) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def pods(objects: list[Object]) -> list[Pods]:
    """The pods of all workloads."""
    found = []
    for one in of_kind(objects, "Deployment", "StatefulSet", "DaemonSet", "Job"):
        found.append(_pods(one, one["spec"]["template"]))
    for one in of_kind(objects, "CronJob"):
        found.append(_pods(one, one["spec"]["jobTemplate"]["spec"]["template"]))
    for one in of_kind(objects, "FeatureStore"):
        found.append(Pods(name_of(one), one, {"feast.dev/name": one["metadata"]["name"]}, {}))
    return found


def _pods(owner: Object, template: Object) -> Pods:
    return Pods(name_of(owner), owner, template["metadata"].get("labels", {}), template["spec"])


def matches(selector: Object, labels: Labels) -> bool:
    """Whether a label selector with matchLabels and matchExpressions selects these labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        key, operator, values = term["key"], term["operator"], term.get("values", [])
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not holds:
            return False
    return True


def selected(objects: list[Object], selector: Object) -> list[Pods]:
    return [one for one in pods(objects) if matches(selector, one.labels)]


def made_elsewhere(selector: Object) -> bool:
    """Whether it selects pods that are not described here."""
    return any(term["key"] in MADE_ELSEWHERE for term in selector.get("matchExpressions", []))


def walk(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value below `tree` with the keys that lead to it; list positions are left out."""
    yield path, tree
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from walk(value, (*path, key))
    for value in tree if isinstance(tree, list) else ():
        yield from walk(value, path)


def secret_keys(objects: list[Object]) -> dict[str, set[str]]:
    """Keys of the Secrets that are there, those that External Secrets makes too."""
    keys = {one["metadata"]["name"]: set(one.get("data", {})) for one in of_kind(objects, "Secret")}
    for one in of_kind(objects, "ExternalSecret"):
        template = one["spec"]["target"].get("template", {}).get("data", {})
        given = {row["secretKey"] for row in one["spec"]["data"]}
        keys[one["spec"]["target"]["name"]] = set(template) or given
    return keys
