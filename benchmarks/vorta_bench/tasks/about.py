# ruff: noqa: E501 - a table of texts, one row a line, is read best unwrapped
"""Questions about Vorta itself, answered from the README.

Each fact carries a `key`, a phrase that stands literally in README.md; a test can hold the two together. The last question of
each fact is kept out of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from vorta_bench.tasks.case import Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact: the README phrase, the questions that ask for it (the last is held out), and the answer in a sentence."""

    key: str
    questions: tuple[str, ...]
    answer: str


def _fact(key: str, questions: str, answer: str) -> Fact:
    return Fact(key=key, questions=tuple(question.strip() for question in questions.split("|")), answer=answer)


FACTS: tuple[Fact, ...] = (
    _fact("serves language models", "What is Vorta?|What does Vorta do?|Tell me about Vorta.|Explain Vorta.|Describe Vorta.",
          "Vorta serves language models: one server answers one typed contract over gRPC, REST and the OpenAI API."),
    _fact("vorta-mini", "Who are you?|What are you?|Which model are you?|What is your name?|What model is this?",
          "I am vorta-mini, the small model that comes with Vorta."),
    _fact("trained from scratch", "How was vorta-mini trained?|Who trained vorta-mini?|Where does vorta-mini come from?|How were you trained?",
          "vorta-mini was trained from scratch on generated data by the Vorta project."),
    _fact("make run", "How do I start Vorta?|How do I run Vorta?|How can I start the server?|Which command starts Vorta?|How do I launch Vorta?",
          "Run make run. It serves a real model over gRPC."),
    _fact("make test", "How do I test Vorta?|How do I run the tests?|Which command runs the tests?|How can I run Vorta's tests?",
          "Run make test."),
    _fact("make setup", "How do I install Vorta?|How do I set up Vorta?|Which command sets up Vorta?|How can I set up the project?",
          "Run make setup. It puts everything into .venv."),
    _fact("make bench", "How do I run the benchmarks?|How do I benchmark Vorta?|Which command runs the benchmarks?|How can I measure Vorta's speed?",
          "Run make bench."),
    _fact("Apache-2.0", "What is Vorta's licence?|Under which licence is Vorta?|Which license does Vorta use?|How is Vorta licensed?",
          "Vorta is licensed under Apache-2.0."),
    _fact("50051", "Which port does gRPC use?|What is the default gRPC port?|On which port does Vorta listen for gRPC?|What is Vorta's gRPC port?",
          "gRPC listens on port 50051 by default."),
    _fact("8000", "Which port does HTTP use?|What is the default HTTP port?|On which port is the REST API?|What is Vorta's HTTP port?",
          "HTTP listens on port 8000 by default."),
    _fact("vorta serve", "How do I serve a model?|Which command serves a model?|How do I start the server from the command line?|What does vorta serve do?",
          "Use vorta serve; it starts the server with the models that you name."),
    _fact("vorta compile", "How do I compile a model?|What does vorta compile do?|Which command compiles a model?|How can I compile a checkpoint?",
          "Use vorta compile. It turns a Hugging Face checkpoint into a quantised ONNX artifact."),
    _fact("vorta pull", "How do I download a model?|What does vorta pull do?|Which command downloads a model?|How can I fetch a model from the hub?",
          "Use vorta pull; it downloads a checkpoint from the hub."),
    _fact("vorta generate", "How do I generate text from the command line?|What does vorta generate do?|Which command generates text?|How can I generate text in the terminal?",
          "Use vorta generate. It prints the tokens as they come."),
    _fact("vorta chat", "How do I chat in the terminal?|What does vorta chat do?|Which command starts a chat?|How can I chat from the command line?",
          "Use vorta chat; it opens a chat with the model in the terminal."),
    _fact("vorta models", "How do I list the models?|What does vorta models do?|Which command lists models?|How can I see the models?",
          "Use vorta models; it lists the models of the server."),
    _fact("--json", "How do I get JSON from the command line?|Which flag prints JSON?|Can the CLI print JSON?|How can I make the CLI print JSON?",
          "Give the flag --json."),
    _fact("--server HOST:PORT", "How do I choose the server in the CLI?|Which flag names the server?|How do I connect the CLI to another server?|How can I point the CLI to a server?",
          "Give the flag --server HOST:PORT."),
    _fact("--data-dir", "How do I set the data folder?|Which flag sets the data folder?|Where does Vorta keep its data?|How can I change the data folder?",
          "Set the data folder with --data-dir."),
    _fact("--grpc-port", "How do I change the gRPC port?|Which flag sets the gRPC port?|Can I use another gRPC port?|How can I set the gRPC port?",
          "Set it with --grpc-port."),
    _fact("--http-port", "How do I change the HTTP port?|Which flag sets the HTTP port?|Can I use another HTTP port?|How can I set the HTTP port?",
          "Set it with --http-port."),
    _fact("STOP, LENGTH, CANCELLED, DEADLINE, DRAINING, ERROR", "Which finish reasons are there?|What are the finish reasons?|List the finish reasons.|How can a request end?|Name the finish reasons.",
          "The finish reasons are STOP, LENGTH, CANCELLED, DEADLINE, DRAINING and ERROR."),
    _fact("exactly one `finished` event", "How does a stream end?|What is the last event of a stream?|What ends a stream?|How do streams end?",
          "Every stream ends with exactly one finished event."),
    _fact("started, delta, finished", "Which events does a stream have?|What are the events of a stream?|What does a stream send?|Name the stream events.",
          "A stream sends started, delta and finished events."),
    _fact("Llama 2/3, Mistral, Qwen2/2.5 and Qwen3", "Which model families does the compiler read?|Which models can Vorta serve?|What architectures are supported?|Which models does Vorta support?",
          "Vorta reads Llama 2 and 3, Mistral, Qwen2, Qwen2.5 and Qwen3."),
    _fact("fp32, int8 and int4", "Which precisions are there?|What precisions does Vorta support?|Which quantisations are supported?|Name the precisions for the CPU.",
          "On the CPU the precisions are fp32, int8 and int4."),
    _fact("blocks of 32", "How is int4 quantised?|What is the block size of int4?|How large are the quantisation blocks?|Which block size does the quantisation use?",
          "int4 weights are quantised symmetrically in blocks of 32."),
    _fact("safetensors", "Which file format do checkpoints have?|In which format are weights read?|Which weight format does Vorta read?|What files does the compiler read?",
          "The compiler reads Hugging Face checkpoints: config.json, safetensors and tokenizer.json."),
    _fact("ONNX Runtime", "What runs the model on a CPU?|Which runtime does Vorta use on the CPU?|What executes models on the CPU?|Which engine runs on the CPU?",
          "On a CPU, models run on ONNX Runtime."),
    _fact("without torch", "Does Vorta need torch?|Is PyTorch required?|Do I need PyTorch?|Does serving need PyTorch?",
          "No. Compiling and serving on a CPU work without torch."),
    _fact("InferenceService", "Which service generates text?|What is InferenceService?|Which gRPC service does inference?|What does InferenceService do?",
          "InferenceService generates text, streams it and chats."),
    _fact("AdminService", "Which service manages models?|What is AdminService?|How do I load or unload a model?|What does AdminService do?",
          "AdminService lists, loads and unloads models and tells about the server."),
    _fact("EmbeddingService", "Which service makes embeddings?|What is EmbeddingService?|How do I get embeddings?|What does EmbeddingService do?",
          "EmbeddingService makes embeddings."),
    _fact("VectorService", "Which service searches vectors?|What is VectorService?|How do I search vectors?|What does VectorService do?",
          "VectorService keeps collections of vectors and searches them."),
    _fact("StreamGenerate", "Which RPC streams text?|How do I stream tokens?|What is StreamGenerate?|How can I stream text?",
          "StreamGenerate streams the text as it is made."),
    _fact("ResumeGenerate", "How do I resume a stream?|What is ResumeGenerate?|What if the connection breaks?|Can a broken stream be resumed?",
          "ResumeGenerate continues a stream from the next index after a broken connection."),
    _fact("CancelGenerate", "How do I cancel a request?|What is CancelGenerate?|Can I cancel a request?|How can a request be cancelled?",
          "Call CancelGenerate with the request id."),
    _fact("POST /v1/inference", "What is the REST path for inference?|Which path generates text over REST?|How do I generate text with curl?|Which URL generates text?",
          "Use POST /v1/inference with a prompt."),
    _fact("POST /v1/inference:stream", "What is the REST path for streaming?|Which path streams over REST?|How do I stream over HTTP?|Which URL streams text?",
          "Use POST /v1/inference:stream."),
    _fact("POST /v1/chat", "What is the REST path for chat?|Which path chats over REST?|How do I chat over HTTP?|Which URL is for chats?",
          "Use POST /v1/chat with messages."),
    _fact("/v1/chat/completions", "Is there an OpenAI API?|Is Vorta compatible with OpenAI?|Can I use the OpenAI SDK?|Does Vorta speak the OpenAI API?",
          "Yes. Vorta answers the OpenAI API at /v1/chat/completions."),
    _fact("grpc.health.v1", "How do I check the health?|Is there a health check?|Which health service does Vorta have?|How can I check that Vorta is healthy?",
          "Use the standard service grpc.health.v1; it follows the real state of the models."),
    _fact("reflection", "Does Vorta support reflection?|Can I use grpcurl?|How does grpcurl find the services?|Is server reflection on?",
          "Yes, reflection is on, so grpcurl works without proto files."),
    _fact("/metrics", "Where are the metrics?|How do I get Prometheus metrics?|Does Vorta have metrics?|Which path has the metrics?",
          "Prometheus metrics are at /metrics."),
    _fact("SIGTERM", "How does Vorta shut down?|What happens on SIGTERM?|How do I stop Vorta?|What does Vorta do on SIGTERM?",
          "On SIGTERM Vorta drains: it takes no new requests, finishes what runs, then stops."),
    _fact("continuous batching", "How does Vorta batch requests?|What kind of batching does Vorta use?|Does Vorta batch requests?|How are requests batched?",
          "Vorta uses continuous batching: requests join and leave the batch at every step."),
    _fact("chunked prefill", "How are long prompts handled?|What is chunked prefill in Vorta?|Do long prompts block others?|How does Vorta treat long prompts?",
          "Long prompts are read by chunked prefill, so that they do not stall running streams."),
    _fact("a process of its own", "Where does a model run?|Why does Vorta use processes?|Does each model have a process?|In which process does a model run?",
          "Each model runs in a worker, a process of its own, so that a crash does not stop the server."),
    _fact("Unix socket", "How do front and worker talk?|What connects the front and the workers?|Which protocol do workers use?|How are workers connected?",
          "The front and the workers talk over a Unix socket."),
    _fact("grpc.aio and uvloop", "What is the front built on?|Which gRPC library does Vorta use?|What does the front use?|What is the server built with?",
          "The front is built on grpc.aio and uvloop."),
    _fact("protos/vorta/v1", "Where are the protos?|Where is the contract?|Where do I find the proto files?|In which folder is the contract?",
          "The contract is in protos/vorta/v1."),
    _fact("SQLite and FAISS", "Where are vectors stored?|What stores the vectors?|Which vector index does Vorta use?|What is the default vector store?",
          "Vectors are kept in SQLite and FAISS by default."),
    _fact("Weaviate", "Can Vorta use Weaviate?|Which vector database can Vorta use?|What replaces the embedded vector store?|Is there an external vector store?",
          "Yes. Weaviate can take the place of the embedded vector store."),
    _fact("all-MiniLM-L6-v2", "What is the default embedding model?|Which embedding model does Vorta use?|Which model makes the embeddings?|Name the default embedding model.",
          "The default embedding model is all-MiniLM-L6-v2."),
    _fact("pip install vorta", "How do I install the SDK?|How do I get the Python SDK?|Which package is the SDK?|How can I install the Python client?",
          "Run pip install vorta."),
    _fact('Client("localhost:50051")', "How do I use the Python SDK?|How do I connect from Python?|How do I create a client?|How can I call Vorta from Python?",
          'Create Client("localhost:50051") and call generate.'),
    _fact("InferenceClient", "What is InferenceClient?|How do I use infer?|Which class has infer?|What does InferenceClient offer?",
          "InferenceClient takes an api_key and a base_url and offers infer and async_infer."),
    _fact("Python 3.11", "Which Python does Vorta need?|What Python version is required?|Does Vorta need Python 3.11?|Which Python version does Vorta require?",
          "Vorta needs Python 3.11 or newer."),
    _fact("ARCHITECTURE.md", "Where is the architecture described?|How does Vorta work inside?|Which file explains the architecture?|Where can I read about the design?",
          "ARCHITECTURE.md describes the life of a request and where to change what."),
    _fact("tokens_per_second", "How do I see the speed of a request?|Which field tells the speed?|Does the reply tell the speed?|Where is the speed of a reply?",
          "The reply has tokens_per_second at its top."),
    _fact("vorta-mini is the default", "What is the default model?|Which model is served by default?|Which model comes with Vorta?|What model does Vorta serve without configuration?",
          "vorta-mini is the default model; it comes in the package."),
)  # fmt: skip


def about(rng: Random) -> Draft:
    """A fact, asked in one of its wordings."""
    fact = rng.choice(FACTS)
    question = rng.choice(fact.questions)
    return Draft(key=question, question=question, answer=fact.answer)


def is_heldout_question(question: str) -> bool:
    """Whether this wording is kept out of training."""
    return question in _HELDOUT


_HELDOUT = frozenset(fact.questions[-1] for fact in FACTS)
