{{- define "operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 52 characters, so that what is added to it still fits into 63. */}}
{{- define "operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Without the version, and for pods: what changes with every chart version would roll them. */}}
{{- define "operator.podLabels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{- include "operator.selectorLabels" . }}
app.kubernetes.io/part-of: tinybird-proxy
{{- end }}

{{- define "operator.labels" -}}
{{ include "operator.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The labels, and .more, which win: one key twice would be no YAML. */}}
{{- define "operator.labelsAnd" -}}
{{- toYaml (mergeOverwrite (include "operator.labels" .root | fromYaml) (deepCopy (default dict .more))) }}
{{- end }}

{{/* The reference of .image: by digest, else by tag, else by appVersion. */}}
{{- define "operator.imageReference" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{/* What the operator does in a namespace with TinybirdProxies. A test compares it with a list; see also its audit. */}}
{{- define "operator.rules" -}}
- apiGroups: [tinybird-proxy.io]
  resources: [tinybirdproxies]
  verbs: [get, list, watch, patch]
- apiGroups: [tinybird-proxy.io]
  resources: [tinybirdproxies/status]
  verbs: [patch]
- apiGroups: [tinybird-proxy.io]
  resources: [tinybirdproxies/scale]
  verbs: [patch]
# Where the API server asks for it (OpenShift): children name their TinybirdProxy with blockOwnerDeletion.
- apiGroups: [tinybird-proxy.io]
  resources: [tinybirdproxies/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [list]
# A changed URL or image is tried by a Job before it goes out.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
{{- if ne .Values.injection "None" }}
# For spec.sidecar.rollout: Evict, within what the pods' owner says it lacks.
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get]
{{- end }}
{{- if .Values.rbac.scaledObjects }}
# Not watched, as PodMonitors: a cluster may get the kind later, or lose it. Each full look repairs them.
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, create, patch, delete]
{{- end }}
{{- if not .Values.watchNamespaces }}
# Whose the API is that gives an HPA its figures. They are the whole cluster's.
- apiGroups: [apiregistration.k8s.io]
  resources: [apiservices]
  resourceNames: [v1beta1.custom.metrics.k8s.io, v1beta2.custom.metrics.k8s.io]
  verbs: [get]
{{- end }}
{{- if .Values.rbac.podMonitors }}
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, create, patch, delete]
{{- end }}
# Patched: who is to go when there are to be fewer.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
# Created only if absent, never deleted; patched: only the client Secrets that it made, when their token is rotated.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
# Whether it is being deleted, and every pod with it. A Role can grant that for its own namespace.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
{{- end }}

{{/* What the schema could only refuse without a reason. */}}
{{- define "operator.check" -}}
{{- if and .Values.watchNamespaces .Values.crds.enabled }}
{{- fail "crds.enabled: must be false with watchNamespaces, for a CRD is the whole cluster's and this release gets rights in its namespaces only; have someone who may apply files/crd.yaml of this chart" }}
{{- end }}
{{- if and .Values.metricsAPI.enabled .Values.watchNamespaces }}
{{- fail "metricsAPI.enabled: must be false with watchNamespaces, for custom.metrics.k8s.io is the whole cluster's and this release gets rights in its namespaces only; scale with KEDA or an adapter of someone who may register one" }}
{{- end }}
{{- if and .Values.metricsAPI.enabled (not .Values.rbac.create) }}
{{- fail "metricsAPI.enabled: must be false without rbac.create, for what it registers belongs to its ClusterRole, and goes with it" }}
{{- end }}
{{- if and .Values.metricsAPI.enabled (eq (int .Values.metricsAPI.port) (int .Values.metricsAPI.metricsPort)) }}
{{- fail "metricsAPI.metricsPort: must not be metricsAPI.port" }}
{{- end }}
{{- if gt (mul 4 (int64 .Values.metricsAPI.certificates.overlapSeconds)) (int64 .Values.metricsAPI.certificates.lifetimeSeconds) }}
{{- fail "metricsAPI.certificates.overlapSeconds: must be at most a quarter of metricsAPI.certificates.lifetimeSeconds, or a certificate could end before the next one may be used" }}
{{- end }}
{{- if le (int .Values.lease.durationSeconds) (int .Values.lease.renewDeadlineSeconds) }}
{{- fail "lease.renewDeadlineSeconds: must be less than lease.durationSeconds, or two operators could write at once" }}
{{- end }}
{{- if lt (int .Values.lease.renewDeadlineSeconds) (mul 2 (int .Values.lease.retryPeriodSeconds)) }}
{{- fail "lease.retryPeriodSeconds: must be at most half of lease.renewDeadlineSeconds, or one missed renewal would end the leader" }}
{{- end }}
{{- include "injection.check" . }}
{{- include "webhook.check" . }}
{{- $own := include "operator.labels" (dict "Chart" .Chart "Release" .Release "Values" (set (deepCopy .Values) "commonLabels" dict)) | fromYaml }}
{{- $given := dict "commonLabels" .Values.commonLabels }}
{{- range $part, $holder := .Values.monitoring }}{{ $_ := set $given (printf "monitoring.%s.labels" $part) $holder.labels }}{{ end }}
{{- range $field, $labels := $given }}
{{- range $key, $_ := $labels }}
{{- if or (hasKey $own $key) (eq $key "pod-template-hash") (hasPrefix "tinybird-proxy.io/" $key) }}
{{- fail (printf "%s: %s is set by the chart, by Kubernetes or by the operator; leave it out" $field $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
