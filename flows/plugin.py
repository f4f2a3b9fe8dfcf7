"""Lets `prefect deployment run mae-pretrain` take the bare name, which Prefect itself refuses.

Prefect 3.8 wants <flow>/<deployment> and splits at the slash (client/orchestration/_deployments/client.py). It loads
this module through the `prefect.plugins` entry point of pyproject.toml, at `import prefect`, wherever plugins are
enabled: in this repository's root by `[tool.prefect.plugins]`, elsewhere by `PREFECT_PLUGINS_ENABLED=true`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.plugins import register_hook

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.plugins import HookContext


@register_hook
def setup_environment(*, ctx: HookContext) -> None:  # noqa: ARG001 (Prefect calls it by this name)
    """Widen `PrefectClient.read_deployment_by_name`, which the command line and `run_deployment` both ask."""
    from prefect.client.orchestration import PrefectClient

    by_full_name = PrefectClient.read_deployment_by_name

    async def read_deployment_by_name(self: PrefectClient, name: str) -> DeploymentResponse:
        return await by_full_name(self, name if "/" in name else await full_name(self, name))

    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[assignment, method-assign]


async def full_name(client: PrefectClient, name: str) -> str:
    """The <flow>/<deployment> name of the only deployment called `name`.

    A name that no deployment has becomes <name>/<name>, so that Prefect's own "not found" answers.

    Raises:
        ValueError: deployments of several flows have this name.
    """
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    named = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    found = await client.read_deployments(deployment_filter=named)
    candidates = sorted([f"{(await client.read_flow(one.flow_id)).name}/{name}" for one in found])
    if len(candidates) > 1:
        raise ValueError(f"deployment {name!r}: expected one, found {', '.join(candidates)}; give the full name")
    return candidates[0] if candidates else f"{name}/{name}"
