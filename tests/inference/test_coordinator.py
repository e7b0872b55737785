"""Processes that share a run: who takes which image, who decides, who is lost."""

import threading
from itertools import chain

import pytest
import torch.distributed as dist

from geopose.errors import InputError, RunError
from geopose.inference.workers.coordinator import Coordinator, WorkReport
from geopose.inference.workers.launch import Silence


def coordinators(size: int, lost: dict[int, str] | None = None) -> list[Coordinator]:
    store = dist.HashStore()
    return [
        Coordinator(store, rank, size, rank == 0, lambda rank: (lost or {}).get(rank))
        for rank in range(size)
    ]


def test_every_image_is_taken_once():
    coordinator, taken = coordinators(4), [[] for _ in range(4)]

    def take(rank: int) -> None:
        while (number := coordinator[rank].claim(500)) is not None:
            taken[rank].append(number)

    threads = [threading.Thread(target=take, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(chain.from_iterable(taken)) == list(range(500))


def test_runs_in_turn_do_not_share_counters():
    (alone,) = coordinators(1)
    first, second = alone.part("run-0"), alone.part("run-1")
    assert [first.claim(2), first.claim(2), first.claim(2), second.claim(2)] == [0, 1, None, 0]


def test_all_hear_what_the_leader_decides():
    leader, other = coordinators(2)
    assert leader.decide("plan", lambda: ["a"]) == ["a"]
    assert other.decide("plan", lambda: pytest.fail("only the leader decides")) == ["a"]
    assert leader.decide("nothing", lambda: None) is None
    assert other.decide("nothing", lambda: None) is None


def test_the_leader_s_error_is_everybody_s():
    leader, other = coordinators(2)

    def fail() -> None:
        raise InputError("c.yaml: no")

    with pytest.raises(InputError):
        leader.decide("plan", fail)
    with pytest.raises(InputError, match=r"c\.yaml: no") as caught:
        other.decide("plan", fail)
    assert caught.value.on_every_rank


def test_one_process_that_is_ready_is_enough():
    coordinator = coordinators(3, {2: "was killed by SIGKILL"})
    coordinator[0].report(WorkReport(problem=InputError("a.pth: bad")))
    coordinator[1].say_ready()
    assert coordinator[0].await_ready() is None, "goes on, and raises nothing"


def test_nobody_is_ready():
    coordinator = coordinators(2, {1: "was killed by SIGKILL"})
    coordinator[0].report(WorkReport(problem=InputError("a.pth: bad")))
    with pytest.raises(InputError, match=r"^a\.pth: bad$"):
        coordinator[0].await_ready()


def test_reports_of_the_living_and_the_lost():
    coordinator = coordinators(3, {1: "was killed by SIGKILL", 2: "ended with code 0"})
    coordinator[0].report(WorkReport(predicted=3))
    coordinator[2].report(WorkReport(predicted=1, problem=RunError("disk full")))
    first, second, third = coordinator[0].reports()
    assert (first.predicted, first.problem) == (3, None)
    assert str(second.problem) == "process 1 was killed by SIGKILL"
    assert (third.predicted, str(third.problem)) == (1, "process 2 stopped: disk full")


def test_silence_is_noticed_after_a_while():
    beats, now = {0: 1}, 0.0
    silence = Silence(lambda rank: beats[rank], limit_s=10.0, clock=lambda: now)
    assert silence(0) is None
    now = 9.0
    assert silence(0) is None
    beats[0], now = 2, 12.0
    assert silence(0) is None
    now = 23.0
    assert silence(0) == "gave no sign of life for 11 s"
