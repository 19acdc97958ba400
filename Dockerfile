# raftserve's image. Two ways, both ending in the same last stage:
#
#   docker build -t raftserve .                                   compiles in the image
#   docker build -t raftserve --build-arg BINARY=ready --build-context ready=DIR .   takes DIR/raftserve
#
# `just image` does the second with the release binary of cargo.
ARG RUST=docker.io/library/rust:1.95-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot
ARG BINARY=compiled

FROM ${RUST} AS compile
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p raftserve-node --bin raftserve \
 && mkdir /out \
 && strip -o /out/raftserve target/release/raftserve

# The binary by itself, so that one name stands for either source of it.
FROM scratch AS compiled
COPY --from=compile /out/raftserve /raftserve

FROM ${BINARY} AS binary

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
CMD ["node", "--help"]
