"""Which tasks a policy trains on: declared here and nowhere else.

All tasks share one autoregressive loss without weights: an epoch holds every window of the histories for "next", and
for each other task one example of every user, or of every item, that it fits (tessera.config's `task_examples` bounds
them).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tessera.config import PolicySettings
from tessera.errors import InputError
from tessera.policy.data import Examples, sequences, windows
from tessera.policy.tasks import Cases, Materials, item_cases, narrowed, positions, write
from tessera.policy.templates import load_templates

# TMT's groups, for ablations: what is left out is `tmt` without a group's tasks.
TMT_GROUPS: dict[str, tuple[str, ...]] = {
    "titles": ("titles_to_sid", "history_to_title"),
    "index": ("title_to_sid", "sid_to_title"),
    "intents": ("intents_to_sid",),
    "visual": ("caption_to_sid", "caption_to_title"),
}
MIXTURES: dict[str, tuple[str, ...]] = {
    "next": ("next",),
    # LC-Rec's kind of alignment: items by their words and words by their items, beside the histories.
    "alignment": ("next", "title_to_sid", "sid_to_title", "titles_to_sid", "history_to_title"),
    # TriAlignGR's multi-task training (TMT), all eight.
    "tmt": ("next", *(task for group in TMT_GROUPS.values() for task in group)),
    # Semantic Convergence: sequential, text (both ways), query, negative sampling.
    "convergence": ("next", "text_to_sid", "sid_to_title", "query_to_sid", "choose_next"),
    # SIGMA's instructions.
    "sigma": (
        "next", "next_in_category", "next_for_query", "next_similar", "next_complementary", "next_exploration",
        "next_new",
    ),
}
ITEM_TASKS = frozenset({
    "title_to_sid", "sid_to_title", "intents_to_sid", "caption_to_sid", "caption_to_title", "text_to_sid",
    "query_to_sid",
})


def tasks_of(spec: str) -> tuple[str, ...]:
    """The tasks of a mixture, or of task names joined by commas.

    Raises:
        InputError: a name that is neither.
    """
    tasks = MIXTURES.get(spec, tuple(name.strip() for name in spec.split(",")))
    known = load_templates()
    if unknown := [name for name in tasks if name not in known]:
        raise InputError(
            f"policy.tasks: '{unknown[0]}' is no mixture ({', '.join(MIXTURES)}) and no task ({', '.join(known)})."
        )
    if len(set(tasks)) < len(tasks):
        raise InputError(f"policy.tasks names a task twice: {spec}.")
    return tasks


class Mixture:
    """The training examples of several tasks.

    Args:
        histories: training histories of item numbers.

    Raises:
        InputError: a task that no case of this catalogue fits.
    """

    def __init__(self, histories: Sequence[np.ndarray], materials: Materials, settings: PolicySettings) -> None:
        self.tasks, self.materials = tasks_of(settings.tasks), materials
        self._limit = settings.task_examples
        cut = windows(histories, settings.max_history + 1)
        self._windows = sequences(cut, materials.slots["sid"], materials.bos)
        every = positions(histories, settings.max_history)
        self._cases = {task: cases_of(task, every, materials) for task in self.tasks if task != "next"}
        for task, cases in self._cases.items():
            if not len(cases):
                slots = ", ".join(sorted(materials.templates[task].slots))
                raise InputError(
                    f"task '{task}' has no example here: no item has all of what it is written from ({slots}); give "
                    "the tables that hold it (captions, intents), or leave the task out of policy.tasks."
                )

    def draw(self, rng: np.random.Generator) -> Examples:
        """An epoch's examples, task by task; what is drawn depends on `rng` alone."""
        parts = []
        for number, task in enumerate(self.tasks):
            if task == "next":
                parts.append(replace(self._windows, task=np.full(len(self._windows), number)))
            else:
                cases = one_each(self._cases[task], rng, self._limit)
                parts.append(write(task, number, cases, self.materials, rng))
        return Examples.stacked(parts)


def cases_of(task: str, purchases: Cases, materials: Materials) -> Cases:
    """What a task can be asked about: every item, or every one of the purchases, that fits it."""
    every = item_cases(materials.items) if task in ITEM_TASKS else purchases
    return narrowed(task, every, materials)


def one_each(cases: Cases, rng: np.random.Generator, limit: int) -> Cases:
    """A case drawn of each user (of each item in item tasks), of at most `limit` of them; 0 is no limit."""
    shuffled = rng.permutation(len(cases))
    _, first = np.unique(cases.group[shuffled], return_index=True)
    chosen = shuffled[np.sort(first)]
    return cases.take(chosen[:limit] if limit else chosen)
