"""The load test: a user asks for 100 tokens over REST and gets more than 150 tokens a second.

`make performance-test` serves the default model and runs it; against another server:

    locust -f benchmarks/locustfile.py --headless --users 4 --run-time 20s --host http://HOST:PORT
"""

from __future__ import annotations

from typing import Any

from locust import HttpUser, constant, task


class InferenceUser(HttpUser):
    """Asks again as soon as it has its answer."""

    wait_time = constant(0)

    @task
    def generate(self) -> None:
        """One request."""
        body = {"prompt": "What is machine learning?", "max_tokens": 100}
        with self.client.post("/v1/inference", json=body, catch_response=True) as response:
            reply: Any = response
            if reply.status_code != 200:
                reply.failure(f"status {reply.status_code}: {reply.text[:200]}")
            elif not response.json()["tokens_per_second"] > 150:
                reply.failure(f"{response.json()['tokens_per_second']:.0f} tokens/s")
            elif reply.elapsed.total_seconds() >= 1:
                reply.failure(f"{reply.elapsed.total_seconds():.2f} s")
