"""Secrets in a configuration are used but never written."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Compose
from tests.double import TINY
from tests.unit.conftest import Sweep
from wp1.core import identity, redaction
from wp1.core.run_folder import read_config, read_json
from wp1.runner.console import Screen
from wp1.runner.run import run
from wp1.tracking.run import params_of, tags_of

RUN_ID = "run-20260101T000000Z-00000000"
SECRETS = {
    "backend.engine.hf_token": "hf_AbCdEfGhIjKlMnOpQrStUv",
    "backend.engine.model_loader_extra_config.api_key": "plainlookingvalue",
    "transfer.environment.AWS_SECRET_ACCESS_KEY": "anotherplainvalue",
    "tags.access_token": "thirdplainvalue",
}


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("backend.engine.hf_token=abc", "backend.engine.hf_token=REDACTED"),
        ("++transfer.environment.HF_TOKEN='abc'", "++transfer.environment.HF_TOKEN=REDACTED"),
        ("transfer.environment.X_API_KEY=abc", "transfer.environment.X_API_KEY=REDACTED"),
        ("backend.engine={hf_token: abcdef, max_num_seqs: 4}", "backend.engine={hf_token: REDACTED, max_num_seqs: 4}"),
        ("tracking.uri=http://u:p@h:5000/x?token=a&b=c#d", "tracking.uri=http://REDACTED@h:5000/x?token=REDACTED&b=REDACTED"),
        ("transfer.environment.PGPASSWORD=abc", "transfer.environment.PGPASSWORD=REDACTED"),
        ("transfer.environment={SASL_PASS: abc}", "transfer.environment={SASL_PASS: REDACTED}"),
        ("transfer.extra={authToken: abc, dbSecret: d}", "transfer.extra={authToken: REDACTED, dbSecret: REDACTED}"),
        ("tracking.uri=http://u:p@ss@h:5000", "tracking.uri=http://REDACTED@h:5000"),
        ("tracking.uri=https://token@h", "tracking.uri=https://REDACTED@h"),
        ("tags.note=ghp_0123456789abcdefghij", "tags.note=REDACTED"),
        # These are not secrets.
        ("scheduler.first_token=prefill", "scheduler.first_token=prefill"),
        ("backend.engine.max_num_batched_tokens=4", "backend.engine.max_num_batched_tokens=4"),
        ("tracking.uri=sqlite:////a/b.db?timeout=5", "tracking.uri=sqlite:////a/b.db?timeout=5"),
        ("transfer.environment.MY_BYPASS=1", "transfer.environment.MY_BYPASS=1"),
        ("transfer.environment.UCX_TLS=tcp,self", "transfer.environment.UCX_TLS=tcp,self"),
        ("model.path=/models/token", "model.path=/models/token"),
    ],
)  # fmt: skip
def test_an_argument_is_shown_without_its_secret(word: str, shown: str) -> None:
    assert redaction.word(word) == shown


def test_a_message_is_shown_without_secrets() -> None:
    said = "no engine: HF_TOKEN=abcdef, 'api_key': 'xyzxyz', Authorization: Bearer abc.def, http://me:pw@host/a?k=v"
    assert redaction.text(said) == (
        "no engine: HF_TOKEN=REDACTED, 'api_key': 'REDACTED', Authorization: Bearer REDACTED, "
        "http://REDACTED@host/a?k=REDACTED"
    )
    redaction.config({"backend": {"engine": {"hf_token": "neverseenbefore"}}})
    assert redaction.text("refused neverseenbefore") == "refused REDACTED"
    assert redaction.text("the first token: 5 ms, 3 tokens=5") == "the first token: 5 ms, 3 tokens=5"


def test_a_secret_may_consist_of_digits() -> None:
    plain = {"transfer": {"extra": {"dbPassword": 1234567890, "port": 5432}}, "backend": {"engine": {"hf_token": True}}}
    assert redaction.config(plain) == {
        "transfer": {"extra": {"dbPassword": redaction.REDACTED, "port": 5432}},
        "backend": {"engine": {"hf_token": True}},
    }
    assert redaction.text("refused 1234567890") == "refused REDACTED"


def written(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_a_run_uses_its_secrets_and_leaves_none(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"++{key}={value}" for key, value in SECRETS.items()]
    monkeypatch.setattr("sys.argv", ["wp1", *words])
    cfg = config(*TINY, "scheduler=disagg", "transfer=nixl_push", *words)
    run_dir = tmp_path / "outputs" / RUN_ID
    with Screen() as screen:
        outcome = run(cfg, run_dir, RUN_ID, screen)
    assert outcome.status == "completed", outcome.reason
    assert {engine.settings["engine"]["hf_token"] for engine in double.engines.values()} == {
        SECRETS["backend.engine.hf_token"]
    }
    assert not [value for value in SECRETS.values() if value in written(tmp_path)]
    assert read_config(run_dir)["backend"]["engine"]["hf_token"] == redaction.REDACTED
    metadata = read_json(run_dir / "run_metadata.json")
    sent = f"{params_of(read_config(run_dir))}{tags_of(metadata)}"
    assert not [value for value in SECRETS.values() if value in sent]


def test_the_hash_of_a_configuration_does_not_know_its_secrets(config: Compose) -> None:
    one, other = (config("++backend.engine.hf_token=" + value) for value in ("abcdef", "ghijkl"))
    assert identity.config_hash(one) == identity.config_hash(other)
    assert identity.config_hash(one) != identity.config_hash(config())


def test_a_sweep_leaves_no_secret(sweep: Sweep, tmp_path: Path) -> None:
    done = sweep("seed=1,2", "backend.engine.hf_token=hf_AbCdEfGhIjKlMnOpQrStUv", "tracking=none", "tracking.uri=")
    assert done.code == 0, done.said
    assert "AbCdEfGhIjKl" not in written(tmp_path) + done.said + done.out
    assert read_json(done.folder / "0" / "run_metadata.json")["status"] == "completed"
