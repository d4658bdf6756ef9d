"""A part's class defines its settings: unknown keys, missing ones and wrong types are refused by name."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from wp1.core import parts
from wp1.core.errors import ConfigError
from wp1.core.parts import Kind, Within


class Doer:
    def do(self) -> str:
        raise NotImplementedError


class Base(Doer):
    def __init__(self, *, write: Any, routing: Literal["round_robin", "least_loaded"] = "round_robin") -> None:
        self.write, self.routing = write, routing

    def do(self) -> str:
        return f"{self.routing} to {self.write}"


@dataclass
class Rope:
    type: str = "auto"
    factor: float | None = None


class Whole(Base):
    """A part with settings of every kind, beside those of its parent."""

    def __init__(
        self,
        *,
        replicas: Annotated[int, Within(1)],
        share: float = 0.5,
        verify: bool = False,
        rope: Rope | None = None,
        lengths: list[int] | None = None,
        extra: dict[str, Any] | None = None,
        devices: list[int] | str = "auto",
        at_most: Annotated[int, Within(2)] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.replicas, self.share = replicas, share


@dataclass(frozen=True)
class Held:
    size: int = 3


class WithSettings(Doer):
    Settings = Held

    def __init__(self, settings: Held, *, write: Any) -> None:
        self.settings, self.write = settings, write

    def do(self) -> str:
        return f"{self.settings.size} to {self.write}"


def made_by(*, write: Any, size: int = 1) -> Base:
    return Base(write=(write, size))


KIND = Kind("doer", Doer, given=("write", "other"))


def node(name: str, **settings: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{name}", **settings}


def test_a_part_is_complete_with_its_defaults_and_its_parents() -> None:
    assert parts.typed("x", node("Whole", replicas="2"), KIND) == node(
        "Whole", replicas=2, share=0.5, verify=False, rope=None, lengths=None, extra=None, devices="auto",
        at_most=None, routing="round_robin",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"replica": 2}, "unknown key x.replica: did you mean x.replicas"),
        ({"zz": 2}, "unknown key x.zz: x has x.at_most, x.devices"),
        ({"write": 2}, "unknown key x.write: x has"),
        ({}, "x.replicas has no value: set x.replicas=..."),
        ({"replicas": "???"}, "x.replicas has no value: set x.replicas=..."),
        ({"replicas": None}, "x.replicas must not be null"),
        ({"replicas": True}, "Value 'True' of type 'bool' could not be converted to Integer; full_key: x.replicas"),
        ({"replicas": "two"}, "Value 'two' of type 'str' could not be converted to Integer; full_key: x.replicas"),
        ({"replicas": 0}, "x.replicas=0 is too small: set x.replicas to 1 or more"),
        ({"replicas": 2**40}, "is too large: set x.replicas to 2147483647 or less"),
        ({"replicas": 1, "at_most": 1}, "x.at_most=1 is too small"),
        ({"replicas": 1, "share": "half"}, "Value 'half' of type 'str' could not be converted to Float"),
        ({"replicas": 1, "verify": 1}, "x.verify=1 is neither true nor false: set x.verify=true or x.verify=false"),
        ({"replicas": 1, "routing": "near"}, "x.routing=near is not known: set x.routing to round_robin or least_load"),
        ({"replicas": 1, "rope": {"kind": 1}}, "x.rope.kind"),
        ({"replicas": 1, "rope": {"factor": "x"}}, "x.rope.factor"),
        ({"replicas": 1, "lengths": ["a"]}, "x.lengths[0]"),
        ({"replicas": 1, "extra": 3}, "x.extra"),
    ],
)
def test_what_a_part_does_not_take_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parts.typed("x", node("Whole", **settings), KIND)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (None, "x._target_ has no value: set x._target_=..."),
        ("nowhere", "x._target_=nowhere is not the name of a class"),
        (["os.system"], "is not the name of a class"),
        ("no.such.Thing", "x._target_=no.such.Thing cannot be imported (ModuleNotFoundError: No module named 'no')"),
        (f"{__name__}.Nothing", "cannot be imported"),
        ("os.system", "x._target_=os.system is not a doer: it has no do()"),
        (f"{__name__}.Rope", "is not a doer: it has no do()"),
        ("os.sep", "x._target_=os.sep is neither a class nor a function"),
    ],
)
def test_a_target_that_is_no_such_part_is_refused(target: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parts.typed("x", {"_target_": target}, KIND)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_part_is_made_of_its_settings_and_of_what_it_takes_of_what_wp1_gives() -> None:
    for name, settings, does in (
        ("Whole", {"replicas": 1, "routing": "least_loaded"}, "least_loaded to here"),
        ("WithSettings", {"size": "4"}, "4 to here"),
        ("made_by", {"size": 2}, "round_robin to ('here', 2)"),
    ):
        typed = parts.typed("x", node(name, **settings), KIND)
        assert parts.make("x", typed, KIND, write="here", other="unused").do() == does


def test_keys_that_wp1_reads_itself_do_not_reach_the_part() -> None:
    kind = Kind("doer", Doer, given=("write",), beside={"rope": Rope | None})
    typed = parts.typed("x", node("made_by", rope={"type": "none"}), kind)
    assert typed["rope"] == {"type": "none", "factor": None}
    assert parts.make("x", typed, kind, write="here").do()


def test_of_a_folder_only_classes_of_wp1_s_own_modules_count() -> None:
    found = parts.own("wp1.collectors.latency.LatencyStatsCollector", "wp1.collectors")
    assert found is not None
    assert found.__name__ == "LatencyStatsCollector"
    for name in (
        "os.system",
        "wp1.collectors.device.np.load",
        "wp1.collectors.device.Path",
        "wp1.collectors.Collector",
        "wp1.core.errors.ConfigError",
        f"{__name__}.Base",
        ["os.system"],
        None,
        "",
    ):
        assert parts.own(name, "wp1.collectors") is None
