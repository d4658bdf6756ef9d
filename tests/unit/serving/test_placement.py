from wp1.serving.placement import core_sets, gpu_indices


def test_gpus_are_dealt_in_turn() -> None:
    assert gpu_indices(2, 2, "auto", [0, 1, 2, 3]) == [[0, 1], [2, 3]]
    assert gpu_indices(2, 1, [3, 1], [0, 1, 2, 3]) == [[3], [1]]


def test_without_gpus_nobody_gets_one() -> None:
    assert gpu_indices(3, 1, "auto", []) == [[], [], []]


def test_one_engine_binds_as_vllm_likes() -> None:
    assert core_sets(1, [0, 1]) == [None]


def test_cores_are_split_without_overlap() -> None:
    assert core_sets(2, [0, 1, 2, 3, 5]) == [[0, 1], [2, 3]]


def test_more_engines_than_cores_share() -> None:
    assert core_sets(3, [4, 6]) == [[4], [6], [4]]
