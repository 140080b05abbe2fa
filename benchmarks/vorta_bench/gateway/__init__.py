"""The gateway against what else turns HTTP into RPCs, in turn, on the same cores.

    python -m vorta_bench.gateway codec   --out results/gateway_codec.json
    python -m vorta_bench.gateway rest    --peer-python PEERS/bin/python --out results/gateway_rest.json
    python -m vorta_bench.gateway client  --out results/gateway_client.json
    python -m vorta_bench.gateway streams --out results/gateway_streams.json
    python -m vorta_bench.gateway balance --out results/gateway_balance.json

codec    JSON to and from messages, over `google.protobuf.json_format`.
rest     requests a second and CPU time a request of `POST /v1/inference` before a gRPC server that answers at once:
         `vorta gateway`, Envoy, connectrpc, FastAPI over grpc.aio; and of the gateway in one process with what answers.
client   CPU time of a unary call before the same server: the gateway's own client and grpc.aio, 32 calls at a time.
streams  32 streams of the fake runner over gRPC, gRPC-Web and server-sent events: tokens a second, CPU time of the
         server.
balance  one replica and two behind the balancer, on simulated devices; the prefix cache's hits of conversations; a
         replica of three that dies under load.
"""
