{{/* A number or a text as text: large numbers in values are floats to Helm. */}}
{{- define "tinybird-proxy.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ . | int64 }}{{ end }}
{{- end }}

{{/* .text in bytes, with .units' factors, in whole numbers only; empty if it is no such size. */}}
{{- define "tinybird-proxy.sizeBytes" -}}
{{- $pattern := "^0*([0-9]{1,18}?)(?:[.]([0-9]{1,3}))?([A-Za-z]{0,2})$" }}
{{- if regexMatch $pattern .text }}
{{- $unit := regexReplaceAll $pattern .text "${3}" }}
{{- if hasKey .units $unit }}
{{- $factor := get .units $unit | int64 }}
{{- $whole := regexReplaceAll $pattern .text "${1}" | int64 }}
{{- $fraction := regexReplaceAll $pattern .text "${2}" }}
{{- $tens := index (list 1 10 100 1000) (len $fraction) | int64 }}
{{- $thousandths := sub (printf "1%s" $fraction | int64) $tens }}
{{- if le $whole (div 4000000000000000000 $factor) }}
{{- add (mul $whole $factor) (div (mul $thousandths $factor) $tens) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A size as Kubernetes writes it, in bytes; empty if it is none. */}}
{{- define "tinybird-proxy.quantityBytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- include "tinybird-proxy.sizeBytes" (dict "text" (include "tinybird-proxy.text" .) "units" $units) }}
{{- end }}

{{/* A size as the proxy's own options have it, in bytes; empty if it is none. */}}
{{- define "tinybird-proxy.optionBytes" -}}
{{- $units := dict "" 1 "b" 1 "kb" 1000 "mb" 1000000 "gb" 1000000000 "ki" 1024 "mi" 1048576 "gi" 1073741824 }}
{{- include "tinybird-proxy.sizeBytes" (dict "text" (. | toString | lower | nospace) "units" $units) }}
{{- end }}

{{/* Bytes as a quantity: in Mi if that is exact. */}}
{{- define "tinybird-proxy.quantity" -}}
{{- $bytes := int64 . }}
{{- if mod $bytes 1048576 }}{{ $bytes }}{{ else }}{{ div $bytes 1048576 }}Mi{{ end }}
{{- end }}

{{/* What the proxy needs beside its buffer and .headroom: larger pools than the headroom allows for. */}}
{{- define "tinybird-proxy.memoryBytes" -}}
{{- $bytes := add (include "tinybird-proxy.quantityBytes" .Values.buffer.maxSize | int64) .headroom }}
{{- range .Values.extraEnv }}
{{- if has .name (list "RECEIVE_BYTES" "DEAD_LETTER_BYTES") }}
{{- $bytes = add $bytes (max 0 (sub (include "tinybird-proxy.optionBytes" (default "" .value) | default "0" | int64) 64000000)) }}
{{- end }}
{{- end }}
{{- $bytes }}
{{- end }}

{{/* Memory is requested in full: a node that runs out of it ends first the pods that use more than they requested. CPU
has no limit: a throttled event loop would fail its probes and deliver late exactly when there is most to deliver. */}}
{{- define "tinybird-proxy.resources" -}}
{{- $given := default dict .Values.resources.limits }}
{{- $memory := include "tinybird-proxy.memoryBytes" (dict "Values" .Values "headroom" 402653184) }}
{{- $limits := mergeOverwrite (dict "memory" (include "tinybird-proxy.quantity" $memory)) (deepCopy $given) }}
{{- /* Kubernetes takes a CPU limit as the request, too, if there is none; 100m might be above it and be refused. */}}
{{- $requests := ternary dict (dict "cpu" "100m") (hasKey $given "cpu") }}
{{- $_ := set $requests "memory" $limits.memory }}
{{- toYaml (dict "requests" (mergeOverwrite $requests (deepCopy (default dict .Values.resources.requests))) "limits" $limits) }}
{{- end }}
