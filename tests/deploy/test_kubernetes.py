"""The manifests: valid by Kubernetes' own schemas, and in agreement with bridge and each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bridge.config.toml import parse
from bridge.http.app import create_app
from bridge.server.stopping import drain_at_most
from bridge.telemetry.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
DOCKERFILE = (FOLDER.parents[1] / "Dockerfile").read_text()
FILES = sorted(path.name for path in FOLDER.glob("*.yaml") if path.stem != "kustomization")
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
SETTINGS = parse((FOLDER / "config.toml").read_text(), "config.toml")


def manifest(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


POD = manifest("deployment.yaml")["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_the_schemas_take_it(name: str, version: str) -> None:
    kubernetes_validate.validate(manifest(name), version, strict=True)


def test_a_typing_mistake_would_be_found() -> None:
    wrong = manifest("deployment.yaml")
    wrong["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_kustomize_is_told_of_every_file() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == FILES
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert generated["files"] == ["config.toml"]
    (volume,) = [v for v in POD["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == generated["name"]
    (image,) = KUSTOMIZATION["images"]
    assert image["name"] == CONTAINER["image"]


def test_there_is_time_for_the_whole_of_a_stop() -> None:
    """preStop counts towards the grace period; after that, Kubernetes kills."""
    program, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    needed = float(pause) + drain_at_most(SETTINGS)
    assert needed <= POD["terminationGracePeriodSeconds"] <= needed + 60


def test_nobody_is_told_to_go_before_the_proxies_know() -> None:
    probe = CONTAINER["readinessProbe"]
    noticed = probe["periodSeconds"] * probe["failureThreshold"]
    assert float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1]) > noticed


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")],
)
def test_probes_ask_for_routes_that_exist(probe: str, path: str) -> None:
    asked = CONTAINER[probe]["httpGet"]
    assert asked["path"] == path
    assert path in {rule.rule for rule in create_app().url_map.iter_rules()}
    (port,) = [port for port in CONTAINER["ports"] if port["name"] == asked["port"]]
    assert SETTINGS.server.bind == f"0.0.0.0:{port['containerPort']}"


def test_the_autoscaler_counts_what_bridge_counts() -> None:
    (metric,) = manifest("autoscaler.yaml")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"\n{name} ".encode() in Metrics().expose(None)[0]
    target = int(metric["pods"]["target"]["averageValue"])
    assert 0 < target < SETTINGS.server.max_calls * SETTINGS.server.workers


def test_selectors_select_the_pods() -> None:
    labels = manifest("deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        manifest("deployment.yaml")["spec"]["selector"]["matchLabels"],
        manifest("disruption.yaml")["spec"]["selector"]["matchLabels"],
        manifest("service.yaml")["spec"]["selector"],
    ):
        assert selector.items() <= labels.items()
    scaled = manifest("autoscaler.yaml")["spec"]["scaleTargetRef"]
    assert scaled["name"] == manifest("deployment.yaml")["metadata"]["name"]


def test_the_pod_may_do_nothing_it_need_not() -> None:
    assert POD["securityContext"]["runAsNonRoot"]
    assert f"\nUSER {POD['securityContext']['runAsUser']}\n" in DOCKERFILE
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"]["drop"] == ["ALL"]
    # Where bridge writes: what waits for the database, and what workers share.
    assert {mount["mountPath"] for mount in CONTAINER["volumeMounts"]} >= {"/data", "/tmp"}
    assert "\nWORKDIR /data\n" in DOCKERFILE


def test_secrets_come_by_reference_and_records_are_shared() -> None:
    assert CONTAINER["envFrom"] == [{"secretRef": {"name": "bridge"}}]
    assert {variable["name"] for variable in CONTAINER["env"]} == {"BRIDGE_CONFIG"}
    assert SETTINGS.records.url.startswith("postgresql://")
    assert SETTINGS.twilio.validate_signatures
