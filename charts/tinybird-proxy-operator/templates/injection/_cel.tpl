{{/*
sidecars/injection.py in CEL: every function here has its like there, with the same results and the same sentences.
tests/operator/injection_cases.py is the table for both. Variables are evaluated when they are first used, once.
*/}}

{{/*
.ports and .volumes: CEL for what of the sidecar nothing else in the pod may have. With nothing that Kubernetes 1.30 does
not know: 1.31 takes no more in a new ValidatingAdmissionPolicy, and the webhook needs no newer one.
*/}}
{{- define "injection.refusalVariables" -}}
- name: asked
  expression: >-
    object.metadata.?labels[?"{{ include "injection.label" .root }}"].orValue(
    namespaceObject.metadata.?labels[?"{{ include "injection.label" .root }}"].orValue(""))
- name: hash
  expression: object.metadata.?annotations[?"tinybird-proxy.io/sidecar-hash"]
- name: init
  expression: object.spec.?initContainers.orValue([])
- name: others
  expression: variables.init.filter(c, c.name != "tinybird-proxy")
- name: theirs
  expression: 'object.spec.containers + (variables.hash.hasValue() ? variables.others : variables.init)'
- name: podVolumes
  expression: object.spec.?volumes.orValue([])
- name: ports
  expression: {{ .ports | squote }}
- name: volumes
  expression: {{ .volumes | squote }}
- name: onItsPorts
  expression: >-
    variables.theirs.filter(c, c.?ports.orValue([]).exists(p, p.?protocol.orValue("TCP") == "TCP" && p.containerPort in
    variables.ports))
- name: ofItsVolumes
  expression: 'variables.hash.hasValue() ? [] : variables.podVolumes.filter(v, v.name in variables.volumes)'
- name: refusal
  expression: >-
    object.spec.?hostNetwork.orValue(false) ?
    "spec.hostNetwork: the sidecar would listen on the node's own ports;
    let the pod send to a TinybirdProxy with mode Deployment" :
    object.spec.?os.?name.orValue("") == "windows" ?
    "spec.os.name: the sidecar is for Linux; let the pod send to a TinybirdProxy with mode Deployment" :
    object.spec.?nodeSelector[?"kubernetes.io/os"].orValue("") == "windows" ?
    "spec.nodeSelector: the sidecar is for Linux; let the pod send to a TinybirdProxy with mode Deployment" :
    ["limits", "requests"].exists(kind, size(object.spec.?resources[?kind].orValue({})) > 0) ?
    "spec.resources: the resources of the whole pod leave no room that is known for the sidecar;
    set those of each container instead" :
    variables.theirs.exists(c, c.name == "tinybird-proxy") ?
    "the pod has a container tinybird-proxy of its own, and two of one name cannot be:
    give it another name, or have no sidecar by the label tinybird-proxy.io/inject=false" :
    size(variables.onItsPorts) > 0 ? "container " + variables.onItsPorts[0].name + ": port " +
    string(variables.onItsPorts[0].ports.filter(p, p.?protocol.orValue("TCP") == "TCP" && p.containerPort in
    variables.ports)[0].containerPort) + " is the sidecar's; let it listen on another" :
    size(variables.ofItsVolumes) > 0 ? "volume " + variables.ofItsVolumes[0].name +
    ": the name is that of a volume of the sidecar's; give it another" : ""
{{- end }}

{{/* names.SIDECAR_VOLUMES: whichever a sidecar may bring along. */}}
{{- define "injection.everyVolume" -}}
["tinybird-proxy-no-account", "tinybird-proxy-token", "tinybird-proxy-otlp-headers"]
{{- end }}

{{- define "injection.variables" -}}
- name: sidecar
  expression: params.status.sidecar
{{ include "injection.refusalVariables" (dict "root" .
  "ports" `variables.sidecar.container.?ports.orValue([]).filter(p, p.?protocol.orValue("TCP") == "TCP").map(p, p.containerPort)`
  "volumes" "variables.sidecar.?volumes.orValue([]).map(v, v.name)") }}
# Evaluated once for each TinybirdProxy of the pod's namespace: only the one that it names gives something.
- name: wanted
  expression: >-
    params.metadata.name == variables.asked && params.?status.?sidecar.hasValue() && variables.refusal == ""
- name: env
  expression: variables.sidecar.?env.orValue([])
- name: current
  expression: variables.hash.orValue("") == variables.sidecar.hash
# After the last native sidecar of a mesh, else first.
- name: place
  expression: >-
    variables.others.map(c, c.name in ["istio-proxy", "linkerd-proxy"] && c.?restartPolicy.orValue("") ==
    "Always").lastIndexOf(true) + 1
# The last one first, so that a removal moves none that is still to be removed.
- name: found
  expression: >-
    lists.range(size(variables.init)).map(i, size(variables.init) - 1 - i).filter(i,
    variables.init[i].name == "tinybird-proxy")
- name: guaranteed
  expression: >-
    variables.sidecar.?guaranteedResources.hasValue() && (object.spec.containers + variables.others).all(c,
    ["cpu", "memory"].all(what, c.?resources.?limits[?what].hasValue() &&
    quantity(string(c.resources.limits[what])).compareTo(quantity("0")) != 0 &&
    quantity(string(c.resources.?requests[?what].orValue(c.resources.limits[what]))).compareTo(
    quantity(string(c.resources.limits[what]))) == 0))
# Where the sidecar listens that is in the pod already.
- name: former
  expression: >-
    variables.found.map(i, variables.init[i].?ports.orValue([]).filter(p, p.?protocol.orValue("TCP") == "TCP").map(p,
    "http://127.0.0.1:" + string(p.containerPort))).flatten()
- name: resources
  expression: >-
    variables.guaranteed ? variables.sidecar.guaranteedResources : variables.sidecar.container.?resources.orValue({})
