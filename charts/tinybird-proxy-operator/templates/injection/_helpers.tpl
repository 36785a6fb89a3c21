{{/*
Which pods ask for a sidecar, as selectors see them. A pod's own label decides, and its namespace's only where the pod has
none: two entries. Pods that the operator makes never ask. sidecars/injection.py (chosen) says the same.
*/}}
{{- define "injection.name" -}}
{{- printf "%s-injection" (include "operator.fullname" .) }}
{{- end }}

{{/* The label that asks; a variable, so that a test can put a copy of these objects out of each other's way. */}}
{{- define "injection.label" -}}
tinybird-proxy.io/inject
{{- end }}

{{- define "injection.asks" -}}
- key: {{ include "injection.label" . }}
  operator: Exists
- key: {{ include "injection.label" . }}
  operator: NotIn
  values: ["false", ""]
{{- end }}

{{/* What a cluster needs to come up, and what injects, must never wait for injection. */}}
{{- define "injection.namespaces" -}}
- key: kubernetes.io/metadata.name
  operator: NotIn
  values:
    {{- list "kube-system" "kube-node-lease" "kube-public" .Release.Namespace | uniq | toYaml | nindent 4 }}
{{- end }}

{{- define "injection.notOurs" -}}
- key: tinybird-proxy.io/proxy
  operator: DoesNotExist
- key: tinybird-proxy.io/preflight
  operator: DoesNotExist
{{- end }}

{{- define "injection.labelledPods.objectSelector" -}}
matchExpressions:
  {{- include "injection.asks" . | nindent 2 }}
  {{- include "injection.notOurs" . | nindent 2 }}
{{- end }}

{{- define "injection.labelledPods.namespaceSelector" -}}
matchExpressions:
  {{- include "injection.namespaces" . | nindent 2 }}
{{- end }}

{{- define "injection.labelledNamespaces.objectSelector" -}}
matchExpressions:
  - key: {{ include "injection.label" . }}
    operator: DoesNotExist
  {{- include "injection.notOurs" . | nindent 2 }}
{{- end }}

{{- define "injection.labelledNamespaces.namespaceSelector" -}}
matchExpressions:
  {{- include "injection.asks" . | nindent 2 }}
  {{- include "injection.namespaces" . | nindent 2 }}
{{- end }}

{{/* What a webhook or a policy is asked about. */}}
{{- define "injection.rules" -}}
- apiGroups: [""]
  apiVersions: [v1]
  operations: [CREATE]
  resources: [pods]
  scope: Namespaced
{{- end }}

{{- define "injection.check" -}}
{{- if and (ne .Values.injection "None") .Values.watchNamespaces }}
{{- fail "injection: must be None with watchNamespaces, for what injects sidecars is the whole cluster's and this release gets rights in its namespaces only" }}
{{- end }}
{{- /* Every cluster serves v1/Pod; where even that is not known, helm renders without one, and nothing can be said. */}}
{{- $known := .Capabilities.APIVersions.Has "v1/Pod" }}
{{- if and (eq .Values.injection "Policy") $known (not (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy")) }}
{{- fail (printf "injection: must be Webhook here, for Policy needs MutatingAdmissionPolicy of admissionregistration.k8s.io/v1, which Kubernetes serves from 1.36 on, and this cluster (%s) does not" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if and (eq .Values.injection "None") (eq .Values.injectionFailurePolicy "Fail") }}
{{- fail "injectionFailurePolicy: must be Ignore with injection None, or every pod that asks for a sidecar would be refused" }}
{{- end }}
{{- end }}
