"""Models come from the hub whole and as published, or one line says why not; a hub of the tests' own stands in."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from resources.models import registry, weights
from resources.models.catalogue import list_models
from resources.models.entry import ModelEntry
from resources.models.registry import MODELS
from resources.models.weights import PublishedWeights
from resources.settings import Settings
from tests.support import forked

pytestmark = pytest.mark.slow(seconds=90)

ROOT = Path(__file__).parent.parent.parent
TOKEN = "hf_verySecretToken0123456789"
COMMIT = "c0ffee" * 6 + "c0ff"
CHUNK = 10 * 1024 * 1024
"""What the hub's library writes at once; an interruption loses at most that."""

# The command, in a world of the given models only.
FLEXY = """
import json, sys
from resources.models import registry
from resources.models.entry import ModelEntry
from resources.models.weights import PublishedWeights
entries = json.loads(sys.argv[1])
registry.MODELS.clear()
for name, (published, required) in entries.items():
    published = PublishedWeights(**published)
    registry.MODELS[name] = ModelEntry(name, "scorer", "nowhere:load", published, required_models=required)
from flexy_assets.cli.app import main
main(sys.argv[2:], prog_name="flexy")
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    """A repository: its files, the commit they are at, and how it answers."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    claimed: dict[str, int] = field(default_factory=dict)
    """Sizes that are not those of the files."""


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0


