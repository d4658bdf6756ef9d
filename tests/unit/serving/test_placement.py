"""Each engine gets its own devices if there are enough; otherwise engines share them evenly."""

import pytest

from wp1.core.errors import ConfigError
from wp1.serving.placement import Place, check_equal, core_sets, places


def test_gpus_are_dealt_in_turn() -> None:
    assert [place.gpus for place in places([2, 2], "auto", [0, 1, 2, 3], [0])] == [[0, 1], [2, 3]]
    assert [place.gpus for place in places([1, 1], [3, 1], [0, 1, 2, 3], [0])] == [[3], [1]]
    assert [place.gpus for place in places([1, 2], "auto", [4, 5, 6], [0])] == [[4], [5, 6]]


def test_engines_share_gpus_if_there_are_too_few() -> None:
    assert places([1, 1], "auto", [0], [0]) == [Place([0], sharing=2), Place([0], sharing=2)]
    # Two on the first, one on the second.
    assert [place.sharing for place in places([1, 1, 1], "auto", [0, 1], [0])] == [2, 1, 2]
    assert [place.sharing for place in places([1, 1], [1, 1], [0, 1], [0])] == [2, 2]
    assert [place.sharing for place in places([1, 1], "auto", [0, 1], [0])] == [1, 1]


def test_an_engine_larger_than_the_machine() -> None:
    with pytest.raises(ConfigError, match="asks for 2 GPUs and there are 1"):
        places([2], "auto", [0], [0])


@pytest.mark.parametrize("devices", [[0], [0, 0, 1], [0, 1, 2, 3, 4]])
def test_devices_that_do_not_match_the_engines(devices: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.devices"):
        places([2, 2], devices, [0, 1, 2, 3, 4], [0])


def test_without_gpus_engines_split_the_cores() -> None:
    assert places([1, 1], "auto", [], [0, 1, 2, 3]) == [Place(cores=[0, 1]), Place(cores=[2, 3])]


def test_vllm_chooses_the_cores_of_a_single_engine() -> None:
    assert core_sets(1, [0, 1]) == [None]


def test_cores_are_split_without_overlap() -> None:
    assert core_sets(2, [0, 1, 2, 3, 5]) == [[0, 1], [2, 3]]


def test_more_engines_than_cores_share() -> None:
    assert core_sets(3, [4, 6]) == [[4], [6], [4]]


def test_places_are_named() -> None:
    assert Place([0, 3]).names() == ["cuda:0", "cuda:3"]
    assert Place(cores=[1, 2]).names() == ["cpu cores 1,2"]
    assert Place().names() == ["cpu"]


def test_arms_are_equal_by_their_gpus_and_not_by_their_engines() -> None:
    one, two = places([1], "auto", [0], [0]), places([1, 1], "auto", [0], [0])
    check_equal({"agg": one, "disagg": two})
    check_equal({"agg": places([1], "auto", [], [0, 1]), "disagg": places([1, 1], "auto", [], [0, 1])})
    check_equal({"agg": places([1], [0], [0, 1], [0]), "disagg": places([1, 1], [0, 0], [0, 1], [0])})
    with pytest.raises(ConfigError, match=r"arms\.agg gets GPU 0, arms\.disagg gets GPU 0 and 1: .*devices=\[0,0"):
        check_equal({"agg": places([1], "auto", [0, 1], [0]), "disagg": places([1, 1], "auto", [0, 1], [0])})
