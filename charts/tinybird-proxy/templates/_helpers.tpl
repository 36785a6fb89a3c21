{{- define "tinybird-proxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 52 characters, so that what is added to it still fits into 63. */}}
{{- define "tinybird-proxy.fullname" -}}
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

{{- define "tinybird-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "tinybird-proxy.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* With the component: an operator's proxy of the release's name has the other two as well. */}}
{{- define "tinybird-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tinybird-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: proxy
{{- end }}

{{/* Without the version, and for pods: what changes with every chart version would roll them. */}}
{{- define "tinybird-proxy.podLabels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{- include "tinybird-proxy.selectorLabels" . }}
app.kubernetes.io/part-of: tinybird-proxy
{{- end }}

{{- define "tinybird-proxy.labels" -}}
{{ include "tinybird-proxy.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The labels, and .more, which win: one key twice would be no YAML. */}}
{{- define "tinybird-proxy.labelsAnd" -}}
{{- toYaml (mergeOverwrite (include "tinybird-proxy.labels" .root | fromYaml) (deepCopy .more)) }}
{{- end }}

{{/* Of pods of `helm test`, which no selector but their own finds. */}}
{{- define "tinybird-proxy.testLabels" -}}
{{- include "tinybird-proxy.labelsAnd" (dict "root" . "more" (dict "app.kubernetes.io/component" "test")) }}
{{- end }}

{{/* The image: by digest, else by tag, else by appVersion. */}}
{{- define "tinybird-proxy.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secrets in use: the user's, or those made from values. Empty: none. */}}
{{- define "tinybird-proxy.tokenSecret" -}}
{{- with .Values.tinybird.token }}
{{- if .existingSecret }}{{ .existingSecret }}{{ else if .value }}{{ include "tinybird-proxy.fullname" $ }}-tinybird{{ end }}
{{- end }}
{{- end }}

{{- define "tinybird-proxy.clientsSecret" -}}
{{- with .Values.clients }}
{{- if .existingSecret }}{{ .existingSecret }}{{ else if .value }}{{ include "tinybird-proxy.fullname" $ }}-clients{{ end }}
{{- end }}
{{- end }}
