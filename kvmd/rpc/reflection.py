"""What tools like grpcurl ask first: which services there are, and what their messages look like."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

_SERVICE = "/grpc.reflection.v1alpha.ServerReflection/"


class Reflection(grpc.GenericRpcHandler):
    """The reflection service. It is made when somebody first asks for it, which few ever do.

    :param services: whose names are told, beside its own.
    """

    def __init__(self, *services: str) -> None:
        self._services = services

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See :class:`grpc.GenericRpcHandler`."""
        if not handler_call_details.method.startswith(_SERVICE):
            return None
        found: grpc.RpcMethodHandler[Any, Any] | None = self._handler.service(handler_call_details)
        return found

    @cached_property
    def _handler(self) -> Any:
        names = (*self._services, reflection.SERVICE_NAME)
        method = grpc.stream_stream_rpc_method_handler(
            reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})
