"""All checks of rendered manifests."""

from collections.abc import Callable

import manifest_links as links
import manifest_pods as how
from manifest_objects import Object

Check = Callable[[list[Object]], list[str]]

CHECKS: list[Check] = [
    links.workloads_select_their_own_pods, links.services_reach_pods, links.service_ports_exist,
    links.probe_ports_exist, links.budgets_and_spreads_select_pods, links.policies_select_pods,
    links.policy_ports_exist, links.monitors_reach_services, links.scalers_reach_workloads,
    links.backends_of_services_exist, links.routes_and_policies_reach_the_gateway,
    links.addresses_exist, links.volumes_exist, links.config_maps_and_secrets_exist,
    links.operators_secrets_have_their_keys, links.accounts_and_roles_exist,
    how.resources_are_given, how.limits_are_at_least_requests, how.pods_may_fill_their_volumes, how.servers_have_probes,
    how.schedules_parse, how.images_are_pinned, how.pods_are_restricted, how.only_who_needs_a_token_has_one,
    how.everything_is_in_the_namespace, how.everything_is_denied_by_default, how.ways_in_have_tls,
]  # fmt: skip
