"""What stands in for nodes and for Ray's dashboards: neither runs anything, both say what the real ones would say.

`Kubelet` is also the scheduler: a pod gets a node, runs and is ready, or has done its work where it is a Job's, and is
gone once it was told to end. `Dashboards` is
the HTTP proxy by which the operator asks for any head's dashboard; it takes Serve configs from whoever has the token.
"""

from __future__ import annotations

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.fixtures.kubernetes import ControlPlane

NODES = 3


class Kubelet:
    """The nodes of a control plane, for the pods of one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._namespace = namespace
        self._addresses = (f"10.1.{high}.{low}" for high in range(256) for low in range(1, 255))
        self._nodes = itertools.cycle([f"node-{number}" for number in range(NODES)])
        for number in range(NODES):
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{number}"}}
            plane.kubectl("create", "-f", "-", given=node)

    def tick(self) -> None:
        """Every pod that is new runs and is ready (a Job's has succeeded); every pod that was told to end has ended."""
        for pod in self._plane.get("pods", self._namespace):
            name = pod["metadata"]["name"]
            if "deletionTimestamp" in pod["metadata"]:
                self._plane.try_kubectl("delete", "pod", name, "-n", self._namespace, "--force", "--grace-period=0")
            elif "nodeName" not in pod["spec"]:
                self._bind(name)
                self._run(pod)

    def _bind(self, name: str) -> None:
        binding = {
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": next(self._nodes)},
        }  # fmt: skip
        path = f"/api/v1/namespaces/{self._namespace}/pods/{name}/binding"
        self._plane.kubectl("create", "--raw", path, "-f", "-", given=binding)

    def _run(self, pod: dict[str, Any]) -> None:
        address = next(self._addresses)
        began = pod["metadata"]["creationTimestamp"]
        is_job = pod["metadata"]["ownerReferences"][0]["kind"] == "Job"
        ended = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": began, "finishedAt": began}}
        conditions = ("Initialized", "PodScheduled", *(() if is_job else ("ContainersReady", "Ready")))
        status = {
            "phase": "Succeeded" if is_job else "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": kind, "status": "True"} for kind in conditions],
            "containerStatuses": [
                {
                    "name": one["name"], "ready": not is_job, "started": not is_job, "restartCount": 0, "imageID": "",
                    "image": one["image"], "state": ended if is_job else {"running": {"startedAt": began}},
                }
                for one in pod["spec"]["containers"]
            ],
        }  # fmt: skip
        self._plane.kubectl(
            "patch", "pod", pod["metadata"]["name"], "-n", self._namespace, "--subresource=status", "--type=merge",
            "-p", json.dumps({"status": status}),
        )  # fmt: skip


class Dashboards:
    """Every Ray head's dashboard behind one HTTP proxy. `configs` holds what was applied, by the host it was sent to;
    `refused` the requests without the token, and `other` those for anything but Serve's applications."""

    def __init__(self, token: str) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        self.refused: list[str] = []
        self.other: list[str] = []
        dashboards = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_PUT(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _answer(self, config: dict[str, Any] | None) -> None:
                at = urlsplit(self.path)
                code, said = dashboards._asked(at.netloc, at.path, self.headers["x-ray-authorization"], token, config)
                body = json.dumps(said).encode()
                self.send_response(code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """What came is kept, not printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="dashboards", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _asked(
        self, host: str, path: str, authorization: str | None, token: str, config: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any]]:
        if authorization != f"Bearer {token}":
            self.refused.append(f"{host}{path}")
            return 401, {"error": "no token of ours"}
        if path != "/api/serve/applications/":
            self.other.append(f"{host}{path}")
            return 404, {"error": "no such path"}
        if config is not None:
            self.configs[host] = config
        names = [one["name"] for one in self.configs.get(host, {}).get("applications", ())]
        return 200, {"applications": {name: {"name": name, "status": "RUNNING", "deployments": {}} for name in names}}
