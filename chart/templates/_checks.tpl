{{/* Contradictions that a schema can only call invalid: each with what to do. */}}
{{- define "raftserve.checks" -}}
{{- if not (has (int .Values.replicas) (list 1 3 5)) }}
{{- fail (printf "replicas %d: choose 1, 3 or 5, since an even number of peers survives no more failures than one fewer" (int .Values.replicas)) }}
{{- end }}
{{- $name := include "raftserve.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "objects would be named %s, which no Service can be: set fullnameOverride to lower-case letters, digits and hyphens, a letter first" $name) }}
{{- end }}
{{- range $label := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" }}
{{- if hasKey (default dict $.Values.podLabels) $label }}
{{- fail (printf "podLabels: %s is a label by which the chart finds its pods, and has its value: leave it out" $label) }}
{{- end }}
{{- end }}
{{- range $label := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/managed-by" "app.kubernetes.io/part-of" "raftserve.io/surface" }}
{{- if hasKey (default dict $.Values.service.labels) $label }}
{{- fail (printf "service.labels: %s is a label by which a release and its Services are found, and has its value: leave it out" $label) }}
{{- end }}
{{- end }}
{{- $set := list "POD_NAME" "RAFTSERVE_POD_IPS" "RAFTSERVE_PEERS" }}
{{- range $at, $variable := .Values.extraEnv }}
{{- $variable := toString (required (printf "extraEnv[%d] has no name: give it one" $at) $variable.name) }}
{{- if has $variable (list "POD_NAME" "RAFTSERVE_POD_IPS" "RAFTSERVE_PEERS") }}
{{- fail (printf "extraEnv[%d]: %s is set by the chart, and a container has each variable once: leave it out" $at $variable) }}
{{- else if has $variable $set }}
{{- fail (printf "extraEnv[%d]: %s is there twice, and a container has each variable once: keep one of them" $at $variable) }}
{{- end }}
{{- $set = append $set $variable }}
{{- end }}
{{- $by := include "raftserve.flags" . | fromYaml }}
{{- range $at, $argument := .Values.extraArgs }}
{{- $flag := regexFind `^--[^=]+` $argument }}
{{- if and (hasKey $by $flag) (or (ne $flag "--access-log") $.Values.log.access) }}
{{- fail (printf "extraArgs[%d]: %s is for the chart to set, and a peer takes it once: leave it out%s" $at $flag (get $by $flag | empty | ternary "" (printf ", and set %s" (get $by $flag)))) }}
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
{{- /* A release that is there without a class has bound its volumes, and a claim template cannot be changed. */}}
{{- $claims := dig "spec" "volumeClaimTemplates" list (include "raftserve.liveSet" . | fromJson) }}
{{- $classless := false }}
{{- range $claims }}{{ $classless = not (hasKey .spec "storageClassName") }}{{ end }}
{{- if and (or .Values.storage.selector .Values.storage.volumeNames) (kindIs "invalid" .Values.storage.storageClassName) (not $classless) }}
{{- fail (printf "%s chooses volumes, and storage.storageClassName is null, so that claims would get the cluster's default class and wait for good: set it to the class of the volumes, as `kubectl get pv` shows it, or to \"\" for volumes without a class" (empty .Values.storage.selector | ternary "storage.volumeNames" "storage.selector")) }}
{{- end }}
{{- if gt (len (default list .Values.storage.volumeNames)) (int .Values.replicas) }}
{{- fail (printf "storage.volumeNames names %d volumes for %d peers: name one for each peer at the most, or set replicas to as many as there were" (len .Values.storage.volumeNames) (int .Values.replicas)) }}
{{- end }}
{{- if and .Values.storage.volumeNames (lt (len .Values.storage.volumeNames) (int .Values.replicas)) (kindIs "string" .Values.storage.storageClassName) (empty .Values.storage.storageClassName) }}
{{- fail (printf "storage.volumeNames names %d volumes for %d peers, and without a class nothing makes the rest: make a volume by hand for each of them and name it too, or set storage.storageClassName to the class of those that there are" (len .Values.storage.volumeNames) (int .Values.replicas)) }}
{{- end }}
{{- if ne (len (default list .Values.storage.volumeNames)) (len (default list .Values.storage.volumeNames | uniq)) }}
{{- fail (printf "storage.volumeNames names a volume twice (%s): each peer needs one of its own, so name each once" (join ", " .Values.storage.volumeNames)) }}
{{- end }}
{{- if ne (len (default list .Values.provider.namespaces)) (len (default list .Values.provider.namespaces | uniq)) }}
{{- fail (printf "provider.namespaces names a namespace twice (%s): name each once" (join ", " .Values.provider.namespaces)) }}
{{- end }}
{{- range $of, $service := pick .Values "service" "adminService" }}
{{- if and $service.nodePort (eq $service.type "ClusterIP") }}
{{- fail (printf "%s.nodePort has no meaning for %s.type ClusterIP: set %s.type to NodePort or LoadBalancer" $of $of $of) }}
{{- end }}
{{- if and (ne $service.type "LoadBalancer") (or $service.loadBalancerClass $service.loadBalancerSourceRanges) }}
{{- fail (printf "%s.loadBalancerClass and %s.loadBalancerSourceRanges need %s.type LoadBalancer: set it, or leave them out" $of $of $of) }}
{{- end }}
{{- end }}
{{- if and .Values.service.nodePort (eq (int .Values.service.nodePort) (int .Values.adminService.nodePort)) }}
{{- fail (printf "service.nodePort and adminService.nodePort are both %d: choose another for one of them" (int .Values.service.nodePort)) }}
{{- end }}
{{- if and .Values.networkPolicy.enabled (ne .Values.adminService.type "ClusterIP") (not .Values.networkPolicy.adminFrom) }}
{{- fail (printf "adminService.type %s is for callers from outside, and networkPolicy lets only pods of the namespace in: name the callers in networkPolicy.adminFrom, such as {ipBlock: {cidr: 10.0.0.0/8}}, or set adminService.type to ClusterIP" .Values.adminService.type) }}
{{- end }}
{{- if and .Values.certificates.existingSecret .Values.certificates.extraNames }}
{{- fail "certificates.extraNames is for certificates made at install, and certificates.existingSecret brings its own: leave extraNames out, and have the names put into those of the Secret" }}
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

{{/* The arguments of a peer that are the chart's, and the value that each is set by. Those without a value go with the rest. */}}
{{- define "raftserve.flags" -}}
--access-log: log.access
--admin-addr: ""
--advertise-host: service.advertiseHost
--advertise-peer: ""
--cert-dir: certificates.existingSecret
--connection-age: service.connectionAge
--credentials-dir: auth.existingSecret
--data-dir: ""
--drain-grace: terminationGracePeriodSeconds
--hold-grace: terminationGracePeriodSeconds
--kubernetes-default-image: provider.image
--kubernetes-namespace: provider.namespace
--log-format: log.format
--log-level: log.level
--ops-addr: ""
--peer-addr: ""
--peers: replicas
--profile: profile
--provider: provider.name
--proxy-addr: ""
--replica-root: ""
--service-port-base: service.portBase
--stateful-set: ""
--tls-addr: tls.existingSecret
--tls-dir: tls.existingSecret
{{- end }}
