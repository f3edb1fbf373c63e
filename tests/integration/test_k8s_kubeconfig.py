"""A kubeconfig that leads nowhere, or to something that is not Kubernetes: one sentence, and never a traceback."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.integration.k8s_commands_support import CONFIG, PLAIN, Cluster, cluster_for_tests, need_server, sentence

pytest.importorskip("kubernetes", reason="needs the extra `kubernetes`")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with cluster_for_tests(tmp_path) as made:
        need_server(made)
        yield made


@pytest.mark.parametrize("content", ["clusters: [", "5", "- 1", "\x00", "clusters: 5", "contexts: [{name: test}]", ""])
def test_a_file_that_is_no_kubeconfig(cluster: Cluster, tmp_path: Path, content: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(content)
    done = cluster.serval("status", kubeconfig=file)
    assert done.status == 2
    assert sentence(done).startswith(f"--kubeconfig {file}: ")


def test_a_server_without_a_scheme_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    server, _ = need_server(cluster)
    for host in (server.url.removeprefix("http://"), "''"):
        file = tmp_path / "odd.yaml"
        file.write_text(cluster.kubeconfig.read_text().replace(server.url, host))
        done = cluster.serval("status", kubeconfig=file)
        assert done.status == 2
        assert "the cluster's `server` must begin with https://" in sentence(done)


def test_a_server_that_speaks_no_tls(cluster: Cluster, tmp_path: Path) -> None:
    server, _ = need_server(cluster)
    file = tmp_path / "tls.yaml"
    file.write_text(cluster.kubeconfig.read_text().replace("http://", "https://"))
    done = cluster.serval("status", kubeconfig=file)
    assert done.status == 7
    assert f"the API server https://{server.url.removeprefix('http://')} and this command find no TLS together: " in sentence(
        done
    )


@pytest.fixture
def elsewhere() -> Iterator[ThreadingHTTPServer]:
    """Answers everything with `page`, a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            code, body = self.server.page  # type: ignore[attr-defined]
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PATCH = _answer  # noqa: N815  # names that the standard library asks for

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("page", [(200, b"<html>Sign in</html>"), (200, b"{}"), (200, b"null"), (200, b""), (302, b"")])
def test_what_answers_is_not_kubernetes(
    cluster: Cluster, tmp_path: Path, elsewhere: ThreadingHTTPServer, page: tuple[int, bytes]
) -> None:
    server, _ = need_server(cluster)
    elsewhere.page = page  # type: ignore[attr-defined]
    address = f"http://127.0.0.1:{elsewhere.server_address[1]}"
    file = tmp_path / "elsewhere.yaml"
    file.write_text(cluster.kubeconfig.read_text().replace(server.url, address))
    for words in (["status"], ["apply", *PLAIN]):
        done = cluster.serval(*words, kubeconfig=file)
        assert done.status == 7
        assert f"what answers at {address} is not Kubernetes (look up the kinds of " in sentence(done)
        assert f"HTTP {page[0]}" in sentence(done)


def test_a_namespace_that_is_being_deleted_takes_nothing(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    with server.store.locked():
        namespace = next(one for one in server.store.of_kind("Namespace") if one["metadata"]["name"] == cluster.namespace)
        namespace["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for command in (["apply", *CONFIG], ["diff", *PLAIN]):
        done = cluster.serval(*command)
        assert done.status == 1
        assert sentence(done) == f"namespace {cluster.namespace} is being deleted: nothing can be made there until it is gone"
