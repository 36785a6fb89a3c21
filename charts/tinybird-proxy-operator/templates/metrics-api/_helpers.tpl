{{/* Of everything that belongs to the metrics API; so short that it is a Service's name. */}}
{{- define "metricsAPI.name" -}}
{{- printf "%s-metrics-api" (include "operator.fullname" . | trunc 51 | trimSuffix "-") }}
{{- end }}

{{- define "metricsAPI.certificateSecret" -}}
{{- printf "%s-certificates" (include "metricsAPI.name" .) }}
{{- end }}

{{- define "metricsAPI.serviceAccountName" -}}
{{- if .Values.metricsAPI.serviceAccount.create }}
{{- default (include "metricsAPI.name" .) .Values.metricsAPI.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.metricsAPI.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Another component than the operator: no selector of its own finds these pods, nor the other way round. */}}
{{- define "metricsAPI.selectorLabels" -}}
app.kubernetes.io/name: {{ include "operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: metrics-api
{{- end }}

{{- define "metricsAPI.labels" -}}
{{- include "operator.labelsAnd" (dict "root" . "more" (include "metricsAPI.selectorLabels" . | fromYaml)) }}
{{- end }}

{{/* Every metric of pods and of TinybirdProxies, as resources of RBAC, which knows no other pattern than * for them. */}}
{{- define "metricsAPI.metrics" -}}
{{- range $resource := list "pods" "tinybirdproxies.tinybird-proxy.io" }}
{{- range list "buffer_utilization_percent" "buffer_rows" "drain_time_seconds" "cpu_percent" }}
- {{ $resource }}/tinybird_proxy_{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "metricsAPI.subject" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "metricsAPI.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}
