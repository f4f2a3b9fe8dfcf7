from __future__ import annotations

import asyncio

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows import plugin


@flow(name="bake")
def bake() -> None:
    pass


@flow(name="roast")
def roast() -> None:
    pass


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import PrefectClient

    monkeypatch.setattr(PrefectClient, "read_deployment_by_name", PrefectClient.read_deployment_by_name)
    plugin.setup_environment(ctx=None)


async def read(name: str) -> tuple[str, str]:
    async with get_client() as client:
        found = await client.read_deployment_by_name(name)
        return (await client.read_flow(found.flow_id)).name, found.name


async def deploy() -> None:
    """bake/bread, roast/nuts and two deployments called daily."""
    async with get_client() as client:
        for flow_, name in ((bake, "bread"), (bake, "daily"), (roast, "nuts"), (roast, "daily")):
            await client.create_deployment(await client.create_flow(flow_), name)


@pytest.mark.usefixtures("prefect_api", "widened")
def test_names() -> None:
    asyncio.run(deploy())
    assert asyncio.run(read("bread")) == ("bake", "bread")
    assert asyncio.run(read("nuts")) == ("roast", "nuts")
    assert asyncio.run(read("roast/daily")) == ("roast", "daily")
    with pytest.raises(ValueError, match="'daily': expected one, found bake/daily, roast/daily"):
        asyncio.run(read("daily"))
    with pytest.raises(ObjectNotFound):
        asyncio.run(read("nothing"))
