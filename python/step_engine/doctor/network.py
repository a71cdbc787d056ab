"""Subnets, security groups, and the way from the tasks to the registry."""

from __future__ import annotations

from typing import Any

from step_engine.doctor.account import Account, RefusedError
from step_engine.doctor.target import Finding, Target

HTTPS = 443


def look(account: Account, target: Target) -> list[Finding]:
    """Looks at the network of the tasks.

    Args:
        account: The session.
        target: The stack.

    Returns:
        Findings.
    """
    try:
        subnets = account.call("ec2", "describe_subnets", SubnetIds=list(target.subnet_ids))["Subnets"]
    except RefusedError as error:
        if error.denied:
            return [Finding("unknown", f"The network cannot be seen: {error}")]
        return [
            Finding("missing", f"The subnets are not there: {error}", "aws ec2 describe-subnets lists those there are.")
        ]
    vpcs = {subnet["VpcId"] for subnet in subnets}
    if len(vpcs) > 1:
        return [Finding("missing", f"The subnets are in different VPCs ({', '.join(sorted(vpcs))}); use those of one.")]
    vpc = vpcs.pop()
    findings = [finding for subnet in subnets for finding in _route(account, target, subnet["SubnetId"], vpc)]
    return [*findings, *_groups(account, target, vpc)]


def _route(account: Account, target: Target, subnet: str, vpc: str) -> list[Finding]:
    routes = _routes(account, subnet, vpc)
    default = next((route for route in routes if route.get("DestinationCidrBlock") == "0.0.0.0/0"), None)
    if default is not None and default.get("State", "active") != "active":
        return [Finding("missing", f"The default route of the subnet {subnet} is a black hole: its gateway is gone.")]
    if default is not None and str(default.get("GatewayId", "")).startswith("igw-"):
        if target.assign_public_ip:
            return [Finding("ok", f"The subnet {subnet} is public, and tasks have a public address.")]
        return [
            Finding(
                "missing",
                f"The subnet {subnet} is public and tasks get no public address, so they cannot reach the registry.",
                "zenml orchestrator update … --assign_public_ip=true, or use private subnets with a NAT gateway.",
            )
        ]
    if default is not None:
        return [Finding("ok", f"The subnet {subnet} has a way out.")]
    return _endpoints(account, target, subnet, vpc)


def _routes(account: Account, subnet: str, vpc: str) -> list[dict[str, Any]]:
    tables = account.call(
        "ec2", "describe_route_tables", Filters=[{"Name": "association.subnet-id", "Values": [subnet]}]
    )["RouteTables"]
    if not tables:
        # Without one of its own, a subnet uses the VPC's main table.
        filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "association.main", "Values": ["true"]}]
        tables = account.call("ec2", "describe_route_tables", Filters=filters)["RouteTables"]
    return [route for table in tables for route in table["Routes"]]


def _endpoints(account: Account, target: Target, subnet: str, vpc: str) -> list[Finding]:
    """Without a way out, tasks reach AWS through endpoints of the VPC."""
    found = account.call("ec2", "describe_vpc_endpoints", Filters=[{"Name": "vpc-id", "Values": [vpc]}])["VpcEndpoints"]
    have = {endpoint["ServiceName"].rsplit(f"{target.region}.", 1)[-1] for endpoint in found}
    need = {"ecr.api", "ecr.dkr", "s3", "logs"}
    need |= {"secretsmanager": {"secretsmanager"}, "ssm": {"ssm"}}.get(target.secrets_backend, set())
    missing = sorted(need - have)
    if not missing:
        return [
            Finding(
                "ok", f"The subnet {subnet} has no way out, but endpoints for AWS; the ZenML server must be in the VPC."
            )
        ]
    names = ", ".join(missing)
    return [
        Finding(
            "missing",
            f"The subnet {subnet} has no route to the registry: no default route, and no VPC endpoints for {names}.",
            f"aws ec2 create-route --route-table-id … --destination-cidr-block 0.0.0.0/0 --nat-gateway-id …, or "
            f"aws ec2 create-vpc-endpoint --vpc-id {vpc} … for each of them.",
        )
    ]


def _groups(account: Account, target: Target, vpc: str) -> list[Finding]:
    if not target.security_group_ids:
        return [Finding("ok", "Tasks use the VPC's default security group.")]
    try:
        groups = account.call("ec2", "describe_security_groups", GroupIds=list(target.security_group_ids))
    except RefusedError as error:
        return [Finding("unknown" if error.denied else "missing", f"The security groups are not there: {error}")]
    findings = []
    for group in groups["SecurityGroups"]:
        name = group["GroupId"]
        if group["VpcId"] != vpc:
            findings.append(
                Finding(
                    "missing",
                    f"The security group {name} is in {group['VpcId']}, the subnets in {vpc}; use one of {vpc}.",
                )
            )
    if not any(_lets_out(rule) for group in groups["SecurityGroups"] for rule in group["IpPermissionsEgress"]):
        name = target.security_group_ids[0]
        findings.append(
            Finding(
                "missing",
                "The security groups let no HTTPS out, so tasks can reach neither the registry nor the ZenML server.",
                f"aws ec2 authorize-security-group-egress --group-id {name} --protocol tcp --port {HTTPS} "
                "--cidr 0.0.0.0/0",
            )
        )
    return findings or [Finding("ok", "The security groups let tasks out.")]


def _lets_out(rule: dict[str, Any]) -> bool:
    if rule["IpProtocol"] == "-1":
        return True
    return rule["IpProtocol"] in ("tcp", "6") and rule.get("FromPort", 0) <= HTTPS <= rule.get("ToPort", 65535)
