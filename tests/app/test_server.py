"""The app over HTTP: answers, downloads, and what strangers must not get."""

import contextlib
import http.client
import json
import shutil
import socket
import threading
import time
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny_generator import save_map_models

from noise2map.app.limits import Limits
from noise2map.app.server import MARK, AppServer
from noise2map.app.service import AppService
from noise2map.cli import main


@contextlib.contextmanager
def serving(service, **options):
    with AppServer(service, port=0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            service.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folders = save_map_models(tmp_path_factory.mktemp("models"))
    service = AppService([str(folders["segmentation"]), str(folders["depth"])], "cpu", Limits(upload_bytes=200_000), shipped=False)
    with serving(service) as found:
        yield found


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    marked = {MARK: "1"} if method == "POST" else {}
    connection.request(method, path, body, {**marked, **(headers or {})})
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def run(server, tab, **fields):
    status, content, _ = ask(server, "POST", f"/api/run/{tab}", json.dumps(fields))
    lines = [json.loads(line) for line in content.splitlines()]
    return status, lines


def image_file(width=60, height=40):
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def depth(server):
    upload = json.loads(ask(server, "POST", "/api/upload", image_file())[1])
    _, lines = run(server, "depth", model="depth", image=upload["image"], steps=3, samples=2)
    assert lines[-1]["state"] == "done", lines[-1]
    return lines[-1]["result"]


def test_models_of_one_name_all_have_their_tab(tmp_path):
    first, second = save_map_models(tmp_path / "a"), save_map_models(tmp_path / "b")
    models = [str(first["depth"]), str(second["depth"]), str(first["segmentation"].rename(tmp_path / "my-completion"))]
    models.append(str(second["segmentation"]))
    renamed = first["depth"].parent / "kitchen-completion"
    shutil.copytree(first["depth"], renamed)
    service = AppService([*models, str(renamed)], "cpu", shipped=False)
    service.close()
    found = {tab["id"]: [one["name"] for one in tab["models"]] for tab in service.state["tabs"]}
    assert found == {
        "segmentation": ["segmentation"],
        "depth": [models[0], models[1], "kitchen-completion"],
        "completion": ["my-completion"],
    }
    assert all("ddim" in one["samplers"] for tab in service.state["tabs"] for one in tab["models"])
    with pytest.raises(ValueError, match="no model to show"):
        AppService((), "cpu", shipped=False)


def test_tabs_follow_the_models(server):
    state = json.loads(ask(server, "GET", "/api/state")[1])
    assert [tab["title"] for tab in state["tabs"]] == ["Segmentation", "Depth"]
    assert len(state["samples"]) == 12
    status, content, headers = ask(server, "GET", f"/api/samples/{state['samples'][3]['name']}")
    assert status == 200 and headers["Content-Type"] == "image/png" and Image.open(BytesIO(content)).size == (160, 120)


def test_the_page_asks_nobody_else(server):
    for path in ("/", "/app.js", "/app.css", "/page.js", "/page.css"):
        status, content, headers = ask(server, "GET", path)
        text = content.decode()
        assert status == 200 and "http:" not in text.replace("http://www.w3.org", "") and "https:" not in text
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_a_map_with_all_its_files(server, depth):
    assert depth["size"] == [60, 40] and set(depth["layers"]) == {"image", "map", "uncertainty"}
    assert "data-player" in depth["html"] and "data-points" in depth["html"]
    found = {}
    for name in depth["files"]:
        status, found[name], headers = ask(server, "GET", f"/api/results/{depth['token']}/{name}")
        assert status == 200 and headers["Content-Disposition"] == f'attachment; filename="{name}"', name
    metres = np.load(BytesIO(found["map.npy"]))
    assert metres.shape == (40, 60) and found["cloud.ply"].startswith(b"ply") and found["cloud.glb"].startswith(b"glTF")
    assert Image.open(BytesIO(found["steps.webp"])).n_frames > 1
    archive = zipfile.ZipFile(BytesIO(found["all.zip"]))
    assert sorted(archive.namelist()) == sorted(set(depth["files"]) - {"all.zip"})
    assert archive.read("map.npy") == found["map.npy"]
    status, content, _ = ask(server, "GET", f"/api/results/{depth['token']}/pixel?x=20&y=10")
    assert status == 200 and f"{metres[10, 20]:.2f} m" in json.loads(content)["headline"]


def test_classes_of_a_sample_frame(server):
    status, lines = run(server, "segmentation", model="segmentation", image="sample:frame-0", steps=2)
    result = lines[-1]["result"]
    assert status == 200 and result["legend"]
    content = json.loads(ask(server, "GET", f"/api/results/{result['token']}/pixel?x=3&y=4")[1])
    assert content["html"].count('class="share"') == 3
    assert ask(server, "GET", f"/api/results/{result['token']}/pixel?x=3&y=4000")[0] == 400


TRAVERSALS = [
    "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/file=/etc/passwd",
    "/gradio_api/file=/etc/passwd", "/static/../../../../etc/passwd", "/api/samples/../../../etc/passwd",
    "/api/samples/..%2f..%2f..%2fetc%2fpasswd", "/page/app.html", "/app.py", "/api/samples/frame-0/../../server.py",
    "/api/results/x/..%2f..%2fetc%2fpasswd", "/proxy=http://127.0.0.1:1/", "/C:\\Windows\\win.ini", "/api/samples/%00",
    "http://example.org/api/state/../../etc/passwd", "/api/results/../samples/frame-0", "/.git/config", "/api/samples/",
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_file_of_the_server_can_be_read(server, depth, path):
    for address in (path, path.replace("/x/", f"/{depth['token']}/")):
        status, content, _ = ask(server, "GET", address)
        assert status in (403, 404) and b"root:" not in content and set(json.loads(content)) == {"error"}


def test_names_of_others_and_foreign_pages_are_refused(server):
    assert ask(server, "GET", "/api/state", headers={"Host": "evil.example"})[0] == 403
    assert ask(server, "POST", "/api/upload", image_file(), {"Origin": "http://evil.example"})[0] == 403
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request("POST", "/api/upload", image_file())
    assert connection.getresponse().status == 403
    assert ask(server, "PUT", "/api/upload", b"")[0] == 501


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"<svg>", 400, "no image"),
        (bytes(300_000), 413, "at most 0.191 MiB"),
        (image_file()[:-500], 400, "read"),
    ],
)
def test_bad_uploads_get_a_sentence(server, body, status, words):
    found, content, _ = ask(server, "POST", "/api/upload", body)
    assert found == status and words in json.loads(content)["error"]


