"""`make stress`: thousands of requests, half of them left in the middle; memory must stay flat.

    python tests/stress_server.py [--requests 5000] [--clients 8] [--crowd 200]

A server with the embedded model in a process of its own, as many clients as asked for at a time;
then a crowd of connections at once that lie, stall, cancel and reset (odd_crowd.py). Fails if a
request that was not left gets no whole answer, if slots stay taken, if `/metrics` does not add up,
or if the server's memory grows by more than 1 % and 4 MiB in the second half (of 3,000 requests or
more: the first ones touch pages for the first time).
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
from metrics import odd_sums, read_metrics
from odd_crowd import run_crowd
from server_client import read_answer, request

QUESTIONS = ("Hi", "What is a routed expert?", "Tell me about caches. " * 20)
GROWTH = 4 << 20  # bytes
STEADY = 3000  # requests from which on memory is judged
WAITING = 0.6  # of requests that wait for the whole answer
SETTLED = 30.0  # seconds until slots are free after the last has gone


class Client:
    """Asks, and leaves as the dice say."""

    def __init__(self, port: int, seed: int) -> None:
        self.served = self.refused = self.left = 0
        self._port = port
        self._dice = random.Random(seed)

    def run(self, count: int) -> None:
        """So many requests, over as few connections as possible."""
        dice, sock = self._dice, None
        for _ in range(count):
            sock = sock or socket.create_connection(("127.0.0.1", self._port), timeout=60)
            is_stream = dice.random() < 0.5
            sock.sendall(
                request(
                    {
                        "messages": [{"role": "user", "content": dice.choice(QUESTIONS)}],
                        "max_tokens": dice.choice((1, 3, 10, 60)),
                        "stream": is_stream,
                        "seed": dice.randrange(1000),
                    }
                )
            )
            if dice.random() < WAITING:
                answer = read_answer(sock, is_stream=is_stream)
                self.refused += b" 429 " in answer[:20]
                self.served += b" 200 " in answer[:20]
                continue
            if dice.random() < 0.7:
                sock.recv(dice.choice((1, 100, 5000)))
            sock.close()
            sock = None
            self.left += 1


def main() -> None:
    """Exit code 1 and a line where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--crowd", type=int, default=200)
    options = parser.parse_args()
    command = [sys.executable, "-m", "cli.kimi_offload", "serve", "--port", "0", "--queue", "16"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            found = re.search(r":(\d+):", program.stdout.readline())
            assert found is not None
            port = int(found[1])
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
                problems = stress(port, program.pid, options.requests, options.clients)
                problems += settled(http)
                problems += crowd(port, http, options.crowd)
                problems += settled(http)
        finally:
            program.terminate()
    sys.exit("; ".join(problems) or None)


def stress(port: int, pid: int, requests: int, clients: int) -> list[str]:
    """What went wrong."""
    process, sizes, totals = psutil.Process(pid), [], [0, 0, 0]
    for turn in range(10):
        crowd = [Client(port, 100 * turn + i) for i in range(clients)]
        threads = [threading.Thread(target=c.run, args=(requests // 10 // clients,)) for c in crowd]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.5)
        sizes.append(process.memory_info().rss)
        for client in crowd:
            totals = [
                a + b
                for a, b in zip(totals, (client.served, client.refused, client.left), strict=True)
            ]
        served, refused, left = totals
        size = sizes[-1] / 2**20
        print(f"{served} served, {refused} refused, {left} left: {size:.1f} MiB", flush=True)
    problems = []
    if sum(totals) != requests // 10 // clients * clients * 10:
        problems.append("a request was lost")
    if requests >= STEADY and sizes[-1] > sizes[4] * 1.01 + GROWTH:
        problems.append(f"memory grew from {sizes[4]:,} to {sizes[-1]:,} bytes")
    return problems


def crowd(port: int, http: httpx.Client, count: int) -> list[str]:
    """Odd connections, all at once; what went wrong."""
    before = read_metrics(http)
    outcomes = run_crowd(port, count, seed=1)
    after = read_metrics(http)
    print(f"of {count} odd connections: {dict(outcomes)}", flush=True)
    fine = ("served", "refused", "left")
    problems = [f"{n} x {what}" for what, n in outcomes.items() if what not in fine]
    refused = after["requests_refused_total"] - before["requests_refused_total"]
    if refused < outcomes["refused"]:
        problems.append(f"{outcomes['refused']} were refused, {refused:g} are told")
    return problems


def settled(http: httpx.Client) -> list[str]:
    """Whether it is healthy, answers, and has everything back; what is wrong with it."""
    until = time.monotonic() + SETTLED
    while any(slot["is_processing"] or slot["id"] < 0 for slot in http.get("/slots").json()):
        if time.monotonic() > until:
            return [f"slots stay taken: {http.get('/slots').json()}"]
        time.sleep(0.1)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    statuses = [
        http.get("/health").status_code,
        http.post("/v1/chat/completions", json=body, timeout=60).status_code,
    ]
    wrong = [] if statuses == [200, 200] else [f"health and an answer have status {statuses}"]
    return wrong + odd_sums(http)


if __name__ == "__main__":
    main()
