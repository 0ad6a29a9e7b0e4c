"""Pods are asked over HTTP; their images are the users', and whatever those answer, the operator goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tandem_operator.platforms.kubernetes import asking
from tandem_operator.platforms.kubernetes.asking import Asking, fetch_json

OK = b"HTTP/1.1 200 OK\r\n"
POD = {"metadata": {"uid": "u", "name": "p"}, "status": {"podIP": "10.0.0.1"}}
BASE = {"data": [{"id": "base"}]}


def endless_body(peer: socket.socket) -> None:
    peer.sendall(OK + b"\r\n")
    while True:
        peer.sendall(b" " * 65536)


def endless_chunks(peer: socket.socket) -> None:
    peer.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        peer.sendall(b"1\r\n \r\n" * 1000)


def claimed_length(peer: socket.socket) -> None:
    peer.sendall(OK + b"Content-Length: 99999999999999\r\n\r\n{}")


def huge_header(peer: socket.socket) -> None:
    peer.sendall(OK + b"X: ")
    while True:
        peer.sendall(b"x" * 65536)


def endless_continue(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def deep(peer: socket.socket) -> None:
    peer.sendall(OK + b"Content-Length: 60000\r\n\r\n" + b"[" * 60000)


def large(peer: socket.socket) -> None:
    peer.sendall(OK + b"Content-Length: 100002\r\n\r\n[" + b" " * 100000 + b"]")


def dripping_headers(peer: socket.socket) -> None:
    drip(peer, OK + b"X: " + b"x" * 1000)


def dripping_lines(peer: socket.socket) -> None:
    peer.sendall(OK)
    drip(peer, b"X: x\r\n" * 1000)


def dripping_body(peer: socket.socket) -> None:
    peer.sendall(OK + b"Content-Length: 1000\r\n\r\n")
    drip(peer, b" " * 1000)


def silence(peer: socket.socket) -> None:
    peer.recv(1)  # until the other side hangs up


def drip(peer: socket.socket, text: bytes) -> None:
    for byte in text:
        peer.sendall(bytes([byte]))
        time.sleep(0.02)


@pytest.fixture
def serve():
    """Start a server that answers one request in a given way; returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def start(answer: Callable[[socket.socket], None]) -> int:
        def run() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                with contextlib.suppress(OSError):  # hung up on
                    answer(peer)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    listener.close()


@pytest.mark.parametrize(
    "answer",
    [endless_body, endless_chunks, claimed_length, huge_header, endless_continue, deep, large, dripping_headers,
     dripping_lines, dripping_body, silence],
)  # fmt: skip
def test_no_answer_holds_the_operator_up(serve, monkeypatch, answer):
    monkeypatch.setattr(asking, "_ANSWER_SECONDS", 0.5)
    began = time.monotonic()
    answered = fetch_json("127.0.0.1", serve(answer), "/v1/models")
    assert answered is None or answer is claimed_length
    assert time.monotonic() - began < 10  # those that never end would hold it for good


def test_an_answer_that_comes_in_pieces_is_read(serve):
    def answer(peer):
        for piece in (OK, b"Transfer-Encoding: chunked\r\n\r\n", b'3\r\n{"a\r\n', b'4\r\n":1}\r\n', b"0\r\n\r\n"):
            peer.sendall(piece)
            time.sleep(0.02)

    assert fetch_json("127.0.0.1", serve(answer), "/status") == {"a": 1}


def asker(says: Callable[[], object]) -> tuple[Asking, list[float]]:
    now = [0.0]
    return Asking(lambda host, port, path: says(), clock=lambda: now[0]), now


def test_one_slow_answer_does_not_count():
    said: list[object] = [BASE]
    ask, now = asker(lambda: said[0])
    assert ask.servers([POD], with_sidecar=False)["p"].models == {"base"}
    said[0], now[0] = None, 20.0
    kept = ask.servers([POD], with_sidecar=False)["p"]
    assert kept.reached and kept.models == {"base"}
    now[0] = 21.0
    lost = ask.servers([POD], with_sidecar=False)["p"]
    assert (lost.reached, lost.models, lost.silent_seconds) == (False, frozenset(), 21.0)


def test_an_answer_without_the_name_counts_at_once():
    said: list[object] = [BASE]
    ask, _ = asker(lambda: said[0])
    ask.servers([POD], with_sidecar=False)
    said[0] = {"data": []}
    for _ in range(2):
        answer = ask.servers([POD], with_sidecar=False)["p"]
        assert answer.reached and answer.models == frozenset()
        said[0] = None  # and stays what it said last


def test_silence_is_counted_from_the_first_question():
    ask, now = asker(lambda: None)
    now[0] = 1000.0  # a new operator, and a pod that may have been ready for hours
    assert ask.servers([POD], with_sidecar=True)["p"].silent_seconds == 0
    now[0] = 1005.0
    answer = ask.servers([POD], with_sidecar=True)["p"]
    assert (answer.reached, answer.silent_seconds) == (False, 5.0)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(asking, "_REMEMBERED", 3)
    many = {"data": [{"id": f"m{number}"} for number in range(5000)]}
    ask, _ = asker(lambda: many)
    pods = [{"metadata": {"uid": f"u{n}", "name": f"p{n}"}, "status": {"podIP": "10.0.0.1"}} for n in range(10)]
    for pod in pods:
        assert len(ask.servers([pod], with_sidecar=False)[pod["metadata"]["name"]].models) <= 100
    assert len(ask._heard) <= 3


def test_pods_that_are_gone_are_forgotten_and_those_that_are_asked_are_not():
    """What a thousand workers had said was kept until there were four times as many."""
    ask, now = asker(lambda: None)
    silent = {"metadata": {"uid": "silent", "name": "p"}, "status": {"podIP": "10.0.0.1"}}
    for minute in range(60):
        now[0] = 60.0 * minute
        gone = {"metadata": {"uid": f"u{minute}", "name": "q"}, "status": {"podIP": "10.0.0.1"}}
        ask.servers([silent, gone], with_sidecar=False)
        ask.progress(gone)
    assert ask.servers([silent], with_sidecar=False)["p"].silent_seconds == 59 * 60
    assert len(ask._heard) <= 12
    assert len(ask._progress) <= 11


def test_only_several_pods_are_asked_at_once():
    threads = set()

    def says():
        threads.add(threading.current_thread())
        return BASE

    ask, _ = asker(says)
    ask.servers([POD], with_sidecar=True)
    assert threads == {threading.current_thread()}
    other = {"metadata": {"uid": "v", "name": "q"}, "status": {"podIP": "10.0.0.2"}}
    assert {name: a.models for name, a in ask.servers([POD, other], with_sidecar=False).items()} == {
        "p": {"base"},
        "q": {"base"},
    }
