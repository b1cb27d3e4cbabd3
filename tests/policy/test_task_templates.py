"""The template file: every task can be written, and the words between slots keep their spaces."""

import pytest

from tessera.errors import InputError
from tessera.policy.mixture import ITEM_TASKS, MIXTURES, TMT_GROUPS, tasks_of
from tessera.policy.templates import load_templates

SLOTS = {
    "history", "titles", "anchor", "query", "candidates", "sid", "title", "text", "caption", "intents", "category",
}


def test_words_and_slots_in_turn() -> None:
    templates = load_templates()
    assert templates["next"].prompt == ((True, "history"),)
    assert templates["next"].target == "sid"
    assert templates["choose_next"].prompt == (
        (True, "history"), (False, " Candidates:"), (True, "candidates"), (False, " Next item:"),
    )
    assert templates["titles_to_sid"].words == ["Titles bought:", " Next item:"]
    assert templates["caption_to_title"].slots == {"caption", "title"}


def test_every_template_uses_known_slots_and_writes_an_item_or_its_title() -> None:
    for name, template in load_templates().items():
        assert template.slots <= SLOTS, name
        assert template.target in ("sid", "title"), name


def test_no_prompt_tells_its_answer() -> None:
    for name, template in load_templates().items():
        assert template.target not in {text for is_slot, text in template.prompt if is_slot}, name


def test_item_tasks_are_those_without_a_history() -> None:
    of_users = {"history", "titles", "anchor", "candidates"}
    assert {name for name, one in load_templates().items() if not one.slots & of_users} == ITEM_TASKS


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(InputError, match="no task templates of version 'v0'"):
        load_templates("v0")


def test_mixtures_hold_known_tasks_once() -> None:
    for name, tasks in MIXTURES.items():
        assert tasks_of(name) == tasks
    assert len(MIXTURES["tmt"]) == 8
    assert set(MIXTURES["tmt"]) == {"next"}.union(*TMT_GROUPS.values())
    assert {task for tasks in MIXTURES.values() for task in tasks} == set(load_templates())


def test_tasks_by_name() -> None:
    assert tasks_of("next, title_to_sid") == ("next", "title_to_sid")
    assert tasks_of("query_to_sid") == ("query_to_sid",)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [("tnt", "'tnt' is no mixture"), ("", "'' is no mixture"), ("next,tmt", "'tmt' is no mixture"),
     ("next,next", "names a task twice")],
)
def test_other_names_are_refused(spec: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        tasks_of(spec)
