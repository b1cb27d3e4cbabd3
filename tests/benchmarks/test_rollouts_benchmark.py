"""The rollouts' benchmark on a small case: both sides draw items, and its numbers are of this run."""

from benchmarks.decoding import Case
from benchmarks.rollouts import compare


def test_compare() -> None:
    case = Case(items=60, beams=4, history=3, batch=2, levels=3, codebook=8, hidden=32, layers=1)
    row = compare(case, repeats=1, seed=0)
    assert row["sampled_ms"] > 0 < row["beam_ms"]
    assert (row["items"], row["beams"], row["batch"]) == (60, 4, 2)
