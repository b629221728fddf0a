"""What matters of the Dockerfile and compose.yaml, there being no engine here that would build and run them."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from shoal.cluster.configuration import environment_names
from shoal.settings import Settings, load
from tests.fixtures.manifests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments), comments left out and continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.M)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in lines) if word]


def of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def test_the_base_is_named_by_who_builds_and_nothing_is_latest() -> None:
    assert instructions()[0] == ("ARG", "PYTHON_IMAGE"), "no default: a digest would be made up, or out of date"
    assert all(rest.split()[0] == "${PYTHON_IMAGE}" for rest in of("FROM"))
    assert not re.search(r":latest\b", DOCKERFILE + (ROOT / "compose.yaml").read_text())
    (version,) = re.findall(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert f"UV_VERSION={version}" in of("ARG"), "the uv that CI has"


def test_the_image_runs_as_nobody_in_particular_and_by_number() -> None:
    last = stages()[-1]
    users = [rest for word, rest in last if word == "USER"]
    assert users == ["10001:10001"]
    after = [word for word, _ in last[last.index(("USER", users[0])) :]]
    assert "RUN" not in after
    assert "COPY" not in after


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the build's context back: the last line that matches decides."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.lstrip("!").removeprefix("**/")
        top = path.split("/")[0]
        if any(fnmatch.fnmatch(part, pattern) for part in (path, top, path.split("/")[-1])):
            result = not rule.startswith("!")
    return result


def test_what_is_copied_is_there_and_what_is_secret_is_not_sent() -> None:
    copied = [shlex.split(rest) for rest in of("COPY")]
    sources = [one for words in copied if not words[0].startswith("--from") for one in words[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert not of("ADD"), "it fetches and unpacks"
    for kept in (".env", ".git/config", "tests/conftest.py", "shoal.toml", ".venv/bin/python", "shared/x"):
        assert ignored(kept), kept
    built = {words[1] for words in copied if words[0] == "--from=build"}
    assert built == {"/app/.venv", "/app/sbom.cdx.json"}, "nothing of the build but what runs"


def test_it_is_installed_from_the_lock_file_without_tools_of_development() -> None:
    syncs = [rest for rest in of("RUN") if "uv sync" in rest]
    assert len(syncs) == 2
    assert all("--frozen --no-dev" in rest for rest in syncs)
    order = [rest for word, rest in instructions() if word in {"RUN", "COPY"}]
    assert order.index(syncs[0]) < order.index("shoal ./shoal") < order.index(syncs[1]), (
        "our code is no reason to fetch"
    )
    assert any("--network=none" in rest and "shoal.embeddings.offline" in rest for rest in of("RUN"))


def test_what_kuberay_calls_in_the_image_is_in_it() -> None:
    """Its readiness probe of workers that serve is `wget`; its commands run in bash, at times as a login shell, which
    knows /usr/local/bin and not the environment's PATH."""
    last = [rest for word, rest in stages()[-1] if word == "RUN"]
    assert any(re.search(r"apt-get install .*\bwget\b", rest) for rest in last)
    assert any("/app/.venv/bin/ray" in rest and "/usr/local/bin" in rest for rest in last)
    assert json.loads(of("CMD")[0])[0] == "shoal"


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text()))


def test_compose_sets_settings_that_there_are(monkeypatch: Any) -> None:
    known = {name for field in Settings.model_fields for name in environment_names(field)}
    given = compose()["services"]["shoal"]["environment"]
    assert set(given) - known == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    settings = load()
    assert not settings.is_embedded
    assert settings.tables_uri == "s3://tables/shoal"


def test_compose_opens_nothing_beyond_this_machine() -> None:
    services = compose()["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:8000:8000"], "anyone_may_do_anything is bearable on this machine alone"
    for name in ("shoal", "buckets"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    assert "${PYTHON_IMAGE:?" in services["shoal"]["build"]["args"]["PYTHON_IMAGE"]
    volumes = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert volumes == set(compose()["volumes"])
    assert set(services["shoal"]["depends_on"]) < set(services)
    assert Path(ROOT / "compose.yaml").read_text().count("latest") == 0
