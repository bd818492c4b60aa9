"""A Ray cluster on this machine, started as a user starts one: ``ray start``, with its own ports, folder and token.

``ray stop`` would end every Ray of the machine, so a cluster is ended by its own processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent


class RayCluster:
    """A head with ``num_cpus`` logical CPUs, and as many nodes as are added.

    Attributes:
        address: of the cluster itself, what ``RAY_ADDRESS`` of a driver is.
        dashboard: what ``ray job submit`` talks to.
        environment: of a user who may use it.
    """

    def __init__(self, num_cpus: int = 4) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie in it: their paths must be short
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.log = (self.folder / "log.txt").open("a")
        self.nodes: list[subprocess.Popen[bytes]] = []
        port, dashboard, client = free_ports(3)
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.environment = without_ray(os.environ) | {
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        head = ["--head", "--port", port, "--dashboard-port", dashboard, "--ray-client-server-port", client]
        self._start(num_cpus, *head, "--temp-dir", self.folder / "ray")
        self.address = f"127.0.0.1:{port}"
        self._wait_until_there_are_all_nodes()

    def add_node(self, num_cpus: int) -> None:
        """Another node, with its own object store and worker processes."""
        self._start(num_cpus, "--address", self.address)
        self._wait_until_there_are_all_nodes()

    def _start(self, num_cpus: int, *arguments: object) -> None:
        (agent,) = free_ports(1)
        shared = ["--num-cpus", num_cpus, "--object-store-memory", 500_000_000, "--block", "--disable-usage-stats"]
        ports = ["--dashboard-agent-listen-port", agent, "--min-worker-port", 0, "--max-worker-port", 0]
        command = [str(word) for word in (PROGRAMS / "ray", "start", *arguments, *shared, *ports)]
        self.nodes.append(
            subprocess.Popen(
                command, env=self.environment, stdout=self.log, stderr=self.log, start_new_session=True, cwd=self.folder
            )
        )

    def stop(self) -> None:
        """End all processes of all nodes, jobs included."""
        family = [process for node in self.nodes for process in family_of(node.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def submit(self, *words: str, wait: bool = True, environment: dict[str, str] | None = None) -> str:
        """``ray job submit --working-dir <repository> WORDS``; returns what it printed, the job's own output included.

        Whether the job itself succeeded, ``status`` tells.
        """
        runtime_env = json.dumps({"env_vars": environment or {}})
        head = ["job", "submit", "--working-dir", str(REPOSITORY), "--runtime-env-json", runtime_env]
        return self.ray(*head, *([] if wait else ["--no-wait"]), *words)

    def status(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return self._ask(f"/api/jobs/{job}")["status"]

    def ray(self, *words: str) -> str:
        """Run ``ray WORDS`` as a user of this cluster; its exit code is not looked at."""
        environment = self.environment | {"RAY_ADDRESS": self.dashboard}
        done = subprocess.run(
            [str(PROGRAMS / "ray"), *words], env=environment, capture_output=True, text=True, timeout=800, check=False
        )
        return done.stdout + done.stderr

    def nodes_of(self, class_name: str) -> list[str]:
        """The node that each actor of a class was on, the dead ones included."""
        actors = self._ask("/api/v0/actors?limit=1000&detail=true")["data"]["result"]["result"]
        return [actor["node_id"] for actor in actors if actor["class_name"] == class_name]

    def _wait_until_there_are_all_nodes(self) -> None:
        give_up = time.monotonic() + 180
        while self._num_nodes() < len(self.nodes):
            ended = [node.args for node in self.nodes if node.poll() is not None]
            if ended or time.monotonic() > give_up:
                said = (self.folder / "log.txt").read_text()
                self.stop()
                raise RuntimeError(f"the Ray cluster did not come up; ended: {ended}\n{said}")
            time.sleep(0.2)

    def _num_nodes(self) -> int:
        try:
            nodes = self._ask("/api/v0/nodes")["data"]["result"]["result"]
        except OSError:  # the dashboard is not up yet
            return 0
        return sum(node["state"] == "ALIVE" for node in nodes)

    def _ask(self, path: str) -> dict:
        """What the dashboard answers."""
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {self.token.read_text()}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in listeners]


def without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of somebody who has set nothing of Ray's, and no home of ours."""
    return {key: value for key, value in environment.items() if not key.startswith(("RAY_", "DEEPCORO_"))}


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
