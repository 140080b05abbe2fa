"""Replicas behind the balancer: speed, hits of the prefix cache, a death under load."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

from vorta_bench.gateway.servers import running
from vorta_bench.wire import Server, free_port, serving

__all__ = ["balance"]


@contextlib.contextmanager
def _balanced(servers: list[Server]) -> Iterator[str]:
    """`vorta gateway` before servers; its address."""
    port = free_port()
    upstream = ",".join(server.address for server in servers)
    command = [sys.executable, "-m", "vorta", "gateway", "--upstream", upstream, "--port", str(port)]
    with running(command, port):
        yield f"http://127.0.0.1:{port}"


def _replica(stack: contextlib.ExitStack, *, step_s: float = 0.02, running: int = 8) -> Server:
    arguments = ["--runner", "fake", "--model", "m=fake", "--set", f"worker.fake_step_s={step_s}"]
    arguments += ["--set", "worker.fake_prefill_token_s=0.0002", "--set", f"worker.max_running_requests={running}"]
    return stack.enter_context(serving([*arguments, "--vector-backend", "none"]))


async def _tokens_per_s(url: str, clients: int, requests: int, tokens: int) -> float:
    left = iter(range(requests))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one() -> None:
            for number in left:
                body = {"prompt": f"{number} {random.random()}", "max_tokens": tokens, "ignore_eos": True}
                reply = await client.post("/v1/inference", json=body)
                reply.raise_for_status()

        start_s = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return requests * tokens / (time.perf_counter() - start_s)


async def _hit_rate(url: str, conversations: int, turns: int) -> float:
    """The share of prompt tokens that came from a prefix cache, over conversations that go on in turn."""
    cached = total = 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        source = random.Random(3)
        histories = [
            [{"role": "user", "content": f"{number} " + "".join(source.choices("abcdefgh ", k=300))}]
            for number in range(conversations)
        ]

        async def turn(history: list[dict[str, str]]) -> None:
            nonlocal cached, total
            body = {"messages": history, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            reply = (await client.post("/v1/chat", json=body)).json()
            usage = reply["usage"]
            cached += usage.get("cached_prompt_tokens", 0)
            total += usage["prompt_tokens"]
            history.append({"role": "assistant", "content": reply["text"]})
            history.append({"role": "user", "content": "".join(source.choices("abcdefgh ", k=40))})

        for _ in range(turns):
            source.shuffle(histories)
            await asyncio.gather(*(turn(history) for history in histories))
    return cached / total


async def _lost_requests(url: str, victim: Server, seconds: float) -> tuple[int, int]:
    """Requests answered, and lost, while a replica is killed in the middle."""
    answered = lost = 0
    until_s = time.monotonic() + seconds

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal answered, lost
        while time.monotonic() < until_s:
            reply = await client.post("/v1/inference", json={"prompt": str(random.random()), "max_tokens": 5})
            if reply.status_code == 200:
                answered += 1
            else:
                lost += 1

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        tasks = [asyncio.create_task(one(client)) for _ in range(24)]
        await asyncio.sleep(seconds / 2)
        os.kill(victim.process.pid, signal.SIGKILL)
        await asyncio.gather(*tasks)
    return answered, lost


def balance(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Two replicas over one, hits of the prefix cache, and a death."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        servers = [_replica(stack) for _ in range(2)]
        single = stack.enter_context(_balanced(servers[:1]))
        double = stack.enter_context(_balanced(servers))
        ratios = []
        for _ in range(arguments.rounds):
            one = asyncio.run(_tokens_per_s(single, 32, 96, 20))
            two = asyncio.run(_tokens_per_s(double, 32, 96, 20))
            ratios.append(two / one)
            print(f"one {one:.0f} tokens/s, two {two:.0f}", flush=True)
        rows.append({"name": "two replicas over one", "ratio": round(statistics.median(ratios), 2)})
    with contextlib.ExitStack() as stack:
        servers = [_replica(stack, step_s=0.002, running=16) for _ in range(3)]
        single = stack.enter_context(_balanced(servers[:1]))
        alone = asyncio.run(_hit_rate(single, 12, 8))
        double = stack.enter_context(_balanced(servers[1:]))
        spread = asyncio.run(_hit_rate(double, 12, 8))
        rows.append(
            {
                "name": "prefix cache hits, conversations",
                "one_replica": round(alone, 3),
                "two_replicas": round(spread, 3),
                "ratio": round(spread / alone, 3),
            }
        )
        print(rows[-1], flush=True)
    with contextlib.ExitStack() as stack:
        servers = [_replica(stack, step_s=0.005) for _ in range(3)]
        url = stack.enter_context(_balanced(servers))
        answered, lost = asyncio.run(_lost_requests(url, servers[1], 6.0))
        rows.append({"name": "one of three killed under load", "answered": answered, "lost": lost})
        print(rows[-1], flush=True)
    return rows
