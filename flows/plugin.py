"""A Prefect plugin: `prefect deployment run mae-pretrain` works without the flow's name.

Prefect 3.8 itself accepts only <flow>/<deployment> (client/orchestration/_deployments/client.py). `import prefect`
loads this module through the `prefect.plugins` entry point of pyproject.toml if plugins are enabled. In this
repository's root `[tool.prefect.plugins]` enables them; elsewhere set PREFECT_PLUGINS_ENABLED=true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.plugins import register_hook

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.plugins import HookContext


@register_hook
def setup_environment(*, ctx: HookContext) -> None:  # noqa: ARG001 (Prefect passes it by this name)
    """Let `PrefectClient.read_deployment_by_name` accept bare names. `run_deployment` and the command line call it."""
    from prefect.client.orchestration import PrefectClient

    by_full_name = PrefectClient.read_deployment_by_name

    async def read_deployment_by_name(self: PrefectClient, name: str) -> DeploymentResponse:
        return await by_full_name(self, name if "/" in name else await full_name(self, name))

    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[assignment, method-assign]


async def full_name(client: PrefectClient, name: str) -> str:
    """Return <flow>/<deployment> for the only deployment called `name`.

    If there is none, return <name>/<name>: Prefect then reports that it is not found.

    Raises:
        ValueError: several flows have a deployment of this name.
    """
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    named = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    found = await client.read_deployments(deployment_filter=named)
    candidates = sorted([f"{(await client.read_flow(one.flow_id)).name}/{name}" for one in found])
    if len(candidates) > 1:
        raise ValueError(f"deployment {name!r}: expected one, found {', '.join(candidates)}; give the full name")
    return candidates[0] if candidates else f"{name}/{name}"