@pytest.mark.parametrize(
    "body", [b"[", b"[1]", b"null", b"[" * 30_000, b'{"model": "depth", "image": {"a": 1}}', b'{"model": "x"}']
)
def test_bad_requests_get_a_sentence(server, body):
    status, content, _ = ask(server, "POST", "/api/run/depth", body)
    assert status == 400 and json.loads(content)["error"]


def test_what_a_model_cannot_do_is_said(server):
    status, content, _ = ask(
        server, "POST", "/api/run/depth", json.dumps({"model": "depth", "image": "sample:frame-0", "steps": 999})
    )
    assert status == 400 and "expected a whole number from 1 to 200" in json.loads(content)["error"]


def begin(server, **fields):
    """A request whose answer nobody reads yet."""
    body = json.dumps({"model": "depth", "image": "sample:frame-0", **fields}).encode()
    head = f"POST /api/run/depth HTTP/1.0\r\nHost: 127.0.0.1\r\n{MARK}: 1\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=30)
    connection.sendall(head.encode() + body)
    return connection


def test_who_goes_away_cancels_and_nobody_waits_for_it(server, monkeypatch):
    jobs, start = [], server.service.start
    monkeypatch.setattr(server.service, "start", lambda tab, fields: jobs.append(start(tab, fields)) or jobs[-1])
    leaving = [begin(server, steps=200) for _ in range(4)]
    for connection in leaving:
        connection.recv(100)
        connection.close()
    _, lines = run(server, "depth", model="depth", image="sample:frame-0", steps=1)
    assert lines[-1]["state"] == "done"
    assert [job.state for job in jobs] == ["cancelled"] * 4 + ["done"] and jobs[0].done < 200


def test_connections_are_bounded(tmp_path):
    folders = save_map_models(tmp_path)
    service = AppService([str(folders["depth"])], "cpu", Limits(connections=2), shipped=False)
    with serving(service) as server:
        held = [socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=5) for _ in range(2)]
        time.sleep(0.2)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(server, "GET", "/api/state")
        for connection in held:
            connection.close()
        time.sleep(0.3)
        assert ask(server, "GET", "/api/state")[0] == 200


def test_a_port_in_use_is_said_before_anything_is_loaded(server, capsys):
    with pytest.raises(SystemExit) as end:
        main(["app", "nothing-like-it", "--port", str(server.server_address[1])])
    assert end.value.code == 2 and "choose another --port" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["app", "--host", "no.such.host.invalid"])
    assert "cannot listen at host 'no.such.host.invalid'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "host", "status"), [("/api/nowhere", None, 404), ("/api/upload", "elsewhere.example", 403), ("/api/upload", None, 503)]
)
def test_large_bodies_that_are_refused_get_their_answer(server, path, host, status):
    """Not a connection that breaks while the browser still sends."""
    held = [server.uploads.acquire(blocking=False) for _ in range(server.service.limits.uploads)] if status == 503 else []
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
        connection.request("POST", path, b"x" * (8 << 20), {MARK: "1", **({"Host": host} if host else {})})
        answer = connection.getresponse()
        assert answer.status == status and json.loads(answer.read())["error"]
    finally:
        for one in held:
            if one:
                server.uploads.release()


def test_files_that_arrive_at_once_are_bounded(server):
    for _ in range(server.service.limits.uploads):
        assert server.uploads.acquire(blocking=False)
    status, content, _ = ask(server, "POST", "/api/upload", image_file())
    for _ in range(server.service.limits.uploads):
        server.uploads.release()
    assert status == 503 and "Too many files" in json.loads(content)["error"]
    assert ask(server, "POST", "/api/upload", image_file())[0] == 200


def test_without_shipped_models_a_wrong_name_is_an_error():
    with pytest.raises(ValueError, match="neither a folder"):
        AppService(["nothing-like-it"], "cpu", shipped=False)
