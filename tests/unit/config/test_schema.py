"""Bad input is refused with a message that names the key to change."""

import dataclasses
import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import Compose
from wp1.config import checks, schema
from wp1.core.errors import ConfigError
from wp1.core.paths import CONF


def test_the_default_configuration_is_e0_and_passes(config: Compose) -> None:
    cfg = config()
    checks.check(cfg)
    assert cfg.experiment.name == "e0"
    assert cfg.experiment.repeats == 2


@pytest.mark.parametrize("model", ["smollm2_135m", "qwen25_7b", "llama31_8b", "llama31_8b_shape", "qwen25_7b_shape"])
def test_every_model_composes_and_passes(config: Compose, model: str) -> None:
    checks.check(config(f"model={model}"))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["scheduler.replicas=0"], "scheduler.replicas"),
        (["scheduler.routing=random"], "scheduler.routing"),
        (["scheduler.prefill=1"], "unknown key scheduler.prefill: it is a key of scheduler=disagg"),
        (["scheduler.replica=1"], "unknown key scheduler.replica: did you mean scheduler.replicas?"),
        (["experiment=e3", "arms.aggg.replicas=1"], "unknown key arms.aggg: did you mean arms.agg or"),
        (["transfer=ipc", "transfer.direction=push"], "unknown key transfer.direction: it is a key of transfer="),
        (["scheduler.first_token=prefill"], "scheduler.first_token"),
        (["scheduler.devices=[0,1]"], "scheduler.devices"),
        (["scheduler.tensor_parallel=2", "scheduler.devices=[0,0]"], "scheduler.devices"),
        (["scheduler=disagg", "scheduler.devices=[0,1,2]"], "scheduler.devices"),
        (["scheduler=disagg", "scheduler.replicas=2"], "scheduler.replicas"),
        (["scheduler=disagg", "scheduler.decode=0"], "scheduler.decode"),
        (["scheduler=disagg", "scheduler.prefill=null"], "scheduler.prefill"),
        (["scheduler=disagg", "scheduler.first_token=both"], "scheduler.first_token"),
        (["scheduler=disagg", "scheduler.max_prefilled=0"], "scheduler.max_prefilled"),
        (["scheduler=disagg", "scheduler.mode=mixed"], "unknown key scheduler.mode"),
        (["transfer.timeout_s=0"], "transfer.timeout_s"),
        (["transfer.direction=sideways"], "transfer.direction"),
        (["transfer._target_=os.system"], "transfer._target_"),
        (["experiment=e3", "arms.agg.prefill=1"], "arms.agg.prefill"),
        (["experiment=e3", "experiment.prompt_lens=[]"], "experiment.prompt_lens=[] is empty: name lengths"),
        (["experiment=e5", "experiment.prompt_lens=[64,0]"], "experiment.prompt_lens=[64,0] has 0: name lengths"),
        (["experiment=e5", "workload.output_len=9000"], "workload.output_len=9000 leaves no room for a prompt"),
        (["experiment=e5", "model.max_len=1000000000"], "model.max_len=1000000000 is too large"),
        (["experiment=e3", "experiment.prompt_lens=[256,256]"], "experiment.prompt_lens=[256,256] has 256 twice"),
        (["experiment=e3", "experiment.prompt_lens=[0]"], "experiment.prompt_lens"),
        (["experiment=e3", "experiment.prompt_lens=[256,8190]"], "experiment.prompt_lens=8190"),
        (["experiment=e3", "workload.prompt_len=100"], "set experiment.prompt_lens=[100]"),
        (["experiment.prompt_lens=[100]"], "experiment.prompt_lens"),
        (["experiment=e3", "experiment.request_rates=[-1]"], "experiment.request_rates=[-1] has -1: name requests/s"),
        (["experiment=e3", "experiment.request_rates=[1,nan]"], "experiment.request_rates=[1,nan] has nan"),
        (["experiment=e3", "experiment.request_rates=[]"], "experiment.request_rates=[] is empty"),
        (["experiment=e2", "experiment.concurrencies=[]"], "experiment.concurrencies"),
        (["experiment=e2", "experiment.concurrencies=[2,2]"], "experiment.concurrencies=[2,2] has 2 twice"),
        (["experiment=e2", "experiment.concurrencies=[0]"], "experiment.concurrencies"),
        (["experiment=e2", "slo=none", "experiment.goodput_budget_s=10"], "slo=interactive"),
        (["slo=interactive", "experiment.goodput_budget_s=10"], "workload=random or text"),
        (["experiment=e2", "experiment.goodput_budget_s=0"], "experiment.goodput_budget_s"),
        (["experiment=e2", "experiment.goodput_within=0"], "experiment.goodput_within"),
        (["experiment=e2", "experiment.arrivals_s=0"], "experiment.arrivals_s"),
        (["slo.e2e_ms=0"], "slo.e2e_ms"),
        (["scheduler.devices=gpu"], "scheduler.devices"),
        (["backend._target_=tests.double.Nothing"], "backend._target_=tests.double.Nothing cannot be imported"),
        (["workload.request_rate=-0.1"], "workload.request_rate"),
        (["workload.request_rate=nan"], "workload.request_rate"),
        (["workload.prompts=poem"], "workload.prompts"),
        (["workload.arrivals=never"], "workload.arrivals"),
        (["workload=gamma", "workload.burstiness=0"], "workload.burstiness"),
        (["workload=poisson", "workload.burstiness=2"], "set workload.arrivals=gamma"),
        (["workload=poisson", "workload.ramp_s=5"], "set workload.arrivals=ramp"),
        (["workload=ramp", "workload.request_rate=0"], "set workload.request_rate"),
        (["workload=random", "workload.shared_prefix=1"], "workload.shared_prefix"),
        (["workload.shared_prefix=0.5"], "workload.shared_prefix has no effect on dataset"),
        (["workload=random", "workload.output_spread=0.5"], "set workload.output_distribution"),
        (["workload=random", "workload.output_distribution=uniform"], "workload.output_spread=0"),
        (["workload=chat", "workload.output_max=100"], "workload.output_max=100"),
        (["workload=chat", "workload.output_distribution=uniform", "workload.output_spread=1.5"], "output_spread=1.5"),
        (["workload=chat", "workload.prompt_len=7900"], "outputs of up to 512 tokens"),
        (["workload=random", "workload.text_path=/no/such"], "workload.text_path has no effect on random"),
        (["workload=text", "workload.text_path=/no/such"], "workload.text_path=/no/such is not a file"),
        (["workload=trace"], "workload.trace_path is empty"),
        (["workload=trace", "workload.trace_path=/no/such"], "workload.trace_path=/no/such is not a file"),
        (["workload=trace", "workload.trace_path=pyproject.toml", "workload.request_rate=1"], "workload.trace_speed"),
        (["workload=random", "workload.trace_speed=2"], "workload.trace_speed has no effect on random"),
        (["workload.num_warmup=6"], "workload.max_warmup=5"),
        (["workload.temperature=-1"], "workload.temperature"),
        (["workload.top_p=0"], "workload.top_p"),
        (["workload.timeout_s=0"], "workload.timeout_s"),
        (["workload=random", "workload.prompt_len=8190"], "workload.prompt_len"),
        (["workload=random", "workload.prompt_len=null"], "workload.prompt_len"),
        (["workload.prompt_len=100"], "workload.prompt_len"),
        (["workload.output_len=8192"], "workload.output_len"),
        (["dataset=file", "dataset.path=/no/such/file.jsonl"], "dataset.path"),
        (["dataset.path=/no/such/file.jsonl"], "dataset.path"),
        (["dataset=file"], "dataset.path"),
        (["model=llama31_8b", "model.path=/no/such/folder"], "model.path"),
        (["model=llama31_8b", "model.repo=null"], "model.repo"),
        (["model=llama31_8b_shape", "model.path=/tmp"], "model.path"),
        (["model=llama31_8b_shape", "model.architecture=null"], "model.architecture"),
        (["rope=yarn", "rope.factor=null"], "rope.factor"),
        (["rope.factor=2"], "rope.factor"),
        (["rope=yarn", "rope.factor=0.5"], "rope.factor"),
        (["backend.kv_cache_gib=-1"], "backend.kv_cache_gib"),
        (["seed=-1"], "seed"),
        (["root=''"], "root"),
        (["model=llama31_8b", "model.path=''"], "model.path"),
        (["backend.kv_cache_gib=inf"], "backend.kv_cache_gib"),
        (["experiment.repeats=1"], "experiment.same_tokens"),
        (["seed=99999999999"], "seed"),
        (["workload.timeout_s=inf"], "workload.timeout_s"),
        (["scheduler.devices=[true]"], "scheduler.devices"),
        (["scheduler.devices=[-1]"], "scheduler.devices"),
        (["model.name=../../x"], "model.name"),
        (["dataset.name=../x"], "dataset.name"),
    ],
)
def test_contradictions_name_the_key(config: Compose, overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)) as refusal:
        checks.check(config(*overrides))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+model.max_length=3", "unknown key model.max_length: did you mean model.max_len"),
        ("+nonsense=1", "unknown key nonsense: the top level has backend"),
        ("+scheduler.workers=1", "unknown key scheduler.workers"),
    ],
)
def test_keys_added_with_a_plus_are_refused(config: Compose, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        config(override)


@pytest.mark.parametrize("key", schema.TRUTHS)
def test_what_is_true_or_false_takes_nothing_else(config: Compose, key: str) -> None:
    """OmegaConf would turn these into true."""
    for value in ("3", "yes"):
        with pytest.raises(ConfigError, match=rf"^{key}=\S+ is neither true nor false: set {key}=true or {key}=false$"):
            config(f"{key}={value}")
    assert OmegaConf.select(config(f"{key}=true"), key) is True


def test_every_key_that_is_true_or_false_is_looked_at() -> None:
    assert {"workload.warmup_once", "tracking.enabled"} <= set(schema.TRUTHS)
    parts = [group.default_factory for group in dataclasses.fields(schema.Config)]
    assert not [
        field.name
        for part in parts
        if dataclasses.is_dataclass(part)
        for field in dataclasses.fields(part)
        if field.type is bool
    ]


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"backend\._target_ has no value"):
        schema.resolve(OmegaConf.create({"root": "/x"}))


