"""Whether what refers to something else finds it, which no schema sees.

Each check takes the rendered objects and returns a sentence for each thing that is wrong.
"""

import base64
import re

from manifest_objects import Object, made_elsewhere, matches, name_of, of_kind, pods, secret_keys, selected, walk

# http(s)://HOST:PORT, with or without a replica's name before it, the host of a database's URL, and Feast's redis:PORT.
ADDRESS = re.compile(r"^(?:https?://(?:[a-z]+-\{\}\.)?|postgresql\S*@|(?=redis:))([a-z0-9-]+)(?::(\d+))?(?=[/,\s]|$)")


def workloads_select_their_own_pods(objects: list[Object]) -> list[str]:
    return [
        f"{one.name}: its selector does not match its pods' labels"
        for one in pods(objects)
        if "selector" in one.owner["spec"] and not matches(one.owner["spec"]["selector"], one.labels)
    ]


def services_reach_pods(objects: list[Object]) -> list[str]:
    return [
        f"{name_of(one)}: its selector matches no pod"
        for one in of_kind(objects, "Service")
        if not selected(objects, {"matchLabels": one["spec"]["selector"]})
    ]


def service_ports_exist(objects: list[Object]) -> list[str]:
    problems = []
    for one in of_kind(objects, "Service"):
        for target in selected(objects, {"matchLabels": one["spec"]["selector"]}):
            known = {*target.ports, *target.ports.values()}
            problems += [
                f"{name_of(one)}: {target.name} has no port {port['targetPort']}"
                for port in one["spec"]["ports"]
                if port.get("targetPort", port["port"]) not in known
            ]
    return problems


def probe_ports_exist(objects: list[Object]) -> list[str]:
    return [
        f"{one.name}: a probe asks port {value}, which container {container['name']} does not have"
        for one in pods(objects)
        for container in one.containers
        for path, value in walk({key: container[key] for key in container if key.endswith("Probe")})
        if path[-1:] == ("port",)
        and value not in {p[key] for p in container.get("ports", []) for key in ("name", "containerPort")}
    ]


def budgets_and_spreads_select_pods(objects: list[Object]) -> list[str]:
    problems = [
        f"{name_of(one)}: its selector matches no pod"
        for one in of_kind(objects, "PodDisruptionBudget")
        if not selected(objects, one["spec"]["selector"])
    ]
    for one in pods(objects):
        for spread in one.spec.get("topologySpreadConstraints", []):
            if not matches(spread["labelSelector"], one.labels):
                problems.append(f"{one.name}: its topology spread does not count its own pods")
    return problems


def policies_select_pods(objects: list[Object]) -> list[str]:
    """Every pod selector of a NetworkPolicy matches a pod, here or made by a run."""
    problems = []
    for one in of_kind(objects, "NetworkPolicy"):
        for path, value in walk(one["spec"]):
            nobody = value and path[-1:] == ("podSelector",) and not made_elsewhere(value)
            if nobody and not selected(objects, value):
                problems.append(f"{name_of(one)}: {value} selects no pod")
    return problems


def policy_ports_exist(objects: list[Object]) -> list[str]:
    """What a NetworkPolicy lets in goes to ports that its pods have."""
    problems = []
    for one in of_kind(objects, "NetworkPolicy"):
        known = {number for pod in selected(objects, one["spec"]["podSelector"]) for number in pod.ports.values()}
        if one["spec"]["podSelector"] and known:
            ports = [port["port"] for rule in one["spec"].get("ingress", []) for port in rule.get("ports", [])]
            problems += [f"{name_of(one)}: its pods have no port {port}" for port in ports if port not in known]
    return problems


def monitors_reach_services(objects: list[Object]) -> list[str]:
    problems = []
    for one in of_kind(objects, "ServiceMonitor"):
        found = [s for s in of_kind(objects, "Service") if matches(one["spec"]["selector"], s["metadata"]["labels"])]
        known = {port["name"] for service in found for port in service["spec"]["ports"]}
        problems += [] if found else [f"{name_of(one)}: its selector matches no Service"]
        wanted = [endpoint["port"] for endpoint in one["spec"]["endpoints"]]
        problems += [f"{name_of(one)}: no Service has the port {port}" for port in wanted if port not in known]
    return problems


def scalers_reach_workloads(objects: list[Object]) -> list[str]:
    names, problems = {name_of(one) for one in objects}, []
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        if f"{target['kind']}/{target['name']}" not in names:
            problems.append(f"{name_of(one)}: {target['kind']}/{target['name']} is not there")
    return problems


def backends_of_services_exist(objects: list[Object]) -> list[str]:
    """Services that a route, an Ingress or a StatefulSet names, with their ports."""
    services = {one["metadata"]["name"]: one["spec"]["ports"] for one in of_kind(objects, "Service")}
    problems = [
        f"{name_of(one)}: its Service {one['spec']['serviceName']} is not there"
        for one in of_kind(objects, "StatefulSet")
        if one["spec"]["serviceName"] not in services
    ]
    for one in of_kind(objects, "Ingress"):
        for path, value in walk(one["spec"]):
            if path[-2:] == ("backend", "service"):
                given = {port[key] for port in services.get(value["name"], []) for key in ("name", "port")}
                if not given & set(value["port"].values()):
                    problems.append(f"{name_of(one)}: no Service {value['name']} has the port {value['port']}")
    for one in of_kind(objects, "GRPCRoute", "HTTPRoute"):
        for backend in (ref for rule in one["spec"]["rules"] for ref in rule["backendRefs"]):
            if backend["port"] not in {port["port"] for port in services.get(backend["name"], [])}:
                problems.append(f"{name_of(one)}: no Service {backend['name']} has the port {backend['port']}")
    return problems


