"""A cluster that cannot be joined gives one message that says what to do.

What Ray raises is written down here as Ray 2.60 does it; ``tests/integration/test_jobs.py`` meets the real thing.
"""

import socket

import pytest
from ray.exceptions import AuthenticationError

from deepcoro.errors import ResourceError
from deepcoro.launch.cluster import join


@pytest.fixture
def somebody():
    """The address of a port where somebody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def ray_raises(monkeypatch):
    """``ray_raises(error, cause)`` makes ``ray.init`` fail like that."""
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)

    def prepare(error, cause=None):
        def init(**options):
            raise error from cause

        monkeypatch.setattr("ray.init", init)

    return prepare


def test_a_cluster_that_lets_us_in_is_joined_with_the_options(somebody, monkeypatch):
    seen = []
    monkeypatch.setattr("ray.init", lambda **options: seen.append(options))
    join(somebody, {"log_to_driver": False})
    join("auto", {})
    assert seen == [{"log_to_driver": False}, {}]


def test_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    for named in (address, f"ray://{address}"):
        with pytest.raises(ResourceError, match=f"no Ray cluster answers at RAY_ADDRESS={named}.*ray status"):
            join(named, {})


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":6379", "localhost:ray"])
def test_no_address(address):
    with pytest.raises(ResourceError, match=f"RAY_ADDRESS={address} is no address.*HOST:PORT"):
        join(address, {})


def test_a_port_that_no_machine_has():
    with pytest.raises(ResourceError, match="no Ray cluster answers at RAY_ADDRESS=127.0.0.1:99999"):
        join("127.0.0.1:99999", {})


def test_the_address_of_the_dashboard():
    with pytest.raises(ResourceError, match="dashboard.*ray job submit.*HOST:6379"):
        join("http://127.0.0.1:8265", {})


REFUSED = RuntimeError(
    "Failed to connect to GCS. Last connection error: Traceback (most recent call last):\n"
    "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing or incorrect."
)


def test_a_cluster_with_a_token_where_none_was_sent(somebody, ray_raises):
    ray_raises(ConnectionError(f"Failed to connect to Ray cluster at {somebody}"), REFUSED)
    with pytest.raises(ResourceError) as caught:
        join(somebody, {})
    message = str(caught.value)
    assert f"RAY_ADDRESS={somebody} asks for a token, and none was sent, since RAY_AUTH_MODE is not set" in message
    assert "export RAY_AUTH_MODE=token" in message
    assert "export RAY_AUTH_TOKEN_PATH=" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_TOKEN_PATH": "y"}, "that of RAY_AUTH_TOKEN is"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, "that of RAY_AUTH_TOKEN_PATH is"),
        ({}, "that of ~/.ray/auth_token is"),
    ],
)
def test_a_wrong_or_missing_token_is_named_by_where_it_came_from(somebody, ray_raises, monkeypatch, given, named):
    errors = (
        (ConnectionError("Failed"), REFUSED),
        (AuthenticationError("Token authentication is enabled but ..."), None),
    )
    for error, cause in errors:
        ray_raises(error, cause)
        for variable, value in ({"RAY_AUTH_MODE": "token"} | given).items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(ResourceError, match=f"{named} missing or not the cluster's"):
            join(somebody, {})


def test_any_other_reason_is_told_as_ray_tells_it(somebody, ray_raises):
    ray_raises(ConnectionError("Failed to connect"), RuntimeError("Version mismatch: 2.60 and 2.9"))
    with pytest.raises(ResourceError, match="cannot be joined: Failed to connect\nVersion mismatch: 2.60 and 2.9"):
        join(somebody, {})