def test_free_form_parts_take_any_key(config: Compose) -> None:
    cfg = config(*map(schema.with_plus, ["backend.engine.block_size=32", "tags.note=hello"]))
    assert OmegaConf.to_container(cfg.backend.engine)["block_size"] == 32  # type: ignore[index]
    assert cfg.tags.note == "hello"


def test_engines_may_share_a_gpu(config: Compose) -> None:
    checks.check(config("scheduler=disagg", "scheduler.devices=[0,0]"))
    checks.check(config("scheduler.replicas=2", "scheduler.devices=[1,1]"))


def test_a_scheduler_beside_arms_is_refused_as_it_would_have_no_effect(config: Compose) -> None:
    cfg = config("experiment=e3")
    for said in ("scheduler=disagg", "scheduler.replicas=4", "++scheduler.replicas=4"):
        with pytest.raises(ConfigError, match=r"no effect with experiment=e3.*arms\.agg\.replicas="):
            checks.check_overrides(cfg, [said])
    checks.check_overrides(cfg, ["arms.agg.replicas=2", "seed=1"])
    checks.check_overrides(config(), ["scheduler.replicas=4"])


def test_a_load_that_would_not_be_used_is_refused(config: Compose) -> None:
    with pytest.raises(ConfigError, match=r"set experiment\.request_rates=\[2\]"):
        checks.check_overrides(config("experiment=e3", "workload.request_rate=2"), ["workload.request_rate=2"])
    said = "experiment.concurrencies=[1,2]"
    for rates in ("workload=poisson", "experiment.request_rates=[1]"):
        with pytest.raises(ConfigError, match=r"experiment\.concurrencies=\[1,2\] has no effect"):
            checks.check_overrides(config("experiment=e2", said, rates), [said])
    checks.check_overrides(config("experiment=e2", said), [said])


