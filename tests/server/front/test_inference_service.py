"""Generate, Chat and their streams over a real gRPC connection."""

from __future__ import annotations

from vorta.v1 import common_pb2, inference_pb2


async def test_generate_replies_with_text_usage_and_timings(stack):
    reply = await stack.inference.Generate(inference_pb2.GenerateRequest(prompt="hello", max_tokens=3))
    assert reply.text == "w0 w1 w2 "
    assert list(reply.token_ids) == [0, 1, 2]
    assert reply.model == "scripted"
    assert reply.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (3, 3, 6)
    assert reply.tokens_per_second == reply.timings.tokens_per_second > 0
    assert reply.request_id


async def test_stream_starts_counts_up_and_ends_once(stack):
    events = [
        event
        async for event in stack.inference.StreamGenerate(
            inference_pb2.StreamGenerateRequest(prompt="hello", max_tokens=20)
        )
    ]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert events[0].started.model == "scripted"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    indexes = [event.index for event in events]
    assert indexes == sorted(set(indexes))
    assert indexes[0] == 0
    assert indexes[-1] == 21
    assert "".join(event.delta.text for event in events) == "".join(f"w{i} " for i in range(20))
    assert events[-1].finished.usage.completion_tokens == 20
