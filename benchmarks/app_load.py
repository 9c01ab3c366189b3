"""Load on the app: users who upload, run, click and download at once: ``python benchmarks/app_load.py --out load.csv``."""

import argparse
import http.client
import json
import random
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from noise2map.report.tables import write_csv
from noise2map.runs.provenance import provenance

TABS = {"segmentation": "freedoom-segmentation-tiny", "depth": "freedoom-depth-laplace-tiny", "normals": "freedoom-normals-tiny"}
MARKED = {"X-Noise2map": "1"}
LEAVE = 0.1  # share of the runs whose user goes away before the map is there


class User(threading.Thread):
    def __init__(self, port, seed, until):
        super().__init__(daemon=True)
        self.port, self.random, self.until = port, random.Random(seed), until
        self.seconds, self.lost, self.left, self.requests = [], [], 0, 0

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, body, MARKED if method == "POST" else {})
        answer = connection.getresponse()
        content = answer.read()
        self.requests += 1
        if answer.status != 200:
            raise OSError(f"{method} {path.split('/')[2]}: {answer.status} {content[:200]!r}")
        return content

    def image(self):
        if self.random.random() < 0.5:
            return f"sample:frame-{5 * self.random.randrange(12)}"
        values = np.random.default_rng(self.random.randrange(1000)).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        buffer = BytesIO()
        Image.fromarray(values).save(buffer, "JPEG")
        return json.loads(self.ask("POST", "/api/upload", buffer.getvalue()))["image"]

    def run_once(self):
        tab = self.random.choice(list(TABS))
        fields = {"model": TABS[tab], "image": self.image(), "seed": self.random.randrange(100)}
        if tab == "segmentation":
            fields |= {"steps": self.random.choice([1, 3, 5]), "samples": self.random.choice([1, 2])}
        body = json.dumps(fields).encode()
        if self.random.random() < LEAVE:
            head = f"POST /api/run/{tab} HTTP/1.0\r\nHost: 127.0.0.1\r\nX-Noise2map: 1\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
                connection.sendall(head.encode() + body)
                connection.recv(200)
            self.left += 1
            return
        began = time.perf_counter()
        last = json.loads(self.ask("POST", f"/api/run/{tab}", body).splitlines()[-1])
        if last.get("state") != "done":
            raise OSError(f"run: {last}")
        self.seconds.append(time.perf_counter() - began)
        token, (width, height) = last["result"]["token"], last["result"]["size"]
        x, y = self.random.randrange(width), self.random.randrange(height)
        self.ask("GET", f"/api/results/{token}/pixel?x={x}&y={y}")
        name = self.random.choice(last["result"]["files"])
        if not self.ask("GET", f"/api/results/{token}/{name}"):
            raise OSError(f"download: {name} is empty")

    def run(self):
        while time.time() < self.until:
            try:
                self.run_once()
            except (OSError, ValueError, KeyError, IndexError, http.client.HTTPException) as error:
                self.lost.append(f"{type(error).__name__}: {error}"[:300])


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("results/app_load.csv"))
    chosen = parser.parse_args()
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "noise2map", "app", "--port", str(port), "--device", "cpu"])
    try:
        for _ in range(600):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        process = psutil.Process(server.pid)
        User(port, 99, 0).run_once()
        before = peak = process.memory_info().rss
        users = [User(port, seed, time.time() + chosen.seconds) for seed in range(chosen.users)]
        for user in users:
            user.start()
        while any(user.is_alive() for user in users):
            time.sleep(0.5)
            peak = max(peak, process.memory_info().rss)
        alive = server.poll() is None
    finally:
        server.terminate()
        server.wait(30)
    seconds = sorted(one for user in users for one in user.seconds)
    lost = [one for user in users for one in user.lost]
    row = {
        "users": chosen.users,
        "duration_s": chosen.seconds,
        "requests": sum(user.requests for user in users),
        "maps": len(seconds),
        "left_early": sum(user.left for user in users),
        "lost": len(lost),
        "server_alive": alive,
        "median_s": round(statistics.median(seconds), 3),
        "p95_s": round(seconds[int(0.95 * (len(seconds) - 1))], 3),
        "max_s": round(seconds[-1], 3),
        "rss_before_mib": round(before / 2**20),
        "rss_peak_mib": round(peak / 2**20),
    }
    print(json.dumps(row, indent=1))
    print("\n".join(sorted(set(lost))[:10]))
    facts = provenance(torch.device("cpu"), torch.float32, 0) | {"command": shlex.join(["python", *sys.argv])}
    write_csv(chosen.out, [row | facts])


if __name__ == "__main__":
    main()
