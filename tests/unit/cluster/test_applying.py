"""What `shoal deploy` does about what it sees: nothing twice, everything again that is lost, and never in a hurry."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from shoal.cluster.applying import Applier, Dashboard, Do, keep_applied, token_of
from shoal.errors import ConfigurationError, PermanentError, TransientError

CONFIG = {
    "proxy_location": "Disabled",
    "applications": [{"name": "ingest", "route_prefix": None, "import_path": "shoal.cluster.applications:ingest"}],
}


def seen(status: str = "RUNNING", message: str = "", **config: Any) -> dict[str, Any]:
    """What Serve answers: the config as applied, with the defaults it fills in."""
    deployed = {**CONFIG["applications"][0], "args": {}, "runtime_env": {}, "deployments": [], **config}  # type: ignore[index,dict-item]
    return {"applications": {"ingest": {"status": status, "message": message, "deployed_app_config": deployed}}}


def applied(now: float = 0.0) -> Applier:
    applier = Applier(CONFIG)
    assert applier.look({}, now) is Do.APPLY
    applier.applied(now)
    return applier


def test_it_applies_once_at_its_start_even_what_seems_to_run() -> None:
    assert Applier(CONFIG).look(seen(), 0.0) is Do.APPLY


def test_what_runs_is_left_alone() -> None:
    assert applied().look(seen(), 1e6) is Do.NOTHING


@pytest.mark.parametrize("status", ["DEPLOYING", "UNHEALTHY", "DELETING", "NOT_STARTED"])
def test_what_serve_itself_works_on_is_left_to_it(status: str) -> None:
    assert applied().look(seen(status), 1e6) is Do.WAIT


@pytest.mark.parametrize(
    "observed",
    [{}, {"applications": {}}, seen(import_path="other:app"), seen(route_prefix="/"), seen("DEPLOY_FAILED")],
    ids=["nothing", "missing", "other code", "other route", "not built"],
)
def test_what_is_lost_other_or_could_not_be_built_is_applied_again(observed: dict[str, Any]) -> None:
    applier = applied()
    assert applier.look(observed, 1.0) is Do.WAIT, "not at once: Serve has only just been told"
    assert applier.look(observed, 10.0) is Do.APPLY


def test_failures_are_tried_again_ever_more_rarely_and_forgotten_once_it_runs() -> None:
    applier, now, waits = applied(), 0.0, []
    for _ in range(8):
        before = now
        while applier.look(seen("DEPLOY_FAILED"), now) is not Do.APPLY:
            now += 1
        applier.applied(now)
        waits.append(now - before)
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    assert applier.look(seen(), now) is Do.NOTHING
    applier.applied(now)
    assert applier.look(seen("DEPLOY_FAILED"), now + 10) is Do.APPLY


def test_the_mark_of_a_restart_is_kept_so_that_applying_again_is_no_other_restart() -> None:
    applier = applied()
    assert applier.body({}, "monday")["applications"][0]["args"] == {"restart": "monday"}
    marked = seen(args={"restart": "monday"})
    assert applier.look(marked, 1e6) is Do.NOTHING
    assert applier.body(marked)["applications"][0]["args"] == {"restart": "monday"}
    assert "args" not in applier.body(seen())["applications"][0]


class Cluster:
    """A dashboard with a Serve behind it that needs one look to start what it is given."""

    def __init__(self, *, token: str = "", away: int = 0, refuses: str = "", fails: int = 0) -> None:
        self.token, self.away, self.refuses, self.fails = token, away, refuses, fails
        self.put: list[dict[str, Any]] = []
        self.now = 0.0
        self.said: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/serve/applications/"
        if self.away:
            self.away -= 1
            raise httpx.ConnectError("refused")
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return httpx.Response(401)
        if request.method == "PUT":
            if self.refuses:
                return httpx.Response(400, text=self.refuses)
            self.put.append(json.loads(request.content))
            return httpx.Response(200)
        if not self.put:
            return httpx.Response(200, json={"applications": {}})
        if len(self.put) <= self.fails:
            return httpx.Response(200, json=seen("DEPLOY_FAILED", "Kafka does not answer"))
        return httpx.Response(200, json=seen())

    def keep(self, until_running_s: float | None = 60.0, token: str = "", restart: str = "") -> bool:
        dashboard = Dashboard("http://head:8265", token, httpx.MockTransport(self.answer))
        return keep_applied(
            Applier(CONFIG), dashboard, self.said.append, until_running_s=until_running_s, restart=restart,
            pause=self.pause, clock=lambda: self.now,
        )  # fmt: skip

    def pause(self, seconds: float) -> None:
        self.now += seconds
        if self.now > 1000:
            raise KeyboardInterrupt


def test_it_waits_for_a_head_that_is_not_there_yet_and_returns_when_all_runs() -> None:
    cluster = Cluster(away=5)
    assert cluster.keep()
    assert [body["proxy_location"] for body in cluster.put] == ["Disabled"]
    assert "does not answer" in cluster.said[0]


def test_what_could_not_be_built_is_told_in_its_own_words() -> None:
    cluster = Cluster(fails=99)
    assert not cluster.keep(until_running_s=5.0)
    assert any("Kafka does not answer" in line for line in cluster.said)


def test_watching_outlives_what_a_single_try_ends_with() -> None:
    with pytest.raises(PermanentError, match="no such thing"):
        Cluster(refuses="no such thing").keep()
    cluster = Cluster(refuses="no such thing")
    with pytest.raises(KeyboardInterrupt):  # only the test ends it
        cluster.keep(until_running_s=None)
    away = Cluster(away=50)
    with pytest.raises(KeyboardInterrupt):
        away.keep(until_running_s=None)
    assert len(away.put) == 1, "applied once it was there, and never again"


def test_a_restart_is_asked_for_once() -> None:
    cluster = Cluster(fails=1)
    assert cluster.keep(restart="now")
    assert [body["applications"][0].get("args") for body in cluster.put] == [{"restart": "now"}, None]


def test_a_wrong_token_is_the_persons_to_mend() -> None:
    with pytest.raises(ConfigurationError, match="RAY_AUTH_TOKEN"):
        Cluster(token="right").keep(token="wrong")
    assert Cluster(token="right").keep(token="right")


def test_an_answer_of_another_kind_is_tried_again() -> None:
    dashboard = Dashboard("http://head:8265", "", httpx.MockTransport(lambda _: httpx.Response(503)))
    with pytest.raises(TransientError, match="503"):
        dashboard.look()


def test_the_token_is_found_where_rays_own_tools_find_it(tmp_path: Any) -> None:
    (tmp_path / "token").write_text("from-file\n")
    assert token_of({}) == ""
    assert token_of({"RAY_AUTH_TOKEN": "here", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}) == "here"
    assert token_of({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}) == "from-file"
    with pytest.raises(ConfigurationError, match="RAY_AUTH_TOKEN_PATH"):
        token_of({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
