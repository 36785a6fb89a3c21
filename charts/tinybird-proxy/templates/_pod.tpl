{{/* The proxy's environment; the pods of `helm test` that ask Tinybird get the same. */}}
{{- define "tinybird-proxy.env" -}}
- name: PORT
  value: "8000"
# Every address of the pod, of IPv6 and IPv4.
- name: HOST
  value: "::"
- name: ADMIN_PORT
  value: "8001"
# The kubelet's probes do not come from inside the pod.
- name: ADMIN_HOST
  value: "::"
{{- if .Values.adminToken.existingSecret }}
- name: ADMIN_TOKEN_FILE
  value: /etc/tinybird-proxy/admin/token
{{- end }}
- name: TINYBIRD_URL
  value: {{ .Values.tinybird.url | quote }}
{{- if include "tinybird-proxy.tokenSecret" . }}
- name: TINYBIRD_TOKEN_FILE
  value: /etc/tinybird-proxy/tinybird/token
{{- end }}
{{- if include "tinybird-proxy.clientsSecret" . }}
- name: AUTHORIZATION_TOKEN_FILE
  value: /etc/tinybird-proxy/clients/accepted
{{- end }}
- name: BATCH_SIZE
  value: {{ .Values.batch.maxRows | int64 | quote }}
- name: BATCH_BYTES
  value: {{ include "tinybird-proxy.quantityBytes" .Values.batch.maxSize | quote }}
- name: FLUSH_INTERVAL
  value: {{ .Values.batch.flushIntervalMilliseconds | int64 }}ms
- name: BUFFER_SIZE
  value: {{ .Values.buffer.maxRows | int64 | quote }}
- name: BUFFER_BYTES
  value: {{ include "tinybird-proxy.quantityBytes" .Values.buffer.maxSize | quote }}
- name: DRAIN_DELAY
  value: 5s
- name: SHUTDOWN_TIMEOUT
  value: {{ .Values.drain.shutdownTimeoutSeconds | int64 }}s
{{- if .Values.telemetry.otlpHeaders.existingSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS_FILE
  value: /etc/tinybird-proxy/otlp/headers
{{- end }}
{{- with .Values.telemetry.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
- name: NODE_ID
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: metadata.name
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Name, Secret, key, file and directory of each Secret in use, as JSON. One that is optional keeps no pod waiting. */}}
{{- define "tinybird-proxy.secrets" -}}
{{- $made := .Values }}
{{- $found := list }}
{{- with include "tinybird-proxy.tokenSecret" . }}
{{- $key := ternary $made.tinybird.token.key "token" (ne $made.tinybird.token.existingSecret "") }}
{{- $found = append $found (dict "volume" "tinybird-token" "secret" . "key" $key "file" "token" "directory" "tinybird") }}
{{- end }}
{{- with include "tinybird-proxy.clientsSecret" . }}
{{- $key := ternary $made.clients.key "token" (ne $made.clients.existingSecret "") }}
{{- $found = append $found (dict "volume" "client-tokens" "secret" . "key" $key "file" "accepted" "directory" "clients") }}
{{- end }}
{{- with .Values.adminToken }}
{{- if .existingSecret }}
{{- $found = append $found (dict "volume" "admin-token" "secret" .existingSecret "key" .key "file" "token" "directory" "admin") }}
{{- end }}
{{- end }}
{{- with .Values.telemetry.otlpHeaders }}
{{- if .existingSecret }}
{{- $found = append $found (dict "volume" "otlp-headers" "secret" .existingSecret "key" .key "file" "headers" "directory" "otlp" "optional" true) }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* Whole directories: a file mounted by subPath never changes with its Secret. */}}
{{- define "tinybird-proxy.volumeMounts" -}}
{{- range include "tinybird-proxy.secrets" . | fromJsonArray }}
- name: {{ .volume }}
  mountPath: /etc/tinybird-proxy/{{ .directory }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "tinybird-proxy.volumes" -}}
{{- range include "tinybird-proxy.secrets" . | fromJsonArray }}
- name: {{ .volume }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    {{- if .optional }}
    optional: true
    {{- end }}
    items:
      - key: {{ .key | quote }}
        path: {{ .file }}
{{- end }}
{{- end }}

{{/* Over nodes and zones where there are several; never a reason for a pod to wait. */}}
{{- define "tinybird-proxy.spread" -}}
{{- $selector := dict "matchLabels" (include "tinybird-proxy.selectorLabels" . | fromYaml) }}
{{- $constraints := list }}
{{- range .Values.topologySpreadConstraints }}
{{- /* Without a selector a constraint counts no pod, and spreads nothing. */}}
{{- $constraints = append $constraints (hasKey . "labelSelector" | ternary . (set (deepCopy .) "labelSelector" $selector)) }}
{{- else }}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
{{- /* Each rollout's pods spread among themselves, not around those that are about to go. */}}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" $selector "matchLabelKeys" (list "pod-template-hash")) }}
{{- end }}
{{- end }}
{{- toYaml $constraints }}
{{- end }}

{{/* Of every pod of the chart: where it may run and with what. */}}
{{- define "tinybird-proxy.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
