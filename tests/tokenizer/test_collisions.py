"""Collision resolution: by hand, and its promises as properties."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tessera.errors import InputError
from tessera.tokenizer.collisions import resolve
from tessera.tokenizer.report import collision_rate

# One dimension: level 1 at 0, 10, 20; level 2 at -1, 0, 1.
BOOKS = np.array([[[0.0], [10.0], [20.0]], [[-1.0], [0.0], [1.0]]])


def encode(z: np.ndarray, books: np.ndarray) -> np.ndarray:
    residual, codes = z.copy(), []
    for book in books:
        code = ((residual[:, None] - book) ** 2).sum(2).argmin(1)
        residual = residual - book[code]
        codes.append(code)
    return np.stack(codes, 1)


def resolved(*z: float, taken: list[list[int]] | None = None) -> list[list[int]]:
    latents = np.array(z)[:, None]
    ids = [f"i{n}" for n in range(len(z))]
    held = None if taken is None else np.array(taken)
    return resolve(ids, encode(latents, BOOKS), latents, BOOKS, held)[0].tolist()


def test_the_nearest_keeps_and_the_other_takes_the_nearest_free_code() -> None:
    # Both are 0_1; 0.05 is nearer to code 0 and stays; 0.1 goes to code +1 (0.9 away), not to -1 (1.1 away).
    assert resolved(0.1, 0.05) == [[0, 2], [0, 1]]


def test_an_item_without_collision_keeps_its_code_even_if_a_mover_wants_it() -> None:
    # 1.2 is 0_2 alone, so 0.1 must take -1.
    assert resolved(0.1, 0.05, 1.2) == [[0, 0], [0, 1], [0, 2]]


def test_a_full_prefix_sends_movers_to_the_next_code_of_the_level_above() -> None:
    # 0_0, 0_1, 0_2 are taken, 0.2 goes below 10 and there, 9.8 short, to -1.
    assert resolved(0.1, 0.05, 1.2, 0.2) == [[0, 0], [0, 1], [0, 2], [1, 0]]


def test_equal_distances_go_by_item_id() -> None:
    latents = np.array([[0.0], [0.0]])
    codes, moved = resolve(["b", "a"], encode(latents, BOOKS), latents, BOOKS)
    assert codes[1].tolist() == [0, 1]
    assert moved.tolist() == [True, False]


def test_a_taken_sid_makes_even_the_nearest_move() -> None:
    assert resolved(0.0, taken=[[0, 1]]) == [[0, 0]]
    assert resolved(0.0, taken=[[0, 0], [0, 1], [0, 2]]) == [[1, 0]]


def test_all_sids_can_be_given_out_and_not_one_more() -> None:
    assert sorted(map(tuple, resolved(*[3.0] * 9))) == [(a, b) for a in range(3) for b in range(3)]
    with pytest.raises(InputError, match="10 items do not fit into the 9 semantic IDs"):
        resolved(*[3.0] * 10)
    with pytest.raises(InputError, match=r"raise tokenizer\.codebook_size"):
        resolved(*[3.0] * 8, taken=[[0, 0], [1, 1]])


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Few distinct latents on small codebooks, so that collisions, ties and full prefixes are common."""
    levels, size = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    items = draw(st.integers(1, min(40, size**levels)))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    books = random.integers(-3, 4, size=(levels, size, 2)) + 0.25 * random.normal(size=(levels, size, 2))
    latents = random.integers(-2, 3, size=(items, 2)) * draw(st.sampled_from([0.0, 1.0, 2.0]))
    ids = [f"i{n}" for n in random.permutation(items)]
    return ids, encode(latents, books), latents, books


@settings(max_examples=200, deadline=None)
@given(catalogues())
def test_unique_in_range_and_only_colliding_items_move(case: tuple) -> None:
    ids, codes, latents, books = case
    result, moved = resolve(ids, codes, latents, books)
    assert len(np.unique(result, axis=0)) == len(ids)
    assert collision_rate(result) == 0
    assert result.shape == codes.shape
    assert ((result >= 0) & (result < books.shape[1])).all()
    assert (moved == (result != codes).any(1)).all()
    _, group, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    assert not moved[count[group.reshape(-1)] == 1].any()
    # Exactly one item of each SID stays where it was.
    assert (~moved).sum() == len(count)


@settings(max_examples=100, deadline=None)
@given(catalogues())
def test_resolving_again_changes_nothing(case: tuple) -> None:
    ids, codes, latents, books = case
    once, _ = resolve(ids, codes, latents, books)
    twice, moved = resolve(ids, once, latents, books)
    assert (once == twice).all()
    assert not moved.any()


@settings(max_examples=100, deadline=None)
@given(catalogues(), st.integers(0, 2**20))
def test_the_order_of_the_rows_does_not_matter(case: tuple, seed: int) -> None:
    ids, codes, latents, books = case
    order = np.random.default_rng(seed).permutation(len(ids))
    straight, _ = resolve(ids, codes, latents, books)
    shuffled, _ = resolve([ids[n] for n in order], codes[order], latents[order], books)
    assert (straight[order] == shuffled).all()


@settings(max_examples=100, deadline=None)
@given(catalogues())
def test_movers_stay_below_their_prefix_while_it_has_room(case: tuple) -> None:
    ids, codes, latents, books = case
    result, _ = resolve(ids, codes, latents, books)
    for prefix in np.unique(codes[:, :-1], axis=0):
        here = (codes[:, :-1] == prefix).all(1)
        left = (result[here, :-1] != prefix).any(1)
        if left.any():
            assert (result[:, :-1] == prefix).all(1).sum() == books.shape[1]


@settings(max_examples=100, deadline=None)
@given(catalogues(), st.integers(0, 2**20))
def test_taken_sids_are_never_given_out(case: tuple, seed: int) -> None:
    ids, codes, latents, books = case
    levels, size, _ = books.shape
    assume(size**levels > len(ids))
    every = np.stack(np.unravel_index(np.arange(size**levels), (size,) * levels), 1)
    taken = np.random.default_rng(seed).permutation(every)[: size**levels - len(ids)]
    result, _ = resolve(ids, codes, latents, books, taken)
    assert len(np.unique(np.concatenate([taken, result]), axis=0)) == len(taken) + len(ids)
