"""Ctrl-C counts once where work is being put away."""

import signal
import threading
from collections.abc import Iterator

import pytest

from cfiv.interrupts import heed_one_interrupt, ignore_interrupts, one_interrupt


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_is_raised_and_later_ones_are_ignored_until_the_block_ends() -> None:
    done = []

    def work() -> None:
        with one_interrupt():
            try:
                ctrl_c()
                done.append("the rest")
            finally:
                ctrl_c()
                done.append("put away")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["put away"]
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_a_block_within_what_heeds_one_changes_nothing() -> None:
    assert heed_one_interrupt()
    assert not heed_one_interrupt()
    with pytest.raises(KeyboardInterrupt), one_interrupt():
        ctrl_c()
    ctrl_c()  # that was the one


def test_what_else_ctrl_c_does_is_left_alone() -> None:
    counted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: counted.append(number))
    with one_interrupt():
        ctrl_c()
    ctrl_c()
    assert len(counted) == 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with one_interrupt():
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_thread_has_no_say() -> None:
    answers: list[bool] = []

    def ask() -> None:
        answers.append(heed_one_interrupt())
        ignore_interrupts()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
