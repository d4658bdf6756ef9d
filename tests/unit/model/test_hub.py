"""A hub that accepts connections and never answers, over a real socket."""

import socket
import time
from collections.abc import Iterator

import pytest

from wp1.core.errors import ConfigError
from wp1.model import hub


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "ANSWER_WITHIN_S", 0.3)
        for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        yield server


def test_a_hub_that_never_answers_is_an_error_that_names_the_remedy(listening: socket.socket) -> None:
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"did not answer in 0.3 s: .* set model.path, .*HF_HUB_OFFLINE=1"):
        hub.check_answers("model.path")
    assert time.monotonic() - begin < 10


def test_nothing_is_sent_offline(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.check_answers("model.path")
    listening.settimeout(0)
    with pytest.raises(BlockingIOError):
        listening.accept()


def test_a_hub_that_refuses_is_left_to_its_client_with_a_time_limit(listening: socket.socket) -> None:
    from huggingface_hub import get_session

    listening.close()
    hub.check_answers("model.path")
    assert get_session().timeout.read == hub.PIECE_WITHIN_S
