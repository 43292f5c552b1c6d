"""The service manager's protocols: readiness, the watchdog, sockets handed over."""

import os
import socket
import subprocess
import sys

import pytest

from citadel_llm.utils.monitoring import Notifier, inherited_sockets


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A listening socket, and its address as the environment has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            address = str(tmp_path / "notify")
            sock.bind(address)
        else:
            address = f"@citadel-test-{os.getpid()}"
            sock.bind("\0" + address[1:])
        sock.settimeout(5)
        yield sock, address


def test_the_manager_is_told_of_each_state(manager):
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("serving 4 models")
    assert sock.recv(4096) == b"READY=1\nSTATUS=serving 4 models"
    notifier.reloading()
    first, second = sock.recv(4096).split(b"\n")
    assert (first, second.startswith(b"MONOTONIC_USEC=")) == (b"RELOADING=1", True)
    notifier.alive()
    assert sock.recv(4096) == b"WATCHDOG=1"
    notifier.stopping()
    assert sock.recv(4096).startswith(b"STOPPING=1\nSTATUS=")


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_without_a_manager_that_listens_nothing_happens(environ):
    notifier = Notifier(environ)
    notifier.ready("x")
    notifier.stopping()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_interval_is_this_processs_own(environ, expected):
    assert Notifier(environ).watchdog_s == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
    ],
)
def test_sockets_that_are_not_for_this_process_are_left_alone(environ):
    assert inherited_sockets(environ) == []
    assert environ == {}


TAKES_TWO = """
import os, sys
os.dup2(int(sys.argv[1]), 103); os.dup2(int(sys.argv[2]), 104); os.dup2(103, 3); os.dup2(104, 4)
from citadel_llm.utils.monitoring import inherited_sockets
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
first, second = inherited_sockets(environ)
print(first.getsockname()[1], second.getsockname()[1], first.getblocking(), os.get_inheritable(3), environ)
"""


def test_sockets_are_handed_over_in_order_and_not_to_children():
    with socket.socket() as first, socket.socket() as second:
        for sock in (first, second):
            sock.bind(("127.0.0.1", 0))
            sock.listen()
        fds = [first.fileno(), second.fileno()]
        said = subprocess.run(
            [sys.executable, "-c", TAKES_TWO, *map(str, fds)],
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        assert said == f"{first.getsockname()[1]} {second.getsockname()[1]} False False {{}}\n"
