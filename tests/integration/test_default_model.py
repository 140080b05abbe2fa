"""The default server: vorta-mini compiled on first use, the same tokens on every path; checkpoints that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import vorta_server
from tests.integration.served import error_of, serving
from vorta.errors import FailedPrecondition
from vorta.v1 import admin_pb2, common_pb2, inference_pb2
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.generation import build_generation

MINI = Path(vorta_server.__file__).parent / "models" / "vorta-mini"


def test_default_model_serves_text_chat_and_batches(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        model = server.model()
        assert (model.model, model.is_default, model.precision) == ("vorta-mini", True, "int8")
        assert 3_000_000 < model.parameter_count < 12_000_000
        request = inference_pb2.GenerateRequest(prompt="What is machine learning?", max_tokens=60, temperature=0)
        reply = server.inference.Generate(request, timeout=60)
        assert reply.text.strip()
        assert reply.tokens_per_second > 0
        stream = server.inference.StreamGenerate(
            inference_pb2.StreamGenerateRequest.FromString(request.SerializeToString()), timeout=60
        )
        events = list(stream)
        assert "".join(event.delta.text for event in events) == reply.text
        assert events[-1].finished.finish_reason == reply.finish_reason
        chat = server.inference.Chat(
            inference_pb2.ChatRequest(
                messages=[common_pb2.ChatMessage(role="user", content="What is 12 + 30?")], temperature=0
            ),
            timeout=60,
        )
        assert chat.message.role == "assistant"
        assert chat.finish_reason == common_pb2.FINISH_REASON_STOP
        tokens = server.inference.Tokenize(inference_pb2.TokenizeRequest(text="hello 42"), timeout=10)
        back = server.inference.Detokenize(inference_pb2.DetokenizeRequest(token_ids=tokens.token_ids), timeout=10)
        assert back.text == "hello 42"


def test_a_torn_checkpoint_fails_with_its_name_and_the_others_serve(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(MINI, broken)
    config = json.loads((broken / "config.json").read_text())
    config["intermediate_size"] += 32
    (broken / "config.json").write_text(json.dumps(config))
    with serving(tmp_path) as server:
        load = admin_pb2.LoadModelRequest(model="broken", source=str(broken))
        error = error_of(server.admin.LoadModel, load)
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "CHECKPOINT_INVALID" or "mlp" in error.message
        states = {m.model: m.state for m in server.admin.ListModels(admin_pb2.ListModelsRequest(), timeout=10).models}
        assert states["vorta-mini"] == admin_pb2.MODEL_STATE_SERVING
        assert server.inference.Generate(inference_pb2.GenerateRequest(prompt="Hi", max_tokens=3), timeout=30).text


def test_a_generation_model_is_built_from_a_checkpoint(tmp_path: Path) -> None:
    config = WorkerConfig(
        model="m", source=str(MINI), socket_path="", precision="int4", cache_dir=str(tmp_path), max_model_len=512
    )
    model = build_generation(config)
    assert (model.card.precision, model.card.max_model_len, model.card.has_chat_template) == ("int4", 512, True)
    assert model.card.architecture == "LlamaForCausalLM"
