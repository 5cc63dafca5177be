"""Load on `/orders`, from a process of its own: python load.py PORT SECONDS RATE OPERATION

Orders are placed (`post`, or `post_key` with a new Idempotency-Key each), one is read (`get`), or a
user's newest twenty are listed (`list`). Prints the number of requests and those a second, or with a
rate above 0 how long they took, in milliseconds.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from uuid import uuid4

CONNECTIONS = 8


async def load(port: int, seconds: float, rate: int, operation: str) -> dict[str, float]:
    begun, waits = time.perf_counter(), list[float]()
    until = begun + seconds
    requests = (REQUESTS[operation](number) for number in range(CONNECTIONS))
    await asyncio.gather(
        *(client(port, until, n, rate, request, waits) for n, request in enumerate(requests))
    )
    if not rate:
        return {"requests": len(waits), "rate": len(waits) / (time.perf_counter() - begun)}
    steps = statistics.quantiles(waits, n=100)
    return {"p50": steps[49], "p95": steps[94], "p99": steps[98]}


Request = Callable[[], bytes]


def post(number: int, key: str = "") -> Request:
    item = {"sku": f"sku-{number}", "quantity": 2, "unit_price": "9.50"}
    body = json.dumps({"user_id": 1, "items": [item]}).encode()
    head = f"POST /orders HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n{key}"
    request = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
    return lambda: request


def post_key(number: int) -> Request:
    request, header = post(number, "Idempotency-Key: @\r\n")(), b"Idempotency-Key: @"
    return lambda: request.replace(header, header[:-1] + str(uuid4()).encode())


def get(number: int) -> Request:
    request = f"GET /orders/{number + 1} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    return lambda: request


def list_(number: int) -> Request:
    request = f"GET /orders?user_id={number + 1} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    return lambda: request


REQUESTS = {"post": post, "post_key": post_key, "get": get, "list": list_}


async def client(
    port: int, until: float, number: int, rate: int, request: Request, waits: list[float]
) -> None:
    """Send requests one after the other; with a rate, latency counts from the time each was due."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = time.perf_counter() + (number / rate if rate else 0)
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        writer.write(request())
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 20"):
            raise SystemExit(f"the service answered {answer.decode()}")
        length = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        now = time.perf_counter()
        waits.append(1000 * (now - due))
        due = due + CONNECTIONS / rate if rate else now
    writer.close()


if __name__ == "__main__":
    port, seconds, rate, operation = sys.argv[1:]
    print(json.dumps(asyncio.run(load(int(port), float(seconds), int(rate), operation))))
