"""Versioned task templates: how each training task is written.

A file holds a prompt and a target for each task. Braces name slots, which tessera.policy.tasks fills with tokens; the
words between them are tokenised as they stand, less the spaces before a slot.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import InputError
from tessera.files import read_json

VERSION = "v1"


@dataclass(frozen=True)
class Template:
    """prompt: words and slots in turn, as (is it a slot?, words or the slot's name); target: the slot to be written."""

    prompt: tuple[tuple[bool, str], ...]
    target: str

    @property
    def slots(self) -> set[str]:
        """The names of all slots."""
        return {text for is_slot, text in self.prompt if is_slot} | {self.target}

    @property
    def words(self) -> list[str]:
        """The fixed parts of the prompt."""
        return [text for is_slot, text in self.prompt if not is_slot]


def load_templates(version: str = VERSION) -> dict[str, Template]:
    """Every task's template.

    Raises:
        InputError: no such version.
    """
    raw = read_json(template_file(version))
    return {task: Template(_parts(one["prompt"]), one["target"].strip("{}")) for task, one in raw.items()}


def template_file(version: str = VERSION) -> Path:
    """Where the templates of a version are.

    Raises:
        InputError: no such version.
    """
    path = Path(__file__).parent / f"{version}.json"
    if not path.exists():
        raise InputError(f"there are no task templates of version '{version}'; use '{VERSION}'.")
    return path


def _parts(prompt: str) -> tuple[tuple[bool, str], ...]:
    """Split at the slots: "{history} Title:" gives ((True, "history"), (False, " Title:"))."""
    pieces = re.split(r"\{(\w+)\}", prompt)
    parts = [(place % 2 == 1, text if place % 2 else text.rstrip()) for place, text in enumerate(pieces)]
    return tuple(part for part in parts if part[1])
