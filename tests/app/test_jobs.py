"""The queue: order, cancelling, and that nothing of a job escapes."""

import threading

import pytest

from noise2map.app import jobs
from noise2map.app.jobs import OUT_OF_MEMORY, UNEXPECTED, JobQueue
from noise2map.app.store import Store


@pytest.fixture
def queue():
    queue = JobQueue(3)
    yield queue
    queue.close()


def finished(job):
    for _ in range(200):
        if job.over:
            return job
        job.wait(0.05)
    raise AssertionError(job.state)


def test_jobs_run_in_order(queue):
    seen, gate = [], threading.Event()
    first = queue.submit(lambda job: gate.wait(5) and seen.append(0))
    others = [queue.submit(lambda job, k=k: seen.append(k)) for k in (1, 2)]
    while first.state == "waiting":
        first.wait(0.01)
    assert [queue.ahead_of(job) for job in others] == [1, 2]
    gate.set()
    assert finished(others[1]).state == "done" and seen == [0, 1, 2]


def test_a_running_job_stops_at_its_next_call(queue):
    begun, gate = threading.Event(), threading.Event()

    def work(job):
        job.tick()
        begun.set()
        gate.wait(5)
        job.tick()
        raise AssertionError("went on")

    job = queue.submit(work)
    after = queue.submit(lambda job: "next")
    begun.wait(5)
    job.cancel()
    gate.set()
    assert finished(job).state == "cancelled" and finished(after).result == "next"


def test_what_is_cancelled_waits_for_nothing_and_holds_nobody_up(queue):
    gate = threading.Event()
    first = queue.submit(lambda job: gate.wait(5))
    while first.state == "waiting":
        first.wait(0.01)
    waiting = [queue.submit(lambda job: None) for _ in range(3)]
    with pytest.raises(BlockingIOError, match="3 requests are waiting"):
        queue.submit(lambda job: None)
    waiting[0].cancel()
    last = queue.submit(lambda job: "taken")
    gate.set()
    assert finished(last).result == "taken"


def test_errors_become_sentences(queue):
    def impossible(job):
        raise ValueError("steps is 0;\n expected 1")

    def broken(job):
        raise RuntimeError("/secret/path")

    assert finished(queue.submit(impossible)).error == "steps is 0; expected 1"
    assert finished(queue.submit(broken)).error == UNEXPECTED


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("CUDA out of memory")]
)
def test_lack_of_memory_is_said_whoever_tells_it(queue, error):
    def work(job):
        raise error

    job = finished(queue.submit(work))
    assert (job.state, job.error) == ("failed", OUT_OF_MEMORY)


def test_the_store_forgets_what_was_not_asked_for_longest():
    store = Store(3, 100)
    a, b, c = (store.put(name, 30) for name in "abc")
    assert store.get(a) == "a"
    store.put("d", 30)
    assert store.get(a) == "a" and store.get(c) == "c"
    with pytest.raises(KeyError):
        store.get(b)
    big = store.put("e", 99)
    assert store.get(big) == "e" and store.bytes == 99


def test_freed_memory_is_handed_back_now_and_then(queue, monkeypatch):
    handed = []
    monkeypatch.setattr(jobs, "hand_back_freed_memory", lambda: handed.append(1))
    for place in range(33):
        assert not handed or place >= 16
        finished(queue.submit(lambda job: None))
    assert len(handed) == 2
