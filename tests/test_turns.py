"""Whose turn it is: one at a time, answers first, ingest never starved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vstream.turns import ANSWERS_IN_A_ROW, Turns

PATIENCE_SECONDS = 60.0


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def test_one_at_a_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def work(kind: str) -> None:
        nonlocal inside, most
        for _ in range(40):
            with turns.answer() if kind == "answer" else turns.ingest():
                inside += 1
                most = max(most, inside)
                time.sleep(0.0001)
                inside -= 1

    threads = [threading.Thread(target=work, args=(kind,)) for kind in ["answer", "ingest"] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads) and most == 1 and inside == 0


def order_of(waiting: list[str]) -> list[str]:
    """The order in which turns are given to those who wait, in this order, while somebody is at work."""
    turns, order = Turns(), []

    def work(kind: str) -> None:
        with turns.answer() if kind == "answer" else turns.ingest():
            order.append(kind)

    threads = [threading.Thread(target=work, args=(kind,)) for kind in waiting]
    with turns.ingest():
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda number=number: turns._answers_waiting + turns._ingests_waiting == number)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    return order


def test_answers_go_before_ingest_that_has_waited_longer() -> None:
    assert order_of(["ingest", "answer", "ingest", "answer"])[:2] == ["answer", "answer"]


def test_ingest_waits_for_so_many_answers_and_no_more() -> None:
    order = order_of(["ingest", *["answer"] * (2 * ANSWERS_IN_A_ROW)])
    assert order.index("ingest") == ANSWERS_IN_A_ROW
    assert len(order) == 2 * ANSWERS_IN_A_ROW + 1


def test_ingest_goes_on_while_answers_never_pause() -> None:
    turns, stop, count = Turns(), threading.Event(), 0

    def answers() -> None:
        nonlocal count
        while not stop.is_set():
            with turns.answer():
                count += 1

    threads = [threading.Thread(target=answers) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with turns.ingest():
                pass
    finally:
        stop.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads) and count > 0


def test_alone_nobody_waits() -> None:
    turns = Turns()
    for _ in range(3 * ANSWERS_IN_A_ROW):
        with turns.answer():
            pass
    with turns.ingest(), pytest.raises(RuntimeError):
        raise RuntimeError
    with turns.ingest():
        pass


def test_an_error_gives_the_turn_back() -> None:
    turns = Turns()
    for take in (turns.answer, turns.ingest):
        with pytest.raises(ValueError), take():
            raise ValueError
    done = threading.Event()

    def other() -> None:
        with turns.answer():
            done.set()

    threading.Thread(target=other).start()
    assert done.wait(PATIENCE_SECONDS)
