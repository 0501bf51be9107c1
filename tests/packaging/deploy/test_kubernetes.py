"""deploy/kubernetes: rendered by kubectl, held to Kubernetes' schemas and to the application; needs no cluster."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from app.application import create_app
from app.config.settings import ENV_PREFIX, Settings
from app.config.settings_sources import read_settings

VERSIONS = ("1.31", "1.34", "1.37")
# The fields that KServe 0.21 knows (the attribute maps of its SDK), as far as they are used or near to what is used.
KSERVE = {
    "ClusterServingRuntime": {"apiVersion", "kind", "metadata", "spec"},
    "ClusterServingRuntime.spec": {
        *("annotations", "containers", "disabled", "imagePullSecrets", "labels", "multiModel", "nodeSelector"),
        *("protocolVersions", "replicas", "supportedModelFormats", "tolerations", "volumes", "workerSpec"),
    },
    "ClusterServingRuntime.spec.supportedModelFormats[]": {"autoSelect", "name", "priority", "version"},
    "InferenceService": {"apiVersion", "kind", "metadata", "spec"},
    "InferenceService.spec": {"canary", "explainer", "predictor", "tracing", "transformer"},
    "InferenceService.spec.predictor": {
        *(
            "annotations",
            "canaryTrafficPercent",
            "containerConcurrency",
            "labels",
            "logger",
            "maxReplicas",
            "minReplicas",
        ),
        *("model", "nodeSelector", "scaleMetric", "scaleTarget", "serviceAccountName", "timeout", "tolerations"),
    },
    "InferenceService.spec.predictor.model": {
        *("args", "env", "modelFormat", "protocolVersion", "resources", "runtime", "runtimeVersion", "storage"),
        *("storageUri", "volumeMounts"),
    },
    "InferenceService.spec.predictor.model.modelFormat": {"name", "version"},
}


def render(folder):
    kubectl = Path(sys.executable).with_name("kubectl")
    answer = subprocess.run([kubectl, "kustomize", folder], check=False, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
    return {found["kind"]: found for found in yaml.safe_load_all(answer.stdout)}


@pytest.fixture(scope="module")
def rendered(root, tmp_path_factory):
    """The objects of each overlay by their kind, and of the overlay for the CPU with models from object storage."""
    folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(root / "deploy/kubernetes", folder)
    found = {name: render(folder / "overlays" / name) for name in ("cpu", "gpu")}
    overlay = folder / "overlays/cpu/kustomization.yaml"
    text = overlay.read_text()
    overlay.write_text(text.replace("# components:", "components:"))
    assert overlay.read_text() != text
    return found | {"storage": render(folder / "overlays/cpu"), "kserve": render(folder / "kserve")}


@pytest.fixture(params=["cpu", "gpu", "storage"])
def objects(rendered, request):
    return rendered[request.param]


def pod_of(objects):
    return objects["Deployment"]["spec"]["template"]["spec"]


def server_of(objects):
    (server,) = pod_of(objects)["containers"]
    return server


def settings_of(variables):
    """The settings that the server reads out of such variables."""
    flags = [
        f"--{name.removeprefix(ENV_PREFIX).lower().replace('_', '-')}={value}" for name, value in variables.items()
    ]
    return read_settings(flags)


@pytest.fixture(scope="module")
def paths():
    return set(create_app(Settings(model_dir=Path("models"))).openapi()["paths"])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema_and_has_nothing_more(objects, version):
    for found in objects.values():
        kubernetes_validate.validate(found, version, strict=True)


def test_the_validation_would_refuse_a_field_that_is_unknown(rendered):
    bad = copy.deepcopy(rendered["cpu"]["Deployment"])
    bad["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(bad, VERSIONS[-1], strict=True)


def test_what_is_there(rendered):
    common = {"ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"}
    assert set(rendered["cpu"]) == common | {"HorizontalPodAutoscaler", "PersistentVolumeClaim"}
    assert set(rendered["gpu"]) == common | {"PersistentVolumeClaim"}
    assert set(rendered["storage"]) == common | {"HorizontalPodAutoscaler"}


def test_settings_are_settings_of_the_server(objects):
    data = objects["ConfigMap"]["data"]
    assert set(data) <= {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    settings = settings_of(data)
    assert settings.model_control == "watch"
    grace = pod_of(objects)["terminationGracePeriodSeconds"]
    assert settings.shutdown_delay_s > 0
    assert grace > settings.shutdown_delay_s + settings.shutdown_timeout_s
    assert server_of(objects)["envFrom"] == [{"configMapRef": {"name": objects["ConfigMap"]["metadata"]["name"]}}]


@pytest.mark.parametrize(("overlay", "device"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_each_overlay_has_its_image_and_device(rendered, overlay, device):
    objects = rendered[overlay]
    assert server_of(objects)["image"] == f"panther-sketch:{overlay}"
    assert settings_of(objects["ConfigMap"]["data"]).device == device
    gpus = server_of(objects)["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == ("1" if device == "cuda" else None)


def test_probes_ask_for_paths_that_the_server_has_on_its_port(objects, paths, root):
    server = server_of(objects)
    probes = {name: server[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    asked = {name: probe["path"] for name, probe in probes.items()}
    assert asked == {"startup": "/health/live", "readiness": "/health/ready", "liveness": "/health/live"}
    assert set(asked.values()) <= paths
    port, grpc = server["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    dockerfile = (root / "Dockerfile").read_text()
    assert f"PANTHER_PORT={port['containerPort']} " in dockerfile
    assert f"PANTHER_GRPC_PORT={grpc['containerPort']}\n" in dockerfile
    assert [each["targetPort"] for each in objects["Service"]["spec"]["ports"]] == [port["name"], grpc["name"]]
    annotations = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    assert annotations["prometheus.io/path"] in paths


def test_the_pod_has_no_privilege_and_the_user_of_the_image(objects, root):
    pod = pod_of(objects)
    user = re.search(r"^USER (\d+):(\d+)$", (root / "Dockerfile").read_text(), re.MULTILINE)
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert context["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}


def test_no_variable_of_the_cluster_can_be_taken_for_a_setting(objects):
    # A Service named panther would set PANTHER_PORT=tcp://… in every pod beside it.
    assert objects["Service"]["metadata"]["name"] == "panther"
    assert pod_of(objects)["enableServiceLinks"] is False


def test_models_lie_where_the_image_looks_for_them_and_are_only_read(objects, root):
    (mount,) = [mount for mount in server_of(objects)["volumeMounts"] if mount["name"] == "models"]
    assert mount["readOnly"] is True
    assert f"PANTHER_MODEL_DIR={mount['mountPath']}" in (root / "Dockerfile").read_text()


def test_models_come_from_the_claim_or_are_copied_from_object_storage(rendered):
    (volume,) = [item for item in pod_of(rendered["cpu"])["volumes"] if item["name"] == "models"]
    claim = rendered["cpu"]["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume == {"name": "models", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    pod = pod_of(rendered["storage"])
    (volume,) = [item for item in pod["volumes"] if item["name"] == "models"]
    assert volume == {"name": "models", "emptyDir": {"sizeLimit": "10Gi"}}
    (copy_in,) = pod["initContainers"]
    assert {"name": "models", "mountPath": "/models"} in copy_in["volumeMounts"]
    assert rendered["cpu"]["NetworkPolicy"]["spec"].get("egress", []) == []
    ports = {port["port"] for rule in rendered["storage"]["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53, 443}


def test_selectors_find_the_pods(objects):
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        objects["Service"]["spec"]["selector"],
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()


def test_the_autoscaler_has_the_word_on_replicas(rendered):
    deployment, scaler = rendered["cpu"]["Deployment"], rendered["cpu"]["HorizontalPodAutoscaler"]["spec"]
    assert "replicas" not in deployment["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert 1 < scaler["minReplicas"] < scaler["maxReplicas"]
    assert rendered["gpu"]["Deployment"]["spec"]["replicas"] == 1


def unknown_fields(found, path):
    """Paths of fields that KServe does not know, as far as KSERVE tells."""
    if isinstance(found, list):
        return [name for item in found for name in unknown_fields(item, f"{path}[]")]
    if path not in KSERVE:
        return []
    wrong = [f"{path}.{name}" for name in found if name not in KSERVE[path]]
    return wrong + [name for key in found for name in unknown_fields(found[key], f"{path}.{key}")]


def test_kserve_knows_every_field(rendered):
    for kind, found in rendered["kserve"].items():
        assert unknown_fields(found, kind) == []
    assert unknown_fields({"spec": {"predictor": {"model": {"modelFromat": 1}}}}, "InferenceService") == [
        "InferenceService.spec.predictor.model.modelFromat"
    ]


def test_the_runtime_of_kserve_is_the_server(rendered, paths):
    spec = rendered["kserve"]["ClusterServingRuntime"]["spec"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"},
        "spec": {
            "containers": copy.deepcopy(spec["containers"]),
            "volumes": [*spec["volumes"], {"name": "models", "emptyDir": {}}],
        },
    }
    kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
    (server,) = spec["containers"]
    variables = {item["name"]: item["value"] for item in server["env"]}
    assert set(variables) <= {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    settings = settings_of(variables)
    assert str(settings.model_dir) == "/mnt/models"
    (port,) = server["ports"]
    assert settings.port == port["containerPort"]
    for probe in (server["readinessProbe"], server["livenessProbe"]):
        assert probe["httpGet"]["path"] in paths
        assert probe["httpGet"]["port"] == settings.port
    assert spec["annotations"] == {
        "prometheus.kserve.io/port": str(settings.port),
        "prometheus.kserve.io/path": "/metrics",
    }
    assert {"name": "tmp", "mountPath": "/tmp"} in server["volumeMounts"]


def test_the_service_of_kserve_asks_for_that_runtime_and_a_model_that_it_has(rendered, root):
    runtime, service = rendered["kserve"]["ClusterServingRuntime"], rendered["kserve"]["InferenceService"]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["modelFormat"]["name"] in {item["name"] for item in runtime["spec"]["supportedModelFormats"]}
    # KServe's clients ask for /v2/models/NAME by the name of the service.
    assert (root / "models" / service["metadata"]["name"] / "1" / "model.onnx").is_file()