- name: asRendered
  expression: >-
    size(variables.found) == 1 && variables.current && ["limits", "requests"].all(kind,
    variables.resources[?kind].orValue({}).all(what,
    variables.init[variables.found[0]].?resources[?kind][?what].hasValue() &&
    quantity(string(variables.init[variables.found[0]].resources[kind][what])).compareTo(
    quantity(string(variables.resources[kind][what]))) == 0))
# Of what was put in before, also what this sidecar has no more.
- name: staleVolumes
  expression: >-
    lists.range(size(variables.podVolumes)).map(i, size(variables.podVolumes) - 1 - i).filter(i,
    (variables.podVolumes[i].name in variables.volumes || variables.hash.hasValue() && variables.podVolumes[i].name in
    {{ include "injection.everyVolume" . }}) && !variables.current)
- name: missingVolumes
  expression: >-
    variables.sidecar.?volumes.orValue([]).filter(v, !variables.current ||
    !variables.podVolumes.exists(own, own.name == v.name))
- name: grace
  expression: >-
    variables.sidecar.?gracePeriod.orValue("") == "Raise" ? variables.sidecar.?gracePeriodSeconds.orValue(0) : 0
{{- end }}

{{/* Of the containers in the list .of, from .from on: those of the pod at .path, .shift further back. */}}
{{- define "injection.envPatch" -}}
{{ .of }}.transformList(i, c, i >= {{ .from }}, [variables.env.filter(e, !c.?env.orValue([]).exists(own, own.name in
[e.name, variables.env[0].name]))].map(missing, size(missing) == 0 ? [] : size(c.?env.orValue([])) == 0 ?
[JSONPatch{op: "add", path: "/spec/{{ .path }}/" + string(i + {{ .shift }}) + "/env", value: missing}] :
missing.transformList(j, e, JSONPatch{op: "add", path: "/spec/{{ .path }}/" + string(i + {{ .shift }}) + "/env/" +
string(j), value: e})).flatten()).flatten()
{{- end }}

{{/* A URL that leads to the sidecar that the pod was copied with. */}}
{{- define "injection.urlPatch" -}}
(size(variables.former) == 0 || size(variables.env) == 0 ? [] : {{ .of }}.transformList(i, c, i >= {{ .from }},
c.?env.orValue([]).transformList(j, e, e.name == variables.env[0].name && e.?value.orValue("") in variables.former &&
e.value != variables.env[0].value, JSONPatch{op: "replace", path: "/spec/{{ .path }}/" + string(i + {{ .shift }}) +
"/env/" + string(j) + "/value", value: variables.env[0].value})).flatten())
{{- end }}

{{/* Of a label or an annotation. */}}
{{- define "injection.entryPatch" -}}
(has(object.metadata.{{ .field }}) ?
[JSONPatch{op: "add", path: "/metadata/{{ .field }}/" + jsonpatch.escapeKey("{{ .key }}"), value: {{ .value }}}] :
[JSONPatch{op: "add", path: "/metadata/{{ .field }}", value: {"{{ .key }}": {{ .value }}}}])
{{- end }}

{{- define "injection.patch" -}}
!variables.wanted ? [] :

(variables.asRendered ? (variables.found[0] == variables.place ? [] : [JSONPatch{op: "move",
from: "/spec/initContainers/" + string(variables.found[0]), path: "/spec/initContainers/" + string(variables.place)}]) :
variables.found.map(i, JSONPatch{op: "remove", path: "/spec/initContainers/" + string(i)}) +
(size(variables.init) == 0 ?
[JSONPatch{op: "add", path: "/spec/initContainers", value: [variables.sidecar.container]}] :
[JSONPatch{op: "add", path: "/spec/initContainers/" + string(variables.place), value: variables.sidecar.container}]) +
(variables.guaranteed ? [JSONPatch{op: "add",
path: "/spec/initContainers/" + string(variables.place) + "/resources", value: variables.resources}] : [])) +

{{ include "injection.envPatch" (dict "of" "variables.others" "from" "variables.place" "path" "initContainers" "shift" 1) }} +

{{ include "injection.envPatch" (dict "of" "object.spec.containers" "from" 0 "path" "containers" "shift" 0) }} +

{{ include "injection.urlPatch" (dict "of" "variables.others" "from" "variables.place" "path" "initContainers" "shift" 1) }} +

{{ include "injection.urlPatch" (dict "of" "object.spec.containers" "from" 0 "path" "containers" "shift" 0) }} +

variables.staleVolumes.map(i, JSONPatch{op: "remove", path: "/spec/volumes/" + string(i)}) +
(size(variables.missingVolumes) == 0 ? [] : size(variables.podVolumes) == 0 ?
[JSONPatch{op: "add", path: "/spec/volumes", value: variables.missingVolumes}] :
variables.missingVolumes.map(v, JSONPatch{op: "add", path: "/spec/volumes/-", value: v})) +

{{ include "injection.entryPatch" (dict "field" "labels" "key" "tinybird-proxy.io/injected" "value" "variables.asked") }} +
{{ include "injection.entryPatch" (dict "field" "annotations" "key" "tinybird-proxy.io/sidecar-hash" "value" "variables.sidecar.hash") }} +

(variables.grace > object.spec.?terminationGracePeriodSeconds.orValue(30) ?
[JSONPatch{op: "add", path: "/spec/terminationGracePeriodSeconds", value: variables.grace}] : [])
{{- end }}

{{/* A kubelet's picture of a static pod: the API server cannot change it. */}}
{{- define "injection.matchConditions" -}}
- name: not-a-mirror
  expression: '!("kubernetes.io/config.mirror" in object.metadata.?annotations.orValue({}))'
{{- end }}
