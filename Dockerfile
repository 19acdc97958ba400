# raftserve's image. Either the binary is compiled in it:
#
#   docker build -t raftserve .
#
# or a directory that holds the binary stands for the first stage, as `just image` does with cargo's release build:
#
#   docker build -t raftserve --build-context binary=DIR .
ARG RUST=docker.io/library/rust:1.95-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST} AS binary
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p raftserve-node --bin raftserve \
 && strip -o /raftserve target/release/raftserve

# The C library and certificates are all that the binary needs of it.
FROM ${BASE}
LABEL org.opencontainers.image.title="raftserve" \
      org.opencontainers.image.description="SkyServe's controller and load balancer as three equal peers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/raftserve/raftserve"
COPY --from=binary --chmod=0755 /raftserve /usr/local/bin/raftserve
# By number, so that runAsNonRoot can be checked.
USER 10001:10001
EXPOSE 8080 8443 7000 7001 7002
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/raftserve"]
CMD ["--help"]
