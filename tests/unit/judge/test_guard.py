"""Both guards judge shares of at least 200 judgements."""

from rlaif_ray.judge.guard import abstention_stop, abstention_warning


def test_a_few_judgements_prove_nothing() -> None:
    assert abstention_warning(0, 199) is None
    assert abstention_stop(0, 199, 0.1, "why") is None


def test_a_warning_beyond_one_in_fifty() -> None:
    assert abstention_warning(196, 4) is None
    warning = abstention_warning(1_995, 205)
    assert warning is not None
    assert "205 of 2,200 judgements" in warning


def test_a_stop_beyond_the_bound_names_it_and_the_last_reason() -> None:
    assert abstention_stop(180, 20, 0.1, "why") is None
    stop = abstention_stop(179, 21, 0.1, "no label is listed")
    assert stop is not None
    assert "21 of 200" in stop
    assert "judge.max_abstained=0.1" in stop
    assert "no label is listed" in stop


def test_a_bound_of_one_never_stops_and_one_of_zero_allows_none() -> None:
    assert abstention_stop(0, 1_000, 1.0, "why") is None
    assert abstention_stop(200, 0, 0.0, "why") is None
    assert abstention_stop(199, 1, 0.0, "why") is not None
