"""Clocks and tags of others: a move waits neither for a clock that is ahead nor for what nobody can read."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from serving.aliases import MOVED_WITHIN_S, PENDING, POLICY, Aliases
from serving.registry import Registry
from tessera.errors import ServiceError

NOW = Aliases(champion="1", challenger="2")


@pytest.fixture
def registry(registered: tuple[Path, Registry]) -> Iterator[Registry]:
    """Version 1 is the champion and 2 the challenger; of another home than the one that moves are announced from."""
    registry = registered[1]
    registry.restore(NOW)
    yield registry
    if pending(registry):
        registry.client.delete_registered_model_tag(POLICY, PENDING)
    registry.restore(NOW)


def announce(registry: Registry, **change: Any) -> None:
    """As a process of another machine that is in the midst of promoting version 2, or died there."""
    move = {"before": asdict(NOW), "after": asdict(Aliases(previous="1", champion="2")), "home": "elsewhere:/home"}
    registry.client.set_registered_model_tag(POLICY, PENDING, json.dumps(move | {"when": time.time()} | change))
    registry.client.set_registered_model_alias(POLICY, "previous", "1")


def pending(registry: Registry) -> bool:
    return PENDING in registry.client.get_registered_model(POLICY).tags


def test_a_move_does_not_wait_for_a_clock_that_is_ahead(registry: Registry) -> None:
    for ahead_s in (60.0, 1e9, float("inf"), float("nan"), -MOVED_WITHIN_S - 1):
        announce(registry, when=time.time() + ahead_s)
        assert registry.aliases() == NOW, ahead_s  # it is undone: its champion was not in place
        assert not pending(registry)
    registry.promote("2")
    assert registry.aliases() == Aliases(champion="2", previous="1")


def test_a_move_that_is_under_way_elsewhere_is_left_alone(registry: Registry) -> None:
    """Also by the clock of a machine that is a second ahead."""
    for ahead_s in (0.0, 1.0):
        announce(registry, when=time.time() + ahead_s)
        registry.aliases()
        assert pending(registry), ahead_s
    with pytest.raises(ServiceError, match="another promotion moves the aliases at this moment"):
        registry.promote("2")


UNREADABLE = ["", "{", "[]", "null", "7", "[" * 4000, "9" * 4900, '{"home": "elsewhere:/home"}', '{"before": {}}']
CHANGES: list[dict[str, Any]] = [
    {"before": {"champion": ["1"]}}, {"after": None}, {"after": {"emperor": "1"}}, {"when": "soon"}, {"when": None},
    {"before": {"champion": 1}},
]  # fmt: skip


def test_an_announcement_that_nobody_can_read_counts_as_undone(registry: Registry) -> None:
    for tag in UNREADABLE:
        registry.client.set_registered_model_tag(POLICY, PENDING, tag)
        assert registry.aliases() == NOW, tag
        assert not pending(registry)
    for change in CHANGES:
        announce(registry, **change)
        assert registry.aliases().champion == "1", change
        assert not pending(registry)
    registry.promote("2")
    assert registry.aliases() == Aliases(champion="2", previous="1")


def test_metrics_that_nobody_can_read_count_as_none(registry: Registry) -> None:
    for tag in ("", "{", "[1]", "[" * 4000, "9" * 4900, '{"a": "b", "loss": NaN}'):
        registry.client.set_model_version_tag(POLICY, "1", "metrics", tag)
        assert registry.named("champion")["champion"].metrics == {}, tag
