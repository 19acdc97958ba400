{{/* Contradictions that a schema can only call invalid: each with what to do. */}}
{{- define "raftserve.checks" -}}
{{- if not (has (int .Values.replicas) (list 1 3 5)) }}
{{- fail (printf "replicas %d: choose 1, 3 or 5, since an even number of peers survives no more failures than one fewer" (int .Values.replicas)) }}
{{- end }}
{{- $users := include "raftserve.htpasswd" . }}
{{- if and .Values.auth.existingSecret (or $users .Values.auth.tokens .Values.auth.roles) }}
{{- fail "auth.existingSecret brings all credentials: move auth.credentials, auth.roles, auth.tokens and ingress.authCredentials into that Secret, or leave existingSecret empty" }}
{{- end }}
{{- if and .Values.auth.credentials .Values.ingress.authCredentials }}
{{- fail "auth.credentials and ingress.authCredentials are the same value under two names: keep auth.credentials" }}
{{- end }}
{{- if and .Values.storage.selector .Values.storage.volumeNames }}
{{- fail "storage.selector and storage.volumeNames both choose volumes: keep one of them" }}
{{- end }}
{{- if and .Values.storage.volumeNames (ne (len .Values.storage.volumeNames) (int .Values.replicas)) }}
{{- fail (printf "storage.volumeNames names %d volumes for %d peers: name one for each peer, the first peer's first" (len .Values.storage.volumeNames) (int .Values.replicas)) }}
{{- end }}
{{- if and .Values.service.nodePort (eq .Values.service.type "ClusterIP") }}
{{- fail "service.nodePort has no meaning for service.type ClusterIP: set service.type to NodePort or LoadBalancer" }}
{{- end }}
{{- if and (ne .Values.service.type "LoadBalancer") (or .Values.service.loadBalancerClass .Values.service.loadBalancerSourceRanges) }}
{{- fail "service.loadBalancerClass and service.loadBalancerSourceRanges need service.type LoadBalancer" }}
{{- end }}
{{- $port := int .Values.service.port }}
{{- $base := int .Values.service.portBase }}
{{- if and (ge $port $base) (lt $port (add $base .Values.service.portCount | int)) }}
{{- fail (printf "service.port %d is among the services' own ports, %d to %d: choose another service.port or service.portBase" $port $base (sub (add $base .Values.service.portCount) 1)) }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: name the Gateway that the route belongs to" }}
{{- end }}
{{- if and .Values.resources.limits (hasKey .Values.resources.limits "cpu") }}
{{- fail "resources.limits.cpu throttles a peer, which then misses heartbeats and loses leadership: leave it out, and set resources.requests.cpu" }}
{{- end }}
{{- if lt (int .Values.terminationGracePeriodSeconds) 60 }}
{{- fail (printf "terminationGracePeriodSeconds %d: a peer waits up to 45 seconds until the others can do without it, and only then hands over and drains: give it 60 or more" (int .Values.terminationGracePeriodSeconds)) }}
{{- end }}
{{- if not .Values.serviceAccount.create }}
{{- if not .Values.serviceAccount.name }}
{{- fail "serviceAccount.create is false: name the account to use in serviceAccount.name" }}
{{- end }}
{{- end }}
{{- end }}
