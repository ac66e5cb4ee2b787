"""TRACE: its parts by hand, and its matching against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from eval.trace import Pair, assigned, pairs_of, trace_score, words_f1


def test_matching_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for rows, columns in itertools.product((1, 2, 3, 5), (1, 2, 4, 6)):
        worth = rng.random((rows, columns)).round(1)  # with ties
        found = assigned(worth)
        small, large = sorted((rows, columns))
        wide = worth if rows <= columns else worth.T
        best = max(sum(wide[i, p[i]] for i in range(small)) for p in itertools.permutations(range(large), small))
        assert len(found) == len(set(found.values())) == small
        assert sum(worth[i, j] for i, j in found.items()) == pytest.approx(best)


def test_words_are_compared_as_often_as_they_are_there() -> None:
    assert words_f1("A red  circle appears", "a red circle appears") == 1.0
    assert words_f1("a red circle appears", "a blue circle appears") == pytest.approx(3 / 4)
    assert words_f1("red red red", "red") == pytest.approx(2 / 4)
    assert words_f1("", "red") == words_f1("", "") == 0.0


def test_a_perfect_commentary_has_one_and_silence_none() -> None:
    true = [(1.0, "a red circle appears"), (5.0, "the red circle leaves")]
    assert trace_score(pairs_of(true, true), 2, 2) == pytest.approx(1.0)
    assert pairs_of([], true) == pairs_of(true, []) == [] and trace_score([], 0, 2) == 0.0


def test_each_fault_costs_what_it_should() -> None:
    true = [(1.0, "a red circle appears"), (20.0, "the red circle leaves")]
    late = pairs_of([(2.0, true[0][1]), true[1]], true)
    assert [p.accuracy for p in late] == [1.0, 1.0]
    assert late[0].timing == pytest.approx(0.8 * math.exp(-1) + 0.2) and late[1].timing == 1.0
    longer = pairs_of([(1.0, "a red circle appears now for us")], true[:1])
    assert longer[0].timing == pytest.approx(0.4 + 0.4 * math.exp(-3 / 2.5) + 0.2)
    wrong = pairs_of([(1.0, "a blue circle appears"), true[1]], true)
    assert [p.accuracy for p in wrong] == [pytest.approx(0.75), 1.0]
    assert trace_score(wrong, 2, 2) == pytest.approx((0.875 + 1) / 2)
    twice = pairs_of([true[0], (1.0, true[0][1]), true[1]], true)
    assert len(twice) == 2 and trace_score(twice, 3, 2) == pytest.approx(4 / 5), "what is told twice has no partner"
    over = pairs_of([(1.0, "one two three four five"), (2.0, "six")], [(1.0, "one two three four five"), (2.0, "six")])
    assert [p.timing for p in over] == [pytest.approx(0.8 + 0.2 * math.exp(-0.4))] * 2, "talking over oneself"
    assert pairs_of([(6.1, true[0][1])], true[:1]) == [], "too far to be meant"


def test_neighbours_change_partners_where_their_words_fit() -> None:
    true = [(1.0, "the star leaves"), (2.0, "a ring appears")]
    found = pairs_of([(1.1, "a ring appears"), (1.9, "the star leaves")], true)
    assert [(p.said, p.true, p.accuracy) for p in found] == [(0, 1, 1.0), (1, 0, 1.0)]
    far = [(1.0, "the star leaves"), (8.0, "a ring appears")]
    found = pairs_of([(1.0, "a ring appears"), (8.0, "the star leaves")], far)
    assert [(p.said, p.true, p.accuracy) for p in found] == [(0, 0, 0.0), (1, 1, 0.0)]
    assert isinstance(found[0], Pair)
