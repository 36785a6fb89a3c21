{{/* Of everything that belongs to the webhook; so short that it is a Service's name. */}}
{{- define "webhook.name" -}}
{{- printf "%s-webhook" (include "operator.fullname" .) }}
{{- end }}

{{- define "webhook.certificateSecret" -}}
{{- printf "%s-certificates" (include "webhook.name" .) }}
{{- end }}

{{/* Another name, so that neither finds the other's when the value is changed. */}}
{{- define "webhook.certManagerSecret" -}}
{{- printf "%s-cert-manager" (include "webhook.name" .) }}
{{- end }}

{{- define "webhook.serviceAccountName" -}}
{{- if .Values.webhook.serviceAccount.create }}
{{- default (include "webhook.name" .) .Values.webhook.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.webhook.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Another component than the operator: no selector of its own finds these pods, nor the other way round. */}}
{{- define "webhook.selectorLabels" -}}
app.kubernetes.io/name: {{ include "operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: webhook
{{- end }}

{{- define "webhook.labels" -}}
{{- include "operator.labelsAnd" (dict "root" . "more" (include "webhook.selectorLabels" . | fromYaml)) }}
{{- end }}

{{- define "webhook.subject" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "webhook.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}

{{/* What the schema could only refuse without a reason. */}}
{{- define "webhook.check" -}}
{{- if eq (int .Values.webhook.port) (int .Values.webhook.metricsPort) }}
{{- fail "webhook.metricsPort: must not be webhook.port" }}
{{- end }}
{{- $certificates := .Values.webhook.certificates }}
{{- if gt (mul 4 (int64 $certificates.overlapSeconds)) (int64 $certificates.lifetimeSeconds) }}
{{- fail "webhook.certificates.overlapSeconds: must be at most a quarter of webhook.certificates.lifetimeSeconds, or a certificate could end before the next one may be used" }}
{{- end }}
{{- if and $certificates.certManager.enabled (lt (int64 $certificates.lifetimeSeconds) 3600) }}
{{- fail "webhook.certificates.lifetimeSeconds: must be at least 3600 with certManager, which makes none that live shorter" }}
{{- end }}
{{- end }}