class Hub(ThreadingHTTPServer):
    """Speaks what the hub's library asks of a hub: info, listing, and files; the large ones from another host."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.changed: dict[str, bytes] = {}
        """What is sent in the place of a file, by its name."""
        self.stalls_after: int | None = None
        self.breaks_after: int | None = None
        self.fails_with: int | None = None
        self.page: bytes | None = None
        self.stalling = threading.Event()
        self.released = threading.Event()

    def handle_error(self, *_: Any) -> None:
        """Silence: a killed command leaves broken pipes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self) -> dict[str, int]:
        """The bytes of files sent so far, by file."""
        sent: dict[str, int] = {}
        for request in self.requests:
            if request.sent:
                name = request.path.rpartition("/")[2]
                sent[name] = sent.get(name, 0) + request.sent
        return sent


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.request_log = Request(self.command, path, self.headers.get("Range"), token)
        hub.requests.append(self.request_log)
        if hub.fails_with:
            return self.answer(hub.fails_with)
        if hub.page:
            return self.answer(200, hub.page)
        if token == "hf_unknown":
            return self.answer(401, error="", message="Invalid credentials in Authorization header")
        match path.removeprefix("/").split("/"):
            case ["cdn", owner, name, *file]:
                return self.send_file(hub.repos[f"{owner}/{name}"], "/".join(file))
            case ["api", "models", owner, name, "revision" | "tree" as what, revision]:
                repo = hub.repos.get(f"{owner}/{name}")
                if repo is None:
                    return self.answer(404 if token else 401, error="RepoNotFound")
                if revision not in (repo.commit, "main"):
                    return self.answer(404, error="RevisionNotFound")
                if what == "tree":
                    return self.json([entry | {"path": file, "type": "file"} for file, entry in listing(repo, "oid")])
                siblings = [entry | {"rfilename": file} for file, entry in listing(repo, "blobId")]
                return self.json({"id": f"{owner}/{name}", "sha": repo.commit, "siblings": siblings})
            case [owner, name, "resolve", _, *file]:
                return self.resolve(hub.repos[f"{owner}/{name}"], f"{owner}/{name}", "/".join(file), token)
        return self.answer(404)

    def resolve(self, repo: Repo, name: str, file: str, token: str | None) -> None:
        if repo.gated and token != TOKEN:
            return self.answer(403 if token else 401, error="GatedRepo")
        if not large(file):
            return self.send_file(repo, file)
        # To the library, localhost is not 127.0.0.1: as on the hub, the token must not go there.
        self.send_response(302)
        self.send_header(
            "Location", f"http://localhost:{self.server.server_port}/cdn/{name}/{file}?Signature=hf_signed"
        )
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("X-Linked-Etag", f'"{sha256(repo.files[file])}"')
        self.send_header("X-Linked-Size", str(len(repo.files[file])))
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def send_file(self, repo: Repo, file: str) -> None:
        hub, whole = self.server, self.server.changed.get(file, repo.files[file])
        start = int(re.fullmatch(r"bytes=(\d+)-", self.request_log.range or "bytes=0-")[1])  # type: ignore[index]
        content = whole[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(repo.files[file]).hexdigest()}"')
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("Content-Length", str(len(content)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if large(file) and (stop := hub.stalls_after or hub.breaks_after):
            self.write(content[:stop])
            content = content[stop:]
            if hub.breaks_after:
                hub.breaks_after = None
                self.close_connection = True
                return
            hub.stalling.set()
            hub.released.wait(60)
        self.write(content)

    def write(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()
        self.request_log.sent += len(content)

    def json(self, document: Any) -> None:
        self.answer(200, json.dumps(document).encode(), "application/json")

    def answer(
        self, status: int, content: bytes = b"", kind: str = "text/html", error: str = "", message: str = ""
    ) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": error, "X-Error-Message": message or error}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def large(file: str) -> bool:
    return file.endswith((".safetensors", ".pt"))


def listing(repo: Repo, hash_name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for file, content in repo.files.items():
        entry = {"size": repo.claimed.get(file, len(content)), hash_name: hashlib.sha1(content).hexdigest()}
        lfs = {"sha256": sha256(content), "oid": sha256(content), "size": entry["size"], "pointerSize": 134}
        yield file, entry | ({"lfs": lfs} if large(file) else {})


@dataclass
class World:
    """A machine with a hub in reach, and the models that the registry there knows."""

    hub: Hub
    cache: Path
    environment: dict[str, str]
    entries: dict[str, tuple[PublishedWeights, dict[str, str]]] = field(default_factory=dict)

    def publish(self, name: str, held: Repo, *files: str, needs: str = "", **published: Any) -> None:
        """A repository of the hub, and the model that is published there."""
        self.hub.repos[f"us/{name}"] = held
        entry = PublishedWeights(f"us/{name}", held.commit, files, "mit", 0.001, gated=held.gated)
        self.entries[name] = (PublishedWeights(**asdict(entry) | published), {"part": needs} if needs else {})

    def command(self, *arguments: str) -> list[str]:
        entries = {name: (asdict(published), needs) for name, (published, needs) in self.entries.items()}
        return [sys.executable, "-c", FLEXY, json.dumps(entries), *arguments]

    def flexy(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = forked.run(
            self.command(*arguments),
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert not re.search("hf_|ecret", done.stdout + done.stderr), "a token or a signature is shown"
        return done

    def start(self, *arguments: str) -> forked.Popen:
        return forked.Popen(
            self.command(*arguments),
            cwd=ROOT,
            env=self.environment,
            stdout=forked.PIPE,
            stderr=forked.PIPE,
            text=True,
        )

    def fetched(self, *names: str, **environment: str) -> dict[str, Any]:
        done = self.flexy("models", "fetch", *names, "--json", **environment)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    def refused(self, *names: str, status: int = 1, **environment: str) -> str:
        """The one line that a fetch ends with: thing, cause and remedy."""
        done = self.flexy("models", "fetch", *names, **environment)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("flexy: ") and line.count(": ") >= 2, line
        return line

    def states(self, **environment: str) -> dict[str, str]:
        entries = {name: ModelEntry(name, "scorer", "nowhere:load", entry) for name, (entry, _) in self.entries.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "MODELS", entries)
            patch.setattr(constants, "HF_HUB_CACHE", str(self.cache))
            return {row["name"]: row["state"] for row in list_models(Settings.read(environment))}

    def folder(self, name: str, commit: str = COMMIT) -> Path:
        return self.cache / f"models--us--{name}" / "snapshots" / commit

    def content(self, name: str, commit: str = COMMIT) -> dict[str, bytes]:
        """The model's files on this machine."""
        folder = self.folder(name, commit)
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # Nothing of the user's: neither a token nor a proxy.
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    environment = kept | {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
    yield World(hub, tmp_path / "hf" / "hub", environment)
    hub.released.set()
    hub.shutdown()
    hub.server_close()
    thread.join()


SMALL = {"config.json": b'{"a": 1}', "tokenizer/vocab.json": b"{}", "tokenizer/merges.txt": b"a b"}
HEAD = b"head" * 1000
NEEDED = SMALL | {"model.safetensors": HEAD}
UNNEEDED = {"flax_model.pt": b"f" * 5000, "original/model.safetensors": b"o" * 5000, "original/config.json": b"{}"}
PATTERNS = ("*.json", "model.safetensors", "tokenizer*/*")


def publish_small(world: World, name: str = "small", **published: Any) -> None:
    world.publish(name, Repo(NEEDED | UNNEEDED), *PATTERNS, **published)


# What comes


def test_a_file_that_is_not_on_the_hub_is_fetched_by_its_hash_and_without_the_token(world: World) -> None:
    file = "sac+logos.pth"
    size = {"gigabytes": len(HEAD) / 1e9, "sha256": {file: sha256(HEAD)}}
    world.publish("head", Repo({file: HEAD}), file, url=f"{world.hub.url}/cdn/us/head/sac%2Blogos.pth", **size)
    assert world.states() == {"head": "missing"}
    world.hub.changed[file] = b"tail" * 1000
    assert "another SHA-256" in world.refused("head", HF_TOKEN=TOKEN)
    world.hub.changed.clear()
    assert world.fetched("head", HF_TOKEN=TOKEN) == {"fetched": ["head"], "already": [], "bytes": len(HEAD)}
    assert world.fetched("head", HF_HUB_OFFLINE="1")["already"] == ["head"]
    assert world.content("head") == {file: HEAD} and world.states() == {"head": "present"}
    assert {request.token for request in world.hub.requests} == {None}


def test_a_fetch_brings_the_needed_files_only_and_once(world: World) -> None:
    publish_small(world, sha256={"config.json": sha256(SMALL["config.json"]), "model.safetensors": sha256(HEAD)})
    assert world.states() == {"small": "missing"}
    size = sum(map(len, NEEDED.values()))
    assert world.fetched("small", HF_TOKEN=TOKEN) == {"fetched": ["small"], "already": [], "bytes": size}
    assert world.content("small") == NEEDED
    assert sum(world.hub.sent().values()) == size, "each byte was sent once, and no other file's"
    assert {r.token for r in world.hub.requests if r.path.startswith("/cdn")} == {None}, "the token stays at the hub"
    assert world.states() == {"small": "present"}

    world.hub.requests.clear()
    assert world.fetched("small") == {"fetched": [], "already": ["small"], "bytes": 0}
    done = world.flexy("models", "fetch", "small", HF_HUB_OFFLINE="1")
    assert done.stdout == f"small: is here already: {world.folder('small')}\n"
    assert world.hub.requests == []


def test_what_another_program_left_unfinished_is_completed(world: World) -> None:
    publish_small(world)
    world.fetched("small")
    (world.folder("small") / "tokenizer" / "merges.txt").unlink()
    assert world.states() == {"small": "missing"}
    # Without the listing, tokenizer*/* seems to be there.
    (world.cache / "models--us--small" / "trees" / f"{COMMIT}.json").unlink()
    world.hub.requests.clear()
    assert world.fetched("small")["fetched"] == ["small"]
    assert world.content("small") == NEEDED
    assert world.hub.sent() == {}, "its content was still in the cache"


def test_a_beginning_that_is_longer_than_the_file_is_dropped(world: World) -> None:
    publish_small(world)
    partial = world.cache / "models--us--small" / "blobs" / f"{sha256(HEAD)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(HEAD + b"?")
    world.fetched("small")
    assert world.content("small") == NEEDED


def test_what_a_model_needs_comes_with_it_and_before_it(world: World) -> None:
    world.publish("scorer", Repo({"scorer.pt": b"scorer"}), "scorer.pt", needs="part")
    publish_small(world, "part")
    answer = world.fetched("scorer", "part")
    assert answer["fetched"] == ["part", "scorer"]
    assert world.states() == {"scorer": "present", "part": "present"}


def test_a_branch_is_fetched_at_the_commit_it_has_and_stays_there(world: World) -> None:
    publish_small(world, revision="main")
    assert world.states() == {"small": "missing"}
    assert world.fetched("small")["fetched"] == ["small"]
    assert world.states() == {"small": "present"}

    world.hub.repos["us/small"] = Repo({"config.json": b"another"}, commit="d" * 40)
    assert world.fetched("small")["already"] == ["small"]
    assert world.content("small") == NEEDED


def test_the_users_own_folder_is_used_and_nothing_is_fetched(world: World, tmp_path: Path) -> None:
    publish_small(world)
    file = tmp_path / "models.toml"
    file.write_text('[models]\nsmall = "mine"\n')
    own = {"FLEXY_MODEL_REGISTRY": str(file)}
    line = world.refused("small", **own)
    assert f"no weights for small: there is no folder {tmp_path / 'mine'}" in line
    assert world.states(**own) == {"small": "missing"}

    (tmp_path / "mine").mkdir()
    assert world.states(**own) == {"small": "your folder"}
    assert world.fetched("small", **own) == {"fetched": [], "already": ["small"], "bytes": 0}
    done = world.flexy("models", "fetch", "small", **own)
    assert done.stdout == f"small: your folder is used, nothing to fetch: {tmp_path / 'mine'}\n"
    assert world.hub.requests == []


def test_a_terminal_shows_how_far_it_is(world: World) -> None:
    publish_small(world)
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, b"\x18\x00\x50\x00\x00\x00\x00\x00")  # 80 columns
    process = forked.Popen(
        world.command("models", "fetch", "small"),
        cwd=ROOT,
        env=world.environment,
        stdout=forked.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert re.search(r"small: 100%.*4\.01k/4\.01k \[", seen.decode()), seen
    assert seen.count(b"\n") == 1, "one bar, nothing of the library's"


# Interrupted


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_an_interrupted_fetch_goes_on_where_it_was(world: World, how: signal.Signals) -> None:
    big = os.urandom(CHUNK) + bytes(CHUNK)
    world.publish("big", Repo({"model.safetensors": big}), "model.safetensors")
    world.hub.stalls_after = CHUNK + 100
    process = world.start("models", "fetch", "big")
    partial = world.cache / "models--us--big" / "blobs" / f"{sha256(big)}.incomplete"
    assert world.hub.stalling.wait(30)
    wait_for(lambda: partial.exists() and partial.stat().st_size == CHUNK)
    process.send_signal(how)
    output, errors = process.communicate(timeout=30)
    assert output == ""
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert errors == "flexy: interrupted: completed work is kept: run the same command to continue\n"
    assert world.states() == {"big": "missing"}

    world.hub.stalls_after = None
    world.hub.released.set()
    world.hub.requests.clear()
    assert world.fetched("big") == {"fetched": ["big"], "already": [], "bytes": CHUNK}
    assert world.content("big")["model.safetensors"] == big
    assert [r.range for r in world.hub.requests if r.sent] == [f"bytes={CHUNK}-"]
    assert world.hub.sent() == {"model.safetensors": CHUNK}
    assert not partial.exists()


def test_a_connection_that_breaks_is_taken_up_again(world: World) -> None:
    big = os.urandom(2 * CHUNK)
    world.publish("big", Repo({"model.safetensors": big}), "model.safetensors")
    world.hub.breaks_after = CHUNK + 100
    assert world.fetched("big")["fetched"] == ["big"]
    assert world.content("big")["model.safetensors"] == big
    assert [r.range for r in world.hub.requests if r.sent] == [None, f"bytes={CHUNK}-"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Refused


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_named_and_not_kept(world: World, file: str) -> None:
    publish_small(world, sha256={"config.json": sha256(SMALL["config.json"])})
    damaged = NEEDED[file][:-1] + b"?"
    world.hub.changed[file] = damaged
    line = world.refused("small")
    assert f"weights for small were damaged: {file} had another SHA-256" in line
    assert line.endswith("flexy models fetch small")
    assert damaged not in [path.read_bytes() for path in world.cache.rglob("*") if path.is_file()]
    assert world.states() == {"small": "missing"}

    world.hub.changed.clear()
    assert world.fetched("small")["fetched"] == ["small"]
    assert world.content("small") == NEEDED


def test_a_file_that_was_damaged_on_this_disk_is_found_by_fetching_again(world: World) -> None:
    publish_small(world, sha256={"model.safetensors": sha256(HEAD)})
    world.fetched("small")
    (world.folder("small") / "model.safetensors").write_bytes(HEAD[:-1])
    assert "model.safetensors had another SHA-256" in world.refused("small")
    assert world.fetched("small")["bytes"] == len(HEAD)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "us/closed is gated: accept the licence at https://huggingface.co/us/closed, then set HF_TOKEN"),
        ("hf_refused", "the token has no access to us/closed: accept the licence at https://huggingface.co/us/closed"),
        ("hf_unknown", "the hub does not accept the token: set HF_TOKEN to a valid one"),
    ],
    ids=["none", "refused", "unknown"],
)
@pytest.mark.parametrize("files", [NEEDED, {"model.safetensors": HEAD}], ids=["all", "large only"])
def test_a_gated_repository_says_what_it_wants(world: World, token: str, words: str, files: dict[str, bytes]) -> None:
    world.publish("closed", Repo(files, gated=True), "model.safetensors", *(["*.json"] if len(files) > 1 else []))
    assert words in world.refused("closed", **({"HF_TOKEN": token} if token else {}))
    assert world.content("closed") == {}


def test_a_gated_repository_opens_to_the_right_token(world: World) -> None:
    world.publish("closed", Repo(NEEDED, gated=True), *PATTERNS)
    assert world.states() == {"closed": "gated"}
    assert world.fetched("closed", HF_TOKEN=TOKEN)["fetched"] == ["closed"]
    assert world.states() == {"closed": "present"}


@pytest.mark.parametrize("token", ["hf_secret\x01", "hf_sécret"])
def test_a_token_that_is_none_is_not_shown(world: World, token: str) -> None:
    publish_small(world)
    assert "HF_TOKEN holds what no token can" in world.refused("small", status=2, HF_TOKEN=token)


def test_what_the_hub_does_not_have_is_named(world: World) -> None:
    hub = world.hub.url.removeprefix("http://")
    publish_small(world, repo="us/nosuch")
    for token in ({}, {"HF_TOKEN": TOKEN}):  # answered with 401 and 404
        line = world.refused("small", **token)
        assert f"{hub} shows no repository us/nosuch: set HF_TOKEN if it is private" in line
    publish_small(world, revision="a" * 40)
    assert f"us/small has no revision {'a' * 40}: name a folder" in world.refused("small")
    publish_small(world)
    world.publish("small", Repo(NEEDED), *PATTERNS, "unet/*.json")
    assert f"us/small has no file unet/*.json at {COMMIT[:12]}: name a folder" in world.refused("small")
    assert world.hub.sent() == {}


def test_without_the_hub_it_says_so(world: World) -> None:
    publish_small(world)
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it" in world.refused(
        "small", status=2, HF_HUB_OFFLINE="1"
    )
    # Nobody listens on port 1.
    line = world.refused("small", HF_ENDPOINT="http://me:hf_password@127.0.0.1:1")
    assert "no connection to 127.0.0.1:1, or it broke off (ConnectError): check the network and HF_ENDPOINT" in line
    assert "no connection to HF_ENDPOINT" in world.refused("small", HF_ENDPOINT="nonsense")
    world.hub.page = b"<html>please log in to this network</html>"
    assert "does not answer as a hub does: check HF_ENDPOINT" in world.refused("small")
    world.hub.page = None
    world.hub.fails_with = 503
    assert "answers with status 503: run again later" in world.refused("small")


def test_a_model_that_the_disk_cannot_hold_is_not_begun(world: World) -> None:
    world.publish("huge", Repo({"model.safetensors": HEAD}, claimed={"model.safetensors": 10**18}), "model.safetensors")
    line = world.refused("huge")
    assert "1000000000.0 GB are to come and" in line and "free some space, or set HF_HOME" in line
    assert world.hub.sent() == {}


def test_a_disk_that_fills_up_ends_the_fetch_and_with_room_it_goes_on(world: World) -> None:
    big = os.urandom(2 * CHUNK)
    world.publish("big", Repo({"model.safetensors": big}), "model.safetensors")
    world.cache.parent.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", world.cache.parent]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        world.hub.stalls_after = CHUNK + 100
        process = world.start("models", "fetch", "big")
        partial = world.cache / "models--us--big" / "blobs" / f"{sha256(big)}.incomplete"
        assert world.hub.stalling.wait(30)
        wait_for(lambda: partial.exists() and partial.stat().st_size == CHUNK)
        # Something else takes the room that there was when it began.
        filler = world.cache.parent / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        world.hub.stalls_after = None
        world.hub.released.set()
        output, errors = process.communicate(timeout=30)
        assert (process.returncode, output) == (1, "")
        assert errors.startswith("flexy: cannot fetch big: the disk is full: free some space and run again")
        assert len(errors.splitlines()) == 1

        filler.unlink()
        assert world.fetched("big")["bytes"] <= CHUNK, "what came before stayed"
        assert world.content("big")["model.safetensors"] == big
    finally:
        subprocess.run(["umount", "-l", world.cache.parent], check=True)


def test_names_with_nothing_to_fetch_are_refused_before_anything_is_fetched(world: World) -> None:
    publish_small(world)
    assert "model 'smal' is unknown: use small" in world.refused("small", "smal", status=2)
    assert "mini_small cannot be fetched: all it takes lies in the repository" in world.refused("mini_small", status=2)
    assert world.hub.requests == []


# The registry


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.published])
def test_what_is_published_is_said_in_full(name: str) -> None:
    published = MODELS[name].published
    assert published is not None
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", published.repo)
    assert re.fullmatch("[0-9a-f]{40}|main", published.revision)
    assert published.licence and published.gigabytes > 0
    assert published.files and len(set(published.files)) == len(published.files)
    for pattern in published.files:
        assert "**" not in pattern and not pattern.startswith(("/", ".")), "a pattern stays within its folder"
        assert not weights.select_files(["README.md", "model.ckpt", "flax_model.msgpack", "a/b/c.json"], [pattern])
    for file, digest in published.sha256.items():
        assert weights.select_files([file], published.files), f"{file} has a hash and is not fetched"
        assert re.fullmatch("[0-9a-f]{64}", digest), f"{file}: {digest} is no SHA-256"
    assert all(MODELS[needed].published for needed in MODELS[name].required_models.values())
