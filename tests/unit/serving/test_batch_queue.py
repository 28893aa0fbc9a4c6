from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlaif_ray.serving.batching import BatchQueue, WaitingAnswer

LENGTHS = st.integers(1, 60)


def queue_of(lengths: Sequence[int], bound: int, *, versions: Sequence[int] | None = None) -> BatchQueue:
    queue = BatchQueue(max_batch_tokens=bound, max_wait_s=1.0)
    for number, tokens in enumerate(lengths):
        queue.add(WaitingAnswer(number, 1 if versions is None else versions[number], tokens, arrived=float(number)))
    return queue


def test_answers_of_like_length_go_together() -> None:
    """The oldest has 10 tokens. With both others of about 10 a forward of 3 x 12 = 36 tokens has 33 real ones; with the
    answers of 50 too it would be 5 x 50 = 250, beyond the bound."""
    batch = queue_of([10, 50, 12, 11, 50], bound=120).take()
    assert sorted(answer.tokens for answer in batch) == [10, 11, 12]


def test_the_longest_run_of_real_tokens_goes() -> None:
    """Bound 40, oldest 10. Down from it {8, 9, 10} has 27 real tokens of 30, 24 over padding; up from it {10, 13, 13}
    has 36 of 39: 33 over padding; {9, 10, 13} 32 of 39: 25."""
    batch = queue_of([10, 8, 9, 13, 13], bound=40).take()
    assert sorted(answer.tokens for answer in batch) == [10, 13, 13]


def test_a_short_answer_does_not_pay_for_a_long_one() -> None:
    """Beside 21, an answer of 10 would be more padding than tokens."""
    queue = queue_of([10, 21, 20], bound=1000)
    assert sorted(answer.tokens for answer in queue.take()) == [10, 20]
    assert [answer.tokens for answer in queue.take()] == [21]


def test_an_answer_longer_than_the_bound_stands_alone() -> None:
    queue = queue_of([70, 71, 5], bound=64)
    assert [[answer.tokens for answer in queue.take()] for _ in range(3)] == [[70], [71], [5]]


def test_a_free_actor_waits_for_company_until_the_oldest_has_waited_its_time() -> None:
    queue = queue_of([10, 10], bound=30)
    assert queue.due_s(now=0.25) == 0.75
    assert queue.due_s(now=4.0) == 0.0
    queue.add(WaitingAnswer(2, 1, 10, arrived=0.0))  # three of 10 fill a forward of 30
    assert queue.due_s(now=0.25) == 0.0
    for number in range(3):
        queue.remove(number)
    assert queue.due_s(now=9.0) is None
    with pytest.raises(IndexError):
        queue.take()


def test_nothing_is_queued_twice() -> None:
    queue = queue_of([5], bound=30)
    with pytest.raises(ValueError, match="waits already"):
        queue.add(WaitingAnswer(0, 1, 5, 0.0))


@given(st.lists(st.tuples(LENGTHS, st.integers(1, 3)), min_size=1, max_size=40), st.integers(1, 200))
def test_batches_are_of_one_version_within_the_bound_and_lead_with_the_oldest(
    answers: list[tuple[int, int]], bound: int
) -> None:
    queue = queue_of([tokens for tokens, _ in answers], bound, versions=[version for _, version in answers])
    waiting = set(range(len(answers)))
    while waiting:
        batch = queue.take()
        taken = {answer.number for answer in batch}
        assert len(batch) == 1 or len(batch) * max(answer.tokens for answer in batch) <= bound
        assert len({answer.version for answer in batch}) == 1
        assert min(waiting) in taken
        assert taken <= waiting
        waiting -= taken
        assert len(queue) == len(waiting)


@given(st.lists(LENGTHS, min_size=1, max_size=12), st.integers(1, 200))
def test_no_run_of_like_length_would_have_more_real_tokens_over_padding(lengths: list[int], bound: int) -> None:
    def worth(run: Sequence[tuple[int, int]]) -> int:
        return sum(tokens for tokens, _ in run) - (sum(run[-1][0] - tokens for tokens, _ in run))

    ordered = sorted((tokens, number) for number, tokens in enumerate(lengths))
    runs = [ordered[start:end] for start in range(len(ordered)) for end in range(start + 1, len(ordered) + 1)]
    possible = [
        worth(run)
        for run in runs
        if (lengths[0], 0) in run and (len(run) == 1 or run[-1][0] * len(run) <= bound) and run[-1][0] <= 2 * run[0][0]
    ]
    batch = queue_of(lengths, bound).take()
    assert worth([(answer.tokens, answer.number) for answer in batch]) == max(possible)


class Serving(RuleBasedStateMachine):
    """Answers come, are taken, are put back when an actor dies, and are given up."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = BatchQueue(max_batch_tokens=100, max_wait_s=1.0)
        self.now = 0.0
        self.waiting: dict[int, WaitingAnswer] = {}
        self.in_flight: list[list[WaitingAnswer]] = []
        self.came = 0
        self.passed_over: dict[int, int] = {}
        self.older: dict[int, int] = {}

    @rule(tokens=LENGTHS, version=st.integers(1, 2))
    def come(self, tokens: int, version: int) -> None:
        self.queue_up(WaitingAnswer(self.came, version, tokens, self.now))
        self.came += 1

    def queue_up(self, answer: WaitingAnswer) -> None:
        for number in self.waiting:
            self.older[number] += number > answer.number
        self.older[answer.number] = sum(number < answer.number for number in self.waiting)
        self.passed_over[answer.number] = 0
        self.waiting[answer.number] = answer
        self.queue.add(answer)

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self) -> None:
        batch = self.queue.take()
        for answer in batch:
            assert self.waiting.pop(answer.number) == answer
        for number in self.waiting:
            self.passed_over[number] += 1
        self.in_flight.append(batch)

    @precondition(lambda self: self.in_flight)
    @rule()
    def die(self) -> None:
        """What was in flight waits again, before whatever came later."""
        batch = self.in_flight.pop(0)
        for answer in batch:
            self.queue_up(answer)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        self.queue.remove(number)
        del self.waiting[number]

    @rule(seconds=st.floats(0, 2))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_waits_is_known(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert (None if self.queue.oldest is None else self.queue.oldest.number) == min(self.waiting, default=None)

    @invariant()
    def none_starves(self) -> None:
        """An answer is passed over at most once for each one that was before it."""
        assert all(self.passed_over[number] <= self.older[number] for number in self.waiting)

    @invariant()
    def what_has_waited_its_time_is_due(self) -> None:
        due = self.queue.due_s(self.now)
        if self.waiting and self.now - self.waiting[min(self.waiting)].arrived >= 1.0:
            assert due == 0.0
        assert (due is None) == (not self.waiting)


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=40)
