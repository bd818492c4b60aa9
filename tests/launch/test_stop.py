"""Signals become a request that the workers see; a second Ctrl-C is not ignored."""

import os
import signal
import threading

import pytest

from deepcoro.launch.stop import StopRequests
from deepcoro.training.control import STOP_FILE, stop_requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_run_to_stop(tmp_path, number, capsys):
    before = signal.getsignal(number)
    with StopRequests(tmp_path) as stop:
        assert not stop_requested(tmp_path, None)
        os.kill(os.getpid(), number)
        assert stop_requested(tmp_path, None)
        assert (stop.signal, stop.exit_code) == (number, 128 + number)
    assert signal.getsignal(number) == before and not (tmp_path / STOP_FILE).exists()
    assert "saves a checkpoint" in capsys.readouterr().err


def test_a_second_interrupt_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with StopRequests(tmp_path):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def test_a_request_of_an_earlier_start_is_forgotten(tmp_path):
    (tmp_path / STOP_FILE).touch()
    with StopRequests(tmp_path):
        assert not stop_requested(tmp_path, None)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with StopRequests(tmp_path):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
