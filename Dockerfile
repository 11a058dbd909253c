# docker build -t consent-gate .                                   the worker
# docker build -t gate-simulator --target simulator .              the stand-in for Selligent's gate

FROM rust:1.95-slim-bookworm AS worker-build
WORKDIR /src
# jemalloc is built with make; any version does.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*
# The dependencies first, around empty programs: this layer stays while only src/ changes.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src/bin/gate-simulator \
 && touch src/lib.rs \
 && echo 'fn main() {}' > src/main.rs \
 && cp src/main.rs src/bin/gate-simulator/main.rs \
 && cargo build --release --locked --features jemalloc --bin consent-gate
COPY src src
# cargo compares times, and a copied file may be older than the empty one that it replaces.
RUN find src -name '*.rs' -exec touch {} + \
 && cargo build --release --locked --features jemalloc --bin consent-gate \
 && mkdir /records \
 && cp /lib/*-linux-gnu/libgcc_s.so.1 /

FROM worker-build AS simulator-build
RUN cargo build --release --locked --features jemalloc --bin gate-simulator

# glibc, certificates and time zones, and no shell, no OpenSSL, no C++. What Rust's own
# unwinding needs beside them is one library; /usr/lib is among the places where it is looked for.
FROM gcr.io/distroless/base-nossl-debian12:nonroot AS base
COPY --from=worker-build /libgcc_s.so.1 /usr/lib/libgcc_s.so.1

# For docker-compose.yml; no part of the worker's image.
FROM base AS simulator
COPY --from=simulator-build /src/target/release/gate-simulator /usr/local/bin/gate-simulator
USER 65532:65532
WORKDIR /etc/consent-gate
EXPOSE 9090
ENTRYPOINT ["/usr/local/bin/gate-simulator"]
CMD ["--help"]

# The base brings the certificates by which brokers and gates are verified.
FROM base AS worker
LABEL org.opencontainers.image.title="consent-gate" \
      org.opencontainers.image.description="Delivers Didomi consent events from RabbitMQ to Selligent through a campaign's gate" \
      org.opencontainers.image.licenses="MIT"
COPY --from=worker-build /src/target/release/consent-gate /usr/local/bin/consent-gate
# For consent-gate map, and for one real trigger of a test person.
COPY event.example.json /usr/local/share/consent-gate/event.example.json
# What is newest of each person: mount a volume there that outlives the container.
COPY --from=worker-build --chown=65532:65532 --chmod=700 /records /var/lib/consent-gate
# STATE_DIRECTORY is where records are kept and copies of dead letters are written, unless settings say
# otherwise.
ENV STATE_DIRECTORY=/var/lib/consent-gate
VOLUME /var/lib/consent-gate
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
# consent-gate.toml is looked for here and may be absent: CONSENT_GATE_<SECTION>__<KEY> says
# everything, too. Integration documents belong into integrations/.
WORKDIR /etc/consent-gate
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
    CMD ["/usr/local/bin/consent-gate", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/consent-gate"]
CMD ["run"]