def routes_and_policies_reach_the_gateway(objects: list[Object]) -> list[str]:
    """Routes name a Gateway that is there, a listener and a host of it; the gateway's policies name what is there."""
    gateways = {one["metadata"]["name"]: one["spec"]["listeners"] for one in of_kind(objects, "Gateway")}
    problems = []
    for one in of_kind(objects, "GRPCRoute", "HTTPRoute"):
        for parent in one["spec"]["parentRefs"]:
            hosts = [each.get("hostname") for each in gateways.get(parent["name"], [])
                     if each["name"] == parent["sectionName"]]  # fmt: skip
            if not hosts or set(one["spec"]["hostnames"]) - set(hosts):
                problems.append(f"{name_of(one)}: no listener of {parent['name']} is named so and has its host")
    names = {name_of(one) for one in objects}
    for one in of_kind(objects, "SecurityPolicy", "BackendTrafficPolicy", "ClientTrafficPolicy"):
        wanted = (f"{ref['kind']}/{ref['name']}" for ref in one["spec"]["targetRefs"])
        problems += [f"{name_of(one)}: {what} is not there" for what in wanted if what not in names]
    return problems


def addresses_exist(objects: list[Object]) -> list[str]:
    """Addresses within the namespace, in configuration and Secrets, are Services with that port."""
    ports = {one["metadata"]["name"]: {p["port"] for p in one["spec"]["ports"]} for one in of_kind(objects, "Service")}
    for one in of_kind(objects, "FeatureStore"):
        ports[f"feast-{one['metadata']['name']}-online"] = {80}
    texts = [(name_of(one), text) for one in of_kind(objects, "ConfigMap") for text in one.get("data", {}).values()]
    for one in of_kind(objects, "Secret"):
        texts += [(name_of(one), base64.b64decode(text).decode()) for text in one.get("data", {}).values()]
    problems = []
    for where, text in texts:
        for host, port in ADDRESS.findall(text):
            if int(port or 80) not in ports.get(host, set()):
                problems.append(f"{where}: no Service {host} has the port {port or 80}")
    return problems


def volumes_exist(objects: list[Object]) -> list[str]:
    """What is mounted is a volume of the pod, what is a volume is mounted, and claims are there."""
    claims, problems = {one["metadata"]["name"] for one in of_kind(objects, "PersistentVolumeClaim")}, []
    for one in pods(objects):
        templates = one.owner["spec"].get("volumeClaimTemplates", [])
        volumes = {v["name"] for v in one.spec.get("volumes", [])} | {t["metadata"]["name"] for t in templates}
        mounts = {mount["name"] for c in one.containers for mount in c.get("volumeMounts", [])}
        problems += [f"{one.name}: there is no volume {name} to mount" for name in sorted(mounts - volumes)]
        problems += [f"{one.name}: nobody mounts the volume {name}" for name in sorted(volumes - mounts)]
        for volume in one.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                problems.append(f"{one.name}: the claim {claim} is not there")
    return problems


def config_maps_and_secrets_exist(objects: list[Object]) -> list[str]:
    """Wherever a ConfigMap or a Secret is named, with a key or as a whole, in pods and in custom resources."""
    maps = {one["metadata"]["name"]: set(one.get("data", {})) for one in of_kind(objects, "ConfigMap")}
    known = {"configMap": maps, "secret": secret_keys(objects)}
    problems = []
    for one in objects:
        for path, value in walk(one):
            kind = next((k for k in known if path and path[-1] in (k, f"{k}Ref", f"{k}KeyRef")), None)
            if kind is None or not isinstance(value, dict):
                continue
            name = value.get("name") or value.get("secretName")
            if name not in known[kind]:
                problems.append(f"{name_of(one)}: the {kind} {name} is not there")
            elif "key" in value and value["key"] not in known[kind][name]:
                problems.append(f"{name_of(one)}: the {kind} {name} has no key {value['key']}")
    return problems


def operators_secrets_have_their_keys(objects: list[Object]) -> list[str]:
    """Feast's operator takes a store's parameters from the key that is named as the store's type."""
    keys = secret_keys(objects)
    return [
        f"{name_of(one)}: the Secret {store['secretRef']['name']} has no key {store['type']}"
        for one in of_kind(objects, "FeatureStore")
        for path, store in walk(one)
        if path[-1:] == ("store",)
        and store.get("secretKeyName", store["type"]) not in keys.get(store["secretRef"]["name"], set())
    ]


def accounts_and_roles_exist(objects: list[Object]) -> list[str]:
    names = {name_of(one) for one in objects} | {"ServiceAccount/default"}
    wanted = [(one.name, f"ServiceAccount/{one.spec.get('serviceAccountName', 'default')}") for one in pods(objects)]
    for one in of_kind(objects, "RoleBinding"):
        wanted += [(name_of(one), f"{who['kind']}/{who['name']}") for who in (*one["subjects"], one["roleRef"])]
    return [f"{who}: {what} is not there" for who, what in wanted if what not in names]
