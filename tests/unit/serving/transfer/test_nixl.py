"""The port of a NIXL engine's handshake is still free when the engine binds it."""

import socket
from pathlib import Path
from typing import Any

import pytest

from wp1.core.errors import WP1Error
from wp1.serving.transfer import nixl


@pytest.mark.parametrize(
    ("handed_out", "expected"),
    [("32768\t60999\n", (20_000, 32_767)), ("1024 40000\n", (40_001, 65_535)), ("1024 65535\n", (20_000, 65_535))],
)
def test_it_is_not_an_ephemeral_port(tmp_path: Path, handed_out: str, expected: tuple[int, int]) -> None:
    (tmp_path / "range").write_text(handed_out)
    assert nixl._outside_of(tmp_path / "range") == expected


@pytest.mark.parametrize("text", [None, "", "1 2 3", "a b"])
def test_without_a_readable_range_linux_default_is_avoided(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "range").write_text(text)
    assert nixl._outside_of(tmp_path / "range") == (20_000, 32_767)


def test_engines_get_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "_outside_of", lambda _: (23_450, 23_549))
    ports = [nixl._free_port() for _ in range(20)]
    assert len(set(ports)) == 20
    assert all(23_450 <= port <= 23_549 for port in ports)


def test_a_port_in_use_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter([0, 1])
    monkeypatch.setattr(nixl.secrets, "randbelow", lambda _: next(chosen))
    with socket.socket() as other:
        other.bind(("localhost", 0))
        taken = other.getsockname()[1]
        monkeypatch.setattr(nixl, "_outside_of", lambda _: (taken, taken + 1))
        assert nixl._free_port() != taken


def test_no_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr(nixl.socket.socket, "bind", refuse)
    with pytest.raises(WP1Error, match="use transfer=ipc"):
        nixl._free_port()
