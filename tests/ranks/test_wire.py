"""The connections between ranks: who is admitted, what is passed on, what is no failure."""

import socket
import threading

import pytest

from polylab.ranks.wire import Ending, Meeting, Wire


@pytest.fixture
def wires():
    """Those of ranks 0, 1 and 2."""
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    found = [Wire({rank: pair[0] for rank, pair in pairs.items()}, rank=0)]
    found += [Wire({0: pair[1]}, rank=rank) for rank, pair in pairs.items()]
    yield found
    for wire in found:
        wire.close()  # before its patience ends, and with it this process


def test_a_failure_reaches_those_that_have_no_connection(wires):
    failed = Ending(2, "failed", "ValueError: 1 · 2")
    wires[2].say(failed)
    wires[2].say(Ending(2, "finished"))  # too late
    assert [wire.wait(5) for wire in wires[:2]] == [failed, failed]
    assert wires[2].wait(0) is None
    assert str(failed) == "rank 2 failed: ValueError: 1 · 2"


def test_a_rank_that_has_finished_may_go(wires):
    wires[1].say(Ending(1, "finished"))
    wires[1].close()
    assert wires[0].wait(0.2) is None
    wires[0].say(Ending(0, "finished"))
    wires[0].close()
    assert wires[2].wait(0.2) is None


def test_one_that_goes_without_a_word_is_gone(wires):
    wires[1].close()
    gone = Ending(1, "gone", "its process has ended")
    assert [wires[rank].wait(5) for rank in (0, 2)] == [gone, gone]
    assert str(gone) == "rank 1 is gone: its process has ended"


def test_what_follows_an_own_failure_is_no_news(wires):
    wires[0].say(Ending(0, "stopped"))
    wires[1].close()
    assert wires[0].wait(0.2) is None
    assert str(wires[2].wait(5)) == "rank 0 was stopped"


def test_only_those_who_know_the_token_are_admitted():
    meeting, server = Meeting.begin("127.0.0.1")
    address = server.getsockname()
    strangers = [socket.create_connection(address) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n")
    strangers[1].sendall(b"0123 2\n")
    strangers[2].close()
    joined = {}
    ranks = [
        threading.Thread(target=lambda r=r: joined.update({r: meeting.join(r, timeout=5)}))
        for r in (1, 2)
    ]
    for thread in ranks:
        thread.start()
    links = meeting.admit(server, 3, timeout=5)
    for thread in ranks:
        thread.join()
    assert {*links} == {1, 2}
    links[2].sendall(b"for 2\n")
    assert joined[2][0].recv(10) == b"for 2\n"
    for link in [*links.values(), joined[1][0], joined[2][0], *strangers]:
        link.close()


def test_a_meeting_without_the_others_ends():
    meeting, server = Meeting.begin("localhost")
    assert meeting.admit(server, 2, timeout=0.1) == {}
    assert meeting.join(1, timeout=0.1) == {}  # nobody listens any more
