"""What containers start is in the images."""

from collections.abc import Callable
from typing import Any

import pytest
from manifest_objects import walk

from components.images import ROOT

Rendered = Callable[[str], list[dict[str, Any]]]


@pytest.mark.parametrize("overlay", ["local", "production", "production-operator"])
def test_what_containers_start_is_in_the_images(rendered: Rendered, overlay: str) -> None:
    """Modules and files of the project, which the images keep in /opt/tessera."""
    objects = rendered(overlay)
    commands = [value for one in objects for path, value in walk(one) if path[-1:] == ("command",)]
    modules = {command[2] for command in commands if command[:2] == ["python", "-m"]}
    own = set() if overlay == "production-operator" else {"feature_repo.front"}  # Feast's operator starts Feast itself
    assert modules == {"serving.accounts", "serving.sync", "serving.probe"} | own
    files = {value for one in objects for _, value in walk(one) if str(value).startswith("/opt/tessera/")}
    named = {module.replace(".", "/") + ".py" for module in modules} | {file[len("/opt/tessera/") :] for file in files}
    assert len(named) > 2
    assert {name for name in named if not (ROOT / name).exists()} == set()
