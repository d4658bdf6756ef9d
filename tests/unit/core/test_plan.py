"""The plan of a run: its cells and their order."""

import itertools
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Compose
from wp1.core.plan import blocks, plan, prompt_lens


def test_one_arm_and_one_cell_by_default(config: Compose) -> None:
    [arm] = plan(config())
    assert (arm.name, [cell.name for cell in arm.cells]) == ("agg", ["questions-conc1"])
    [arm] = plan(config("scheduler=disagg", "workload.request_rate=2"))
    assert (arm.name, [cell.name for cell in arm.cells]) == ("disagg", ["questions-rate2"])


def test_e3_compares_every_length_at_every_rate_under_both_arms(config: Compose) -> None:
    lists = ("experiment.prompt_lens=[64,128]", "experiment.request_rates=[0,0.5]")
    agg, disagg = plan(config("experiment=e3", *lists))
    names = ["64-conc1", "64-rate0.5", "128-conc1", "128-rate0.5"]
    assert [cell.name for cell in agg.cells] == [cell.name for cell in disagg.cells] == names
    assert (agg.scheduler.name, agg.scheduler.replicas) == ("agg", 2)
    assert (disagg.scheduler.name, disagg.scheduler.prefill, disagg.scheduler.decode) == ("disagg", 1, 1)
    assert [cell.prompt_len for cell in agg.cells] == [64, 64, 128, 128]


def test_e2_crosses_lengths_with_loads(config: Compose) -> None:
    [arm] = plan(config("experiment=e2", "experiment.prompt_lens=[64,128]", "experiment.concurrencies=[1,8]"))
    assert [cell.name for cell in arm.cells] == ["64-conc1", "64-conc8", "128-conc1", "128-conc8"]
    # At least as many requests as are to run at a time.
    assert [cell.num_requests for cell in arm.cells] == [4, 8, 4, 8]


def test_e2_at_rates_has_requests_for_its_seconds(config: Compose) -> None:
    lengths = "experiment.prompt_lens=[64]"
    [arm] = plan(config("experiment=e2", lengths, "experiment.request_rates=[0.1,3]"))
    assert [(cell.name, cell.num_requests) for cell in arm.cells] == [("64-rate0.1", 4), ("64-rate3", 9)]
    [arm] = plan(config("experiment=e2", lengths, "workload=poisson"))
    assert [(cell.name, cell.num_requests) for cell in arm.cells] == [("64-rate1", 4)]
    both = ("workload=poisson", "experiment.request_rates=[2]")
    [arm] = plan(config("experiment=e2", lengths, *both))
    assert [cell.name for cell in arm.cells] == ["64-rate2"]


def test_arms_take_turns_and_neighbouring_repeats_share_a_start(config: Compose) -> None:
    arms = plan(config("experiment=e3"))
    order = [(block.arm.name, block.repeats) for block in blocks(arms, 3)]
    assert order == [("agg", [0]), ("disagg", [0, 1]), ("agg", [1, 2]), ("disagg", [2])]


def test_a_single_arm_starts_once(config: Compose) -> None:
    assert [block.repeats for block in blocks(plan(config()), 3)] == [[0, 1, 2]]


@given(st.integers(1, 5000), st.integers(0, 1 << 17), st.integers(1, 64))
def test_lengths_double_to_the_room_there_is(first: int, more: int, output_len: int) -> None:
    max_len = first + more + output_len
    cfg = SimpleNamespace(
        experiment=SimpleNamespace(prompt_lens=None, doubling_from=first),
        model=SimpleNamespace(max_len=max_len),
        workload=SimpleNamespace(output_len=output_len),
    )
    lengths = prompt_lens(cfg)
    assert lengths[0] == first
    assert lengths[-1] == max_len - output_len
    doubled = lengths[:-1]
    assert all(b == 2 * a for a, b in itertools.pairwise(doubled))  # type: ignore[operator]
    assert lengths == sorted(set(lengths))  # type: ignore[type-var]
