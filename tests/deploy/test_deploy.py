"""Compose files, manifests, images, Makefile and constraints agree with each other and with the commands they start."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from laser_recsys.example_model import EXAMPLE_MODEL_NAME, EXAMPLE_MODEL_WHEEL
from laser_retriever import cli as retriever_cli
from laser_verifier import cli as verifier_cli

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
PORTS = {"retriever": 50051, "verifier": 50052}


def manifests() -> dict[tuple[str, str], Any]:
    """All resources that the kustomization lists, by kind and name."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    found = {}
    for file in kustomization["resources"]:
        for document in yaml.safe_load_all((KUBERNETES / file).read_text()):
            found[document["kind"], document["metadata"]["name"]] = document
    return found


def pod(name: str) -> Any:
    kind = {"retriever": "StatefulSet", "verifier": "Deployment"}[name]
    return manifests()[kind, name]["spec"]["template"]


def compose(file: str) -> Any:
    return yaml.safe_load((ROOT / file).read_text())["services"]


def options(arguments: list[str]) -> dict[str, str]:
    """`--name=value` options of a server's arguments; of `--name` alone the value is empty."""
    return {name: value for name, _, value in (one.removeprefix("--").partition("=") for one in arguments[1:])}


def test_kustomization_lists_every_manifest_and_both_images():
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files
    assert {image["name"] for image in kustomization["images"]} == {"laser-retriever", "laser-verifier"}
    assert manifests()["Namespace", kustomization["namespace"]]


@pytest.mark.parametrize("name", PORTS)
def test_service_selects_the_pods_and_leads_to_the_port_they_listen_on(name):
    service, template = manifests()["Service", name]["spec"], pod(name)
    container = template["spec"]["containers"][0]
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert [(port["port"], named[port["targetPort"]]) for port in service["ports"]] == [(PORTS[name], PORTS[name])]
    assert options(container["args"])["listen"] == f"0.0.0.0:{PORTS[name]}"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == PORTS[name]


def test_the_verifiers_service_shows_clients_every_pod():
    assert manifests()["Service", "verifier"]["spec"]["clusterIP"] == "None"


def test_verifier_names_the_headless_service_of_the_retrievers():
    service, stateful_set = manifests()["Service", "retriever"], manifests()["StatefulSet", "retriever"]
    assert service["spec"]["clusterIP"] == "None", "a virtual address would hide all shards but one"
    assert stateful_set["spec"]["serviceName"] == service["metadata"]["name"]
    container = pod("verifier")["spec"]["containers"][0]
    assert options(container["args"])["retriever"] == f"{service['metadata']['name']}:{PORTS['retriever']}"


def test_retriever_pods_advertise_the_name_that_their_service_gives_them():
    container = pod("retriever")["spec"]["containers"][0]
    given = options(container["args"])
    assert given["name"] == "$(POD_NAME)"
    assert given["advertise"] == f"$(POD_NAME).retriever.$(POD_NAMESPACE).svc:{PORTS['retriever']}"
    fields = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container["env"]}
    assert fields == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}


@pytest.mark.parametrize("name", PORTS)
def test_pods_are_unprivileged_and_can_write_only_to_their_volumes(name):
    spec = pod(name)["spec"]
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"]
    assert f"USER {spec['securityContext']['runAsUser']}:" in dockerfile(name)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("name", PORTS)
def test_running_calls_get_their_grace_before_the_pod_or_container_is_killed(name):
    spec, cli = pod(name)["spec"], {"retriever": retriever_cli, "verifier": verifier_cli}[name]
    container = spec["containers"][0]
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep" and int(seconds) >= 5
    grace_s = cli._parser().parse_args(container["args"]).grace_s
    assert grace_s >= 10
    at_end_s = verifier_cli._ENGINE_END_S + verifier_cli._DRAIN_S if name == "verifier" else 0.0
    assert spec["terminationGracePeriodSeconds"] >= int(seconds) + grace_s + at_end_s
    service = compose("docker-compose.yml")[name]
    grace_s = cli._parser().parse_args(unset_variables(service["command"])).grace_s
    assert float(service["stop_grace_period"].removesuffix("s")) >= grace_s + at_end_s


@pytest.mark.parametrize("name", PORTS)
def test_at_most_one_pod_of_a_kind_is_moved_at_a_time(name):
    budget = manifests()["PodDisruptionBudget", name]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= pod(name)["metadata"]["labels"].items()


def test_a_verifier_has_as_many_threads_as_its_pod_asks_processors_for():
    container = pod("verifier")["spec"]["containers"][0]
    (threads,) = [entry for entry in container["env"] if entry["name"] == "OMP_NUM_THREADS"]
    assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "requests.cpu"}}
    assert int(container["resources"]["requests"]["cpu"]) >= 1


