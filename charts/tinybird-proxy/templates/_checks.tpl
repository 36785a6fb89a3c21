{{/* Variables that are set from values, or that would show a token, or that name a file that nothing mounts. */}}
{{- define "tinybird-proxy.reserved" -}}
ADMIN_HOST ADMIN_PORT ADMIN_TOKEN ADMIN_TOKEN_FILE AUTHORIZATION_TOKEN AUTHORIZATION_TOKEN_FILE BATCH_BYTES BATCH_SIZE
BUFFER_BYTES BUFFER_SIZE DRAIN_DELAY FLUSH_INTERVAL HOST NODE_ID OTEL_EXPORTER_OTLP_ENDPOINT
OTEL_EXPORTER_OTLP_HEADERS_FILE OTEL_EXPORTER_OTLP_TRACES_ENDPOINT PORT SHUTDOWN_TIMEOUT TINYBIRD_BASE_URL TINYBIRD_TOKEN TINYBIRD_TOKEN_FILE TINYBIRD_URL
TLS_CERT_FILE TLS_KEY_FILE
{{- end }}

{{/* One problem a line: what the schema could not say, or only without a reason. Tokens and URLs are not shown. */}}
{{- define "tinybird-proxy.problems" -}}
{{- $values := .Values }}
{{- $name := include "tinybird-proxy.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
fullnameOverride: the Service would be called {{ $name }}, and its name must begin with a letter and hold a-z, 0-9 and - only; give another name
{{- end }}

{{- /* Tokens */}}
{{- with .Values.tinybird }}
{{- if not (regexMatch "^https?://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?/?$" .url) }}
tinybird.url: must be an origin such as https://api.us-east.tinybird.co, without a path, query, user name or password
{{- end }}
{{- if and .token.existingSecret .token.value }}
tinybird.token: has an existingSecret and a value; give one of them
{{- end }}
{{- if not (regexMatch "^[!-~]*$" .token.value) }}
tinybird.token.value: holds characters that cannot stand in an Authorization header, spaces or line ends perhaps
{{- end }}
{{- end }}
{{- $ways := 0 }}
{{- with .Values.clients }}
{{- range list .existingSecret .value .anyone }}{{ if . }}{{ $ways = add1 $ways }}{{ end }}{{ end }}
{{- if and (include "tinybird-proxy.tokenSecret" $) (not $ways) }}
clients: a proxy with a token of Tinybird's needs tokens for its own clients: set clients.existingSecret, or clients.value to try it out; or clients.anyone, to let whoever reaches the proxy write
{{- end }}
{{- if and (not (include "tinybird-proxy.tokenSecret" $)) $ways }}
clients: has no use without tinybird.token, for clients then send Tinybird's own tokens; set tinybird.token or leave clients out
{{- end }}
{{- if gt (int $ways) 1 }}
clients: give only one of existingSecret, value and anyone
{{- end }}
{{- if and .value (not (regexMatch "(?m)^[ \\t]*[^\\s#]" .value)) }}
clients.value: holds no token; write one a line
{{- end }}
{{- end }}

{{- /* Sizes */}}
{{- $sizes := dict }}
{{- range $field, $bounds := dict "batch" (list 1000 1000000000 "1k to 1G") "buffer" (list 1000 1000000000000 "1k to 1T") }}
{{- $given := get (get $values $field) "maxSize" }}
{{- $bytes := include "tinybird-proxy.quantityBytes" $given }}
{{- if not $bytes }}
{{ $field }}.maxSize: {{ include "tinybird-proxy.text" $given | quote }} is not a size such as 512Mi or 10M (k, M, G, T are 1000ⁿ, Ki, Mi, Gi, Ti 1024ⁿ)
{{- else if or (lt ($bytes | int64) (index $bounds 0 | int64)) (gt ($bytes | int64) (index $bounds 1 | int64)) }}
{{ $field }}.maxSize: {{ include "tinybird-proxy.text" $given }} must be from {{ index $bounds 2 }}
{{- else }}
{{- $_ := set $sizes $field ($bytes | int64) }}
{{- end }}
{{- end }}
{{- if gt (.Values.batch.maxRows | int64) (.Values.buffer.maxRows | int64) }}
batch.maxRows: {{ .Values.batch.maxRows | int64 }} is more than buffer.maxRows, {{ .Values.buffer.maxRows | int64 }}; a batch is made of what is buffered
{{- end }}
{{- if eq (len $sizes) 2 }}
{{- if gt $sizes.batch $sizes.buffer }}
batch.maxSize: {{ include "tinybird-proxy.text" .Values.batch.maxSize }} is more than buffer.maxSize, {{ include "tinybird-proxy.text" .Values.buffer.maxSize }}; a batch is made of what is buffered
{{- end }}
{{- end }}
{{- if hasKey $sizes "buffer" }}
{{- $least := include "tinybird-proxy.memoryBytes" (dict "Values" .Values "headroom" 268435456) | int64 }}
{{- $default := include "tinybird-proxy.memoryBytes" (dict "Values" .Values "headroom" 402653184) | int64 }}
{{- $limits := default dict .Values.resources.limits }}
{{- $requests := default dict .Values.resources.requests }}
{{- $limit := include "tinybird-proxy.quantityBytes" (default $default $limits.memory) }}
{{- if not $limit }}
resources.limits.memory: {{ $limits.memory | quote }} is not a size such as 1Gi
{{- else if lt ($limit | int64) $least }}
resources.limits.memory: {{ include "tinybird-proxy.text" $limits.memory }} is less than {{ include "tinybird-proxy.quantity" $least }}, which a buffer of {{ include "tinybird-proxy.text" .Values.buffer.maxSize }} needs: the kernel would end the proxy and its rows would be lost; raise the limit or lower buffer.maxSize
{{- else if $requests.memory }}
{{- $request := include "tinybird-proxy.quantityBytes" $requests.memory }}
{{- if not $request }}
resources.requests.memory: {{ $requests.memory | quote }} is not a size such as 1Gi
{{- else if gt ($request | int64) ($limit | int64) }}
resources.requests.memory: {{ include "tinybird-proxy.text" $requests.memory }} is more than the limit, {{ include "tinybird-proxy.quantity" $limit }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What leads to the pods */}}
{{- with .Values.telemetry.otlpEndpoint }}
{{- if not (regexMatch "^https?://(\\[[0-9A-Fa-f:.]+\\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$" .) }}
telemetry.otlpEndpoint: must be an http or https URL such as http://collector:4318
{{- end }}
{{- end }}
{{- if and .Values.telemetry.otlpHeaders.existingSecret (not .Values.telemetry.otlpEndpoint) }}
telemetry.otlpHeaders: needs telemetry.otlpEndpoint: there is no collector to send headers to
{{- end }}
{{- if .Values.ingress.enabled }}
{{- if not .Values.ingress.host }}
ingress.host: is missing; an Ingress needs it
{{- end }}
{{- if not .Values.service.enabled }}
ingress.enabled: an Ingress needs the Service; set service.enabled
{{- end }}
{{- end }}
{{- if regexMatch "^0+%?$" (include "tinybird-proxy.text" .Values.podDisruptionBudget.maxUnavailable) }}
podDisruptionBudget.maxUnavailable: must be above 0: otherwise no node with a pod of it could ever be drained
{{- end }}

{{- /* What people add */}}
{{- $own := include "tinybird-proxy.labels" (dict "Chart" .Chart "Release" .Release "Values" (set (deepCopy .Values) "commonLabels" dict)) | fromYaml }}
{{- $given := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels }}
{{- range $part, $holder := .Values.monitoring }}{{ $_ := set $given (printf "monitoring.%s.labels" $part) $holder.labels }}{{ end }}
{{- range $field, $labels := $given }}
{{- range $key, $_ := $labels }}
{{- if or (hasKey $own $key) (eq $key "pod-template-hash") (hasPrefix "tinybird-proxy.io/" $key) }}
{{ $field }}: {{ $key }} is set by the chart, by Kubernetes or by the operator; leave it out
{{- end }}
{{- end }}
{{- end }}
{{- if hasKey .Values.podAnnotations "kubectl.kubernetes.io/default-container" }}
podAnnotations: kubectl.kubernetes.io/default-container is set by the chart; leave it out
{{- end }}
{{- $reserved := include "tinybird-proxy.reserved" . | splitList "\n" | join " " | splitList " " }}
{{- $seen := dict }}
{{- range .Values.extraEnv }}
{{- if has .name $reserved }}
extraEnv: {{ .name }} is set from a value of its own, or would show a token, or names a file that nothing mounts; see values.yaml
{{- else if hasKey $seen .name }}
extraEnv: {{ .name }} is there twice; leave one of them out
{{- end }}
{{- $_ := set $seen .name true }}
{{- end }}

{{- /* The test */}}
{{- with .Values.helmTest.postEvent }}
{{- if .dataSource }}
{{- if not $values.service.enabled }}
helmTest.postEvent: needs the Service; set service.enabled
{{- end }}
{{- if and (not .existingSecret) (not (include "tinybird-proxy.tokenSecret" $)) }}
helmTest.postEvent: clients show Tinybird's own tokens here; give a Secret with one in helmTest.postEvent.existingSecret
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "tinybird-proxy.check" -}}
{{- with include "tinybird-proxy.problems" . | trim }}
{{- fail (printf "these values cannot be used:\n%s" .) }}
{{- end }}
{{- end }}
