"""The standard health service, which asks for a key where the settings say so."""

from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from service.admission.api_keys import ApiKeys
from service.errors import Unauthorized
from service.settings import Settings

Context = Any  # grpc.aio.ServicerContext, which has no types


class HealthWithKey(health.aio.HealthServicer):
    """Health for those with an accepted key."""

    def __init__(self, api_keys: ApiKeys) -> None:
        super().__init__()
        self._api_keys = api_keys

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Tell the health of a service."""
        await self._check_key(context)
        return await super().Check(request, context)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:
        """Tell it whenever it changes."""
        await self._check_key(context)
        await super().Watch(request, context)

    async def _check_key(self, context: Context) -> None:
        metadata = {str(name): str(value) for name, value in context.invocation_metadata() or ()}
        try:
            self._api_keys.check(metadata.get("authorization"))
        except Unauthorized as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message, (("diptych-code", error.code),))


def make_health(api_keys: ApiKeys, settings: Settings) -> health.aio.HealthServicer:
    """Return the health service that the settings ask for."""
    return HealthWithKey(api_keys) if settings.health_needs_key else health.aio.HealthServicer()
