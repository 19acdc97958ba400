{{- define "raftserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, so that names made of it stay below 63. */}}
{{- define "raftserve.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "raftserve.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "raftserve.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "raftserve.selector" -}}
app.kubernetes.io/name: {{ include "raftserve.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: peer
{{- end }}

{{- define "raftserve.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "raftserve.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: raftserve
{{- end }}

{{- define "raftserve.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "raftserve.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "raftserve.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "raftserve.peersService" -}}
{{ include "raftserve.fullname" . }}-peers
{{- end }}

{{/* What follows a pod's name in its host name. */}}
{{- define "raftserve.peersDomain" -}}
{{ include "raftserve.peersService" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{- define "raftserve.certificates" -}}
{{ default (printf "%s-certificates" (include "raftserve.fullname" .)) .Values.certificates.existingSecret }}
{{- end }}

{{- define "raftserve.credentials" -}}
{{ default (printf "%s-credentials" (include "raftserve.fullname" .)) .Values.auth.existingSecret }}
{{- end }}

{{/* The users' lines, from whichever of the two values has them. */}}
{{- define "raftserve.htpasswd" -}}
{{- join "\n" (concat (default list .Values.auth.credentials) (without (splitList "\n" (default "" .Values.ingress.authCredentials)) "")) }}
{{- end }}

{{- define "raftserve.roles" -}}
{{- $users := include "raftserve.htpasswd" . }}
{{- if .Values.auth.roles }}
{{- join "\n" .Values.auth.roles }}
{{- else if $users }}
{{- printf "%s:admin" (regexFind "^[^:]+" $users) }}
{{- end }}
{{- end }}

{{- define "raftserve.replicaNamespaces" -}}
{{- $first := default .Release.Namespace .Values.provider.namespace }}
{{- toJson (prepend (default list .Values.provider.namespaces) $first | uniq) }}
{{- end }}

{{/* Of the grace, in seconds: 10 are for handing over and ending, and half of the rest, but 35 at least, for the others to be
able to do without a peer. One that is to be removed is held for longer, of what is left for requests. */}}
{{- define "raftserve.holdSeconds" -}}
{{- max 35 (div (sub .Values.terminationGracePeriodSeconds 10) 2) -}}
{{- end }}

{{/* How many peers: as many as there are, however they were scaled, until the value itself is changed. */}}
{{- define "raftserve.replicas" -}}
{{- $live := include "raftserve.liveSet" . | fromJson -}}
{{- $asked := dig "metadata" "annotations" "raftserve.io/replicas" "" $live -}}
{{- if eq $asked (toString .Values.replicas) -}}
{{ dig "spec" "replicas" .Values.replicas $live | int }}
{{- else -}}
{{ .Values.replicas }}
{{- end -}}
{{- end }}

{{/* The StatefulSet as it is, or an empty one. */}}
{{- define "raftserve.liveSet" -}}
{{- lookup "apps/v1" "StatefulSet" .Release.Namespace (include "raftserve.fullname" .) | default dict | toJson -}}
{{- end }}

{{/* How many peers a peer is told of: all that there are to be, so that one which has lost its volume finds the others. */}}
{{- define "raftserve.named" -}}
{{- include "raftserve.replicas" . | int | default (int .Values.replicas) -}}
{{- end }}