def test_pools_claim_may_be_written_by_all_shards():
    claim = manifests()["PersistentVolumeClaim", "pools"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = pod("retriever")["spec"]["volumes"]
    assert {"name": "pools", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in volumes


@pytest.mark.parametrize(
    "arguments",
    [pod("retriever")["spec"]["containers"][0]["args"], compose("docker-compose.yml")["retriever"]["command"]],
    ids=["kubernetes", "compose"],
)
def test_retriever_command_takes_the_arguments_given(arguments):
    parsed = retriever_cli._parser().parse_args(arguments)
    assert (parsed.listen, str(parsed.pools)) == ("0.0.0.0:50051", "/pools")


@pytest.mark.parametrize(
    "arguments",
    [
        pod("verifier")["spec"]["containers"][0]["args"],
        compose("docker-compose.yml")["verifier"]["command"],
        compose("docker-compose.gpu.yml")["verifier"]["command"],
    ],
    ids=["kubernetes", "compose", "compose-gpu"],
)
def test_verifier_command_takes_the_arguments_given(arguments):
    parsed = verifier_cli._parser().parse_args(unset_variables(arguments))
    assert (parsed.listen, parsed.retriever) == ("0.0.0.0:50052", "retriever:50051")
    assert parsed.model == f"/models/{EXAMPLE_MODEL_NAME}"


def test_metrics_are_served_where_prometheus_looks_for_them():
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    looked_at = {found["names"][0]: found["port"] for job in jobs for found in job["dns_sd_configs"]}
    assert set(looked_at) == set(PORTS)
    for name, port in looked_at.items():
        container = pod(name)["spec"]["containers"][0]
        assert options(container["args"])["metrics-port"] == str(port)
        assert {"name": "metrics", "containerPort": port} in container["ports"]
        service = compose("docker-compose.yml")[name]
        assert f"--metrics-port {port}" in " ".join(service["command"]).replace("=", " ")
        assert str(port) in service["expose"]


def test_pools_on_a_shared_volume_are_read_into_memory():
    assert manifests()["PersistentVolumeClaim", "pools"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "--read-into-memory" in pod("retriever")["spec"]["containers"][0]["args"]


def test_gpu_override_changes_the_device_alone():
    plain = options(compose("docker-compose.yml")["verifier"]["command"])
    gpu = options(compose("docker-compose.gpu.yml")["verifier"]["command"])
    assert (plain.pop("device"), gpu.pop("device")) == ("cpu", "cuda")
    assert plain == gpu


def test_compose_publishes_only_the_verifier_and_only_to_its_own_host_by_default():
    services = compose("docker-compose.yml")
    assert "ports" not in services["retriever"], "a fixed port allows no second replica"
    assert unset_variables(services["verifier"]["ports"]) == ["127.0.0.1:50052:50052"]


@pytest.mark.parametrize("name", PORTS)
def test_image_exposes_and_checks_the_default_port(name):
    text = dockerfile(name)
    assert f"EXPOSE {PORTS[name]}\n" in text
    assert f'CMD ["laser", "health", "127.0.0.1:{PORTS[name]}"]' in text
    assert f'"0.0.0.0:{PORTS[name]}"]' in text


def test_wheelhouse_holds_the_example_model_that_the_code_asks_for():
    makefile = (ROOT / "Makefile").read_text()
    assert f"\nEXAMPLE_MODEL := {EXAMPLE_MODEL_WHEEL.name}=={EXAMPLE_MODEL_WHEEL.version}\n" in makefile
    assert f"Path('/models/{EXAMPLE_MODEL_NAME}')" in dockerfile("verifier")


def test_requirements_of_the_retriever_image_bring_no_torch():
    listed = requirements("retriever")
    assert {"numba", "numpy", "grpcio"} <= listed
    assert not {"torch", "transformers"} & listed
    assert {"torch", "transformers", "grpcio"} <= requirements("verifier")


def test_constraints_pin_everything_the_project_names():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][^+ ]*", line) for line in lines), "exact versions, no local builds"
    pinned = {line.partition("==")[0] for line in lines}
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert requirements(*extras) <= pinned


@pytest.mark.parametrize("name", PORTS)
def test_what_an_image_compiles_beforehand_is_there(name: str):
    (program,) = re.findall(r'NUMBA_CACHE_DIR=\S+ \S+/python -c \\\s+"(.+)"', dockerfile(name))
    assert "laser_" in program
    subprocess.run([sys.executable, "-c", program], check=True)


def dockerfile(name: str) -> str:
    return (ROOT / "deploy" / f"{name}.Dockerfile").read_text()


def requirements(*extras: str) -> set[str]:
    """Names that `deploy/requirements.py` prints."""
    command = [sys.executable, ROOT / "deploy" / "requirements.py", *extras]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {re.split(r"[<>=[]", line)[0].lower() for line in printed}


def unset_variables(values: list[str]) -> list[str]:
    """Compose's `${NAME:-default}` with NAME unset."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for value in values]


def test_the_image_of_the_example_model_gets_every_file_that_makes_it():
    package, needed, wanted = ROOT / "recsys" / "laser_recsys", set(), ["example_model"]
    while wanted:
        name = wanted.pop()
        if name not in needed:
            needed.add(name)
            text = (package / f"{name}.py").read_text(encoding="utf8")
            wanted += re.findall(r"^from laser_recsys\.(\w+) import", text, re.MULTILINE)
    copied = re.findall(
        r"recsys/laser_recsys/(\w+)\.py", (ROOT / "deploy" / "verifier.Dockerfile").read_text(encoding="utf8")
    )
    assert set(copied) == {*needed, "__init__"}
