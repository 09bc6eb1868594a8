# The coordinator and the command: no libtorch, a small image.
#   docker build -f deploy/docker/coordinator.Dockerfile -t pleach .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Nothing of `cargo xtask setup` is needed: the control plane links no libtorch.
RUN cargo build --release --locked -p pleach-cli \
    && ! ldd target/release/pleach | grep -E 'libtorch|libc10'

FROM debian:bookworm-slim
COPY --from=build /src/target/release/pleach /usr/local/bin/pleach
USER 65532
EXPOSE 7700 7701
ENTRYPOINT ["pleach"]
CMD ["coordinator", "--listen", "0.0.0.0:7700", "--http", "0.0.0.0:7701", "--state", "/data/coordinator.redb"]
