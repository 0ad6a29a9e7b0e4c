{{/* Base of all names. It begins with a letter whatever the release is called: Services must. */}}
{{- define "tandem.fullname" -}}
{{- $name := .Release.Name -}}
{{- if not (hasPrefix "tandem" $name) }}{{ $name = printf "tandem-%s" $name }}{{ end -}}
{{- .Values.fullnameOverride | default $name | replace "." "-" | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{- define "tandem.operator" -}}
{{ include "tandem.fullname" . }}-operator
{{- end -}}

{{- define "tandem.serviceAccount" -}}
{{- $made := ternary (include "tandem.operator" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $made -}}
{{- end -}}

{{- define "tandem.lease" -}}
{{- .Values.settings.lease.name | default (include "tandem.operator" .) -}}
{{- end -}}

{{- define "tandem.selectorLabels" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "tandem.labels" -}}
{{ include "tandem.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The reference of one image. Takes the image's values and the chart's appVersion: (list VALUES APPVERSION). */}}
{{- define "tandem.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- end -}}
{{- end -}}

{{/* The operator's settings file. */}}
{{- define "tandem.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $trainer := .Values.images.trainer -}}
{{- $images := dict "trainer" (include "tandem.image" (list $trainer .Chart.AppVersion)) -}}
{{- $_ := set $settings "images" (merge $images (pick $trainer "pullPolicy" "pullSecrets")) -}}
{{- $_ := set $settings.lease "name" (include "tandem.lease" .) -}}
{{- if not $settings.defaults.cacheVolume -}}
{{- $_ := set $settings.defaults "cacheVolume" (dict "emptyDir" dict) -}}
{{- end -}}
{{- $key := printf "/etc/tandem-cloudevents/%s" .Values.cloudEventsSecret.key -}}
{{- $_ := set $settings.cloudEvents "signingKeyFile" (ternary $key nil (not (empty $settings.cloudEvents.urls))) -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* The ports of the receivers of CloudEvents, as JSON: those that are named, or else those of the URLs. */}}
{{- define "tandem.cloudEventsPorts" -}}
{{- $ports := .Values.networkPolicy.cloudEvents.ports -}}
{{- if not $ports -}}
{{- range .Values.settings.cloudEvents.urls -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- $ports = append $ports (int $port) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* Changes a CRD (a dict) or a part of it in place: servers that know no CEL refuse its rules. */}}
{{- define "tandem.dropRules" -}}
{{- if kindIs "map" . -}}
{{- $_ := unset . "x-kubernetes-validations" -}}
{{- range . }}{{ include "tandem.dropRules" . }}{{ end -}}
{{- else if kindIs "slice" . -}}
{{- range . }}{{ include "tandem.dropRules" . }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* What the schema cannot say: values that exclude each other. */}}
{{- define "tandem.validate" -}}
{{- $settings := .Values.settings -}}
{{- if eq (int $settings.metricsPort) (int $settings.healthPort) -}}
{{- fail (printf "settings.healthPort: found %d, which is settings.metricsPort too; set one of them to another port" (int $settings.healthPort)) -}}
{{- end -}}
{{- if ge (int $settings.lease.renewSeconds) (int $settings.lease.durationSeconds) -}}
{{- fail (printf "settings.lease.renewSeconds: found %d, allowed is less than settings.lease.durationSeconds (%d); a third of it is usual" (int $settings.lease.renewSeconds) (int $settings.lease.durationSeconds)) -}}
{{- end -}}
{{- if and .Values.podDisruptionBudget.enabled (ge (int .Values.podDisruptionBudget.minAvailable) (int .Values.replicas)) -}}
{{- fail (printf "podDisruptionBudget.minAvailable: found %d with replicas %d, allowed is less than replicas, or no node could ever be drained; set replicas to 2 or more" (int .Values.podDisruptionBudget.minAvailable) (int .Values.replicas)) -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.metricsService.enabled) -}}
{{- fail "metricsService.enabled: found false with serviceMonitor.enabled true, which goes by that Service; set it to true" -}}
{{- end -}}
{{- if and $settings.cloudEvents.urls (not .Values.cloudEventsSecret.name) -}}
{{- fail "cloudEventsSecret.name: found nothing with settings.cloudEvents.urls set, allowed is the name of a Secret: events are always signed; kubectl create secret generic NAME --from-literal=signing-key=$(openssl rand -base64 32)" -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name (list "TANDEM_OPERATOR_CONFIG" "POD_NAME" "POD_NAMESPACE") -}}
{{- fail (printf "extraEnv: found %s, which the chart sets itself; leave it out" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
