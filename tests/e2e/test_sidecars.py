"""Sidecars: one label, and an app's rows go to the proxy in its own pod."""

from tests.e2e import sidecar_pods
from tests.e2e.injected_pods import (
    app_deployment,
    asking,
    has_sidecar,
    pods,
    rendered,
    roll_out,
    sidecar,
    sidecar_of,
    until_counted,
    until_rows,
)
from tests.e2e.kubectl import (
    OPERATOR_CHART,
    SECRET_TIMEOUT_S,
    TINYBIRD_TOKEN,
    Namespace,
    documents,
    run,
    token_secret,
    until,
)

from tinybird_proxy_operator.names import INJECT_LABEL, SIDECAR_CONTAINER

ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"


def test_a_labelled_deployment_gets_it_first_and_its_init_containers_can_already_send(namespace: Namespace) -> None:
    namespace.apply(token_secret(), sidecar(namespace))
    namespace.wait_ready()
    app = app_deployment("app")
    early = sidecar_pods.app("init", "--count", "3", name="early")
    app["spec"]["template"]["spec"]["initContainers"] = [early]
    roll_out(namespace, app)
    [pod] = pods(namespace)
    assert [each["name"] for each in pod["spec"]["initContainers"]] == [SIDECAR_CONTAINER, "early"]
    assert sidecar_of(pod) == ("events", rendered(namespace)["hash"])
    name = pod["metadata"]["name"]
    assert sidecar_pods.accepted(namespace, name, "early") == ["init-1", "init-2", "init-3"]
    until("some rows with a 2xx", lambda: len(sidecar_pods.accepted(namespace, name)) > 20)
    namespace.until_arrived("init-1", "init-2", "init-3", *sidecar_pods.accepted(namespace, name))
    until_counted(namespace, injected=1)
    assert namespace.condition("SidecarsCurrent")[:2] == ("True", "SidecarsCurrent")
    # The app's own account is for the app.
    assert namespace.kubectl("exec", name, "--container", "app", "--", "ls", ACCOUNT_DIR).split()
    assert namespace.kubectl("exec", name, "--container", SIDECAR_CONTAINER, "--", "ls", ACCOUNT_DIR) == ""


def test_the_example_gives_its_app_a_sidecar(namespace: Namespace) -> None:
    secret, proxy, shop = documents(OPERATOR_CHART / "examples" / "sidecar.yaml")
    secret["stringData"]["token"] = TINYBIRD_TOKEN
    proxy["spec"]["tinybird"]["url"] = namespace.tinybird_url
    template = shop["spec"]["template"]["spec"]
    [app] = template["containers"]
    template["containers"] = [sidecar_pods.app("shop", name=app["name"])]
    template["volumes"] = [sidecar_pods.app_volume()]
    namespace.apply(secret, proxy)
    namespace.wait_ready("sidecar")
    roll_out(namespace, shop)
    until_rows(namespace, "shop-")
    until_counted(namespace, "sidecar", injected=1)


def test_a_namespace_asks_for_its_pods_and_a_pod_may_ask_for_another_or_for_none(namespace: Namespace) -> None:
    # The emulator's pod is older than the label, and would count as missed.
    namespace.kubectl("label", "pod", "tinybird", f"{INJECT_LABEL}=false")
    namespace.apply(token_secret(), sidecar(namespace), sidecar(namespace, "other", batch={"maxRows": 7}))
    namespace.wait_ready()
    namespace.wait_ready("other")
    run("kubectl", "label", "namespace", namespace.name, f"{INJECT_LABEL}=events")
    plain, other, none = (app_deployment(name, name=name) for name in ("plain", "other", "none"))
    del plain["spec"]["template"]["metadata"]["labels"][INJECT_LABEL]
    # Without a sidecar it knows of no Tinybird, so it does nothing.
    none["spec"]["template"]["spec"]["containers"][0]["command"] = ["sleep", "600"]
    roll_out(namespace, plain, asking(other, "other"), asking(none, "false"))
    [of_namespace], [of_pod], [without] = (pods(namespace, name) for name in ("plain", "other", "none"))
    assert sidecar_of(of_namespace) == ("events", rendered(namespace)["hash"])
    assert sidecar_of(of_pod) == ("other", rendered(namespace, "other")["hash"])
    assert not has_sidecar(without)
    until_counted(namespace, injected=1)
    until_counted(namespace, "other", injected=1)
    for prefix in ("plain", "other"):
        until_rows(namespace, prefix)


def test_an_app_on_port_8000_gets_it_and_one_on_its_own_port_is_refused_with_the_reason(namespace: Namespace) -> None:
    namespace.apply(token_secret(), sidecar(namespace))
    namespace.wait_ready()
    usual = app_deployment("usual", "--listen", "8000", name="usual", ports=[{"containerPort": 8000}])
    taken = app_deployment("taken", name="taken", ports=[{"containerPort": 18000}], command=["sleep", "600"])
    roll_out(namespace, usual, taken)
    [pod] = pods(namespace, "usual")
    assert has_sidecar(pod)
    assert not has_sidecar(pods(namespace, "taken")[0])
    until_counted(namespace, injected=1, refused=1)
    message = namespace.until_condition("SidecarsCurrent", "False", "SidecarsRefused")
    assert "container app: port 18000 is the sidecar's" in message
    [told] = until("the Event", lambda: namespace.events("SidecarsRefused"))
    assert "port 18000" in told
    until_rows(namespace, "usual")


def test_without_the_secret_the_app_starts_and_its_rows_wait_for_it(namespace: Namespace) -> None:
    namespace.apply(sidecar(namespace))
    rendered(namespace)
    assert namespace.condition("Ready")[:2] == ("False", "SecretNotFound")
    roll_out(namespace, app_deployment("held"))
    name = sidecar_pods.the_pod(namespace)
    until("some rows with a 2xx", lambda: len(sidecar_pods.accepted(namespace, name)) > 20)
    assert namespace.rows() == []
    namespace.until_condition("BufferHealthy", "False", "NotDelivering")
    ids = sidecar_pods.accepted(namespace, name)
    namespace.apply(token_secret())
    sidecar_pods.all_arrive(namespace, ids, at_least=20, timeout_s=SECRET_TIMEOUT_S)
    namespace.until_condition("TokenValid", "True", "Accepted")
    namespace.until_condition("Ready", "True", "Ready")


def test_a_job_completes_and_exactly_what_it_sent_has_arrived(namespace: Namespace) -> None:
    namespace.apply(token_secret(), sidecar(namespace), sidecar_pods.app_script())
    namespace.wait_ready()
    pod = {
        "containers": [sidecar_pods.app("job", "--count", "200", "--rate", "200")],
        "volumes": [sidecar_pods.app_volume()],
    }
    namespace.apply(asking(sidecar_pods.job(pod)))
    namespace.kubectl("wait", "--for=condition=Complete", "--timeout=80s", "job/app")
    assert has_sidecar(namespace.find("pods", "app=app")[0])
    assert sorted(namespace.rows()) == sorted(f"job-{number}" for number in range(1, 201))
    until_counted(namespace)
