{{/* What a schema can only call invalid, or show a pattern of: each with what to do. */}}
{{- define "raftserve.checks" -}}
{{- if not (has (int .Values.replicas) (list 1 3 5)) }}
{{- fail (printf "replicas %d: choose 1, 3 or 5, since an even number of peers survives no more failures than one fewer" (int .Values.replicas)) }}
{{- end }}
{{- $name := include "raftserve.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "objects would be named %s, which no Service can be: set fullnameOverride to lower-case letters, digits and hyphens, a letter first" $name) }}
{{- end }}
{{- $given := dict "nameOverride" .Values.nameOverride "tls.existingSecret" .Values.tls.existingSecret "certificates.existingSecret" .Values.certificates.existingSecret "auth.existingSecret" .Values.auth.existingSecret "provider.namespace" .Values.provider.namespace "ingress.tlsSecret" .Values.ingress.tlsSecret "serviceAccount.name" .Values.serviceAccount.name }}
{{- range $value, $name := $given }}
{{- if not (regexMatch "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$" (default "" $name)) }}
{{- fail (printf "%s: no object can be named %s: write lower-case letters, digits, hyphens and dots, a letter or digit first and last" $value $name) }}
{{- end }}
{{- end }}
{{- if not (regexMatch "^(sha256:[0-9a-f]{64})?$" (default "" .Values.image.digest)) }}
{{- fail (printf "image.digest %s: write sha256: and the 64 hexadecimal digits behind it, as the registry prints them" .Values.image.digest) }}
{{- end }}
{{- if not (regexMatch "^([1-9][0-9]*(ms|s|m|h))?$" (default "" .Values.service.connectionAge)) }}
{{- fail (printf "service.connectionAge %s: write a number with ms, s, m or h behind it, such as 90s" .Values.service.connectionAge) }}
{{- end }}
{{- if not (regexMatch `^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$` .Values.storage.size) }}
{{- fail (printf "storage.size %s: write a number of bytes with Ki, Mi, Gi, Ti or Pi behind it, such as 10Gi" .Values.storage.size) }}
{{- end }}
{{- if not (hasPrefix "/" .Values.ingress.path) }}
{{- fail (printf "ingress.path %s: begin it with a slash" .Values.ingress.path) }}
{{- end }}
{{- range $at, $line := .Values.auth.roles }}
{{- if not (regexMatch `^[^:\s]+:(admin|operator|viewer)$` $line) }}
{{- fail (printf "auth.roles[%d] is no NAME:ROLE: the role is admin, operator or viewer" $at) }}
{{- end }}
{{- end }}
{{- range $label := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" }}
{{- if hasKey (default dict $.Values.podLabels) $label }}
{{- fail (printf "podLabels: %s is a label by which the chart finds its pods, and has its value: leave it out" $label) }}
{{- end }}
{{- end }}
{{- /* What breaks these may be a secret in the clear: it is not repeated. */}}
{{- $htpasswd := `^[^:\s]+:\$(2[aby]|apr1)\$\S+$` }}
{{- range $at, $line := .Values.auth.credentials }}
{{- if not (regexMatch $htpasswd $line) }}
{{- fail (printf "auth.credentials[%d] is no line of htpasswd: write NAME:HASH as `htpasswd -nB NAME` prints it, never the password itself" $at) }}
{{- end }}
{{- end }}
{{- range $at, $line := splitList "\n" (default "" .Values.ingress.authCredentials | trim) }}
{{- if and $line (not (regexMatch $htpasswd $line)) }}
{{- fail (printf "ingress.authCredentials: line %d is none of htpasswd: write NAME:HASH as `htpasswd -nB NAME` prints it, never the password itself" (add1 $at)) }}
{{- end }}
{{- end }}
{{- range $at, $line := .Values.auth.tokens }}
{{- if not (regexMatch `^[^:\s]+:(admin|operator|viewer):[0-9a-f]{64}$` $line) }}
{{- fail (printf "auth.tokens[%d] is no NAME:ROLE:DIGEST: the role is admin, operator or viewer, and the digest the SHA-256 of the token in 64 hexadecimal digits, as `printf %%s TOKEN | sha256sum` prints it, never the token itself" $at) }}
{{- end }}
{{- end }}
{{- $users := include "raftserve.htpasswd" . }}
{{- $names := list }}
{{- range splitList "\n" $users }}
{{- $names = append $names (regexFind "^[^:]+" .) }}
{{- end }}
{{- if and .Values.auth.existingSecret (or $users .Values.auth.tokens .Values.auth.roles) }}
{{- fail "auth.existingSecret brings all credentials: move auth.credentials, auth.roles, auth.tokens and ingress.authCredentials into that Secret, or leave existingSecret empty" }}
{{- end }}
{{- if and .Values.auth.credentials .Values.ingress.authCredentials }}
{{- fail "auth.credentials and ingress.authCredentials are the same value under two names: keep auth.credentials" }}
{{- end }}
{{- range $role := .Values.auth.roles }}
{{- $user := regexFind "^[^:]+" $role }}
{{- if not (has $user $names) }}
{{- fail (printf "auth.roles: there is no user %s: add a line of that name to auth.credentials, or take %s out of auth.roles" $user $role) }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.tlsSecret (not .Values.ingress.enabled) }}
{{- fail "ingress.tlsSecret has no meaning without an Ingress: set ingress.enabled, or for TLS at the peers tls.existingSecret" }}
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
{{- $base := int .Values.service.portBase }}
{{- $ports := dict "service.port" .Values.service.port }}
{{- if .Values.tls.existingSecret }}
{{- $_ := set $ports "tls.port" .Values.tls.port }}
{{- end }}
{{- range $value, $port := $ports }}
{{- if and (ge (int $port) $base) (lt (int $port) (add $base $.Values.service.portCount | int)) }}
{{- fail (printf "%s %d is among the services' own ports, %d to %d: choose another %s or service.portBase" $value (int $port) $base (sub (add $base $.Values.service.portCount) 1) $value) }}
{{- end }}
{{- end }}
{{- if and .Values.tls.existingSecret (eq (int .Values.tls.port) (int .Values.service.port)) }}
{{- fail (printf "tls.port and service.port are both %d: choose another for one of them" (int .Values.tls.port)) }}
{{- end }}
{{- range $port := list 7000 7001 7002 8080 8443 }}
{{- if and (ge $port $base) (lt $port (add $base 20 | int)) }}
{{- fail (printf "service.portBase %d: services would have ports %d to %d of their own, and peers have %d for themselves: choose another service.portBase" $base $base (add $base 19) $port) }}
{{- end }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: name the Gateway that the route belongs to" }}
{{- end }}
{{- if lt (int .Values.terminationGracePeriodSeconds) 60 }}
{{- fail (printf "terminationGracePeriodSeconds %d: a peer waits up to 35 seconds until the others can do without it, and only then hands over and drains: give it 60 or more" (int .Values.terminationGracePeriodSeconds)) }}
{{- end }}
{{- if not .Values.serviceAccount.create }}
{{- if not .Values.serviceAccount.name }}
{{- fail "serviceAccount.create is false: name the account to use in serviceAccount.name" }}
{{- end }}
{{- end }}
{{- end }}
