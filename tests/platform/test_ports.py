import socket
from pathlib import Path

import pytest

from app.platform.dev.kafka import _kept_ports
from app.platform.dev.postgres import PostgresServer
from app.platform.dev.process import free_port, is_free


def test_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not is_free(server.getsockname()[1])


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(50)]

    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("content", ["", "\0\0", "none"])
def test_ports_that_cannot_be_read_are_chosen_anew(tmp_path: Path, content: str) -> None:
    ports, port = tmp_path / "ports", tmp_path / "port"
    for file in (ports, port):
        file.write_text(content)
    server = PostgresServer(tmp_path)

    server._choose_port()

    assert server.port == int(port.read_text())
    assert _kept_ports(ports, 3) == [int(word) for word in ports.read_text().split()]
