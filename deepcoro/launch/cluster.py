"""Joining a Ray cluster that is already there, or saying what keeps us out."""

from __future__ import annotations

import os
import socket
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from deepcoro.errors import ResourceError

_SECONDS_TO_ANSWER = 10.0  # of a machine that is there; Ray itself would try for minutes, and then end the process


def join(address: str, options: dict[str, Any]) -> None:
    """Call ``ray.init`` with ``options`` for the cluster at ``address``, which is what ``RAY_ADDRESS`` says.

    Raises:
        ResourceError: the address is none, nobody answers there, or the cluster asks for a token that we have not.
    """
    _check_somebody_answers(address)
    try:
        ray.init(**options)
    except (AuthenticationError, ConnectionError) as error:
        reasons = _reasons(error)
        if "authentication" in reasons.lower():
            raise ResourceError(_about_the_token(address)) from None
        raise ResourceError(
            f"the Ray cluster at RAY_ADDRESS={address} cannot be joined: {reasons}\n"
            "Look at it with `ray status`; or unset RAY_ADDRESS to train on this machine alone"
        ) from None


def _check_somebody_answers(address: str) -> None:
    if address == "auto":  # Ray looks for a cluster on this machine
        return
    if address.startswith(("http://", "https://")):
        raise ResourceError(
            f"RAY_ADDRESS={address} is the address of a dashboard, which `ray job submit` takes. To train from here, "
            "set RAY_ADDRESS to the cluster itself, such as HOST:6379 (`ray start --head` prints it)"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ResourceError(f"RAY_ADDRESS={address} is no address; it should be HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}). Is it up (`ray status` on its head), is that "
            "its host and port (`ray start --head` prints them), can this machine reach it? Unset RAY_ADDRESS to train "
            "on this machine alone"
        ) from None


def _reasons(error: BaseException) -> str:
    """The messages of an error and of what caused it: Ray's outermost says the least."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    return "\n".join(texts)


def _about_the_token(address: str) -> str:
    return (
        f"the Ray cluster at RAY_ADDRESS={address} asks for a token, and {_our_token()}. Get the cluster's token (`ray "
        "get-auth-token` on its head prints it) and set\n"
        "    export RAY_AUTH_MODE=token\n"
        "    export RAY_AUTH_TOKEN_PATH=/path/of/a/file/that/holds/it    (or RAY_AUTH_TOKEN=...; else Ray reads "
        "~/.ray/auth_token)\n"
        "`ray job submit` and `ray job stop` need the same two"
    )


def _our_token() -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "none was sent, since RAY_AUTH_MODE is not set to token"
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(variable):
            return f"that of {variable} is missing or not the cluster's"
    return "that of ~/.ray/auth_token is missing or not the cluster's"
