# A container with nothing but the program, for clusters (docs/cluster.md):
#
#     docker build -t requant . && docker run --rm -v "$PWD:/data" requant inspect /data/model.gguf
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN cargo build --profile dist --features remote --bin requant

FROM gcr.io/distroless/cc-debian12
COPY --from=build /src/target/dist/requant /usr/local/bin/requant
WORKDIR /data
ENTRYPOINT ["/usr/local/bin/requant"]
