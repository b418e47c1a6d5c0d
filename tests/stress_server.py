"""`make stress`: thousands of requests, half of them left in the middle; memory must stay flat.

    python tests/stress_server.py [--requests 5000] [--clients 8]

A server with the embedded model in a process of its own, as many clients as asked for at a time.
Fails if a request that was not left gets no whole answer, if slots stay taken, or if the server's
memory grows by more than 1 % and 4 MiB in the second half.
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
from server_client import read_answer, request

QUESTIONS = ("Hi", "What is a routed expert?", "Tell me about caches. " * 20)
GROWTH = 4 << 20  # bytes
WAITING = 0.6  # of requests that wait for the whole answer


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
    options = parser.parse_args()
    command = [sys.executable, "-m", "cli.kimi_offload", "serve", "--port", "0", "--queue", "16"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            found = re.search(r":(\d+):", program.stdout.readline())
            assert found is not None
            problems = stress(int(found[1]), program.pid, options.requests, options.clients)
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
    if sizes[-1] > sizes[4] * 1.01 + GROWTH:
        problems.append(f"memory grew from {sizes[4]:,} to {sizes[-1]:,} bytes")
    slots = httpx.get(f"http://127.0.0.1:{port}/slots", trust_env=False).json()
    if any(slot["is_processing"] for slot in slots) or len(slots) != 4:
        problems.append(f"slots stay taken: {slots}")
    return problems


if __name__ == "__main__":
    main()