@pytest.mark.parametrize(
    ("words", "beside"),
    [
        (["workload.request_rate=2", "workload=random"], r"workload\.request_rate=2, and does not cap"),
        (["workload=poisson"], r"workload\.request_rate=1, and does not cap"),
        (["experiment=e3", "experiment.request_rates=[1,2]"], r"experiment\.request_rates, and does not cap"),
        (["experiment=e2"], r"experiment\.concurrencies: set experiment\.concurrencies=\[4\]"),
        (["workload=trace"], r"a trace, which has its own times and no cap"),
    ],
)
def test_requests_at_a_time_beside_a_rate_are_refused(config: Compose, words: list[str], beside: str) -> None:
    for said in ("workload.concurrency=4", "++workload.concurrency=4"):
        with pytest.raises(ConfigError, match=rf"^workload\.concurrency=4 has no effect (beside|on) {beside}"):
            checks.check_overrides(config(*words, said), [*words, said])
    # The same key in a file of conf/ was not set by the user.
    checks.check_overrides(config(*words), words)


def test_requests_at_a_time_are_those_of_a_rate_of_0(config: Compose) -> None:
    words = ["experiment=e3", "workload.concurrency=4"]
    checks.check_overrides(config(*words), words)
    checks.check_overrides(config("workload.concurrency=4"), ["workload.concurrency=4"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], None),
        (["experiment=e4"], None),  # asks for no such check
        (["dataset=subsets", "workload=scored"], "several requests at a time"),
        (["dataset=subsets", "workload=scored", "workload.concurrency=1"], None),
        (["workload=random"], "random prompts differ in every repeat"),
        (["workload=text"], "text prompts differ in every repeat"),
        (["workload=poisson"], "random prompts differ in every repeat"),
        (["workload=gamma", "workload.request_rate=2"], "random prompts differ in every repeat"),
        (["workload=ramp"], "random prompts differ in every repeat"),
        (["workload=chat"], "random prompts differ in every repeat"),
        (["workload=trace", "workload.trace_path=pyproject.toml"], "trace prompts differ in every repeat"),
        (["workload.request_rate=2"], "requests that come at a rate overlap differently in every repeat"),
        (["workload.concurrency=4"], "several requests at a time are batched differently in every repeat"),
        (["experiment.concurrencies=[1,4]", "workload.num_requests=6"], "several requests at a time"),
        (["scheduler=disagg"], None),
    ],
)
def test_same_tokens_of_e0_is_left_aside_under_a_load_that_makes_it_meaningless(
    config: Compose, words: list[str], why: str | None
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", words)
    said = schema.same_tokens_aside(composed)
    assert (said is None) if why is None else (said or "").startswith(why)
    cfg = config(*words)
    checks.check(cfg)
    assert cfg.experiment.same_tokens == (why is None and cfg.experiment.name == "e0")
    asked = ["experiment.same_tokens=true"]
    if why is not None:
        with pytest.raises(ConfigError, match=f"experiment.same_tokens=true compares repeats of a prompt, and {why}"):
            checks.check_overrides(config(*words, *asked), [*words, *asked])
    checks.check_overrides(config(*words, "experiment.same_tokens=false"), ["experiment.same_tokens=false"])


def test_e0_is_greedy(config: Compose) -> None:
    """Every command without experiment= inherits it."""
    assert (config().workload.temperature, config().workload.top_p) == (0.0, 1.0)


@pytest.mark.parametrize("slo", ["none", "interactive", "mlperf_8b", "mlperf_8b_fast", "long_context", "summarisation"])
def test_every_slo_composes_and_passes(config: Compose, slo: str) -> None:
    cfg = config(f"slo={slo}")
    checks.check(cfg)
    assert cfg.slo.name == slo
