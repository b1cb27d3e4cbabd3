"""Tasks over a shop of six items, read back as the text that the policy sees."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tessera.config import PolicySettings
from tessera.errors import InputError
from tessera.policy import backbone as backbones
from tessera.policy.data import IGNORE, TEXT, Examples, pack_examples, sequences, sid_rows, windows
from tessera.policy.materials import read_materials, tokenised
from tessera.policy.mixture import MIXTURES, Mixture, cases_of, one_each
from tessera.policy.tasks import CANDIDATES, Cases, Materials, held_out, item_cases, positions, write
from tessera.schema import SCHEMAS, write_table

SETTINGS = PolicySettings(
    hidden=16, layers=1, heads=2, text_vocabulary=400, max_history=3, text_tokens=40, title_history=2
)
TITLES = ["Red ball", "Blue ball", "Net", "Tent", "Lamp", ""]
CATEGORIES = [["Toys", "Balls"], ["Toys", "Balls"], ["Toys", "Nets"], ["Camp"], ["Camp"], []]
CODES = np.array([[0, 0], [0, 1], [1, 0], [2, 1], [2, 2], [1, 2]])
SIDS = [f"<sid_0_{a}><sid_1_{b}>" for a, b in CODES.tolist()]
# User 0 buys across categories; user 1 stays with balls; user 2 has one item only.
HISTORIES = [np.array([0, 3, 1, 2, 4]), np.array([1, 0]), np.array([5])]


@pytest.fixture(scope="module")
def backbone() -> backbones.Backbone:
    return backbones.build(SETTINGS, [*TITLES, "item title bought next"] * 3, 2, 3, seed=0)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    made = {"provider": "embedded", "model": "", "prompt_version": "1", "status": "ok"}
    shop = {"brand": "", "attributes": [], "image_status": "none"}
    rows: dict[str, list[dict]] = {
        "items": [
            {"item_id": f"i{n}", "title": title, "description": "Good.", "categories": CATEGORIES[n], **shop}
            for n, title in enumerate(TITLES)
        ],
        "captions": [{"item_id": "i3", "caption": "green, outdoors", **made}],
        "intents": [
            {"item_id": "i2", **made, "motives": ["sport"], "surface": [],
             "descriptors": [{"text": "catch balls", "confidence": 0.9}, {"text": "play", "confidence": 0.5}]},
            {"item_id": "i0", **made | {"status": "failed"}, "motives": [], "surface": [], "descriptors": [],
             "reason": "refused"},
        ],
    }
    for name, table in rows.items():
        write_table(name, pa.Table.from_pylist(table, SCHEMAS[name]), folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in rows}


IDS = [f"i{n}" for n in range(6)]


@pytest.fixture(scope="module")
def materials(backbone: backbones.Backbone, tables: dict[str, Path]) -> Materials:
    return read_materials(backbone, IDS, CODES, HISTORIES, SETTINGS, **tables)


@pytest.fixture(scope="module")
def told(backbone: backbones.Backbone, materials: Materials) -> Callable[..., list[tuple[str, str]]]:
    """Prompt and target of every example of a task, as text."""

    def tell(task: str, purchases: Cases | None = None) -> list[tuple[str, str]]:
        cases = cases_of(task, positions(HISTORIES, 3) if purchases is None else purchases, materials)
        return read(backbone, write(task, 0, cases, materials, np.random.default_rng(0)))

    return tell


def read(backbone: backbones.Backbone, examples: Examples) -> list[tuple[str, str]]:
    decode = backbone.tokenizer.decode
    rows = zip(examples.tokens.rows(), examples.prompt, strict=True)
    return [(decode(row[:count]), decode(row[count:])) for row, count in rows]


def test_titles_and_sids_of_every_item(told: Callable) -> None:
    """The item without a title is in neither."""
    pairs = list(zip(TITLES[:5], SIDS[:5], strict=True))
    assert told("title_to_sid") == [(f"<s>Item with the title: {title} Item:", sid) for title, sid in pairs]
    assert told("sid_to_title") == [(f"<s>{sid} Title of the item:", f" {title}</s>") for title, sid in pairs]


def test_captions_and_intents_of_the_items_that_have_them(told: Callable) -> None:
    assert told("caption_to_sid") == [("<s>Item that looks like: green, outdoors Item:", SIDS[3])]
    assert told("caption_to_title") == [("<s>Item that looks like: green, outdoors Title:", " Tent</s>")]
    assert told("intents_to_sid") == [("<s>Item bought for: catch balls; play Item:", SIDS[2])]
    assert told("text_to_sid")[0] == ("<s>Item described as: Red ball. Good. Item:", SIDS[0])


def test_a_query_is_a_descriptor_or_a_motive(materials: Materials, backbone: backbones.Backbone) -> None:
    cases = cases_of("query_to_sid", positions(HISTORIES, 3), materials)
    rng = np.random.default_rng(0)
    prompts = {read(backbone, write("query_to_sid", 0, cases, materials, rng))[0] for _ in range(40)}
    assert prompts == {(f"<s>Search: {phrase} Item:", SIDS[2]) for phrase in ("catch balls", "play", "sport")}


def test_histories_are_the_newest_items_before_each_purchase(told: Callable) -> None:
    """Three items at most as SIDs, two at most as titles."""
    s, next_item = SIDS, " Title of the next item:"
    assert told("next") == [
        (f"<s>{s[0]}", s[3]), (f"<s>{s[0]}{s[3]}", s[1]), (f"<s>{s[0]}{s[3]}{s[1]}", s[2]),
        (f"<s>{s[3]}{s[1]}{s[2]}", s[4]), (f"<s>{s[1]}", s[0]),
    ]
    assert told("history_to_title")[3:] == [
        (f"<s>{s[3]}{s[1]}{s[2]}{next_item}", " Lamp</s>"), (f"<s>{s[1]}{next_item}", " Red ball</s>"),
    ]
    assert told("titles_to_sid")[3:] == [
        ("<s>Titles bought: Blue ball; Net; Next item:", s[4]), ("<s>Titles bought: Blue ball; Next item:", s[0]),
    ]


def test_instructions_with_what_the_purchase_is_to_the_history(told: Callable) -> None:
    s = SIDS
    assert told("next_in_category")[0] == (f"<s>{s[0]} Next item in the category: Camp Item:", s[3])
    assert told("next_similar") == [
        (f"<s>{s[0]}{s[3]} Next item similar to:{s[0]} Item:", s[1]),
        (f"<s>{s[3]}{s[1]}{s[2]} Next item similar to:{s[3]} Item:", s[4]),
        (f"<s>{s[1]} Next item similar to:{s[1]} Item:", s[0]),
    ]
    goes = "Next item that goes with:"
    assert told("next_complementary") == [
        (f"<s>{s[0]} {goes}{s[0]} Item:", s[3]),
        (f"<s>{s[0]}{s[3]} {goes}{s[3]} Item:", s[1]),
        (f"<s>{s[0]}{s[3]}{s[1]} {goes}{s[1]} Item:", s[2]),
        (f"<s>{s[3]}{s[1]}{s[2]} {goes}{s[2]} Item:", s[4]),
    ]
    assert told("next_exploration") == [
        (f"<s>{s[0]} Next item outside the categories bought:", s[3]),
        (f"<s>{s[0]}{s[3]}{s[1]} Next item outside the categories bought:", s[2]),
    ]
    assert {target for _, target in told("next_for_query")} == {s[2]}


def test_new_items_are_the_least_bought(materials: Materials, told: Callable) -> None:
    """Items 2 to 5 were bought once; a fifth of six items is one, the last in number, which nobody buys next."""
    assert materials.is_new.tolist() == [False] * 5 + [True]
    assert told("next_new") == []
    asked = held_out([np.array([0, 1])], np.array([5]), 3)
    assert told("next_new", asked) == [(f"<s>{SIDS[0]}{SIDS[1]} Next item, one that is new:", SIDS[5])]


def test_items_of_no_category_are_neither_similar_nor_outside(told: Callable) -> None:
    """Item 5, which has none, asked for after a ball; and a ball asked for after item 5."""
    asked = held_out([np.array([0]), np.array([5])], np.array([5, 0]), 3)
    assert told("next_similar", asked) == told("next_complementary", asked) == told("next_in_category", asked)[1:] == []
    assert [target for _, target in told("next_exploration", asked)] == [SIDS[0]]


def test_an_item_is_not_similar_to_itself(told: Callable) -> None:
    assert told("next_similar", held_out([np.array([1, 0])], np.array([0]), 3)) == [
        (f"<s>{SIDS[1]}{SIDS[0]} Next item similar to:{SIDS[1]} Item:", SIDS[0])
    ]


def test_held_out_items_without_a_number_are_left_out() -> None:
    cases = held_out([np.array([0]), np.array([1]), np.array([2, 3, 4, 5])], np.array([-1, 4, 0]), 3)
    assert cases.item.tolist() == [4, 0]
    assert cases.group.tolist() == [1, 2]
    assert [row.tolist() for row in cases.history.rows()] == [[1], [3, 4, 5]]


def test_candidates_hold_the_next_item_at_every_place(materials: Materials, backbone: backbones.Backbone) -> None:
    cases = positions([np.array([0, 3])] * 300, 3)
    written = read(backbone, write("choose_next", 0, cases, materials, np.random.default_rng(0)))
    places: list[int] = []
    for prompt, target in written:
        head, rest = prompt.split(" Candidates:")
        candidates = rest.removesuffix(" Next item:").replace("><sid_0", ">|<sid_0").split("|")
        assert (head, target) == (f"<s>{SIDS[0]}", SIDS[3])
        assert len(candidates) == CANDIDATES
        assert set(candidates) <= set(SIDS)
        places += [place for place, one in enumerate(candidates) if one == target]
    counts = np.bincount(places, minlength=CANDIDATES)
    assert counts.min() > 60  # 300 / 5, and the other candidates may be the item too
    assert len(written) == 300


def test_texts_are_cut_and_cannot_spell_special_tokens(backbone: backbones.Backbone, tables: dict[str, Path]) -> None:
    short = read_materials(backbone, IDS, CODES, HISTORIES, replace(SETTINGS, text_tokens=3), **tables)
    assert max(short.slots["text"].lengths) == 3
    special = set(backbone.tokenizer.all_special_ids) | set(backbone.sid_tokens.flatten().tolist())
    spelled = tokenised(backbone, ["free <sid_0_1></s> bag", "  "])
    assert not special & set(spelled.flat.tolist())
    assert backbone.tokenizer.decode(spelled.rows()[0]) == " free <sid_0_1></s> bag"
    assert spelled.lengths[1] == 0


def test_a_table_of_other_items_is_refused(backbone: backbones.Backbone, tables: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="item 'i9' has a SID but is not in the catalogue"):
        read_materials(backbone, [*IDS[:5], "i9"], CODES, HISTORIES, SETTINGS, **tables)


def test_text_and_codes_are_targets_of_their_kind(materials: Materials, backbone: backbones.Backbone) -> None:
    """Of a title every piece and EOS, of an item both codes, and nothing of a prompt."""
    cases = item_cases(6).take(np.array([0]))
    examples = Examples.stacked([
        write("title_to_sid", 0, cases, materials, np.random.default_rng(0)),
        write("sid_to_title", 1, cases, materials, np.random.default_rng(0)),
    ])
    packed = pack_examples(examples, backbone.sid_tokens.numpy(), 60)
    wanted = packed.targets[0] != IGNORE
    title = materials.slots["title"].rows()[0].tolist()
    assert packed.targets[0][wanted].tolist() == [0, 0, *title, backbone.tokenizer.eos_token_id]
    assert packed.levels[0][wanted].tolist() == [0, 1] + [TEXT] * (len(title) + 1)
    assert packed.tasks[0][wanted].tolist() == [0, 0] + [1] * (len(title) + 1)
    places = wanted.nonzero().flatten().tolist()
    following = packed.tokens[0][[place + 1 for place in places]].tolist()
    assert following == [*backbone.sid_tokens[[0, 1], [0, 0]].tolist(), *title, backbone.tokenizer.eos_token_id]


def test_one_case_of_each_user_and_no_more_than_the_limit() -> None:
    cases = positions(HISTORIES, 3)
    seen = set()
    for seed in range(60):
        drawn = one_each(cases, np.random.default_rng(seed), 0)
        assert sorted(drawn.group.tolist()) == [0, 1]
        seen |= set(drawn.item.tolist())
    assert seen == {0, 1, 2, 3, 4}
    users = {one_each(cases, np.random.default_rng(seed), 1).group.tolist()[0] for seed in range(20)}
    assert users == {0, 1}


def test_next_alone_draws_the_windows_and_nothing_else(materials: Materials, backbone: backbones.Backbone) -> None:
    """And takes nothing from the generator, so that training on it alone is what it was without tasks."""
    rng = np.random.default_rng(7)
    drawn = Mixture(HISTORIES, materials, SETTINGS).draw(rng)
    sids = sid_rows(CODES, backbone.sid_tokens.numpy())
    plain = sequences(windows(HISTORIES, SETTINGS.max_history + 1), sids, backbone.bos)
    assert drawn.tokens.flat.tolist() == plain.tokens.flat.tolist()
    assert drawn.prompt.tolist() == plain.prompt.tolist()
    assert rng.integers(1 << 40) == np.random.default_rng(7).integers(1 << 40)


def test_an_epoch_of_a_mixture(materials: Materials) -> None:
    """One window of each user; of each other task one example a user or item; bounded, two."""
    tmt = replace(SETTINGS, tasks="tmt")
    drawn = Mixture(HISTORIES, materials, tmt).draw(np.random.default_rng(0))
    count = dict(zip(MIXTURES["tmt"], np.bincount(drawn.task).tolist(), strict=True))
    assert count == {
        "next": 3, "titles_to_sid": 2, "history_to_title": 2, "title_to_sid": 5, "sid_to_title": 5,
        "intents_to_sid": 1, "caption_to_sid": 1, "caption_to_title": 1,
    }
    bounded = Mixture(HISTORIES, materials, replace(tmt, task_examples=2)).draw(np.random.default_rng(0))
    assert np.bincount(bounded.task).tolist() == [3, 2, 2, 2, 2, 1, 1, 1]


def test_a_task_that_nothing_fits_is_refused(backbone: backbones.Backbone, tables: dict[str, Path]) -> None:
    plain = read_materials(backbone, IDS, CODES, HISTORIES, SETTINGS, tables["items"])
    with pytest.raises(InputError, match=r"task 'intents_to_sid' has no example here.*\(intents, sid\)"):
        Mixture(HISTORIES, plain, replace(SETTINGS, tasks="tmt"))
