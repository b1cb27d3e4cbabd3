"""From the catalogue's tables to (prompt, target) examples of every training task.

A case says what an example is about: an item, and where the task is about a customer, the items bought before it. The
task's template says how it is written. Prompts name held-out purchases nowhere: histories and anchors come from the
training part of the split, and item tasks know the catalogue's content alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tessera.policy.data import Examples
from tessera.policy.ragged import Ints, Ragged, join
from tessera.policy.templates import Template

CANDIDATES = 5
NEW_SHARE = 0.2


@dataclass(frozen=True)
class Cases:
    """item: [n] the item that is asked for; history: [n] rows of items bought before, empty in item tasks; anchor: [n]
    an item of the history that the prompt names, -1 without; group: [n] the user, or the item in item tasks.
    """

    item: Ints
    history: Ragged
    anchor: Ints
    group: Ints

    def __len__(self) -> int:
        return len(self.item)

    def take(self, rows: Ints) -> "Cases":
        """The cases of these numbers, in their order."""
        return Cases(self.item[rows], self.history.take(rows), self.anchor[rows], self.group[rows])


@dataclass(frozen=True)
class Materials:
    """What slots are filled with, by item number.

    slots: tokens of "sid", "title", "text", "caption", "intents" and "category", an empty row where an item has none;
    phrases: one row a search phrase, phrase_count [items] of them for each item in turn; category: [items] number of
    the finest category, -1 without; is_new: [items]; templates: every task's template, and the tokens of its words.
    """

    slots: Mapping[str, Ragged]
    phrases: Ragged
    phrase_count: Ints
    category: Ints
    is_new: NDArray[np.bool_]
    templates: Mapping[str, Template]
    words: Mapping[str, list[int]]
    bos: int
    eos: int
    separator: list[int]
    title_history: int

    @property
    def items(self) -> int:
        """Size of the catalogue."""
        return len(self.category)


def item_cases(items: int) -> Cases:
    """One case an item."""
    numbers = np.arange(items)
    return Cases(numbers, Ragged.same([], items), np.full(items, -1), numbers)


def positions(histories: Sequence[np.ndarray], longest: int) -> Cases:
    """Every purchase of every history but the first, after the at most `longest` before it."""
    every = Ragged.of(histories)
    chosen = np.flatnonzero(every.place > 0)
    before = every.before(chosen, longest)
    return Cases(every.flat[chosen], before, np.full(len(chosen), -1), every.owner[chosen])


def held_out(histories: Sequence[np.ndarray], targets: np.ndarray, longest: int) -> Cases:
    """The held-out purchase of each user, after the at most `longest` before it; targets without a number are left out.
    """
    chosen = np.flatnonzero(targets >= 0)
    before = Ragged.of([histories[i] for i in chosen.tolist()]).last(longest)
    return Cases(np.asarray(targets)[chosen], before, np.full(len(chosen), -1), chosen)


def narrowed(task: str, cases: Cases, materials: Materials) -> Cases:
    """The cases that a task is about, with their anchors.

    SIGMA's instructions by what the next purchase t is to the history. Similar: the newest other item of t's category
    is the anchor. Complementary: the newest item of another category is. Exploration: no item bought is of t's
    category. New: t is among the NEW_SHARE of the items with the fewest training purchases, as a split has no clock.
    An item of no category is in none of the first three.
    """
    owner, history = cases.history.owner, cases.history.flat
    own, theirs = materials.category[cases.item[owner]], materials.category[history]
    known = (own >= 0) & (theirs >= 0)
    same = known & (own == theirs)
    if task == "next_similar":
        cases = _anchored(cases, same & (history != cases.item[owner]))
    elif task == "next_complementary":
        cases = _anchored(cases, known & (own != theirs))
    elif task == "next_exploration":
        met = np.bincount(owner[same], minlength=len(cases)) > 0
        cases = cases.take(np.flatnonzero(~met & (materials.category[cases.item] >= 0)))
    elif task == "next_new":
        cases = cases.take(np.flatnonzero(materials.is_new[cases.item]))
    return cases.take(np.flatnonzero(_filled(materials.templates[task], cases, materials)))


def _anchored(cases: Cases, fits: NDArray[np.bool_]) -> Cases:
    """The cases with an item of the history that fits, the newest of them as anchor."""
    newest = np.full(len(cases), -1)
    np.maximum.at(newest, cases.history.owner[fits], np.flatnonzero(fits))
    found = np.flatnonzero(newest >= 0)
    return replace(cases.take(found), anchor=cases.history.flat[newest[found]])


def _filled(template: Template, cases: Cases, materials: Materials) -> NDArray[np.bool_]:
    """[n] whether every slot has something to be filled with."""
    filled = np.ones(len(cases), dtype=bool)
    for slot in template.slots:
        if slot in materials.slots:
            filled &= materials.slots[slot].lengths[cases.item] > 0
        elif slot == "query":
            filled &= materials.phrase_count[cases.item] > 0
        elif slot in ("history", "titles"):
            filled &= cases.history.lengths > 0
    return filled


def write(task: str, number: int, cases: Cases, materials: Materials, rng: np.random.Generator) -> Examples:
    """Write cases of a task as examples: the opening token, the prompt, then the target; text ends with EOS.

    Args:
        number: the task's number in its mixture.
    """
    template, count = materials.templates[task], len(cases)
    parts = [Ragged.same([materials.bos], count)]
    for is_slot, text in template.prompt:
        parts.append(_slot(text, cases, materials, rng) if is_slot else Ragged.same(materials.words[text], count))
    prompt = np.sum([part.lengths for part in parts], axis=0)
    parts.append(_slot(template.target, cases, materials, rng))
    if template.target != "sid":
        parts.append(Ragged.same([materials.eos], count))
    return Examples(join(*parts), prompt, np.full(count, number))


def _slot(name: str, cases: Cases, materials: Materials, rng: np.random.Generator) -> Ragged:
    slots = materials.slots
    if name in slots:
        return slots[name].take(cases.item)
    if name == "history":
        return slots["sid"].take(cases.history.flat).merged(cases.history.lengths)
    if name == "titles":
        recent = cases.history.last(materials.title_history)
        titles = join(slots["title"].take(recent.flat), Ragged.same(materials.separator, len(recent.flat)))
        return titles.merged(recent.lengths)
    if name == "anchor":
        return slots["sid"].take(cases.anchor)
    if name == "query":
        counts = materials.phrase_count[cases.item]
        first = (np.cumsum(materials.phrase_count) - materials.phrase_count)[cases.item]
        return materials.phrases.take(first + rng.integers(counts))
    return _candidates(cases.item, materials, rng)


def _candidates(items: Ints, materials: Materials, rng: np.random.Generator) -> Ragged:
    """The SIDs of each item and of CANDIDATES - 1 drawn ones, shuffled.

    Negative sampling as it is written here: the next purchase is to be told from items drawn at random; an item drawn
    by chance twice, or the right one once more, does no harm.
    """
    drawn = rng.integers(materials.items, size=(len(items), CANDIDATES))
    drawn[:, 0] = items
    shuffled = rng.permuted(drawn, axis=1)
    return materials.slots["sid"].take(shuffled.ravel()).merged(np.full(len(items), CANDIDATES))
